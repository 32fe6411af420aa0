//! Guest RAM as the machine sees it: physical layout, typed access, traps and hashes.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use types::{Gpa, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::accesses::{AccessWatch, Accesses};
use crate::cow::{CowGuest, Pages};
use crate::mapping::{Mapping, RamError};
use crate::traps::{Epoch, Overwritten, Traps};
use crate::view::RamView;
use crate::visits::{Visited, Visits};

/// Byte offset into RAM, counted without the hole below 4 GiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamOffset(pub u64);

impl RamOffset {
    /// Index of the RAM page that holds this byte.
    #[inline]
    pub const fn page(self) -> usize {
        (self.0 >> PAGE_SHIFT) as usize
    }
}

/// Where RAM lies in the guest's physical address space: below [`Layout::HOLE_START`], and the
/// rest from 4 GiB up. The hole is for devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of RAM that start at address 0.
    pub low_size: u64,
    /// Bytes of RAM that start at 4 GiB.
    pub high_size: u64,
}

impl Layout {
    /// First address of the device hole.
    pub const HOLE_START: u64 = 0xc000_0000;
    /// First address after the hole.
    pub const HIGH_START: u64 = 1 << 32;

    /// The layout of `size` bytes of RAM.
    pub const fn of(size: u64) -> Layout {
        let low_size = if size < Layout::HOLE_START { size } else { Layout::HOLE_START };
        Layout { low_size, high_size: size - low_size }
    }

    /// The RAM byte at `gpa`, or `None` where there is no RAM.
    #[inline]
    pub const fn offset(&self, gpa: Gpa) -> Option<RamOffset> {
        if gpa.0 < self.low_size {
            Some(RamOffset(gpa.0))
        } else if gpa.0 >= Layout::HIGH_START && gpa.0 - Layout::HIGH_START < self.high_size {
            Some(RamOffset(gpa.0 - Layout::HIGH_START + self.low_size))
        } else {
            None
        }
    }

    /// The address of a RAM byte; the inverse of [`Layout::offset`].
    pub const fn gpa(&self, offset: RamOffset) -> Gpa {
        if offset.0 < self.low_size {
            Gpa(offset.0)
        } else {
            Gpa(offset.0 - self.low_size + Layout::HIGH_START)
        }
    }
}

/// The access runs past the end of RAM or into the hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no RAM for {len} bytes at {gpa}")]
pub struct NoRam {
    /// First byte of the access.
    pub gpa: Gpa,
    /// Its length, bytes.
    pub len: u64,
}

/// Guest RAM.
pub struct Ram {
    pub(crate) mapping: Mapping,
    pub(crate) traps: Traps,
    accesses: Accesses,
    visits: Option<Visits>,
    layout: Layout,
    page_hashes: Vec<u128>,
    hash_sum: u128,
    hash_epoch: Epoch,
}

macro_rules! typed_access {
    ($($load:ident $store:ident $type:ty),*) => {$(
        /// Reads a little-endian value; panics outside RAM.
        #[inline(always)]
        pub fn $load(&self, at: RamOffset) -> $type {
            <$type>::from_le_bytes(self.mapping.load(at.0))
        }

        /// Writes a little-endian value to a page whose trap ran in this epoch and which is
        /// not watched (what a writable TLB entry promises); panics outside RAM.
        #[inline(always)]
        pub fn $store(&mut self, at: RamOffset, value: $type) {
            self.mapping.store(at.0, value.to_le_bytes());
        }
    )*};
}

impl Ram {
    /// Least size, bytes.
    pub const SIZE_MIN: u64 = 1 << 20;
    /// Largest size, bytes.
    pub const SIZE_MAX: u64 = 1 << 40;

    /// Maps `size` bytes of zeroes.
    ///
    /// # Errors
    /// [`RamError::Size`] for a size out of range, [`RamError::Map`] if the host refuses.
    pub fn new(size: u64) -> Result<Ram, RamError> {
        if size & PAGE_MASK != 0 || !(Ram::SIZE_MIN..=Ram::SIZE_MAX).contains(&size) {
            return Err(RamError::Size { size, min: Ram::SIZE_MIN, max: Ram::SIZE_MAX });
        }
        Ok(Ram::over(Mapping::new(size)?))
    }

