//! The x87 unit while translated code runs: loaded when a block that uses it is entered, saved on
//! the way out, by XRSTOR and XSAVE of that component alone, so that vector registers stay.
//!
//! The image in the vCPU is the one native stubs keep: instruction and data pointers and the last
//! opcode are zero, whatever the host records.

use std::cell::UnsafeCell;
use std::mem::offset_of;

use cpu::Registers;

use crate::assembler::{Assembler, Op};
use crate::layout::{self, host};

const FX: i32 = offset_of!(Registers, fx) as i32;
/// Where in the image the data registers begin, and how many quadwords they are.
const STACK_AT: i32 = 32;
const STACK_QUADS: u32 = 16;
/// Offset of XSTATE_BV in an XSAVE area (SDM vol. 1, 13.4.2).
const STATE_BV_AT: i32 = 512;

/// An XSAVE area for the x87 component, which generated code alone reads and writes.
#[repr(C, align(64))]
pub(crate) struct Area(UnsafeCell<[u8; 576]>);

impl Area {
    pub(crate) fn new() -> Box<Area> {
        Box::new(Area(UnsafeCell::new([0; 576])))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

/// RAX, RCX and RDX to words, or back.
fn spill(code: &mut Assembler, op: Op) {
    for (register, word) in [host::RAX, host::RCX, host::RDX].into_iter().zip(layout::X87_SPILLED) {
        code.op_word(op, register, word);
    }
}

/// `mov ecx, quads; rep movsq`.
fn copy_quads(code: &mut Assembler, quads: u32) {
    code.put(&[0xb9]);
    code.put(&quads.to_le_bytes());
    code.put(&[0xf3, 0x48, 0xa5]);
}

/// `mov eax, 1; xor edx, edx`: the x87 component.
fn component(code: &mut Assembler) {
    code.put(&[0xb8, 1, 0, 0, 0, 0x31, 0xd2]);
}

/// Called: makes the host's x87 state the guest's. Keeps what is in AX; uses RSI, RDI and RFLAGS.
pub(crate) fn load(code: &mut Assembler, area: u64) {
    code.begin_called();
    spill(code, Op::Store);
    code.op_word(Op::Load, host::RSI, layout::REGISTERS);
    code.lea(host::RSI, host::RSI, FX);
    code.constant(host::RDI, area);
    copy_quads(code, STACK_AT as u32 / 8 + STACK_QUADS);
    code.constant(host::RDI, area);
    code.put(&[0x48, 0xc7, 0x87]); // mov qword [rdi + ..], 1
    code.put(&STATE_BV_AT.to_le_bytes());
    code.put(&[1, 0, 0, 0]);
    component(code);
    code.put(&[0x48, 0x0f, 0xae, 0x2f]); // xrstor64 [rdi]
    spill(code, Op::Load);
    code.set_flag(layout::X87);
    code.end_called();
}

/// Called on the way out: saves the guest's x87 state and gives the host its own. Uses RAX, RCX,
/// RDX, RSI, RDI and RFLAGS.
pub(crate) fn save(code: &mut Assembler, area: u64) {
    code.begin_called();
    code.constant(host::RDI, area);
    component(code);
    code.put(&[0x48, 0x0f, 0xae, 0x27]); // xsave64 [rdi]
    code.put(&[0xdb, 0xe3]); // fninit
    code.constant(host::RSI, area);
    code.op_word(Op::Load, host::RDI, layout::REGISTERS);
    code.lea(host::RDI, host::RDI, FX);
    // Control, status and tag word, without the opcode and the pointers behind them.
    code.put(&[0x8b, 0x06, 0x89, 0x07]); // mov eax, [rsi]; mov [rdi], eax
    code.put(&[0x0f, 0xb7, 0x46, 4]); // movzx eax, word [rsi + 4]
    code.put(&[0x89, 0x47, 4]); // mov [rdi + 4], eax
    code.put(&[0x31, 0xc0]); // xor eax, eax
    code.put(&[0x48, 0x89, 0x47, 8]); // mov [rdi + 8], rax
    code.put(&[0x48, 0x89, 0x47, 16]); // mov [rdi + 16], rax
    code.lea(host::RSI, host::RSI, STACK_AT);
    code.lea(host::RDI, host::RDI, STACK_AT);
    copy_quads(code, STACK_QUADS);
    code.end_called();
}
