//! The code at the start of code memory: into translations, out of them, the lookup of indirect
//! branches, and the loading of vector registers.

use std::mem::offset_of;

use cpu::{Registers, gpr};

use crate::assembler::{Assembler, Op, condition};
use crate::entry::{STACK_CHECK, STACK_CHECK_SIZE};
use crate::layout::{self, BRANCH_SLOTS, Budget, Flags, HOME, Home, host};
use crate::linear::{SLOT_MASK, SLOT_SHIFT};
use crate::site::{SITE_FAULT, SITE_LOOKUP};
use crate::x87;

const STATUS: i32 = offset_of!(Registers, status) as i32;
const MXCSR: i32 = (offset_of!(Registers, fx) + 24) as i32;
const _: () = assert!(gpr::RIP == 16);

/// Offsets in code memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trampolines {
    /// `extern "sysv64" fn(*mut Registers, target: u64, words: u64)`.
    pub(crate) enter: u32,
    /// Leaves; the number of the site is on the stack, flags are in AX and the budget in its word.
    pub(crate) exit: u32,
    /// The same with flags in RFLAGS.
    pub(crate) exit_in_flags: u32,
    /// The same with flags in RFLAGS and the budget in RSI.
    pub(crate) exit_in_registers: u32,
    /// The same with the budget in RSI.
    pub(crate) exit_in_rsi: u32,
    /// Where the signal handler continues.
    pub(crate) fault: u32,
    /// Goes on where the last exception was, with everything as it was.
    pub(crate) again: u32,
    /// Leaves to have the translation for RDI looked up.
    pub(crate) lookup: u32,
    /// Jumps to the translation of the code at the host address in RDI.
    pub(crate) branch: u32,
    /// The same, and notes what it finds for the linear address in ARRIVED.
    pub(crate) arrive: u32,
    /// Called: loads vector registers and MXCSR.
    pub(crate) vectors: u32,
    /// Called: loads x87 state.
    pub(crate) x87: u32,
}

impl Trampolines {
    /// Where to leave from code with flags and budget there; flags that were not kept are made
    /// again before.
    pub(crate) fn exit_from(&self, flags: Flags, budget: Budget) -> u32 {
        match (flags, budget) {
            (Flags::Redo(_), _) => unreachable!("flags are made again before"),
            (Flags::Saved, Budget::Word) => self.exit,
            (Flags::Saved, Budget::Rsi) => self.exit_in_rsi,
            (Flags::Host, Budget::Word) => self.exit_in_flags,
            (Flags::Host, Budget::Rsi) => self.exit_in_registers,
        }
    }
}

fn register(guest: usize) -> i32 {
    (offset_of!(Registers, gpr) + 8 * guest) as i32
}

fn vector(number: usize) -> i32 {
    (offset_of!(Registers, ymm) + 32 * number) as i32
}

const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

const CALLEE_SAVED: [u8; 6] = [host::RBX, host::RBP, 12, 13, 14, 15];

fn push(code: &mut Assembler, register: u8, pop: bool) {
    if register >= 8 {
        code.put(&[0x41]);
    }
    code.put(&[if pop { 0x58 } else { 0x50 } | (register & 7)]);
}

/// Opcodes between a vector register and memory.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Vector {
    Load = 0x10,
    Store = 0x11,
    Or = 0x56,
}

/// `op register, [rdi + displacement]` for 16 or, if `whole`, 32 bytes; OR has XMM0 alone.
fn vector_op(code: &mut Assembler, op: Vector, number: usize, whole: bool, displacement: i32) {
    let prefix = if number >= 8 { 0x78 } else { 0xf8 } | (u8::from(whole) << 2);
    code.put(&[0xc5, prefix, op as u8, 0x87 | ((number as u8 & 7) << 3)]);
    code.put(&displacement.to_le_bytes());
}

fn load_vectors(code: &mut Assembler, whole: bool) {
    for number in 0..16 {
        vector_op(code, Vector::Load, number, whole, vector(number));
    }
}

/// `ldmxcsr` or `stmxcsr` of `[rdi + displacement]`.
fn move_mxcsr(code: &mut Assembler, store: bool) {
    code.put(&[0x0f, 0xae, if store { 0x9f } else { 0x97 }]);
    code.put(&MXCSR.to_le_bytes());
}

/// A jump that is taken unless the registers that `word` tells of are the guest's.
fn unless_loaded(code: &mut Assembler, word: i32) -> usize {
    code.is_zero(word);
    code.jump_if(condition::EQUAL)
}