    pub(crate) fn over(mapping: Mapping) -> Ram {
        let size = mapping.size();
        let mut traps = Traps::new((size / PAGE_SIZE) as usize);
        let hash_epoch = traps.begin_epoch();
        let layout = Layout::of(size);
        Ram {
            mapping,
            traps,
            accesses: Accesses::default(),
            visits: None,
            layout,
            page_hashes: Vec::new(),
            hash_sum: 0,
            hash_epoch,
        }
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.mapping.size()
    }

    /// Where it lies.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The RAM byte at `gpa`, if there is RAM.
    #[inline]
    pub fn offset(&self, gpa: Gpa) -> Option<RamOffset> {
        self.layout.offset(gpa)
    }

    /// Host address of the first byte, for engines that emit code (translator, KVM).
    pub fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// The memfd behind RAM, for sharing and for registering with the host's I/O; `None` if RAM
    /// came lazily from a checkpoint.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.fd()
    }

    typed_access!(load_u8 store_u8 u8, load_u16 store_u16 u16, load_u32 store_u32 u32,
        load_u64 store_u64 u64, load_u128 store_u128 u128);

    /// Copies from RAM; panics outside RAM.
    #[inline]
    pub fn load_bytes(&self, at: RamOffset, into: &mut [u8]) {
        self.mapping.read(at.0, into);
    }

    /// Copies into one page under the same promise as [`Ram::store_u64`]; panics outside RAM.
    #[inline]
    pub fn store_bytes(&mut self, at: RamOffset, bytes: &[u8]) {
        self.mapping.write(at.0, bytes);
    }

    /// Copies into RAM within one page, with trap and code invalidation; panics outside RAM.
    #[inline]
    pub fn write_in_page(&mut self, at: RamOffset, bytes: &[u8]) {
        debug_assert!((at.0 & PAGE_MASK) + bytes.len() as u64 <= PAGE_SIZE);
        self.before_write(at, bytes.len() as u64);
        self.mapping.write(at.0, bytes);
    }

    /// The write trap for `len` bytes at `at` within one page, without the write itself.
    #[inline]
    pub fn before_write(&mut self, at: RamOffset, len: u64) {
        let page = at.page();
        self.traps.before_write(page);
        if self.traps.is_watched(page) {
            self.before_watched_write(at, len);
        }
    }

    #[cold]
    fn before_watched_write(&mut self, at: RamOffset, len: u64) {
        let page = at.page();
        self.traps.invalidate_code(page, at.0 & PAGE_MASK, len);
        if self.traps.is_table(page) {
            let (first, last) = (at.0 & !7, (at.0 + len.max(1) - 1) & !7);
            let was_present = (first..=last)
                .step_by(8)
                .map(|entry| self.mapping.load::<8>(entry))
                .any(|e| (e[0] | e[4]) & 1 != 0);
            if was_present && first == last {
                let index = (first & PAGE_MASK) / 8;
                self.traps.table_entry_written(page, index as u16);
            } else {
                self.traps.table_written(page, was_present);
            }
        }
    }

    /// The write trap of a page that stores will reach without further notice, because a TLB entry
    /// is about to allow them. Whether the page's original may have had to be copied.
    #[inline]
    pub fn trap_page(&mut self, page: usize) -> bool {
        self.traps.before_write(page)
    }

    /// Sets a bit of a page-table entry on behalf of a page walk (A or D); cached walks that went
    /// through the entry stay right.
    pub fn store_walk_bits(&mut self, at: RamOffset, entry: u64) {
        self.traps.before_write(at.page());
        self.traps.invalidate_code(at.page(), at.0 & PAGE_MASK, 8);
        self.mapping.store(at.0, entry.to_le_bytes());
    }

    /// Marks a page as one a page walk read, so that a write which could change the walk's outcome
    /// counts in [`Ram::table_writes`]; true if it was not marked, and then the caller drops TLB
    /// entries that allow writes to the page.
    pub fn mark_table(&mut self, page: usize) -> bool {
        self.traps.mark_table(page)
    }

    /// A page is about to be filled with something else: it is not watched as a page table any
    /// more, and what was derived from it is dropped. The guest cannot tell.
    pub fn forget_table(&mut self, page: usize) {
        if self.traps.is_table(page) {
            self.traps.table_written(page, true);
        }
    }

    /// Counts up each time a page-table entry that a TLB may hold was overwritten: the TLB's owner
    /// then drops it whole. So cached walks are never stale and the guest cannot see the TLB.
    #[inline]
    pub fn table_writes(&self) -> u64 {
        self.traps.table_writes()
    }

    /// What a TLB may hold of page tables and was overwritten since this was last emptied: the
    /// TLB's owner forgets what it derived from it. What would be too much counts in
    /// [`Ram::table_writes`] instead.
    #[inline]
    pub fn overwritten(&mut self) -> &mut Vec<Overwritten> {
        self.traps.overwritten()
    }

    /// Whether the trap of a page ran in this epoch, so that a store needs no further notice of it.
    #[inline]
    pub fn is_trapped(&self, page: usize) -> bool {
        self.traps.is_trapped(page)
    }

    /// Reads `into.len()` bytes at a guest physical address, across pages and the hole's edges.
    ///
    /// # Errors
    /// [`NoRam`] if any byte is not RAM; `into` may then be partly filled.
    pub fn read(&self, gpa: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        self.check(gpa, into.len() as u64)?;
        for (at, range) in self.page_pieces(gpa, into.len()) {
            self.mapping.read(at.0, &mut into[range]);
        }
        Ok(())
    }

    /// Writes bytes at a guest physical address, with traps.
    ///
    /// # Errors
    /// [`NoRam`] if any byte is not RAM; nothing is written then.
    pub fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NoRam> {
        self.check(gpa, bytes.len() as u64)?;
        for (at, range) in self.page_pieces(gpa, bytes.len()) {
            self.write_in_page(at, &bytes[range]);
        }
        Ok(())
    }

    /// Whether `len` bytes at `gpa` are all RAM.
    ///
    /// # Errors
    /// [`NoRam`] if not.
    pub fn check(&self, gpa: Gpa, len: u64) -> Result<(), NoRam> {
        let refused = NoRam { gpa, len };
        let last = gpa.checked_add(len.max(1) - 1).ok_or(refused)?;
        let (first, last) = (self.offset(gpa).ok_or(refused)?, self.offset(last).ok_or(refused)?);
        if last.0.wrapping_sub(first.0) == len.max(1) - 1 { Ok(()) } else { Err(refused) }
    }

    fn page_pieces(
        &self,
        gpa: Gpa,
        len: usize,
    ) -> impl Iterator<Item = (RamOffset, std::ops::Range<usize>)> + use<> {
        let (start, layout) = (gpa, self.layout);
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = start.wrapping_add(done as u64);
            let step = ((PAGE_SIZE - at.page_offset()) as usize).min(len - done);
            let range = done..done + step;
            done += step;
            Some((layout.offset(at).expect("checked by the caller"), range))
        })
    }

    /// A view that virtqueue and loader libraries take; writes through it run the trap.
    pub fn view(&mut self) -> RamView<'_> {
        RamView::new(self)
    }

    /// Opens an epoch: the first write to each page from here on runs its trap again. The caller
    /// drops every TLB entry that allows writes.
    pub fn begin_epoch(&mut self) -> Epoch {
        self.traps.begin_epoch()
    }

    /// RAM's pages for other threads.
    pub fn pages(&self) -> Pages {
        self.traps.pages(self.mapping.reader())
    }

    /// Opens an epoch that preserves RAM as it is now for the other side of `guest`, in constant
    /// time (mechanism C3). The caller drops every TLB entry that allows writes. An instant that
    /// was open before is given up.
    pub fn begin_copy_on_write(&mut self, guest: CowGuest) -> Epoch {
        self.traps.begin_copy_on_write(guest)
    }

    /// The epoch of the first write there could be.
    pub fn first_epoch(&self) -> Epoch {
        Epoch(1)
    }

    /// RAM pages (indices) written in `epoch` or after, in order.
    pub fn written_since(&self, epoch: Epoch) -> impl Iterator<Item = usize> + '_ {
        let pages = (self.size() >> PAGE_SHIFT) as usize;
        (0..pages).filter(move |&page| self.traps.written_since(page, epoch))
    }

    /// A TLB entry is about to allow execution of `page` at linear address `gva`.
    #[inline]
    pub fn note_execution(&mut self, gva: u64, page: usize) {
        if let Some(visits) = &mut self.visits {
            visits.place(gva, page);
        }
    }

    /// Marks bytes within one page as decoded; true if the page held no code before, and then the
    /// caller drops TLB entries that allow writes to the page.
    pub fn mark_code(&mut self, at: RamOffset, len: u64) -> bool {
        self.traps.mark_code(at.page(), at.0 & PAGE_MASK, len)
    }

    /// From now on engines mark which code they execute; once that began it goes on.
    ///
    /// # Errors
    /// [`RamError::Map`] if the host refuses memory for the marks.
    pub fn mark_visits(&mut self) -> Result<(), RamError> {
        if self.visits.is_none() {
            self.visits = Some(Visits::new(self.size())?);
        }
        Ok(())
    }

    /// Where the marks of RAM's first bytes are, if there are marks: a byte for each
    /// [`VISIT_SIZE`](crate::VISIT_SIZE) bytes, which generated code sets to anything but 0.
    pub fn visit_marks(&self) -> Option<NonNull<u8>> {
        self.visits.as_ref().map(Visits::base)
    }

    /// Bytes within one page are executed.
    #[inline]
    pub fn note_visit(&mut self, at: RamOffset, len: u64) {
        if let Some(visits) = &mut self.visits {
            visits.note(at.0, len);
        }
    }

    /// What was executed since the last call, by the number of its linear page; the caller drops
    /// TLB entries. Of an instruction that reaches into the next page, and of one beside it, it may
    /// be known no more than that pages are there.
    pub fn take_visited(&mut self) -> BTreeMap<u64, Visited> {
        self.visits.as_mut().map(Visits::take).unwrap_or_default()
    }

    /// Whether a page holds decoded code or page tables, so that writes must take the slow path.
    #[inline]
    pub fn is_watched(&self, page: usize) -> bool {
        self.traps.is_watched(page)
    }

    /// From now on accesses to these bytes are noted, and to no others. The caller drops TLB
    /// entries.
    pub fn watch_accesses(&mut self, watches: Vec<AccessWatch>) {
        self.accesses.set(watches);
    }

    /// Whether accesses to a page must take the slow path, to be noted.
    #[inline]
    pub fn notes_accesses(&self, page: usize) -> bool {
        self.accesses.is_in(page)
    }

    /// Notes an access within one page; whether it was to bytes of [`Ram::watch_accesses`].
    #[inline]
    pub fn note_access(&mut self, at: RamOffset, len: u64, store: bool) -> bool {
        self.accesses.note(at, len, store)
    }

    /// The watch whose bytes were accessed first since the last call.
    pub fn take_access(&mut self) -> Option<usize> {
        self.accesses.take()
    }

    /// Counts up each time code of the page was overwritten.
    #[inline]
    pub fn code_generation(&self, page: usize) -> u32 {
        self.traps.generation(page)
    }

    /// Counts up each time code of any page was overwritten.
    #[inline]
    pub fn code_writes(&self) -> u64 {
        self.traps.code_writes()
    }

    /// Hash of all of RAM; costs one pass over the pages written since the last call. Opens an
    /// epoch, so the caller drops TLB entries that allow writes.
    pub fn hash(&mut self) -> u128 {
        let pages = (self.size() >> PAGE_SHIFT) as usize;
        let first = self.page_hashes.is_empty();
        self.page_hashes.resize(pages, 0);
        for page in 0..pages {
            let since = if first { Epoch(0) } else { self.hash_epoch };
            if self.traps.ever_written(page) && self.traps.written_since(page, since) {
                let hash = self.mapping.with_page(page as u64, |b| page_hash(page, b));
                self.hash_sum =
                    self.hash_sum.wrapping_sub(self.page_hashes[page]).wrapping_add(hash);
                self.page_hashes[page] = hash;
            }
        }
        self.hash_epoch = self.traps.begin_epoch();
        self.hash_sum
    }

    /// Hash of one page's contents and place; 0 for a page of zeroes.
    pub fn page_hash(&self, page: usize) -> u128 {
        self.mapping.with_page(page as u64, |bytes| page_hash(page, bytes))
    }
}

