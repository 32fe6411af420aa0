//! Cached page walks: linear page to RAM offset, per address space, kind of access and privilege.
//!
//! The guest cannot see this TLB: a write to a page-table entry that a cached walk went through
//! drops it (`Ram::table_writes`), so what an access does is always what a fresh walk would do.
//! Flushing it at any time is therefore free of effect, and so is not flushing it: what was cached
//! of an address space stays when another one is loaded. It is never saved.

mod block;
mod followed;
mod space;
mod writers;

use types::{PAGE_MASK, PAGE_SHIFT};

use crate::Access;

use block::{Entry, index_of, place};
use followed::Followed;
pub use followed::Lost;
pub(crate) use space::Reach;
use space::Space;
use writers::{Writers, Writing, bits};

/// Accesses at CPL 3.
pub const SIDE_USER: u8 = 0;
/// Accesses at CPL 0 to 2, and system accesses, that SMAP keeps from user pages.
pub const SIDE_SUPERVISOR: u8 = 1;
/// Accesses at CPL 0 to 2 with EFLAGS.AC set, or without SMAP.
pub const SIDE_SUPERVISOR_ANY: u8 = 2;
/// A side that caches nothing, so that every access is checked for alignment.
pub const SIDE_NONE: u8 = 3;

/// Where generated code finds things in the block at [`Tlb::block`](super::Tlb::block). An entry is
/// hit if its tag for the kind of access, exclusive-or the linear address, is an offset in a page.
pub mod layout {
    use super::block::{self, ENTRIES, Entry, SCRATCH_WORDS as WORDS, SIDES};
    use std::mem::offset_of;

    /// Bytes of an entry; entry `page number % ENTRIES_COUNT` of a side is the one to look in.
    pub const ENTRY_SIZE: usize = size_of::<Entry>();
    /// Entries of a side; a power of two.
    pub const ENTRIES_COUNT: usize = ENTRIES;
    /// Offset in an entry of the tag for loads.
    pub const READ: usize = offset_of!(Entry, read);
    /// Offset in an entry of the tag for stores.
    pub const WRITE: usize = offset_of!(Entry, write);
    /// Offset in an entry of the tag for fetches.
    pub const EXEC: usize = offset_of!(Entry, exec);
    /// Offset in an entry of the RAM offset of the page, plus the bias.
    pub const PAGE: usize = offset_of!(Entry, page);
    /// Offset of the engine's own words; generated code's stack ends there, for it uses the stack
    /// pointer to address them.
    pub const SCRATCH: usize = block::SCRATCH;
    /// The last six bits of their address.
    pub const SCRATCH_COUNT: u8 = block::SHIFT as u8;
    /// Offset of a byte for each two to the power of [`SCRATCH_COUNT`] bytes of the lower half of
    /// linear addresses; none can be read but in pages that were opened (`Tlb::open_pass`).
    pub const PASS: usize = block::PASS;
    /// How many of them there are.
    pub const PASS_SIZE: usize = block::PASS_SIZE;
    /// How many of them there are.
    pub const SCRATCH_WORDS: usize = WORDS;

    /// Offset of a side's first entry.
    pub const fn side(side: u8) -> usize {
        side as usize % SIDES * ENTRIES * ENTRY_SIZE
    }
}

/// What a walk allows on one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Loads.
    pub read: bool,
    /// Stores: the page is writable, dirty in the page table, trapped in this epoch, not watched.
    pub write: bool,
    /// Fetches.
    pub exec: bool,
}

/// Address spaces of which walks are kept.
const SPACES_MAX: usize = 8;

