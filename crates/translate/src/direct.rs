//! Accesses by the host's page tables: the guest's own operand, behind a check that its address is
//! one of those that are claimed for that ([`crate::shadow`]).
//!
//! ```text
//! lea rdi, [operand] · shrx rdi, rdi, rsp · movzx edi, byte [rsp + rdi + PASS] · the instruction
//! ```
//! The check changes no flags and has no branch, and nothing waits for what it loads; if it may not
//! be loaded, it faults. It is left out where an address near by was checked earlier in the block.
//! Where an instruction may fault, all words are right and it is known where the flags are
//! ([`FaultSite`]).

use cpu::{Access, tlb};
use iced_x86::{Instruction, Register};

use crate::address::number;
use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::classify::Unit;
use crate::group::BESIDE_MAX;
use crate::layout::{self, GUEST_RSP, HOME, Home, host};
use crate::plan::Planned;
use crate::site::{FaultSite, Faults};

/// Displacement from RSP of the byte that stands for address 0.
const PASS: i32 = layout::in_block(tlb::layout::PASS);
const _: () = assert!(tlb::layout::SCRATCH_COUNT == 16);

/// A memory operand in the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand {
    pub(crate) base: u8,
    pub(crate) index: Option<(u8, u8)>,
    pub(crate) displacement: i32,
}

/// Whether an access of an instruction of the unit may go by the host's page tables. Whether an x87
/// store with an unmasked exception faults for its address is up to the processor.
pub(crate) fn may_go(unit: Unit, write: bool) -> bool {
    unit != Unit::X87 || !write
}

/// A general register that is kept in a host register.
fn in_host(register: Register) -> Option<u8> {
    if !register.is_gpr64() {
        return None;
    }
    match HOME[usize::from(number(register))] {
        Home::Host(host) => Some(host),
        Home::Word(_) => None,
    }
}

/// The operand with its registers renamed, if they are in host registers; only those that need no
/// REX prefix if `low`.
fn renamed(instruction: &Instruction, low: bool) -> Option<Operand> {
    if matches!(instruction.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    let fits = |register: &u8| !low || *register < 8;
    let base = in_host(instruction.memory_base()).filter(fits)?;
    let index = match instruction.memory_index() {
        Register::None => None,
        register => Some((in_host(register).filter(fits)?, instruction.memory_index_scale() as u8)),
    };
    let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
    Some(Operand { base, index, displacement })
}

impl Emitter<'_> {
    /// Whether the accesses of the instruction go by the host's page tables.
    pub(crate) fn is_direct(&self, size: usize) -> bool {
        self.direct && (1..=64).contains(&size)
    }

    /// Where the memory operand is, checked; what RDI holds after it may be part of that.
    pub(crate) fn direct_operand(
        &mut self,
        planned: &Planned,
        low: bool,
    ) -> Result<Operand, Unsupported> {
        let instruction = &planned.instruction;
        self.store_mirrors();
        if let Some(operand) = renamed(instruction, low) {
            if !planned.near.operand {
                self.check_renamed(operand);
            }
            return Ok(operand);
        }
        self.free(host::RDI);
        self.operand_offset(instruction, host::RDI)?;
        let base = match instruction.memory_segment() {
            Register::FS => Some(layout::FS_BASE),
            Register::GS => Some(layout::GS_BASE),
            _ => None,
        };
        if let Some(base) = base {
            let scratch = self.second_scratch();
            self.code.op_word(Op::Load, scratch, base);
            self.code.lea_scaled(host::RDI, Some(host::RDI), (scratch, 1), 0);
        }
        if !planned.near.operand {
            let scratch = self.second_scratch();
            self.check_address(host::RDI, scratch);
        }
        Ok(Operand { base: host::RDI, index: None, displacement: 0 })
    }

    /// Checks an address in registers: that of the base if the operand is beside it.
    fn check_renamed(&mut self, operand: Operand) {
        let Operand { base, index, displacement } = operand;
        let scratch = self.any_scratch();
        match index {
            None if i64::from(displacement).abs() <= BESIDE_MAX => {
                self.check_address(base, scratch)
            }
            None => {
                self.code.lea(scratch, base, displacement);
                self.check_address(scratch, scratch);
            }
            Some(index) => {
                self.code.lea_scaled(scratch, Some(base), index, displacement);
                self.check_address(scratch, scratch);
            }
        }
    }

    /// Checks that the address in `register` is claimed, by way of a scratch register.
    fn check_address(&mut self, register: u8, scratch: u8) {
        self.check_for(register, scratch, Faults::Check);
    }

    fn check_for(&mut self, register: u8, scratch: u8, faults: Faults) {
        self.shift_by_words(scratch, register);
        let start = self.place();
        self.load_byte(scratch, PASS);
        self.note_fault(start, faults);
    }

    /// What was emitted from `start` on may fault.
    pub(crate) fn note_fault(&mut self, start: u32, faults: Faults) {
        let Emitter { offset, unretired, flags, budget, .. } = *self;
        let end = self.place();
        self.faults.push(FaultSite { start, end, offset, unretired, flags, budget, faults });
    }

    /// `op register, [operand]`, an access of 64 bits.
    pub(crate) fn direct_op(&mut self, op: Op, register: u8, operand: Operand) {
        let access = if matches!(op, Op::Store) { Access::Write } else { Access::Read };
        let start = self.place();
        let Operand { base, index, displacement } = operand;
        match index {
            None => self.code.op_memory(op, register, base, displacement),
            Some(index) => self.code.op_scaled(op, register, base, index, displacement),
        }
        self.note_fault(start, Faults::Access(access));
    }

    /// Checks the stack pointer. All code by the host's page tables relies on that.
    pub(crate) fn check_stack_pointer(&mut self, faults: Faults) {
        let scratch = self.any_scratch();
        self.store_mirrors();
        self.check_for(GUEST_RSP, scratch, faults);
    }

    /// Checks the address in `register`, a stack pointer, unless one near by was.
    pub(crate) fn check_stack(&mut self, planned: &Planned, register: u8) {
        if !planned.near.stack {
            self.check_address(register, host::RDI);
        }
    }

    /// `register` to the stack, whose pointer stays as it is.
    pub(crate) fn direct_push(&mut self, register: u8) {
        let operand = Operand { base: GUEST_RSP, index: None, displacement: -8 };
        self.direct_op(Op::Store, register, operand);
    }

    /// What `pointer` points to, to `register`.
    pub(crate) fn direct_pop(&mut self, register: u8, pointer: u8) {
        let operand = Operand { base: pointer, index: None, displacement: 0 };
        self.direct_op(Op::Load, register, operand);
    }

    /// The eight bytes of the memory operand to `register`.
    pub(crate) fn direct_load(&mut self, register: u8, planned: &Planned) -> Emitted {
        let operand = self.direct_operand(planned, false)?;
        self.direct_op(Op::Load, register, operand);
        Ok(())
    }
}
