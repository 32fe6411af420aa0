//! The page walk: every paging mode, permissions, accessed and dirty bits (SDM vol. 3, ch. 4).

use memory::{Overwritten, Ram, RamOffset};
use types::{Gpa, Gva, PAGE_MASK};

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::state::cr;
use crate::tlb::{Allowed, Reach, SIDE_SUPERVISOR, SIDE_USER};

/// Bits of a physical address the model has (CPUID 8000_0008).
pub const PHYSICAL_BITS: u32 = 46;

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = ((1 << 52) - 1) & !PAGE_MASK;
const ADDRESS_RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);

/// Bits of a page-fault error code (SDM vol. 3, 4.7).
mod code {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads data.
    Read,
    /// Stores data, or loads and stores it.
    Write,
    /// Fetches an instruction.
    Exec,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A byte of RAM.
    Ram(RamOffset),
    /// A device register, or nothing.
    Device(Gpa),
}

/// One paging mode's shape: entry size in bytes and, from the top, the shift of each level.
struct Shape {
    entry_size: u64,
    index_bits: u32,
    shifts: &'static [u32],
    large_shifts: &'static [u32],
}

const FOUR_LEVEL: Shape =
    Shape { entry_size: 8, index_bits: 9, shifts: &[39, 30, 21, 12], large_shifts: &[30, 21] };
const PAE: Shape = Shape { entry_size: 8, index_bits: 9, shifts: &[21, 12], large_shifts: &[21] };
const LEGACY_PSE: Shape =
    Shape { entry_size: 4, index_bits: 10, shifts: &[22, 12], large_shifts: &[22] };
const LEGACY: Shape = Shape { entry_size: 4, index_bits: 10, shifts: &[22, 12], large_shifts: &[] };

/// Entries a walk went through and what they add up to.
struct Walk {
    entries: [(RamOffset, u64); 4],
    depth: usize,
    entry_size: u64,
    rights: u64,
    gpa: u64,
    /// Bytes of the page.
    size: u64,
}

impl Walk {
    fn new(entry_size: u64) -> Walk {
        Walk {
            entries: [Default::default(); 4],
            depth: 0,
            entry_size,
            rights: W | U,
            gpa: 0,
            size: 0,
        }
    }

    fn push(&mut self, at: RamOffset, entry: u64) {
        self.entries[self.depth] = (at, entry);
        self.depth += 1;
        self.rights = (self.rights & entry & (W | U)) | ((self.rights | entry) & NX);
    }
}

/// See [`Cpu::settled_walk`].
#[derive(Clone, Copy, Debug)]
pub struct SettledWalk {
    /// The linear address.
    pub gva: u64,
    /// Where it leads.
    pub gpa: Gpa,
    /// Bytes of the page, a power of two; both addresses have the same offset in it.
    pub size: u64,
    /// Stores are allowed too, and the page is dirty.
    pub write: bool,
}

/// Why a walk stopped: error-code bits that do not depend on the access.
struct Stopped(u32);

fn load_entry(ram: &Ram, gpa: u64, size: u64) -> Option<(RamOffset, u64)> {
    let at = ram.offset(Gpa(gpa))?;
    let entry = if size == 8 { ram.load_u64(at) } else { u64::from(ram.load_u32(at)) };
    Some((at, entry))
}

fn store_entry(ram: &mut Ram, at: RamOffset, entry: u64, size: u64) {
    if size == 8 {
        return ram.store_walk_bits(at, entry);
    }
    let pair = RamOffset(at.0 & !7);
    let shift = (at.0 & 4) * 8;
    let others = ram.load_u64(pair) & !(0xffff_ffff << shift);
    ram.store_walk_bits(pair, others | (entry << shift));
}

