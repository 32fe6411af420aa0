//! PUSH, POP and LEAVE.

use cpu::Access;
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::address::number;
use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::layout::{self, GUEST_RSP, HOME, Home, host};

impl Emitter<'_> {
    pub(crate) fn stack(&mut self, instruction: &Instruction) -> Emitted {
        let moved = instruction.stack_pointer_increment();
        match instruction.mnemonic() {
            Mnemonic::Leave if instruction.op_code().operand_size() == 64 => self.leave(),
            Mnemonic::Push if moved == -8 => self.push(instruction),
            Mnemonic::Pop if moved == 8 => self.pop(instruction),
            _ => Err(Unsupported),
        }
    }

    /// Looks up the eight bytes below the stack pointer for a store.
    pub(crate) fn below_stack(&mut self) -> Emitted {
        self.save_flags();
        let resume = self.place();
        self.code.lea(host::RDI, GUEST_RSP, -8);
        self.lookup(Access::Write, 8, resume)
    }

    fn push(&mut self, instruction: &Instruction) -> Emitted {
        match instruction.op0_kind() {
            OpKind::Register if instruction.op0_register().is_gpr() => {
                self.below_stack()?;
                match HOME[usize::from(number(instruction.op0_register()))] {
                    Home::Host(from) => self.code.op_memory(Op::Store, from, host::RDI, 0),
                    Home::Word(word) => {
                        self.code.op_word(Op::Load, host::RSI, word);
                        self.code.op_memory(Op::Store, host::RSI, host::RDI, 0);
                    }
                }
            }
            OpKind::Memory => {
                self.save_flags();
                let resume = self.place();
                self.operand(instruction, Access::Read)?;
                self.code.op_memory(Op::Load, host::RSI, host::RDI, 0);
                self.code.op_word(Op::Store, host::RSI, layout::TEMPORARY);
                // A miss here comes back to the load: RAM can be read twice.
                self.code.lea(host::RDI, GUEST_RSP, -8);
                self.lookup(Access::Write, 8, resume)?;
                self.code.op_word(Op::Load, host::RSI, layout::TEMPORARY);
                self.code.op_memory(Op::Store, host::RSI, host::RDI, 0);
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => {
                self.below_stack()?;
                self.code.put(&[0x48, 0xc7, 0x07]); // mov qword [rdi], imm32
                self.code.put(&(instruction.immediate(0) as u32).to_le_bytes());
            }
            _ => return Err(Unsupported),
        }
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        Ok(())
    }

    fn pop(&mut self, instruction: &Instruction) -> Emitted {
        if instruction.op0_kind() != OpKind::Register || !instruction.op0_register().is_gpr() {
            return Err(Unsupported);
        }
        self.save_flags();
        let resume = self.place();
        self.code.copy(host::RDI, GUEST_RSP);
        self.lookup(Access::Read, 8, resume)?;
        // Before the load: POP RSP leaves what was popped.
        self.code.lea(GUEST_RSP, GUEST_RSP, 8);
        match HOME[usize::from(number(instruction.op0_register()))] {
            Home::Host(to) => self.code.op_memory(Op::Load, to, host::RDI, 0),
            Home::Word(word) => {
                self.code.op_memory(Op::Load, host::RSI, host::RDI, 0);
                self.code.op_word(Op::Store, host::RSI, word);
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Emitted {
        self.save_flags();
        let resume = self.place();
        self.code.copy(host::RDI, host::RBP);
        self.lookup(Access::Read, 8, resume)?;
        self.code.lea(GUEST_RSP, host::RBP, 8);
        self.code.op_memory(Op::Load, host::RBP, host::RDI, 0);
        Ok(())
    }
}
