//! The words beside the TLB, by which the engine and translated code talk to each other.

use cpu::Vcpu;
use cpu::tlb::layout as tlb;

/// The words beside the TLB, by their displacement; entries have negative ones.
#[derive(Clone, Copy)]
pub(crate) struct Words(pub(crate) *mut u8);

impl Words {
    /// The words of a vCPU.
    pub(crate) fn of(vcpu: &mut Vcpu) -> Words {
        // SAFETY: the offset is inside the block.
        Words(unsafe { vcpu.tlb.block().add(tlb::SCRATCH) })
    }

    fn at(self, displacement: i32) -> *mut u64 {
        let inside = -(tlb::SCRATCH as i32)..(tlb::SCRATCH_WORDS * size_of::<u64>()) as i32;
        assert!(displacement % 8 == 0 && inside.contains(&displacement));
        // SAFETY: the displacement leads to a word of the TLB's block.
        unsafe { self.0.offset(displacement as isize).cast() }
    }

    /// A word.
    pub(crate) fn get(self, displacement: i32) -> u64 {
        // SAFETY: the block is owned by the vCPU of the current run; generated code, which writes
        // it too, is not running.
        unsafe { self.at(displacement).read() }
    }

    /// Changes a word.
    pub(crate) fn set(self, displacement: i32, value: u64) {
        // SAFETY: as in `get`.
        unsafe { self.at(displacement).write(value) }
    }
}