/// The TLB of one vCPU.
pub struct Tlb {
    spaces: Vec<Space>,
    /// The one in use.
    current: usize,
    /// How often another one was put to use.
    turns: u64,
    writers: Writers,
    /// What who follows walks calls this; 0 if nobody does.
    following: u64,
    bias: u64,
    changes: u64,
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
        Tlb {
            spaces: vec![Space::new()],
            current: 0,
            turns: 0,
            writers: Writers::default(),
            following: 0,
            bias: 0,
            changes: 0,
            table_writes: 0,
        }
    }

    /// The entries in use and the engine's own words, for generated code; see [`layout`]. Good
    /// until another address space is put to use.
    #[inline]
    pub fn block(&mut self) -> *mut u8 {
        self.spaces[self.current].block.start()
    }

    /// Which of the address spaces that are kept is in use.
    #[inline]
    pub fn space(&self) -> usize {
        self.current
    }

    /// Makes entries hold `bias` more than RAM offsets: a host address, where code is generated.
    pub fn set_bias(&mut self, bias: u64) {
        if self.bias != bias {
            self.flush();
            self.bias = bias;
        }
    }

    #[inline(always)]
    fn entry(&self, side: u8, gva: u64) -> Entry {
        self.spaces[self.current].block.get(place(side, index_of(gva)))
    }

    #[inline(always)]
    fn offset(&self, entry: Entry, gva: u64) -> u64 {
        (entry.page | (gva & PAGE_MASK)).wrapping_sub(self.bias)
    }

    /// RAM offset for a load at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_read(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.read == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// RAM offset for a store at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_write(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.write == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// RAM offset for a fetch at `gva`, if cached.
    #[inline(always)]
    pub fn lookup_exec(&self, side: u8, gva: u64) -> Option<u64> {
        let entry = self.entry(side, gva);
        (entry.exec == gva & !PAGE_MASK).then(|| self.offset(entry, gva))
    }

    /// RAM offset for an access at `gva`, if cached.
    #[inline]
    pub fn lookup(&self, side: u8, gva: u64, access: Access) -> Option<u64> {
        match access {
            Access::Read => self.lookup_read(side, gva),
            Access::Write => self.lookup_write(side, gva),
            Access::Exec => self.lookup_exec(side, gva),
        }
    }

    /// Caches a walk: the page of `gva` is RAM at `offset` (of the page's first byte).
    pub fn insert(&mut self, side: u8, gva: u64, offset: u64, allowed: Allowed) {
        if side == SIDE_NONE {
            return;
        }
        if allowed.write {
            self.writers.add((offset >> PAGE_SHIFT) as usize, (self.current, side, index_of(gva)));
        }
        let page = offset.wrapping_add(self.bias);
        self.spaces[self.current].insert(side, gva & !PAGE_MASK, page, allowed);
    }

    /// Has bytes of [`layout::PASS`] readable in the address space in use: those of the page's
    /// number, in pages. False if the host refuses.
    pub fn open_pass(&mut self, page: usize) -> bool {
        self.spaces[self.current].block.open_pass(page)
    }

    /// Whether the host gave [`layout::PASS`] its address space, in the space in use.
    pub fn has_pass(&self) -> bool {
        self.spaces[self.current].block.has_pass()
    }

    /// Nothing of [`layout::PASS`] can be read any more, in any space.
    pub fn close_pass(&mut self) {
        self.spaces.iter_mut().for_each(|space| space.block.close_pass());
    }

    /// From now on it is noted which walks of this side and the address space in use may have
    /// changed, among those that [`Tlb::follow`] names; of no other space or side any more.
    /// [`Tlb::following`] tells this from other times, and this TLB from others.
    pub fn begin_following(&mut self, side: u8, number: u64) {
        self.end_following();
        self.spaces[self.current].follow(side);
        self.following = number;
    }

    /// The number of the present following; 0 if there is none.
    #[inline]
    pub fn following(&self) -> u64 {
        self.following
    }

    /// Nothing is noted any more.
    pub fn end_following(&mut self) {
        self.spaces.iter_mut().for_each(Space::end_following);
        self.following = 0;
    }

    /// Follows pages at `gva` in the space in use, that are RAM from `offset` on: that they may be
    /// read, and written if `write`; as many as a large page has at most.
    pub fn follow(&mut self, gva: u64, offset: u64, pages: u64, write: bool) {
        let page = offset.wrapping_add(self.bias);
        if let Some(followed) = self.spaces[self.current].followed() {
            followed.add(gva & !PAGE_MASK, page, pages, write);
        }
    }

    /// Whether the page at `gva` is followed in the space in use, and whether it may be written.
    pub fn followed(&self, gva: u64) -> Option<bool> {
        self.spaces[self.current].following()?.find(gva & !PAGE_MASK)
    }

    /// The followed pages, in the space in use, whose walks may have changed; they are not followed
    /// any more.
    #[inline]
    pub fn lost(&mut self) -> Option<&mut Vec<Lost>> {
        self.spaces[self.current].followed().map(Followed::lost).filter(|lost| !lost.is_empty())
    }

    /// The same for pages that code was fetched from, all of which are followed.
    #[inline]
    pub fn lost_code(&mut self) -> Option<&mut Vec<u64>> {
        let followed = self.spaces[self.current].followed();
        followed.map(Followed::fetched_lost).filter(|lost| !lost.is_empty())
    }

    /// Counts up when something that was allowed may not be any more.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.changes += 1;
        for space in &mut self.spaces {
            space.flush();
            space.root = None;
        }
    }

    /// From the address space whose first page table is at physical address `from`, to that of the
    /// one at `to`; everything else that decides what a walk comes to is the same. The space used
    /// before, if nothing is cached of this one.
    pub(crate) fn turn_to(&mut self, from: u64, to: u64) -> Option<usize> {
        let before = self.current;
        self.changes += 1;
        self.turns += 1;
        self.spaces[self.current].root = Some(from);
        let known = self.spaces.iter().position(|space| space.root == Some(to));
        self.current = known.unwrap_or_else(|| self.clear_space());
        let space = &mut self.spaces[self.current];
        // What it is for from now on, the vCPU knows.
        (space.root, space.turn) = (None, self.turns);
        // That of a process that is no more may have its root.
        space.is_empty().then_some(before)
    }

    /// Takes over from address space `before` what was cached of the upper half, where walks begin
    /// with the same entries as in the space in use, of which nothing is cached.
    pub(crate) fn inherit_upper(&mut self, before: usize) {
        let (current, bias) = (self.current, self.bias);
        let spaces = self.spaces.get_disjoint_mut([current, before]);
        let Ok([space, before]) = spaces else { return };
        space.inherit_upper(before, |side, index, page| {
            let page = page.wrapping_sub(bias) >> PAGE_SHIFT;
            self.writers.add(page as usize, (current, side, index));
        });
    }

    /// A space in which nothing is cached: a new one, or the one out of use for longest.
    fn clear_space(&mut self) -> usize {
        if self.spaces.len() < SPACES_MAX {
            self.spaces.push(Space::new());
            return self.spaces.len() - 1;
        }
        let others = self.spaces.iter().enumerate().filter(|(at, _)| *at != self.current);
        let (oldest, _) = others.min_by_key(|(_, space)| space.turn).expect("there are others");
        self.spaces[oldest].flush();
        oldest
    }

    /// Notes that a walk read an entry of the RAM page at index `page`; whether it was of an
    /// address in the upper half, and this not the first table.
    pub(crate) fn note_table(&mut self, page: usize, reach: Option<Reach>, upper: bool) {
        self.spaces[self.current].note_table(page, reach, upper);
    }

    /// Forgets what was derived from entry `index` of the RAM page at index `page`, or from all of
    /// its entries; everything of an address space if it is not known what that is.
    pub(crate) fn forget(&mut self, page: usize, index: Option<u16>) {
        let mut forgotten = false;
        for space in &mut self.spaces {
            forgotten |= space.forget(page, index);
        }
        self.changes += u64::from(forgotten);
    }

    /// Forgets that stores to the RAM page at index `page` are allowed.
    pub fn revoke_write(&mut self, page: usize) {
        self.changes += 1;
        let held = ((page as u64) << PAGE_SHIFT).wrapping_add(self.bias);
        for followed in self.spaces.iter_mut().filter_map(Space::followed) {
            followed.revoke_write(held);
        }
        match self.writers.take(page) {
            Writing::Nobody => {}
            Writing::At { spaces, sides, index } => {
                for space in bits(spaces) {
                    let space = &mut self.spaces[usize::from(space)];
                    bits(sides).for_each(|side| space.revoke_write_at(side, index, held));
                }
            }
            Writing::Any => self.spaces.iter_mut().for_each(|space| space.revoke_write(held)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::block::ENTRIES;
    use super::space::{PROBES, TABLES};
    use super::*;

    const ALL: Allowed = Allowed { read: true, write: true, exec: true };
    const KERNEL: u64 = 0xffff_ffff_8123_4000;

    #[test]
    fn tlb_keeps_what_was_cached_of_address_spaces_that_come_back() {
        let (a, b) = (0x1000, 0x2000);
        let mut tlb = Tlb::new();
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        tlb.note_table(5, Some(Reach { first: KERNEL & !0x1f_ffff, shift: 12 }), false);
        let before = tlb.changes();
        tlb.turn_to(a, b);
        assert!(tlb.changes() > before);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
        tlb.insert(SIDE_USER, KERNEL, 0x9000, ALL);
        tlb.turn_to(b, a);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), Some(0x7000));
        // What is taken is taken in all of them.
        tlb.revoke_write(7);
        tlb.revoke_write(9);
        tlb.turn_to(a, b);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL), None);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), Some(0x9000));
        tlb.forget(5, Some((KERNEL >> 12) as u16 & 511));
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), Some(0x9000), "no walk of it went there");
        tlb.turn_to(b, a);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
        tlb.turn_to(a, b);
        tlb.flush();
        tlb.turn_to(b, a);
        tlb.turn_to(a, b);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
    }

    #[test]
    fn tlb_forgets_the_address_space_out_of_use_for_longest() {
        let mut tlb = Tlb::new();
        let root = |number: usize| 0x1000 * number as u64;
        for number in 0..=SPACES_MAX {
            tlb.insert(SIDE_USER, KERNEL, root(number), ALL);
            tlb.turn_to(root(number), root(number + 1));
        }
        let held = |tlb: &Tlb| tlb.lookup_read(SIDE_USER, KERNEL);
        assert_eq!(held(&tlb), None);
        tlb.turn_to(root(SPACES_MAX + 1), root(SPACES_MAX));
        assert_eq!(held(&tlb), Some(root(SPACES_MAX)));
        tlb.turn_to(root(SPACES_MAX), root(2));
        assert_eq!(held(&tlb), Some(root(2)));
        tlb.turn_to(root(2), root(0));
        assert_eq!(held(&tlb), None);
    }

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
    fn tlb_empty_entry_is_hit_by_no_address() {
        let tlb = Tlb::new();
        for page in (0..4 * ENTRIES as u64).chain([u64::MAX >> PAGE_SHIFT]) {
            let gva = page << PAGE_SHIFT;
            assert_eq!(tlb.lookup_read(SIDE_USER, gva), None);
            assert_eq!(tlb.lookup_exec(SIDE_USER, gva | PAGE_MASK), None);
        }
    }

    #[test]
    fn tlb_bias_does_not_show_in_lookups() {
        let mut tlb = Tlb::new();
        tlb.set_bias(0x7fff_1234_5000);
        tlb.insert(SIDE_USER, KERNEL, 0x7000, ALL);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 8), Some(0x7008));
        tlb.revoke_write(7);
        assert_eq!(tlb.lookup_write(SIDE_USER, KERNEL + 8), None);
        tlb.set_bias(0);
        assert_eq!(tlb.lookup_read(SIDE_USER, KERNEL), None);
    }

    #[test]
    fn tlb_forgets_what_came_from_overwritten_entries() {
        let reach = |first, shift| Some(Reach { first, shift });
        let filled = |tables: &[(usize, Option<Reach>)]| {
            let mut tlb = Tlb::new();
            for &(page, reach) in tables {
                tlb.note_table(page, reach, false);
            }
            tlb.insert(SIDE_USER, 0x20_3000, 0x7000, ALL);
            tlb.insert(SIDE_SUPERVISOR, 0x20_3000, 0x7000, ALL);
            tlb.insert(SIDE_USER, 0x20_4000, 0x9000, ALL);
            tlb.insert(SIDE_USER, 0x40_0000, 0xb000, ALL);
            tlb
        };
        let left = |tlb: &Tlb| {
            [
                (SIDE_USER, 0x20_3000),
                (SIDE_SUPERVISOR, 0x20_3000),
                (SIDE_USER, 0x20_4000),
                (SIDE_USER, 0x40_0000),
            ]
            .map(|(side, gva)| tlb.lookup_exec(side, gva).is_some())
        };
        let (known, above) = ((5, reach(0x20_0000, 12)), (6, reach(0, 21)));
        let differs = (5, reach(0x40_0000, 12));
        let alike: Vec<_> = (0..=PROBES).map(|n| (5 + n * TABLES, known.1)).collect();
        for (tables, page, index, expected) in [
            (&[known, above][..], 5, Some(3), [false, false, true, true]),
            (&[known, above], 5, None, [false, false, false, true]),
            (&[known, above], 6, Some(1), [false, false, false, true]),
            (&[known, above], 6, None, [false; 4]),
            (&[known, above], 7, Some(3), [true; 4]),
            (&[known, above], alike[1].0, None, [true; 4]),
            (&[known, differs], 5, Some(3), [false; 4]),
            (&[known, (5, None)], 5, Some(3), [false; 4]),
            (&[(5, None)], 5, Some(3), [false; 4]),
            (&alike[..PROBES], 7, Some(3), [true; 4]),
            (&alike[..PROBES], alike[PROBES - 1].0, Some(4), [true, true, false, true]),
            (&alike, 5, Some(3), [false; 4]),
            (&alike, 7, Some(3), [false; 4]),
        ] {
            let mut tlb = filled(tables);
            tlb.forget(page, index);
            assert_eq!(left(&tlb), expected, "{page} {index:?}");
            tlb.insert(SIDE_USER, 0x20_3000, 0xa000, ALL);
            assert_eq!(tlb.lookup_read(SIDE_USER, 0x20_3000), Some(0xa000));
            tlb.flush();
            assert_eq!(left(&tlb), [false; 4]);
        }
    }

    /// A page-table page that a kernel took out of its place is a table elsewhere, or none, later.
    #[test]
    fn tlb_page_tables_taken_out_of_their_place_lead_nowhere() {
        let reach = |first, shift| Some(Reach { first, shift });
        let taken_out: [(usize, Option<u16>); 2] = [(6, Some(1)), (5, None)];
        for (page, index) in taken_out {
            let mut tlb = Tlb::new();
            tlb.begin_following(SIDE_USER, 1);
            let read = |tlb: &Tlb, gva| tlb.lookup_read(SIDE_USER, gva).is_some();
            tlb.note_table(6, reach(0, 21), false);
            tlb.note_table(5, reach(0x20_0000, 12), false);
            tlb.insert(SIDE_USER, 0x20_3000, 0x7000, ALL);
            tlb.follow(0x20_3000, 0x7000, 1, true);
            tlb.forget(page, index);
            assert!(!read(&tlb, 0x20_3000) && tlb.followed(0x20_3000).is_none());
            // Another one is there now, and what was there is not a table any more.
            tlb.note_table(7, reach(0x20_0000, 12), false);
            tlb.insert(SIDE_USER, 0x20_3000, 0x8000, ALL);
            tlb.follow(0x20_3000, 0x8000, 1, true);
            let changes = tlb.changes();
            tlb.forget(5, None);
            assert!(read(&tlb, 0x20_3000) && tlb.followed(0x20_3000) == Some(true));
            assert_eq!(tlb.changes(), changes);
            // A table elsewhere.
            tlb.note_table(5, reach(0x40_0000, 12), false);
            tlb.insert(SIDE_USER, 0x40_3000, 0x9000, ALL);
            tlb.forget(5, Some(3));
            assert!(read(&tlb, 0x20_3000) && !read(&tlb, 0x40_3000));
            tlb.forget(7, Some(3));
            assert!(!read(&tlb, 0x20_3000));
        }
    }

    #[test]
    fn tlb_new_space_takes_over_the_upper_half_and_what_is_forgotten_is_forgotten_there() {
        const DIRECT: u64 = 0xffff_8880_0000_0000;
        let reach = |first| Some(Reach { first, shift: PAGE_SHIFT });
        let mut tlb = Tlb::new();
        tlb.note_table(5, reach(KERNEL & !0x1f_ffff), true);
        tlb.note_table(6, reach(DIRECT), true);
        tlb.note_table(7, reach(0), false);
        let code = Allowed { read: true, write: false, exec: true };
        tlb.insert(SIDE_SUPERVISOR, KERNEL, 0x7000, code);
        for page in 1..1000 {
            tlb.insert(SIDE_SUPERVISOR, DIRECT + (page << PAGE_SHIFT), page << PAGE_SHIFT, ALL);
        }
        tlb.insert(SIDE_SUPERVISOR, 0x5000, 0x9000, ALL);
        let before = tlb.turn_to(0x1000, 0x2000).expect("a new one");
        tlb.inherit_upper(before);
        assert_eq!(tlb.lookup_exec(SIDE_SUPERVISOR, KERNEL + 3), Some(0x7003));
        assert_eq!(tlb.lookup_write(SIDE_SUPERVISOR, KERNEL), None);
        let direct =
            |tlb: &Tlb, page: u64| tlb.lookup_write(SIDE_SUPERVISOR, DIRECT + (page << 12));
        assert_eq!(direct(&tlb, 999), Some(999 << 12));
        assert_eq!(direct(&tlb, 1), None, "too long ago");
        assert_eq!(tlb.lookup_read(SIDE_SUPERVISOR, 0x5000), None);
        tlb.revoke_write(999);
        tlb.forget(6, Some(998));
        assert_eq!([997, 998, 999].map(|page| direct(&tlb, page)), [Some(997 << 12), None, None]);
        assert_eq!(tlb.turn_to(0x2000, 0x1000), None, "it is known");
        assert_eq!([997, 998, 999].map(|page| direct(&tlb, page)), [Some(997 << 12), None, None]);
        tlb.forget(5, None);
        assert_eq!(tlb.turn_to(0x1000, 0x2000), None);
        assert_eq!(tlb.lookup_exec(SIDE_SUPERVISOR, KERNEL), None);
        assert_eq!(direct(&tlb, 997), Some(997 << 12));
        tlb.forget(7, None);
        assert_eq!(direct(&tlb, 997), Some(997 << 12), "no walk of it came through that");
        tlb.note_table(8, None, false);
        tlb.forget(8, Some(300));
        assert_eq!(tlb.turn_to(0x2000, 0x1000), None);
        assert_eq!(tlb.turn_to(0x1000, 0x2000), Some(before), "it is as good as new");
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
