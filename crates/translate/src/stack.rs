//! PUSH, POP and LEAVE.

use cpu::Access;
use cpu::gpr::RSP;
use iced_x86::{Mnemonic, OpKind, Register};

use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::classify::{Class, Unit};
use crate::layout::{self, GUEST_RSP, HOME, Home, host};
use crate::mirror::Taken;
use crate::operands::number;
use crate::plan::Planned;

/// Most bytes that guest RSP may be ahead of its register.
pub(crate) const AHEAD_MAX: i8 = 112;

/// Notes in a block's instructions whether the stack pointer's register may stay behind after them,
/// in a block whose accesses go by the host's page tables: PUSH and POP move it together with the
/// next one, if nothing between them uses it. Who faults there knows how far it is behind.
pub(crate) fn find_runs(insns: &mut [Planned]) {
    let mut follows = false;
    for planned in insns.iter_mut().rev() {
        planned.lags = follows;
        follows = moves_by_register(planned) || (follows && leaves_stack_alone(planned));
    }
}

/// Whether it is a PUSH or POP of anything but memory and RSP.
fn moves_by_register(planned: &Planned) -> bool {
    let instruction = &planned.instruction;
    let plain = match instruction.op0_kind() {
        OpKind::Register => {
            instruction.op0_register().is_gpr64() && instruction.op0_register() != Register::RSP
        }
        kind => kind != OpKind::Memory,
    };
    let by = instruction.stack_pointer_increment();
    planned.class == Class::Stack
        && matches!((instruction.mnemonic(), by), (Mnemonic::Push, -8) | (Mnemonic::Pop, 8))
        && plain
}

/// Whether the instruction has nothing to do with RSP and leaves the block by faults only, or
/// calls [`Emitter::settle_stack`].
fn leaves_stack_alone(planned: &Planned) -> bool {
    let class = match planned.class {
        Class::Nothing | Class::Address => true,
        Class::Compute { unit } => unit == Unit::Integer,
        _ => false,
    };
    class && (planned.effects.read | planned.effects.written) & 1 << RSP == 0
}

