//! Accesses by the host's page tables: the guest's own operand, behind a check that its address is
//! one of those that are claimed for that ([`crate::shadow`]).
//!
//! ```text
//! lea rdi, [operand] · shrx rdi, rdi, rsp · movzx edi, byte [rsp + rdi + PASS] · the instruction
//! ```
//! The check changes no flags and has no branch, and nothing waits for what it loads; if it may not
//! be loaded, it faults. It is left out where an address near by was checked earlier in the block.
//! Where an instruction may fault it is known where flags, the budget and guest registers are
//! ([`FaultSite`]).

use cpu::{Access, tlb};
use iced_x86::{Instruction, Register};

use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::classify::Unit;
use crate::group::BESIDE_MAX;
use crate::layout::{self, GUEST_RSP, HOME, Home, host};
use crate::mirror::{Taken, is_scratch};
use crate::operands::number;
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

impl Operand {
    /// The scratch registers in it.
    pub(crate) fn scratch(&self) -> Taken {
        let registers = [Some(self.base), self.index.map(|(index, _)| index)];
        registers.into_iter().flatten().filter(|register| is_scratch(*register)).collect()
    }
}

/// Whether an access of an instruction of the unit may go by the host's page tables. Whether an x87
/// store with an unmasked exception faults for its address is up to the processor.
pub(crate) fn may_go(unit: Unit, write: bool) -> bool {
    unit != Unit::X87 || !write
}

/// What an instruction does with registers besides.
#[derive(Clone, Copy, Default)]
pub(crate) struct Uses {
    /// Its operand can have no register that needs a REX prefix.
    pub(crate) low: bool,
    /// It has guest RAX in host RAX.
    pub(crate) natural_rax: bool,
    /// Guest registers kept in words that it names, at most.
    pub(crate) words: usize,
}

impl Uses {
    /// Whether all registers that it names are where they are at home, and none is moved for it.
    pub(crate) fn is_plain(self) -> bool {
        !self.low && !self.natural_rax && self.words == 0
    }
}

/// The base and the index of the operand by guest number, where the host can have the like.
fn plain(instruction: &Instruction) -> Option<(u8, Option<u8>, i32)> {
    if matches!(instruction.memory_segment(), Register::FS | Register::GS) {
        return None;
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if !base.is_gpr64() || !(index == Register::None || index.is_gpr64()) {
        return None;
    }
    let displacement = i32::try_from(instruction.memory_displacement64() as i64).ok()?;
    let index = (index != Register::None).then(|| number(index));
    Some((number(base), index, displacement))
}

impl Emitter<'_> {
    /// Whether the accesses of the instruction go by the host's page tables.
    pub(crate) fn is_direct(&self, size: usize) -> bool {
        self.direct && (1..=64).contains(&size)
    }

    /// The operand with its registers renamed; those kept in words come to scratch registers.
    pub(crate) fn renamed(&mut self, instruction: &Instruction, uses: Uses) -> Option<Operand> {
        let (base, index, displacement) = plain(instruction)?;
        let home = |guest: u8| HOME[usize::from(guest)];
        let fits = |guest| !matches!(home(guest), Home::Host(8..)) || !uses.low;
        let in_word = |guest| matches!(home(guest), Home::Word(_));
        // One more for the check.
        let words = usize::from(in_word(base)) + usize::from(index.is_some_and(in_word));
        let room = self.has_scratch_for(words + uses.words.max(1), uses.natural_rax);
        if !fits(base) || !index.is_none_or(fits) || !room {
            return None;
        }
        let mut taken = Taken::new();
        if uses.natural_rax {
            taken.push(host::RAX);
        }
        let base = self.held_part(base, &mut taken).ok()?;
        let index = match index {
            Some(index) => {
                let scale = instruction.memory_index_scale() as u8;
                Some((self.held_part(index, &mut taken).ok()?, scale))
            }
            None => None,
        };
        Some(Operand { base, index, displacement })
    }

    /// Where the memory operand is, checked.
    pub(crate) fn direct_operand(
        &mut self,
        planned: &Planned,
        uses: Uses,
    ) -> Result<Operand, Unsupported> {
        let instruction = &planned.instruction;
        if uses.natural_rax {
            self.free(host::RAX);
        }
        if let Some(operand) = self.renamed(instruction, uses) {
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
            let scratch = self.any_scratch(&[host::RDI]);
            self.code.op_word(Op::Load, scratch, base);
            self.code.lea_scaled(host::RDI, Some(host::RDI), (scratch, 1), 0);
        }
        if !planned.near.operand {
            let scratch = self.any_scratch(&[host::RDI]);
            self.check_address(host::RDI, scratch);
        }
        Ok(Operand { base: host::RDI, index: None, displacement: 0 })
    }

    /// Checks an address in registers: that of the base if the operand is beside it.
    fn check_renamed(&mut self, operand: Operand) {
        let Operand { base, index, displacement } = operand;
        let scratch = self.any_scratch(&operand.scratch());
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
        let Emitter { offset, unretired, flags, budget, ahead, .. } = *self;
        let size = u8::try_from(self.place() - start).expect("one instruction");
        let held = self.mirrors.held();
        let site = FaultSite { start, size, offset, unretired, flags, budget, faults, held, ahead };
        self.faults.push(site);
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
        let scratch = self.any_scratch(&[]);
        self.check_for(GUEST_RSP, scratch, faults);
    }

    /// Checks the address in `register`, a stack pointer, unless one near by was.
    pub(crate) fn check_stack(&mut self, planned: &Planned, register: u8) {
        if !planned.near.stack {
            let scratch = self.any_scratch(&[]);
            self.check_address(register, scratch);
        }
    }

    /// `register` to the stack, whose pointer stays as it is.
    pub(crate) fn direct_push(&mut self, register: u8) {
        let displacement = i32::from(self.ahead) - 8;
        let operand = Operand { base: GUEST_RSP, index: None, displacement };
        self.direct_op(Op::Store, register, operand);
    }

    /// What `pointer` points to, to `register`.
    pub(crate) fn direct_pop(&mut self, register: u8, pointer: u8) {
        let operand = Operand { base: pointer, index: None, displacement: self.ahead.into() };
        self.direct_op(Op::Load, register, operand);
    }

    /// The eight bytes of the memory operand to RDI.
    pub(crate) fn direct_load(&mut self, planned: &Planned) -> Emitted {
        let operand = self.direct_operand(planned, Uses::default())?;
        self.free(host::RDI);
        self.direct_op(Op::Load, host::RDI, operand);
        Ok(())
    }
}
