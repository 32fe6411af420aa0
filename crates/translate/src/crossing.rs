//! SYSCALL and SYSRET between 64-bit user and kernel code, without leaving translated code.
//!
//! What they do is told by MSRs that hardly ever change: it is part of the translation, behind a
//! look whether they are still the same ([`Gates`]). Whatever else is out of the ordinary, and a
//! target that misses the TLB, is left to the dispatcher, before anything has happened.

use std::mem::{offset_of, size_of};

use cpu::{Access, Msrs, Seg, Segment, StatusFlags, Vcpu, cr, flag, gpr, tlb};
use iced_x86::{Code, Instruction};

use crate::assembler::{Op, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::classify::Mode;
use crate::layout::{self, HOME, Home, host};
use crate::plan::Planned;
use crate::site::Why;
use crate::system::{MODE_SIDE, MODE_WALK_SIDE, OTHER_FLAGS, beside_registers};

/// Sets of MSRs that are told apart; a guest that comes up with more has them looked at each time.
const GATES_MAX: usize = 16;
/// What SYSCALL must clear for this: then no alignment is checked, and no interrupt comes between.
const CLEARED: u64 = flag::IF | flag::TF | flag::AC;
/// What SYSRET must not set for this.
const NOT_RETURNED: u64 = flag::TF | flag::AC | flag::RF | flag::VM;

/// The MSRs that tell what SYSCALL and SYSRET do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    star: u64,
    lstar: u64,
    sfmask: u64,
}

impl Gate {
    fn of(msrs: &Msrs) -> Option<Gate> {
        let Msrs { efer, star, lstar, sfmask, .. } = *msrs;
        let usual = efer & cr::EFER_SCE != 0 && sfmask & CLEARED == CLEARED;
        usual.then_some(Gate { star, lstar, sfmask })
    }
}

/// The number that no gate has: then the dispatcher does what crosses.
pub(crate) const NO_GATE: u32 = 0;

/// Those that were seen.
#[derive(Default)]
pub(crate) struct Gates {
    known: Vec<Gate>,
    /// The present one, and its number, from 1.
    pub(crate) now: Option<(u32, Gate)>,
}

impl Gates {
    /// The number of the present one, or [`NO_GATE`].
    #[inline]
    pub(crate) fn look(&mut self, msrs: &Msrs) -> u32 {
        let gate = Gate::of(msrs);
        if self.now.map(|(_, gate)| gate) != gate {
            self.now = gate.and_then(|gate| self.find(gate));
        }
        self.now.map_or(NO_GATE, |(number, _)| number)
    }

    #[cold]
    fn find(&mut self, gate: Gate) -> Option<(u32, Gate)> {
        let index = self.known.iter().position(|known| *known == gate);
        let index = index.or_else(|| {
            (self.known.len() < GATES_MAX).then(|| {
                self.known.push(gate);
                self.known.len() - 1
            })
        })?;
        Some((index as u32 + 1, gate))
    }
}

/// Whether the instruction crosses from user to kernel code or back, in code of `mode`.
pub(crate) fn is_crossing(instruction: &Instruction, mode: Mode) -> bool {
    match instruction.code() {
        Code::Syscall => !mode.kernel,
        Code::Sysretq => mode.kernel,
        _ => false,
    }
}

/// The other side of a crossing.
struct Beyond {
    cpl: u8,
    side: u8,
    segments: [Segment; 2],
}

fn word_of(guest: usize) -> Result<i32, Unsupported> {
    match HOME[guest] {
        Home::Word(word) => Ok(word),
        Home::Host(_) => Err(Unsupported),
    }
}

const _: () = assert!(matches!(HOME[gpr::RCX], Home::Host(host::RCX)));