/// Vector registers that were the guest's when it last left are so again: it may be entered in the
/// middle of a block that relies on them.
fn enter(code: &mut Assembler, vectors: usize, x87: usize) {
    for register in CALLEE_SAVED {
        push(code, register, false);
    }
    code.op_memory(Op::Store, host::RSP, host::RDX, layout::HOST_RSP);
    code.copy(host::RSP, host::RDX);
    code.op_word(Op::Store, host::RDI, layout::REGISTERS);
    code.op_word(Op::Store, host::RSI, layout::TEMPORARY);
    call_if_loaded(code, layout::X87, x87);
    call_if_loaded(code, layout::VECTORS, vectors);
    code.op_word(Op::Load, host::RDI, layout::REGISTERS);
    code.put(&[0x0f, 0xb7, 0x87]); // movzx eax, word [rdi + ..]
    code.put(&STATUS.to_le_bytes());
    for (guest, home) in HOME.into_iter().enumerate() {
        match home {
            Home::Host(host) => code.op_memory(Op::Load, host, host::RDI, register(guest)),
            Home::Word(word) => {
                code.op_memory(Op::Load, host::RSI, host::RDI, register(guest));
                code.op_word(Op::Store, host::RSI, word);
            }
        }
    }
    code.plain_word(&[0xff], 4, layout::TEMPORARY); // jmp
}

fn call(code: &mut Assembler, target: usize) {
    code.put(&[0xe8, 0, 0, 0, 0]);
    let at = code.here() - 4;
    code.bind(at, target);
}

fn call_if_loaded(code: &mut Assembler, word: i32, target: usize) {
    let skip = unless_loaded(code, word);
    call(code, target);
    let here = code.here();
    code.bind(skip, here);
}

/// RSI to the budget's word, with the number of a site on the stack.
fn store_budget(code: &mut Assembler) {
    code.op_memory(Op::Store, host::RSI, host::RSP, layout::BUDGET + 8);
}

fn exit(code: &mut Assembler, save_x87: usize) {
    code.plain_word(&[0x8f], 0, layout::EXIT_SITE); // pop
    code.op_word(Op::Store, host::RDI, layout::EXIT_ADDRESS);
    code.op_word(Op::Store, host::RSI, layout::EXIT_INDEX);
    code.op_word(Op::Load, host::RDI, layout::REGISTERS);
    code.put(&[0x66, 0x89, 0x87]); // mov [rdi + STATUS], ax
    code.put(&STATUS.to_le_bytes());
    for (guest, home) in HOME.into_iter().enumerate() {
        match home {
            Home::Host(host) => code.op_memory(Op::Store, host, host::RDI, register(guest)),
            Home::Word(word) => {
                code.op_word(Op::Load, host::RSI, word);
                code.op_memory(Op::Store, host::RSI, host::RDI, register(guest));
            }
        }
    }
    call_if_loaded(code, layout::X87, save_x87);
    code.op_word(Op::Load, host::RDI, layout::REGISTERS);
    let skip = unless_loaded(code, layout::VECTORS);
    for number in 0..16 {
        vector_op(code, Vector::Store, number, true, vector(number));
    }
    move_mxcsr(code, true);
    code.plain_word(&[0x0f, 0xae], 2, layout::HOST_MXCSR); // ldmxcsr
    code.put(&VZEROUPPER);
    let here = code.here();
    code.bind(skip, here);
    code.op_word(Op::Load, host::RSP, layout::HOST_RSP);
    for register in CALLEE_SAVED.into_iter().rev() {
        push(code, register, true);
    }
    code.put(&[0xc3]);
}

/// Upper halves that are 0 are not loaded: a processor that knows of them would have to keep them
/// in whatever an SSE instruction writes, which then waits for the register's former value.
fn vectors(code: &mut Assembler) {
    code.begin_called();
    code.op_word(Op::Load, host::RDI, layout::REGISTERS);
    code.put(&VZEROUPPER);
    vector_op(code, Vector::Load, 0, false, vector(0) + 16);
    for number in 1..16 {
        vector_op(code, Vector::Or, 0, false, vector(number) + 16);
    }
    code.put(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]); // vptest xmm0, xmm0
    let upper = code.jump_if(condition::NOT_EQUAL);
    load_vectors(code, false);
    let loaded = code.jump();
    let here = code.here();
    code.bind(upper, here);
    load_vectors(code, true);
    let here = code.here();
    code.bind(loaded, here);
    move_mxcsr(code, false);
    code.set_flag(layout::VECTORS);
    code.end_called();
}

/// `push number; jmp exit`.
fn leave(code: &mut Assembler, number: u32, exit: usize) {
    code.put(&[0x68]);
    code.put(&number.to_le_bytes());
    let at = code.jump();
    code.bind(at, exit);
}