fn page_hash(page: usize, bytes: &[u8; 4096]) -> u128 {
    if bytes.iter().all(|&b| b == 0) {
        return 0;
    }
    xxhash_rust::xxh3::xxh3_128_with_seed(bytes, page as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_of_bad_size_is_refused() {
        for size in [0, 4096, (1 << 20) + 1, !PAGE_MASK] {
            assert!(matches!(Ram::new(size), Err(RamError::Size { .. })), "{size}");
        }
    }

    #[test]
    fn layout_leaves_the_hole() {
        let layout = Layout::of(5 << 30);
        assert_eq!(layout.offset(Gpa(Layout::HOLE_START)), None);
        assert_eq!(layout.offset(Gpa(1 << 32)), Some(RamOffset(Layout::HOLE_START)));
        assert_eq!(layout.gpa(RamOffset(Layout::HOLE_START)), Gpa(1 << 32));
        assert_eq!(layout.offset(Gpa(6 << 30)), None);
    }

    #[test]
    fn write_then_read_across_pages() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let data: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        ram.write(Gpa(100), &data).unwrap();
        let mut back = vec![0; data.len()];
        ram.read(Gpa(100), &mut back).unwrap();
        assert_eq!(back, data);
        let end = Gpa((1 << 20) - 4);
        assert!(ram.write(end, &[0; 5]).is_err());
        assert!(ram.read(Gpa(u64::MAX), &mut [0; 2]).is_err());
    }

    #[test]
    fn epoch_lists_pages_written_in_it() {
        let mut ram = Ram::new(1 << 20).unwrap();
        ram.write(Gpa(0), &[1]).unwrap();
        let epoch = ram.begin_epoch();
        assert_eq!(ram.written_since(epoch).count(), 0);
        ram.write(Gpa(0x5ffe), &[1, 2, 3, 4]).unwrap();
        assert_eq!(ram.written_since(epoch).collect::<Vec<_>>(), [5, 6]);
    }

    #[test]
    fn table_write_counts_only_when_an_entry_was_present() {
        let mut ram = Ram::new(1 << 20).unwrap();
        ram.write(Gpa(0x2008), &3u64.to_le_bytes()).unwrap();
        assert!(ram.mark_table(2));
        assert!(!ram.mark_table(2));
        ram.write(Gpa(0x2000), &3u64.to_le_bytes()).unwrap();
        assert_eq!(ram.table_writes(), 0);
        ram.store_walk_bits(RamOffset(0x2008), 0x23);
        assert_eq!(ram.table_writes(), 0);
        ram.write(Gpa(0x200c), &[0]).unwrap();
        assert_eq!(ram.table_writes(), 0);
        assert_eq!(std::mem::take(ram.overwritten()), [Overwritten::Entry(2, 1)]);
        assert!(ram.is_watched(2));
        ram.write(Gpa(0x2004), &[0; 8]).unwrap();
        assert_eq!(std::mem::take(ram.overwritten()), [Overwritten::Table(2)]);
        assert!(!ram.is_watched(2));
    }

    #[test]
    fn table_page_that_is_taken_down_is_watched_no_more() {
        let mut ram = Ram::new(1 << 20).unwrap();
        ram.write(Gpa(0x2000), &[1; 4096]).unwrap();
        assert!(ram.mark_table(2));
        for entry in 0..512 {
            ram.write(Gpa(0x2000 + 8 * entry), &[0; 8]).unwrap();
        }
        let entries = (0..7).map(|index| Overwritten::Entry(2, index));
        let all: Vec<_> = entries.chain([Overwritten::Table(2)]).collect();
        assert_eq!(*ram.overwritten(), all);
        assert_eq!(ram.table_writes(), 0);
        assert!(ram.mark_table(2));
        ram.write(Gpa(0x2000), &[1; 16]).unwrap();
        ram.write(Gpa(0x2000), &[0; 16]).unwrap();
        assert_eq!((ram.overwritten().len(), ram.table_writes()), (8, 1));
        assert!(!ram.is_watched(2));
    }

    #[test]
    fn hash_depends_on_contents_only() {
        let mut a = Ram::new(1 << 20).unwrap();
        let mut b = Ram::new(1 << 20).unwrap();
        let empty = a.hash();
        a.write(Gpa(0x3000), b"hello").unwrap();
        a.write(Gpa(0x9000), b"x").unwrap();
        a.hash();
        a.write(Gpa(0x9000), b"\0").unwrap();
        b.write(Gpa(0x3000), b"hello").unwrap();
        assert_eq!(a.hash(), b.hash());
        b.write(Gpa(0x3000), b"hellp").unwrap();
        assert_ne!(a.hash(), b.hash());
        a.write(Gpa(0x3000), &[0; 5]).unwrap();
        assert_eq!(a.hash(), empty);
    }
}