impl Emitter<'_> {
    /// Guest RSP moves by so many bytes; its register only if it may not stay behind.
    fn move_stack(&mut self, planned: &Planned, by: i8) {
        self.ahead += by;
        if !planned.lags || self.ahead.abs() >= AHEAD_MAX {
            self.settle_stack();
        }
    }

    /// The stack pointer's register is right. Keeps flags.
    pub(crate) fn settle_stack(&mut self) {
        if self.ahead != 0 {
            self.code.lea(GUEST_RSP, GUEST_RSP, i32::from(self.ahead));
            self.ahead = 0;
        }
    }

    pub(crate) fn stack(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        let moved = instruction.stack_pointer_increment();
        match instruction.mnemonic() {
            Mnemonic::Leave if instruction.op_code().operand_size() == 64 => self.leave(planned),
            Mnemonic::Push if moved == -8 => self.push(planned),
            Mnemonic::Pop if moved == 8 => self.pop(planned),
            _ => Err(Unsupported),
        }
    }

    /// Looks up the eight bytes below the stack pointer for a store.
    pub(crate) fn below_stack(&mut self) -> Emitted {
        let resume = self.resume_place();
        self.code.lea(host::RDI, GUEST_RSP, -8);
        self.lookup(Access::Write, 8, resume)
    }

    /// Where a push goes: RDI and what is returned.
    fn pushed(&mut self, planned: &Planned) -> Result<i32, Unsupported> {
        match planned.stack {
            Some(member) => Ok(self.member(member)),
            None => self.below_stack().map(|()| 0),
        }
    }

    fn push(&mut self, planned: &Planned) -> Emitted {
        if self.is_direct(8) {
            return self.push_direct(planned);
        }
        let instruction = &planned.instruction;
        match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_gpr() => {
                let at = self.pushed(planned)?;
                match HOME[usize::from(number(instruction.op0_register()))] {
                    Home::Host(from) => self.code.op_memory(Op::Store, from, host::RDI, at),
                    Home::Word(word) => {
                        self.code.op_word(Op::Load, host::RSI, word);
                        self.code.op_memory(Op::Store, host::RSI, host::RDI, at);
                    }
                }
            }
            OpKind::Memory => {
                let resume = self.resume_place();
                let from = self.operand(planned, Access::Read)?;
                self.code.op_memory(Op::Load, host::RSI, host::RDI, from);
                self.code.op_word(Op::Store, host::RSI, layout::TEMPORARY);
                // A miss here comes back to the load: RAM can be read twice.
                self.code.lea(host::RDI, GUEST_RSP, -8);
                self.lookup(Access::Write, 8, resume)?;
                self.code.op_word(Op::Load, host::RSI, layout::TEMPORARY);
                self.code.op_memory(Op::Store, host::RSI, host::RDI, 0);
                self.forget_rdi();
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                let at = self.pushed(planned)?;
                self.code.put(&[0x48, 0xc7, 0x87]); // mov qword [rdi + at], imm32
                self.code.put(&at.to_le_bytes());
                self.code.put(&(instruction.immediate(0) as u32).to_le_bytes());
            }
            _ => return Err(Unsupported),
        }
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        Ok(())
    }

    /// PUSH by the host's page tables.
    fn push_direct(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        self.check_stack(planned, GUEST_RSP);
        let register = match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_gpr() => {
                match HOME[usize::from(number(instruction.op0_register()))] {
                    Home::Host(from) => from,
                    Home::Word(_) => {
                        let guest = number(instruction.op0_register());
                        self.held_part(guest, &mut Taken::new())?
                    }
                }
            }
            OpKind::Memory => {
                self.direct_load(planned)?;
                host::RDI
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                self.free(host::RDI);
                self.code.constant(host::RDI, instruction.immediate(0));
                host::RDI
            }
            _ => return Err(Unsupported),
        };
        self.direct_push(register);
        self.move_stack(planned, -8);
        Ok(())
    }

    /// POP by the host's page tables; POP RSP leaves what was popped.
    fn pop_direct(&mut self, planned: &Planned) -> Emitted {
        self.check_stack(planned, GUEST_RSP);
        let guest = number(planned.instruction.op0_register());
        match HOME[usize::from(guest)] {
            Home::Host(GUEST_RSP) => self.direct_pop(GUEST_RSP, GUEST_RSP),
            Home::Host(to) => {
                self.direct_pop(to, GUEST_RSP);
                self.move_stack(planned, 8);
            }
            home @ Home::Word(_) => {
                let to = self.choose_scratch(home, &[])?;
                self.direct_pop(to, GUEST_RSP);
                self.defer_home(to, guest);
                self.move_stack(planned, 8);
            }
        }
        Ok(())
    }

    /// Where the eight bytes at `register` are: RDI and what is returned.
    pub(crate) fn popped(&mut self, planned: &Planned, register: u8) -> Result<i32, Unsupported> {
        if let Some(member) = planned.stack {
            return Ok(self.member(member));
        }
        let resume = self.resume_place();
        self.code.copy(host::RDI, register);
        self.lookup(Access::Read, 8, resume)?;
        Ok(0)
    }

    fn pop(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        if instruction.op0_kind() != OpKind::Register || !instruction.op0_register().is_gpr() {
            return Err(Unsupported);
        }
        if self.is_direct(8) {
            return self.pop_direct(planned);
        }
        let at = self.popped(planned, GUEST_RSP)?;
        // Before the load: POP RSP leaves what was popped.
        self.code.lea(GUEST_RSP, GUEST_RSP, 8);
        match HOME[usize::from(number(instruction.op0_register()))] {
            Home::Host(to) => self.code.op_memory(Op::Load, to, host::RDI, at),
            Home::Word(word) => {
                self.code.op_memory(Op::Load, host::RSI, host::RDI, at);
                self.code.op_word(Op::Store, host::RSI, word);
            }
        }
        Ok(())
    }

    fn leave(&mut self, planned: &Planned) -> Emitted {
        if self.is_direct(8) {
            self.check_stack(planned, host::RBP);
            self.free(host::RDI);
            self.direct_pop(host::RDI, host::RBP);
            self.code.lea(GUEST_RSP, host::RBP, 8);
            self.code.copy(host::RBP, host::RDI);
            return Ok(());
        }
        let at = self.popped(planned, host::RBP)?;
        self.code.lea(GUEST_RSP, host::RBP, 8);
        self.code.op_memory(Op::Load, host::RBP, host::RDI, at);
        Ok(())
    }
}
