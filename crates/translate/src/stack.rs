//! PUSH, POP, LEAVE, and the instructions that work on flags as a whole.

use std::mem::offset_of;

use cpu::{Access, Registers, flag};
use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::address::number;
use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::layout::{self, GUEST_RSP, HOME, Home, host};

const OTHER_FLAGS: i32 = offset_of!(Registers, rflags_other) as i32;

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
    fn below_stack(&mut self) -> Emitted {
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

    pub(crate) fn flag_instruction(&mut self, instruction: &Instruction) -> Emitted {
        match instruction.mnemonic() {
            Mnemonic::Cli => self.change_other_flags(flag::IF, false),
            Mnemonic::Cld => self.change_other_flags(flag::DF, false),
            Mnemonic::Std => self.change_other_flags(flag::DF, true),
            Mnemonic::Pushfq => return self.pushfq(),
            _ => return Err(Unsupported),
        }
        Ok(())
    }

    fn change_other_flags(&mut self, bits: u64, set: bool) {
        self.save_flags();
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        let (form, bits) = if set { (0x8f, bits as u32) } else { (0xa7, !bits as u32) };
        self.code.put(&[0x81, form]); // or, and dword [rdi + ..], bits
        self.code.put(&OTHER_FLAGS.to_le_bytes());
        self.code.put(&bits.to_le_bytes());
    }

    /// RF and VM, which PUSHF clears, are clear in translated code.
    fn pushfq(&mut self) -> Emitted {
        self.below_stack()?;
        self.code.op_word(Op::Store, host::RDI, layout::TEMPORARY);
        self.code.put(&[0x0f, 0xb6, 0xf4]); // movzx esi, ah
        self.code.put(&[0x0f, 0xb6, 0xf8]); // movzx edi, al
        self.code.put(&[0xc1, 0xe7, 11]); // shl edi, 11
        self.code.put(&[0x09, 0xfe]); // or esi, edi
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.op_memory(Op::Or, host::RSI, host::RDI, OTHER_FLAGS);
        self.code.op_word(Op::Load, host::RDI, layout::TEMPORARY);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, 0);
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        Ok(())
    }
}