impl Cpu<'_> {
    /// Translates a linear address for an access from TLB side `side`, setting accessed and dirty
    /// bits and caching the walk.
    ///
    /// # Errors
    /// #PF as SDM vol. 3, 4.7 has it.
    pub fn translate(&mut self, side: u8, gva: u64, access: Access) -> Result<Place> {
        self.sync_tlb();
        if self.vcpu.cr0 & cr::CR0_PG == 0 {
            return Ok(self.identity(side, gva, access));
        }
        let user = side == SIDE_USER;
        let walk = self.walk(gva).map_err(|stopped| self.page_fault(gva, access, user, stopped))?;
        if !self.permits(&walk, side, user, access) {
            return Err(self.page_fault(gva, access, user, Stopped(code::PRESENT)));
        }
        self.set_accessed_dirty(&walk, access);
        let others = self.others(&walk, side, user, access);
        Ok(self.cache(side, gva, Gpa(walk.gpa), access, others))
    }

    /// What a walk for loads at `gva` comes to, if it would change nothing: neither raise anything
    /// nor set an accessed bit. Nothing is cached.
    pub fn settled_walk(&mut self, side: u8, gva: u64) -> Option<SettledWalk> {
        self.sync_tlb();
        if self.vcpu.cr0 & cr::CR0_PG == 0 || !self.is_valid_linear(gva) {
            return None;
        }
        let user = side == SIDE_USER;
        let walk = self.walk(gva).ok()?;
        let accessed = walk.entries[..walk.depth].iter().all(|(_, entry)| entry & A != 0);
        if !accessed || !self.permits(&walk, side, user, Access::Read) {
            return None;
        }
        let write = self.others(&walk, side, user, Access::Read).write;
        Some(SettledWalk { gva, gpa: Gpa(walk.gpa), size: walk.size, write })
    }

    /// Where the page at `gpa`, that a settled walk leads to, is in RAM if it may be read there
    /// without anybody noticing; whether it may be written too, where the walk allows that.
    pub fn settled_page(&self, gpa: Gpa, write: bool) -> Option<(RamOffset, bool)> {
        let at = self.ram.offset(gpa).filter(|_| !self.vcpu.lapic.claims(gpa))?;
        if self.ram.notes_accesses(at.page()) {
            return None;
        }
        let write = write && !self.ram.is_watched(at.page()) && self.ram.is_trapped(at.page());
        Some((RamOffset(at.0 & !PAGE_MASK), write))
    }

    fn identity(&mut self, side: u8, gva: u64, access: Access) -> Place {
        self.cache(side, gva, Gpa(gva & 0xffff_ffff), access, Allowed::default())
    }

    /// What else than `access` a walk allows without a change to its entries.
    fn others(&self, walk: &Walk, side: u8, user: bool, access: Access) -> Allowed {
        let may = |other| other != access && self.permits(walk, side, user, other);
        let (_, leaf) = walk.entries[walk.depth - 1];
        let dirty = leaf & D != 0;
        Allowed {
            read: may(Access::Read),
            write: dirty && may(Access::Write),
            exec: may(Access::Exec),
        }
    }

    /// Caches the walk's outcome for this access, and what else it allows, if it is RAM.
    fn cache(&mut self, side: u8, gva: u64, gpa: Gpa, access: Access, others: Allowed) -> Place {
        let Some(at) = self.ram.offset(gpa).filter(|_| !self.vcpu.lapic.claims(gpa)) else {
            return Place::Device(gpa);
        };
        let noted = self.ram.notes_accesses(at.page());
        let watched = noted || self.ram.is_watched(at.page());
        let write = access == Access::Write && !watched;
        if write && self.ram.trap_page(at.page()) {
            self.vcpu.toil();
        }
        // A page is not trapped before it is written.
        let write_too = others.write && !watched && self.ram.is_trapped(at.page());
        let exec = access == Access::Exec;
        let allowed = Allowed {
            read: !noted && (!exec || others.read),
            write: write || write_too,
            exec: exec || others.exec,
        };
        if allowed.exec {
            self.ram.note_execution(gva, at.page());
        }
        self.vcpu.tlb.insert(side, gva, at.0 & !PAGE_MASK, allowed);
        Place::Ram(at)
    }

    /// Drops cached walks if a page-table entry they may have used was overwritten.
    #[inline]
    pub fn sync_tlb(&mut self) {
        let writes = self.ram.table_writes();
        if self.vcpu.tlb.table_writes != writes {
            self.vcpu.tlb.table_writes = writes;
            self.vcpu.tlb.flush();
        }
        if !self.ram.overwritten().is_empty() {
            self.forget_overwritten();
        }
    }

    #[cold]
    fn forget_overwritten(&mut self) {
        for overwritten in self.ram.overwritten().drain(..) {
            match overwritten {
                Overwritten::Entry(page, index) => self.vcpu.tlb.forget(page, Some(index)),
                Overwritten::Table(page) => self.vcpu.tlb.forget(page, None),
            }
        }
    }

    fn page_fault(&self, gva: u64, access: Access, user: bool, stopped: Stopped) -> Exception {
        let fetch_shown =
            self.vcpu.msrs.efer & cr::EFER_NXE != 0 || self.vcpu.cr4 & cr::CR4_SMEP != 0;
        let kind = match access {
            Access::Read => 0,
            Access::Write => code::WRITE,
            Access::Exec if fetch_shown => code::FETCH,
            Access::Exec => 0,
        };
        Exception::pf(stopped.0 | kind | if user { code::USER } else { 0 }, gva)
    }

    fn walk(&mut self, gva: u64) -> std::result::Result<Walk, Stopped> {
        let vcpu = &self.vcpu;
        if vcpu.cr4 & cr::CR4_PAE == 0 {
            let shape = if vcpu.cr4 & cr::CR4_PSE != 0 { &LEGACY_PSE } else { &LEGACY };
            return self.walk_levels(shape, self.vcpu.cr3 & 0xffff_f000, gva);
        }
        if vcpu.mode.long {
            return self.walk_levels(&FOUR_LEVEL, vcpu.cr3 & ADDRESS, gva);
        }
        let pdpte = vcpu.pdptrs[(gva >> 30) as usize & 3];
        if pdpte & P == 0 {
            return Err(Stopped(0));
        }
        self.walk_levels(&PAE, pdpte & ADDRESS, gva)
    }

    fn walk_levels(
        &mut self,
        shape: &Shape,
        root: u64,
        gva: u64,
    ) -> std::result::Result<Walk, Stopped> {
        let mut walk = Walk::new(shape.entry_size);
        let mut table = root;
        for &shift in shape.shifts {
            let index = (gva >> shift) & ((1 << shape.index_bits) - 1);
            let loaded = load_entry(self.ram, table + index * shape.entry_size, shape.entry_size);
            let (at, entry) = loaded.ok_or(Stopped(code::PRESENT | code::RESERVED))?;
            let near = shift <= 21 && shape.shifts.len() == 4;
            let first = gva >> (shift + 9) << (shift + 9);
            let upper = shift < 39 && gva >> 63 != 0;
            self.watch_table(at.page(), near.then_some(Reach { first, shift }), upper);
            if entry & P == 0 {
                return Err(Stopped(0));
            }
            let large = entry & PS != 0 && shape.large_shifts.contains(&shift);
            let leaf = large || shift == 12;
            if entry & self.reserved(shape, shift, large) != 0 {
                return Err(Stopped(code::PRESENT | code::RESERVED));
            }
            walk.push(at, entry);
            table = entry & if shape.entry_size == 8 { ADDRESS } else { 0xffff_f000 };
            if leaf {
                walk.gpa = leaf_address(shape, table, entry, shift, gva);
                walk.size = 1 << shift;
                return Ok(walk);
            }
        }
        unreachable!("the level with shift 12 is a leaf");
    }

    /// To the address space whose first page table is at `to`, from the one whose is at `from`, in
    /// long mode. The kernel's part of a new one is taken over from the last: walks there begin
    /// with the same entries, accessed bits and all, so they would come to the same and change
    /// nothing.
    pub(crate) fn turn_tlb(&mut self, from: u64, to: u64) {
        let Some(before) = self.vcpu.tlb.turn_to(from, to) else { return };
        let (Some(old), Some(new)) = (self.upper_half(from), self.upper_half(to)) else { return };
        if old != new {
            return;
        }
        let root = self.ram.offset(Gpa(to)).expect("looked at just now").page();
        self.watch_table(root, None, false);
        self.vcpu.tlb.inherit_upper(before);
    }

    /// Writes to a page table that walks come through are noticed from now on; see
    /// [`crate::tlb::Tlb::note_table`].
    fn watch_table(&mut self, page: usize, reach: Option<Reach>, upper: bool) {
        if self.ram.mark_table(page) {
            self.vcpu.tlb.revoke_write(page);
        }
        self.vcpu.tlb.note_table(page, reach, upper);
    }

    /// The upper half of the page table at physical address `table`.
    fn upper_half(&self, table: u64) -> Option<[u8; 2048]> {
        let mut half = [0; 2048];
        self.ram.load_bytes(self.ram.offset(Gpa(table + 2048))?, &mut half);
        Some(half)
    }

    /// Bits that must be zero in a present entry at the level of `shift`.
    fn reserved(&self, shape: &Shape, shift: u32, large: bool) -> u64 {
        if shape.entry_size == 4 {
            // PSE-36 (bits 13 to 20 as address bits 32 to 39) is there; bit 21 is reserved.
            return if large { 1 << 21 } else { 0 };
        }
        let nx = if self.vcpu.msrs.efer & cr::EFER_NXE == 0 { NX } else { 0 };
        let pae_high = if self.vcpu.mode.long { 0 } else { 0x7ff << 52 };
        let low = if large { ((1u64 << shift) - 1) & ADDRESS & !(1 << 12) } else { 0 };
        let top_ps = if shift == 39 { PS } else { 0 };
        nx | pae_high | low | top_ps | ADDRESS_RESERVED
    }

    fn permits(&self, walk: &Walk, side: u8, user: bool, access: Access) -> bool {
        let user_page = walk.rights & U != 0;
        let writable = walk.rights & W != 0;
        let vcpu = &self.vcpu;
        if user && !user_page {
            return false;
        }
        match access {
            Access::Exec => {
                let smep = vcpu.cr4 & cr::CR4_SMEP != 0 && !user && user_page;
                walk.rights & NX == 0 && !smep
            }
            _ if !user && user_page && self.smap_denies(side) => false,
            Access::Read => true,
            Access::Write => writable || (!user && vcpu.cr0 & cr::CR0_WP == 0),
        }
    }

    fn smap_denies(&self, side: u8) -> bool {
        side == SIDE_SUPERVISOR && self.vcpu.cr4 & cr::CR4_SMAP != 0
    }

    fn set_accessed_dirty(&mut self, walk: &Walk, access: Access) {
        for level in 0..walk.depth {
            let (at, entry) = walk.entries[level];
            let dirty = access == Access::Write && level + 1 == walk.depth;
            let wanted = entry | A | if dirty { D } else { 0 };
            if wanted != entry {
                store_entry(self.ram, at, wanted, walk.entry_size);
            }
        }
    }

    /// Loads the four PAE page-directory pointers (SDM vol. 3, 4.4.1).
    ///
    /// # Errors
    /// #GP(0) if a present one has reserved bits set.
    pub fn load_pdptrs(&mut self, cr3: u64) -> Result<()> {
        let mut loaded = [0; 4];
        for (index, slot) in loaded.iter_mut().enumerate() {
            let gpa = (cr3 & 0xffff_ffe0) + 8 * index as u64;
            let entry = load_entry(self.ram, gpa, 8).map_or(u64::MAX, |(_, entry)| entry);
            if entry & P != 0 && entry & (0x1e6 | ADDRESS_RESERVED | (0xfff << 52)) != 0 {
                return Err(Exception::GP0);
            }
            *slot = entry;
        }
        self.vcpu.pdptrs = loaded;
        Ok(())
    }

    /// Whether a linear address is canonical, in modes where that matters.
    #[inline]
    pub fn is_valid_linear(&self, gva: u64) -> bool {
        self.vcpu.mode.bits != 64 || Gva(gva).is_canonical()
    }
}

fn leaf_address(shape: &Shape, table: u64, entry: u64, shift: u32, gva: u64) -> u64 {
    let offset_mask = (1u64 << shift) - 1;
    let high = if shape.entry_size == 4 && shift == 22 { ((entry >> 13) & 0xff) << 32 } else { 0 };
    high | (table & !offset_mask) | (gva & offset_mask)
}