/// The slot of the code at the host address in RDI in the table of indirect branches to RSI; where
/// the displacement of the jump for a miss is. The same hash as [`layout::branch_slot`].
pub(crate) fn look_up_branch(code: &mut Assembler) -> usize {
    code.put(&[0x89, 0xfe, 0xc1, 0xee, 13, 0x31, 0xfe, 0x81, 0xe6]); // esi = edi ^ edi >> 13, and
    code.put(&(BRANCH_SLOTS as u32 - 1).to_le_bytes());
    code.put(&[0xc1, 0xe6, 4]); // shl esi, 4
    code.op_word(Op::Add, host::RSI, layout::BRANCH_TABLE);
    code.op_memory(Op::Cmp, host::RDI, host::RSI, 0);
    code.jump_if(condition::NOT_EQUAL)
}

/// `jmp [rsi + 8]`: to what the slot at RSI leads to.
pub(crate) fn jump_by_slot(code: &mut Assembler) {
    code.put(&[0xff, 0x66, 0x08]);
}

/// The slot for the linear address in RDI to RSI; the host has RORX.
pub(crate) fn find_linear(code: &mut Assembler) {
    code.put(&[0xc4, 0xe3, 0x7b, 0xf0, 0xf7, 32 - SLOT_SHIFT as u8]); // rorx esi, edi, ..
    code.put(&[0x81, 0xe6]); // and esi, ..
    code.put(&SLOT_MASK.to_le_bytes());
    code.op_word(Op::Add, host::RSI, layout::LINEAR_TABLE);
}

fn arrive(code: &mut Assembler, lookup: usize) {
    let miss = look_up_branch(code);
    code.bind(miss, lookup);
    code.op_memory(Op::Load, host::RDI, host::RSI, 8);
    // Who arrives had the stack pointer checked.
    code.put(&[0x81, 0x3f]); // cmp dword [rdi], ..
    code.put(&STACK_CHECK);
    let other = code.jump_if(condition::NOT_EQUAL);
    code.put(&[0x48, 0x83, 0xc7, STACK_CHECK_SIZE]); // add rdi, ..
    code.bind(other, code.here());
    code.op_word(Op::Store, host::RDI, layout::TARGET);
    code.op_word(Op::Load, host::RDI, layout::ARRIVED);
    find_linear(code);
    code.op_memory(Op::Store, host::RDI, host::RSI, 0);
    code.op_word(Op::Load, host::RDI, layout::TARGET);
    code.op_memory(Op::Store, host::RDI, host::RSI, 8);
    code.put(&[0xff, 0xe7]); // jmp rdi
}

fn branch(code: &mut Assembler, lookup: usize) {
    let miss = look_up_branch(code);
    jump_by_slot(code);
    code.bind(miss, lookup);
}

/// What entering has not loaded: RFLAGS, RAX and the scratch registers. The stack is free.
fn again(code: &mut Assembler) {
    code.plain_word(&[0xff], 6, layout::FAULT_FLAGS); // push
    code.put(&[0x9d]); // popfq
    code.op_word(Op::Load, host::RAX, layout::FAULT_RAX);
    code.op_word(Op::Load, host::RSI, layout::EXIT_INDEX);
    code.op_word(Op::Load, host::RDI, layout::EXIT_ADDRESS);
    code.plain_word(&[0xff], 4, layout::FAULT_RIP); // jmp
}

/// All of it, to be put at offset 0 of code memory.
pub(crate) fn generate(x87_area: &x87::Area) -> (Vec<u8>, Trampolines) {
    let mut code = Assembler::default();
    let mut at = Trampolines { vectors: code.here() as u32, ..Trampolines::default() };
    vectors(&mut code);
    let area = x87_area.address();
    at.x87 = code.here() as u32;
    x87::load(&mut code, area);
    let save_x87 = code.here();
    x87::save(&mut code, area);
    at.enter = code.here() as u32;
    enter(&mut code, at.vectors as usize, at.x87 as usize);
    at.exit_in_registers = code.here() as u32;
    store_budget(&mut code);
    at.exit_in_flags = code.here() as u32;
    code.save_flags();
    at.exit = code.here() as u32;
    exit(&mut code, save_x87);
    at.exit_in_rsi = code.here() as u32;
    store_budget(&mut code);
    let jump = code.jump();
    code.bind(jump, at.exit as usize);
    at.fault = code.here() as u32;
    leave(&mut code, SITE_FAULT, at.exit as usize);
    at.again = code.here() as u32;
    again(&mut code);
    at.lookup = code.here() as u32;
    leave(&mut code, SITE_LOOKUP, at.exit as usize);
    at.branch = code.here() as u32;
    branch(&mut code, at.lookup as usize);
    at.arrive = code.here() as u32;
    arrive(&mut code, at.lookup as usize);
    (code.bytes().to_vec(), at)
}