impl Emitter<'_> {
    /// SYSCALL or SYSRET.
    pub(crate) fn cross(&mut self, planned: &Planned) -> Emitted {
        let (number, gate) = self.workshop.gates.now.ok_or(Unsupported)?;
        self.keep_flags();
        self.end_mirrors();
        let instruction = &planned.instruction;
        self.code.compare_word(layout::GATE, number);
        self.decline_if(condition::NOT_EQUAL, instruction);
        if instruction.code() == Code::Syscall {
            self.enter_kernel(instruction, gate)
        } else {
            self.leave_kernel(instruction, gate)
        }
    }

    /// Has the dispatcher do it.
    fn decline_if(&mut self, condition: u8, instruction: &Instruction) {
        let jump = self.code.jump_if(condition);
        self.decline(jump, instruction);
    }

    /// The same where the jump at `jump` is taken.
    fn decline(&mut self, jump: usize, instruction: &Instruction) {
        let (mnemonic, len) = (instruction.mnemonic() as u16, instruction.len() as u16);
        self.leave_if(jump, Why::Step { mnemonic, len, then: None });
    }

    /// Where the code at the linear address in RDI is: to TARGET, its page to NEXT_PAGE.
    fn look_beyond(&mut self, beyond: &Beyond, instruction: &Instruction) {
        let side = std::mem::replace(&mut self.mode.side, beyond.side);
        let miss = self.compare_tag(Access::Exec, 1);
        self.decline(miss, instruction);
        self.add_page();
        self.code.op_word(Op::Store, host::RDI, layout::TARGET);
        self.code.op_entry(Op::Load, host::RSI, self.entry(tlb::layout::EXEC));
        self.code.op_word(Op::Store, host::RSI, layout::NEXT_PAGE);
        self.mode.side = side;
    }

    /// SDM vol. 2, "SYSCALL".
    fn enter_kernel(&mut self, instruction: &Instruction, gate: Gate) -> Emitted {
        let beyond = Beyond {
            cpl: 0,
            side: self.mode.side_beyond(),
            segments: cpu::syscall_segments(gate.star),
        };
        let r11 = word_of(gpr::R11)?;
        self.code.constant(host::RDI, gate.lstar);
        self.look_beyond(&beyond, instruction);
        self.linear(host::RCX, i32::from(self.next));
        self.flags_whole();
        self.code.op_word(Op::Store, host::RSI, r11);
        let StatusFlags { overflow, low } = StatusFlags::from_rflags(!gate.sfmask);
        self.code.put(&[0x25, overflow, low, 0, 0]); // and eax, ..
        self.code.put(&[0x81, 0xa7]); // and dword [rdi + ..], ..
        self.code.put(&OTHER_FLAGS.to_le_bytes());
        self.code.put(&(!gate.sfmask as u32).to_le_bytes());
        self.go_beyond(&beyond);
        Ok(())
    }

    /// SDM vol. 2, "SYSRET".
    fn leave_kernel(&mut self, instruction: &Instruction, gate: Gate) -> Emitted {
        let segments = cpu::sysret_segments(gate.star, true);
        let beyond = Beyond { cpl: 3, side: self.mode.side_beyond(), segments };
        let r11 = word_of(gpr::R11)?;
        self.code.plain_word(&[0xf7], 0, r11); // test dword .., ..
        self.code.put(&(NOT_RETURNED as u32).to_le_bytes());
        self.decline_if(condition::NOT_EQUAL, instruction);
        self.code.is_zero(layout::INTERRUPT_WAITS);
        self.decline_if(condition::NOT_EQUAL, instruction);
        self.code.copy(host::RDI, host::RCX);
        self.look_beyond(&beyond, instruction);
        self.code.load_low(host::RSI, r11);
        self.code.put(&[0x89, 0xf0]); // mov eax, esi
        self.code.put(&[0xc1, 0xe8, 11, 0x83, 0xe0, 1]); // shr eax, 11; and eax, 1
        self.code.put(&[0x89, 0xf7, 0x81, 0xe7]); // mov edi, esi; and edi, ..
        self.code.put(&((flag::STATUS & 0xff) as u32).to_le_bytes());
        self.code.put(&[0x83, 0xcf, flag::FIXED as u8]); // or edi, ..
        self.code.put(&[0xc1, 0xe7, 8, 0x09, 0xf8]); // shl edi, 8; or eax, edi
        self.code.put(&[0x81, 0xe6]); // and esi, ..
        self.code.put(&(flag::OTHER as u32).to_le_bytes());
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, OTHER_FLAGS);
        self.go_beyond(&beyond);
        Ok(())
    }

    /// Changes segments and privilege, RDI being the address of the registers, and goes to TARGET.
    fn go_beyond(&mut self, beyond: &Beyond) {
        for (segment, value) in [Seg::Cs, Seg::Ss].into_iter().zip(beyond.segments) {
            let at = beside_registers(
                offset_of!(Vcpu, segments) + segment as usize * size_of::<Segment>(),
            );
            let Segment { selector, base, limit, attributes } = value;
            assert!(base == 0);
            self.code.put(&[0x66, 0xc7, 0x87]); // mov word [rdi + ..], ..
            self.code.put(&(at + offset_of!(Segment, selector) as i32).to_le_bytes());
            self.code.put(&selector.to_le_bytes());
            self.code.put(&[0x48, 0xc7, 0x87]); // mov qword [rdi + ..], ..
            self.code.put(&(at + offset_of!(Segment, base) as i32).to_le_bytes());
            self.code.put(&0u32.to_le_bytes());
            for (field, value) in
                [(offset_of!(Segment, limit), limit), (offset_of!(Segment, attributes), attributes)]
            {
                self.code.put(&[0xc7, 0x87]); // mov dword [rdi + ..], ..
                self.code.put(&(at + field as i32).to_le_bytes());
                self.code.put(&value.to_le_bytes());
            }
        }
        let Beyond { cpl, side, .. } = *beyond;
        let cpl_at = beside_registers(offset_of!(Vcpu, cpl));
        for (field, value) in [(cpl_at, cpl), (MODE_SIDE, side), (MODE_WALK_SIDE, side)] {
            self.code.put(&[0xc6, 0x87]); // mov byte [rdi + ..], ..
            self.code.put(&field.to_le_bytes());
            self.code.put(&[value]);
        }
        let table = if cpl == 0 { layout::KERNEL_TABLE } else { layout::USER_TABLE };
        self.code.op_word(Op::Load, host::RDI, table);
        self.code.op_word(Op::Store, host::RDI, layout::BRANCH_TABLE);
        self.code.op_word(Op::Load, host::RSI, layout::NEXT_PAGE);
        self.code.op_word(Op::Store, host::RSI, layout::PAGE);
        self.code.op_word(Op::Load, host::RDI, layout::TARGET);
        self.jump_to(crate::control::Kind::Indirect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_keep_their_numbers_and_are_not_without_end() {
        let mut gates = Gates::default();
        let msrs = |star, sfmask| Msrs { efer: cr::EFER_SCE, star, sfmask, ..Msrs::default() };
        assert_eq!(gates.look(&msrs(1, CLEARED)), 1);
        assert_eq!(gates.look(&msrs(2, CLEARED)), 2);
        assert_eq!(gates.look(&msrs(1, CLEARED)), 1);
        assert_eq!(gates.look(&msrs(1, CLEARED & !flag::IF)), 0);
        assert_eq!(gates.look(&Msrs { efer: 0, ..msrs(1, CLEARED) }), 0);
        for star in 3..40 {
            let number = gates.look(&msrs(star, CLEARED));
            assert_eq!(number, if star <= GATES_MAX as u64 { star as u32 } else { 0 });
        }
        assert_eq!(gates.look(&msrs(2, CLEARED)), 2);
    }
}
