//! System instructions that translated code does itself: those on RFLAGS as a whole, SWAPGS, moves
//! from segment registers, and CLAC and STAC, behind which code looks in another side of the TLB.

use std::mem::{offset_of, size_of};

use cpu::tlb::{SIDE_SUPERVISOR, SIDE_SUPERVISOR_ANY};
use cpu::{Msrs, Registers, Seg, Segment, Vcpu, flag};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::assembler::{Op, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::layout::{self, GUEST_RSP, host};
use crate::operands::number;
use crate::site::Why;

pub(crate) const OTHER_FLAGS: i32 = offset_of!(Registers, rflags_other) as i32;

/// Displacement from the vCPU's registers of what is at `offset` in the vCPU.
pub(crate) const fn beside_registers(offset: usize) -> i32 {
    offset as i32 - offset_of!(Vcpu, regs) as i32
}

const KERNEL_GS_BASE: i32 =
    beside_registers(offset_of!(Vcpu, msrs) + offset_of!(Msrs, kernel_gs_base));
const SEGMENT_GS_BASE: i32 = beside_registers(
    offset_of!(Vcpu, segments)
        + Seg::Gs as usize * size_of::<Segment>()
        + offset_of!(Segment, base),
);
pub(crate) const MODE_SIDE: i32 = beside_registers(offset_of!(Vcpu, mode.side));
pub(crate) const MODE_WALK_SIDE: i32 = beside_registers(offset_of!(Vcpu, mode.walk_side));
const MODE_GS_BASE: i32 =
    beside_registers(offset_of!(Vcpu, mode.bases) + Seg::Gs as usize * size_of::<u64>());

/// The segment whose selector the instruction moves to a general register, all of it.
pub(crate) fn read_selector(instruction: &Instruction) -> Option<Seg> {
    let registers = (0..2).all(|operand| instruction.op_kind(operand) == OpKind::Register);
    if !registers || instruction.op0_register().size() < 4 {
        return None;
    }
    Some(match instruction.op1_register() {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::DS => Seg::Ds,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        _ => return None,
    })
}

impl Emitter<'_> {
    pub(crate) fn system(&mut self, instruction: &Instruction) -> Emitted {
        match instruction.mnemonic() {
            Mnemonic::Cli => self.change_other_flags(flag::IF, false),
            Mnemonic::Sti => self.sti(),
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Cld => self.change_other_flags(flag::DF, false),
            Mnemonic::Std => self.change_other_flags(flag::DF, true),
            Mnemonic::Clac if self.mode.smap => self.change_side(SIDE_SUPERVISOR, false),
            Mnemonic::Clac => self.change_side(SIDE_SUPERVISOR_ANY, false),
            Mnemonic::Stac => self.change_side(SIDE_SUPERVISOR_ANY, true),
            Mnemonic::Pushfq => return self.pushfq(),
            Mnemonic::Mov => return self.move_selector(instruction),
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

    /// Sets or clears AC, which at CPL 0 decides the side of the TLB and nothing else.
    fn change_side(&mut self, side: u8, ac: bool) {
        self.change_other_flags(flag::AC, ac);
        for field in [MODE_SIDE, MODE_WALK_SIDE] {
            self.code.put(&[0xc6, 0x87]); // mov byte [rdi + ..], side
            self.code.put(&field.to_le_bytes());
            self.code.put(&[side]);
        }
        self.mode.side = side;
        let table = self.workshop.branch_tables[usize::from(side)];
        self.code.constant(host::RDI, table);
        self.code.op_word(Op::Store, host::RDI, layout::BRANCH_TABLE);
    }

    /// A selector to a general register, whose upper bits become 0 (SDM vol. 2, "MOV").
    fn move_selector(&mut self, instruction: &Instruction) -> Emitted {
        let segment = read_selector(instruction).ok_or(Unsupported)?;
        let at = offset_of!(Vcpu, segments)
            + segment as usize * size_of::<Segment>()
            + offset_of!(Segment, selector);
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.put(&[0x0f, 0xb7, 0xbf]); // movzx edi, word [rdi + ..]
        self.code.put(&beside_registers(at).to_le_bytes());
        self.store_home(host::RDI, number(instruction.op0_register()));
        Ok(())
    }

    /// While nothing waits for IF, the interrupt shadow has no effect and is left out.
    fn sti(&mut self) {
        self.save_flags();
        self.code.is_zero(layout::INTERRUPT_WAITS);
        let jump = self.code.jump_if(condition::NOT_EQUAL);
        self.leave_if(jump, Why::Step { mnemonic: Mnemonic::Sti as u16, len: 1, then: None });
        self.change_other_flags(flag::IF, true);
    }

    /// The base of GS is in three places: the segment, the mode, and a word.
    fn swapgs(&mut self) {
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.op_memory(Op::Load, host::RSI, host::RDI, KERNEL_GS_BASE);
        self.code.op_word(Op::Store, host::RSI, layout::TEMPORARY);
        self.code.op_word(Op::Load, host::RSI, layout::GS_BASE);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, KERNEL_GS_BASE);
        self.code.op_word(Op::Load, host::RSI, layout::TEMPORARY);
        self.code.op_word(Op::Store, host::RSI, layout::GS_BASE);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, SEGMENT_GS_BASE);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, MODE_GS_BASE);
    }

    /// RFLAGS to RSI, from AX and the rest; the address of the registers to RDI.
    pub(crate) fn flags_whole(&mut self) {
        self.code.put(&[0x0f, 0xb6, 0xf4]); // movzx esi, ah
        self.code.put(&[0x0f, 0xb6, 0xf8]); // movzx edi, al
        self.code.put(&[0xc1, 0xe7, 11]); // shl edi, 11
        self.code.put(&[0x09, 0xfe]); // or esi, edi
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.op_memory(Op::Or, host::RSI, host::RDI, OTHER_FLAGS);
    }

    /// RF and VM, which PUSHF clears, are clear in translated code.
    fn pushfq(&mut self) -> Emitted {
        self.below_stack()?;
        self.code.op_word(Op::Store, host::RDI, layout::TEMPORARY);
        self.flags_whole();
        self.code.op_word(Op::Load, host::RDI, layout::TEMPORARY);
        self.code.op_memory(Op::Store, host::RSI, host::RDI, 0);
        self.code.lea(GUEST_RSP, GUEST_RSP, -8);
        Ok(())
    }
}
