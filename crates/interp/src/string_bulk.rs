//! Many iterations of REP MOVS and REP STOS at once, where nothing can tell the difference:
//! forward, within one page of plain RAM on each side, without overlap ahead.

use cpu::{Access, Seg, Word, gpr};
use memory::RamOffset;
use types::{PAGE_MASK, PAGE_SIZE};

use crate::string::Strings;

/// Bytes of a page that are filled at once from which on it does not count as a page table.
const FILLED_MIN: u64 = 512;

/// Elements from `gva` to the end of its page.
fn to_page_end(gva: u64, size: u64) -> u64 {
    (PAGE_SIZE - (gva & PAGE_MASK)) / size
}

impl Strings<'_, '_, '_, '_> {
    /// RAM offset of `pointer` on `seg` and the elements that follow in its page, at most
    /// `count`; `None` unless the TLB allows the access.
    fn run_of<T: Word>(
        &self,
        seg: Seg,
        reg: usize,
        count: u64,
        access: Access,
    ) -> Option<(RamOffset, u64)> {
        let (gva, elements) = self.stretch::<T>(seg, reg, count, access)?;
        let cpu = &self.exec.cpu;
        let at = cpu.vcpu.tlb.lookup(cpu.vcpu.mode.side, gva, access)?;
        Some((RamOffset(at), elements))
    }

    /// Linear address of `pointer` on `seg` and the elements that follow in its page, two or more
    /// and at most `count`.
    fn stretch<T: Word>(
        &self,
        seg: Seg,
        reg: usize,
        count: u64,
        access: Access,
    ) -> Option<(u64, u64)> {
        let cpu = &self.exec.cpu;
        let offset = self.pointer(reg);
        let gva = cpu.linear(seg, offset, T::SIZE, access).ok()?;
        let elements = to_page_end(gva, T::SIZE).min(count);
        let size = elements * T::SIZE;
        let mask = crate::insn::address_mask(self.insn.address_bits);
        if elements < 2 || offset > mask - size || cpu.linear(seg, offset, size, access).is_err() {
            return None;
        }
        Some((gva, elements))
    }

    /// Has a page that is about to be filled no longer count as a page table: once, not at each
    /// entry. The next iteration may then be followed by many.
    fn unwatch<T: Word>(&mut self, count: u64) {
        let stretch = self.stretch::<T>(Seg::Es, gpr::RDI, count, Access::Write);
        let Some((gva, _)) = stretch.filter(|(_, elements)| elements * T::SIZE >= FILLED_MIN)
        else {
            return;
        };
        let cpu = &mut *self.exec.cpu;
        if let Some(at) = cpu.vcpu.tlb.lookup_read(cpu.vcpu.mode.side, gva) {
            cpu.ram.forget_table(RamOffset(at).page());
            cpu.sync_tlb();
        }
    }
}

/// Iterations of REP MOVS done at once; 0 if none can be.
pub fn movs<T: Word>(s: &mut Strings<'_, '_, '_, '_>) -> u64 {
    if !s.is_forward() {
        return 0;
    }
    let count = s.count();
    let Some((to, count)) = s.run_of::<T>(Seg::Es, gpr::RDI, count, Access::Write) else {
        return 0;
    };
    let Some((from, count)) = s.run_of::<T>(s.insn.seg, gpr::RSI, count, Access::Read) else {
        return 0;
    };
    let size = count * T::SIZE;
    if to.0 > from.0 && to.0 < from.0 + size {
        return 0;
    }
    let mut buffer = [0; PAGE_SIZE as usize];
    let bytes = &mut buffer[..size as usize];
    s.exec.cpu.ram.load_bytes(from, bytes);
    s.exec.cpu.ram.store_bytes(to, bytes);
    s.advance(gpr::RSI, size);
    s.advance(gpr::RDI, size);
    count
}

/// Iterations of REP STOS done at once; 0 if none can be.
pub fn stos<T: Word>(s: &mut Strings<'_, '_, '_, '_>) -> u64 {
    if !s.is_forward() {
        return 0;
    }
    let count = s.count();
    let Some((to, count)) = s.run_of::<T>(Seg::Es, gpr::RDI, count, Access::Write) else {
        s.unwatch::<T>(count);
        return 0;
    };
    let value: T = s.exec.get(gpr::RAX as u8);
    let size = count * T::SIZE;
    let mut buffer = [0; PAGE_SIZE as usize];
    let bytes = &mut buffer[..size as usize];
    value.with_bytes(|pattern| {
        bytes.chunks_exact_mut(pattern.len()).for_each(|chunk| chunk.copy_from_slice(pattern));
    });
    s.exec.cpu.ram.store_bytes(to, bytes);
    s.advance(gpr::RDI, size);
    count
}
