//! Cached page walks: linear page to RAM offset, per kind of access and privilege.
//!
//! The guest cannot see this TLB: a write to a page-table entry that a cached walk went through
//! drops it (`Ram::table_writes`), so what an access does is always what a fresh walk would do.
//! Flushing it at any time is therefore free of effect, and it is never saved.

use types::PAGE_SHIFT;

/// Entries on each side; a power of two.
const ENTRIES: usize = 1024;

/// Accesses at CPL 3.
pub const SIDE_USER: u8 = 0;
/// Accesses at CPL 0 to 2, and system accesses, that SMAP keeps from user pages.
pub const SIDE_SUPERVISOR: u8 = 1;
/// Accesses at CPL 0 to 2 with EFLAGS.AC set, or without SMAP.
pub const SIDE_SUPERVISOR_ANY: u8 = 2;
/// A side that caches nothing, so that every access is checked for alignment.
pub const SIDE_NONE: u8 = 3;
const SIDES: usize = 4;

/// A tag no address has.
const NEVER: u64 = u64::MAX;
const GENERATION_SHIFT: u32 = 64 - PAGE_SHIFT;
const GENERATION_MAX: u64 = (1 << PAGE_SHIFT) - 2;

/// One cached walk. A tag is the linear page number with the TLB's generation above it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    read: u64,
    write: u64,
    exec: u64,
    /// RAM offset of the page less its linear address, wrapping.
    delta: u64,
}

const EMPTY: Entry = Entry { read: NEVER, write: NEVER, exec: NEVER, delta: 0 };

/// What a walk allows on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Loads.
    pub read: bool,
    /// Stores: the page is writable, dirty in the page table, trapped in this epoch, not watched.
    pub write: bool,
    /// Fetches.
    pub exec: bool,
}

/// The TLB of one vCPU.
pub struct Tlb {
    entries: Box<[[Entry; ENTRIES]; SIDES]>,
    generation: u64,
    /// `Ram::table_writes` when the entries were last known right.
    pub(crate) table_writes: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        Tlb::new()
    }
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Tlb {
        let entries = vec![[EMPTY; ENTRIES]; SIDES].into_boxed_slice();
        let entries = entries.try_into().unwrap_or_else(|_| unreachable!("length is SIDES"));
        Tlb { entries, generation: 0, table_writes: 0 }
    }

    #[inline(always)]
    fn tag(&self, gva: u64) -> u64 {
        (gva >> PAGE_SHIFT) | (self.generation << GENERATION_SHIFT)
    }

    #[inline(always)]
    fn entry(&self, side: u8, gva: u64) -> &Entry {
        let index = (gva >> PAGE_SHIFT) as usize % ENTRIES;
        &self.entries[side as usize % SIDES][index]
    }

    /// RAM offset for a load at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_read(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.read == self.tag(gva)).then(|| gva.wrapping_add(entry.delta))
    }

    /// RAM offset for a store at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_write(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.write == self.tag(gva)).then(|| gva.wrapping_add(entry.delta))
    }

    /// RAM offset for a fetch at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_exec(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.exec == self.tag(gva)).then(|| gva.wrapping_add(entry.delta))
    }

    /// Caches a walk: the page of `gva` is RAM at `offset` (of the page's first byte).
    pub fn insert(&mut self, side: u8, gva: u64, offset: u64, allowed: Allowed) {
        if side == SIDE_NONE {
            return;
        }
        let tag = self.tag(gva);
        let index = (gva >> PAGE_SHIFT) as usize % ENTRIES;
        let entry = &mut self.entries[side as usize][index];
        let delta = offset.wrapping_sub(gva & !types::PAGE_MASK);
        let keep = |old: u64| if old == tag && entry.delta == delta { tag } else { NEVER };
        let merged = |allow: bool, old: u64| if allow { tag } else { keep(old) };
        *entry = Entry {
            read: merged(allowed.read, entry.read),
            write: merged(allowed.write, entry.write),
            exec: merged(allowed.exec, entry.exec),
            delta,
        };
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.generation += 1;
        if self.generation > GENERATION_MAX {
            self.generation = 0;
            for side in self.entries.iter_mut() {
                side.fill(EMPTY);
            }
        }
    }

    /// Forgets that stores to the RAM page at index `page` are allowed.
    pub fn revoke_write(&mut self, page: usize) {
        for entry in self.entries.iter_mut().flatten() {
            let offset = (entry.write << PAGE_SHIFT).wrapping_add(entry.delta);
            if entry.write != NEVER && (offset >> PAGE_SHIFT) as usize == page {
                entry.write = NEVER;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Allowed = Allowed { read: true, write: true, exec: true };
    const KERNEL: u64 = 0xffff_ffff_8123_4000;

    #[test]
    fn tlb_hit_gives_offset_until_flush() {
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL + 5, 0x7000, ALL);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL + 0x123), Some(0x7123));
        assert_eq!(tlb.lookup_read(SIDE_SUPERVISOR, KERNEL + 0x123), None);
        tlb.flush();
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL + 0x123), None);
    }

    #[test]
    fn tlb_generation_wraps_to_empty() {
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        for _ in 0..=GENERATION_MAX {
            tlb.flush();
            assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
        }
    }

    #[test]
    fn tlb_revoke_write_keeps_reads() {
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        tlb.insert(SIDE_USER, KERNEL + 0x1000, 0x8000, ALL);
        tlb.revoke_write(7);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL), None);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), Some(0x7000));
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 0x1000), Some(0x8000));
    }
}
