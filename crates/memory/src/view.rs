//! RAM as `vm-memory` libraries see it; a slice asked for with write permission traps its pages
//! before it is handed out.
//!
//! UNSAFETY: names the mapping to vm-memory by raw pointer.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::iter::FusedIterator;

use types::{Gpa, PAGE_MASK, PAGE_SIZE};
use vm_memory::guest_memory::{Error, GuestMemory, GuestMemorySliceIterator, Permissions, Result};
use vm_memory::{GuestAddress, GuestMemoryMmap, VolatileSlice};

use crate::mapping::Mapping;
use crate::ram::{Layout, Ram, RamOffset};
use crate::traps::Traps;

/// Exclusive view of RAM for the length of a library call.
pub struct RamView<'r> {
    mapping: &'r Mapping,
    traps: RefCell<&'r mut Traps>,
    layout: Layout,
}

impl<'r> RamView<'r> {
    pub(crate) fn new(ram: &'r mut Ram) -> RamView<'r> {
        let layout = ram.layout();
        RamView { mapping: &ram.mapping, traps: RefCell::new(&mut ram.traps), layout }
    }

    /// The piece of `len` bytes at `gpa` that lies in one page, trapped if it is to be written.
    fn piece(&self, gpa: Gpa, len: u64, write: bool) -> Result<VolatileSlice<'_, ()>> {
        let address = GuestAddress(gpa.0);
        let at = self.layout.offset(gpa).ok_or(Error::InvalidGuestAddress(address))?;
        if write {
            let mut traps = self.traps.borrow_mut();
            traps.before_write(at.page());
            traps.invalidate_code(at.page(), at.0 & PAGE_MASK, len);
            if traps.is_table(at.page()) {
                traps.table_written(at.page(), true);
            }
        }
        Ok(self.slice(at, len))
    }

    fn slice(&self, at: RamOffset, len: u64) -> VolatileSlice<'_, ()> {
        assert!(at.0 + len <= self.mapping.size());
        // SAFETY: the range is inside the mapping, which outlives `self`; the view holds RAM
        // exclusively, so no typed access of ours runs at the same time.
        unsafe { VolatileSlice::new(self.mapping.base().as_ptr().add(at.0 as usize), len as usize) }
    }
}

struct Pieces<'a, 'r> {
    view: &'a RamView<'r>,
    at: Gpa,
    left: u64,
    write: bool,
}

impl<'a> Iterator for Pieces<'a, '_> {
    type Item = Result<VolatileSlice<'a, ()>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let len = (PAGE_SIZE - self.at.page_offset()).min(self.left);
        let piece = self.view.piece(self.at, len, self.write);
        self.left = if piece.is_ok() { self.left - len } else { 0 };
        self.at = self.at.wrapping_add(len);
        Some(piece)
    }
}

impl FusedIterator for Pieces<'_, '_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Pieces<'a, '_> {}

impl GuestMemory for RamView<'_> {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        let Some(last) = addr.0.checked_add((count as u64).max(1) - 1) else { return false };
        match (self.layout.offset(Gpa(addr.0)), self.layout.offset(Gpa(last))) {
            (Some(first), Some(end)) => end.0.wrapping_sub(first.0) == last - addr.0,
            _ => false,
        }
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        let write = matches!(access, Permissions::Write | Permissions::ReadWrite);
        Ok(Pieces { view: self, at: Gpa(addr.0), left: count as u64, write })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn view_write_runs_the_trap() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let epoch = ram.begin_epoch();
        ram.mark_code(RamOffset(0x3000), 16);
        {
            let view = ram.view();
            view.write_slice(&[1, 2, 3, 4], GuestAddress(0x2ffe)).unwrap();
            let mut back = [0; 4];
            view.read_slice(&mut back, GuestAddress(0x2ffe)).unwrap();
            assert_eq!(back, [1, 2, 3, 4]);
            assert!(view.write_slice(&[0; 8], GuestAddress((1 << 20) - 4)).is_err());
        }
        assert_eq!(ram.written_since(epoch).take(2).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(ram.code_generation(3), 1);
    }

    #[test]
    fn view_read_leaves_pages_clean() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let epoch = ram.begin_epoch();
        let mut back = [0; 4];
        ram.view().read_slice(&mut back, GuestAddress(0x2ffe)).unwrap();
        assert_eq!(ram.written_since(epoch).count(), 0);
    }
}
