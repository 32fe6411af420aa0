//! Near branches.

use cpu::{Access, tlb};
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use types::PAGE_MASK;

use crate::assembler::{Op, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::layout::{self, Flags, GUEST_RSP, HOME, Home, host};
use crate::operands::number;
use crate::plan::Planned;
use crate::site::Why;
use crate::stub::Stub;
use crate::trampoline::{find_linear, jump_by_slot, look_up_branch};

/// How a branch to another page knows its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is part of the instruction: the address is compared with the one it was linked for.
    Direct,
    /// It was computed: the table of indirect branches is asked.
    Indirect,
}

/// What an indirect branch by the host's page tables does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    Jump,
    /// Moves the stack pointer.
    Return(i32),
    /// Pushes the return address.
    Call,
}

/// Most bytes that a return may drop beside its address for the stack pointer to be as good as
/// checked: it is so near to what the return read.
pub(crate) const DROPPED_MAX: i32 = 4096;

/// The condition as encoded.
fn condition_number(code: ConditionCode) -> Option<u8> {
    use ConditionCode::*;
    [o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g]
        .iter()
        .position(|&known| known == code)
        .map(|position| position as u8)
}

impl Emitter<'_> {
    pub(crate) fn branch(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        let direct = instruction.op0_kind() == OpKind::NearBranch64;
        let target = instruction.near_branch_target() as i64;
        match instruction.mnemonic() {
            Mnemonic::Jmp if direct => self.link(None, target),
            Mnemonic::Call if direct => self.call_direct(planned, target),
            Mnemonic::Jmp if self.is_direct(8) => {
                let resume = self.resume_place();
                self.target_address(planned)?;
                self.arrive_linear(Arrival::Jump, resume);
                Ok(())
            }
            Mnemonic::Jmp => {
                self.target(planned)?;
                self.arrive();
                Ok(())
            }
            Mnemonic::Call => self.call_indirect(planned),
            Mnemonic::Ret => self.ret(planned),
            Mnemonic::Syscall | Mnemonic::Sysretq => self.cross(planned),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz => {
                self.count(instruction, target)
            }
            _ => {
                let condition = condition_number(instruction.condition_code());
                self.restore_flags();
                self.link(Some(condition.ok_or(Unsupported)?), target)?;
                self.link(None, i64::from(self.next))
            }
        }
    }

    /// A conditional branch that leaves the block by the side: when it is taken, or when a loop
    /// does not go on.
    pub(crate) fn branch_aside(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        let condition = condition_number(instruction.condition_code()).ok_or(Unsupported)?;
        self.restore_flags();
        if planned.again {
            return self.leave_aside(condition ^ 1, i64::from(self.next));
        }
        self.leave_aside(condition, instruction.near_branch_target() as i64)
    }

    /// LOOP and its kin: run as they are, for targets in the page.
    fn count(&mut self, instruction: &Instruction, target: i64) -> Emitted {
        if !(0..4096).contains(&target) || self.next >= 4096 {
            return Err(Unsupported);
        }
        self.restore_flags();
        let opcode = match instruction.mnemonic() {
            Mnemonic::Loopne => 0xe0,
            Mnemonic::Loope => 0xe1,
            Mnemonic::Loop => 0xe2,
            _ => 0xe3,
        };
        if self.mode.direct && !self.direct {
            self.keep_state(); // RFLAGS has them as well
        }
        self.place_budget();
        self.code.put(&[opcode, 5]); // over the jump that follows
        self.link(None, i64::from(self.next))?;
        self.link(None, target)
    }

    /// Linear address of `target` from the page's start to `to`.
    pub(crate) fn linear(&mut self, to: u8, target: i32) {
        self.code.op_word(Op::Load, to, layout::PAGE);
        self.code.lea(to, to, target);
    }

    /// Leaves unless the page behind this one is the one at host address `host`.
    pub(crate) fn check_next_page(&mut self, host: u64) {
        let resume = self.resume_place();
        self.linear(host::RDI, 4096);
        self.check(Access::Exec, 1, resume);
        self.add_page();
        self.code.put(&[0x48, 0xbe]); // mov rsi, host
        self.code.put(&host.to_le_bytes());
        self.code.put(&[0x48, 0x39, 0xf7]); // cmp rdi, rsi
        let differs = self.code.jump_if(condition::NOT_EQUAL);
        self.leave_if(differs, Why::NextPage { entry: self.entry_place() });
    }

    /// To a fixed target in another page; flags are in AX.
    pub(crate) fn go_far(&mut self, target: i32) {
        let resume = self.resume_place();
        self.linear(host::RDI, target);
        self.check(Access::Exec, 1, resume);
        self.add_page();
        self.turn_page(target);
        self.jump_to(Kind::Direct);
    }

    /// The page of the code that runs is from now on that of `target` from its start.
    fn turn_page(&mut self, target: i32) {
        self.code.add_word(layout::PAGE, target & !(PAGE_MASK as i32));
    }

    /// Into the page of the entry at RSI, offset RDI, where it was not known that it would be.
    fn arrive(&mut self) {
        self.add_page();
        self.code.op_entry(Op::Load, host::RSI, self.entry(tlb::layout::EXEC));
        self.code.op_word(Op::Store, host::RSI, layout::PAGE);
        self.jump_to(Kind::Indirect);
    }

    /// To the translation of the code at host address RDI.
    pub(crate) fn jump_to(&mut self, kind: Kind) {
        if kind == Kind::Indirect {
            let miss = look_up_branch(&mut self.code);
            jump_by_slot(&mut self.code);
            self.bind_outside(miss, self.workshop.trampolines.lookup);
            return;
        }
        self.code.put(&[0x48, 0xbe]); // mov rsi, the address once linked
        let constant = self.place();
        self.code.put(&0u64.to_le_bytes());
        self.code.put(&[0x48, 0x39, 0xf7]); // cmp rdi, rsi
        let differs = self.code.jump_if(condition::NOT_EQUAL);
        self.code.jump();
        self.leave_if(differs, Why::Far { constant, stub: 0, direct: self.direct });
    }

    /// The target of an indirect branch, looked up: offset in its page to RDI, entry to RSI.
    fn target(&mut self, planned: &Planned) -> Emitted {
        let resume = self.resume_place();
        self.target_address(planned)?;
        self.check(Access::Exec, 1, resume);
        Ok(())
    }

    /// The target of an indirect branch to RDI.
    fn target_address(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        if instruction.op0_kind() == OpKind::Memory && self.is_direct(8) {
            self.direct_load(planned)?;
        } else if instruction.op0_kind() == OpKind::Memory {
            let at = self.operand(planned, Access::Read)?;
            self.code.op_memory(Op::Load, host::RDI, host::RDI, at);
        } else {
            match HOME[usize::from(number(instruction.op0_register()))] {
                Home::Host(register) => self.code.copy(host::RDI, register),
                Home::Word(word) => self.code.op_word(Op::Load, host::RDI, word),
            }
        }
        Ok(())
    }

    /// Looks up where a call pushes its return address, before the target is looked up: the order
    /// in which accessed and dirty bits are set, if one of them faults. To TEMPORARY.
    fn place_of_return(&mut self, planned: &Planned, resume: u32) -> Emitted {
        if planned.stack.is_some() {
            return Ok(());
        }
        self.code.lea(host::RDI, GUEST_RSP, -8);
        self.lookup(Access::Write, 8, resume)?;
        self.code.op_word(Op::Store, host::RDI, layout::TEMPORARY);
        Ok(())
    }

    /// Stores the return address where `place_of_return` says.
    fn push_return(&mut self, planned: &Planned) {
        self.linear(host::RSI, i32::from(self.next));
        let (place, at) = match planned.stack {
            Some(member) => (layout::group(member.group.into()), member.at),
            None => (layout::TEMPORARY, 0),
        };
        self.code.op_word(Op::Load, host::RDI, place);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, at);
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
    }

    /// The return address to the stack by the host's page tables, by way of a scratch register.
    fn push_return_direct(&mut self, scratch: u8) {
        self.linear(scratch, i32::from(self.next));
        self.direct_push(scratch);
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
    }

    /// What RDI leads to, looked up for a call whose return address goes by the host's page tables:
    /// if the lookup misses, the careful block does the two in the interpreter's order.
    fn check_called(&mut self) {
        let jump = self.compare_tag(Access::Exec, 1);
        self.careful_if(jump);
        self.add_page();
    }

    /// CALL by the host's page tables.
    fn call_by_shadow(&mut self, planned: &Planned, target: Option<i64>) -> Emitted {
        self.check_stack(planned, GUEST_RSP);
        if let Some(target) = target
            && (0..4096).contains(&target)
        {
            self.push_return_direct(host::RDI);
            return self.link(None, target);
        }
        self.save_flags();
        self.end_mirrors();
        match target {
            Some(target) => {
                let target = i32::try_from(target).map_err(|_| Unsupported)?;
                self.linear(host::RDI, target);
                self.check_called();
                self.push_return_direct(host::RSI);
                self.turn_page(target);
                self.jump_to(Kind::Direct);
                Ok(())
            }
            None => {
                self.target_address(planned)?;
                self.arrive_linear(Arrival::Call, 0);
                Ok(())
            }
        }
    }

    /// To the linear address in RDI, by the table of those.
    fn arrive_linear(&mut self, arrival: Arrival, resume: u32) {
        find_linear(&mut self.code);
        self.code.op_memory(Op::Cmp, host::RDI, host::RSI, 0);
        let jump = self.code.jump_if(condition::NOT_EQUAL);
        assert!(self.flags == Flags::Saved);
        let (site, next) = (self.site(Why::Goto), self.next);
        self.stubs.push(Stub::Arrive { jump, arrival, resume, site, next });
        match arrival {
            Arrival::Jump => {}
            Arrival::Return(by) => self.code.lea(GUEST_RSP, GUEST_RSP, by),
            Arrival::Call => {
                self.code.op_memory(Op::Load, host::RSI, host::RSI, 8);
                self.code.op_word(Op::Store, host::RSI, layout::TARGET);
                self.push_return_direct(host::RSI);
            }
        }
        self.code.put(&[0x48, 0x81, 0xe7]); // and rdi, ~0xfff
        self.code.put(&(!PAGE_MASK as u32).to_le_bytes());
        self.code.op_word(Op::Store, host::RDI, layout::PAGE);
        match arrival {
            Arrival::Call => self.code.plain_word(&[0xff], 4, layout::TARGET), // jmp
            _ => jump_by_slot(&mut self.code),
        }
    }

    /// Where the table does not have it: by the TLB, and then it does.
    pub(crate) fn arrive_slowly(&mut self, arrival: Arrival, resume: u32) {
        self.code.op_word(Op::Store, host::RDI, layout::ARRIVED);
        match arrival {
            Arrival::Jump => self.check(Access::Exec, 1, resume),
            Arrival::Return(by) => {
                self.check(Access::Exec, 1, resume);
                self.code.lea(GUEST_RSP, GUEST_RSP, by);
            }
            Arrival::Call => {
                let jump = self.compare_tag(Access::Exec, 1);
                self.careful_if(jump);
            }
        }
        self.add_page();
        self.code.op_entry(Op::Load, host::RSI, self.entry(tlb::layout::EXEC));
        if arrival == Arrival::Call {
            self.code.op_word(Op::Store, host::RSI, layout::NEXT_PAGE);
            self.push_return_direct(host::RSI);
            self.code.op_word(Op::Load, host::RSI, layout::NEXT_PAGE);
        }
        self.code.op_word(Op::Store, host::RSI, layout::PAGE);
        let jump = self.code.jump();
        self.bind_outside(jump, self.workshop.trampolines.arrive);
    }

    fn call_direct(&mut self, planned: &Planned, target: i64) -> Emitted {
        if self.is_direct(8) {
            return self.call_by_shadow(planned, Some(target));
        }
        let resume = self.resume_place();
        self.place_of_return(planned, resume)?;
        if (0..4096).contains(&target) {
            self.push_return(planned);
            return self.link(None, target);
        }
        let target = i32::try_from(target).map_err(|_| Unsupported)?;
        self.linear(host::RDI, target);
        self.check(Access::Exec, 1, resume);
        self.add_page();
        self.code.op_word(Op::Store, host::RDI, layout::TARGET);
        self.push_return(planned);
        self.turn_page(target);
        self.code.op_word(Op::Load, host::RDI, layout::TARGET);
        self.jump_to(Kind::Direct);
        Ok(())
    }

    fn call_indirect(&mut self, planned: &Planned) -> Emitted {
        if self.is_direct(8) {
            return self.call_by_shadow(planned, None);
        }
        let resume = self.resume_place();
        self.target_address(planned)?;
        self.code.op_word(Op::Store, host::RDI, layout::TARGET);
        self.place_of_return(planned, resume)?;
        self.code.op_word(Op::Load, host::RDI, layout::TARGET);
        self.check(Access::Exec, 1, resume);
        self.add_page();
        self.code.op_word(Op::Store, host::RDI, layout::TARGET);
        self.code.op_entry(Op::Load, host::RSI, self.entry(tlb::layout::EXEC));
        self.code.op_word(Op::Store, host::RSI, layout::NEXT_PAGE);
        self.push_return(planned);
        self.code.op_word(Op::Load, host::RSI, layout::NEXT_PAGE);
        self.code.op_word(Op::Store, host::RSI, layout::PAGE);
        self.code.op_word(Op::Load, host::RDI, layout::TARGET);
        self.jump_to(Kind::Indirect);
        Ok(())
    }

    fn ret(&mut self, planned: &Planned) -> Emitted {
        let instruction = &planned.instruction;
        let dropped = match instruction.op0_kind() {
            OpKind::Immediate16 => i32::from(instruction.immediate16()),
            _ => 0,
        };
        let resume = self.resume_place();
        if self.is_direct(8) {
            // The stack pointer is not checked where it arrives.
            if dropped > DROPPED_MAX {
                return Err(Unsupported);
            }
            self.check_stack(planned, GUEST_RSP);
            self.direct_pop(host::RDI, GUEST_RSP);
            self.arrive_linear(Arrival::Return(8 + dropped), resume);
            return Ok(());
        }
        let at = self.popped(planned, GUEST_RSP)?;
        self.code.op_memory(Op::Load, host::RDI, host::RDI, at);
        self.check(Access::Exec, 1, resume);
        self.code.lea(GUEST_RSP, GUEST_RSP, 8 + dropped);
        self.arrive();
        Ok(())
    }
}
