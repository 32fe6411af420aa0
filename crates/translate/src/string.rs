//! String instructions: the guest's own, run on host addresses, as many elements at a time as lie
//! in one page on each side.
//!
//! ```text
//! top:  rsi, rdi = host addresses of [RSI], [RDI] (each looked up; a miss comes back to top)
//!       n = min(count, elements to the end of either page) · rep · RSI, RDI, iterations += n
//!       count -= n · jnz top
//! ```
//! Registers and `Vcpu::iterations` are those between two elements wherever this leaves. With DF
//! set, and for REP LODS, the fall-back engine does it.

use std::mem::offset_of;

use cpu::{Access, Registers, Vcpu, flag, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::assembler::{Op, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::layout::{self, Flags, HOME, Home, host};
use crate::site::Why;
use crate::system::beside_registers;

const ITERATIONS: i32 = beside_registers(offset_of!(Vcpu, iterations));
const OTHER_FLAGS: i32 = offset_of!(Registers, rflags_other) as i32;
const RAX: u8 = gpr::RAX as u8;
const RSI: u8 = gpr::RSI as u8;
const RDI: u8 = gpr::RDI as u8;

const _: () = assert!(matches!(HOME[gpr::RCX], Home::Host(host::RCX)), "REP counts RCX");

/// What an instruction does with each element.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

impl Kind {
    /// The opcode for bytes; that for larger elements is the next.
    fn opcode(self) -> u8 {
        match self {
            Kind::Movs => 0xa4,
            Kind::Cmps => 0xa6,
            Kind::Stos => 0xaa,
            Kind::Lods => 0xac,
            Kind::Scas => 0xae,
        }
    }

    fn uses_rsi(self) -> bool {
        matches!(self, Kind::Movs | Kind::Lods | Kind::Cmps)
    }

    fn uses_rdi(self) -> bool {
        self != Kind::Lods
    }

    fn compares(self) -> bool {
        matches!(self, Kind::Scas | Kind::Cmps)
    }

    fn target_access(self) -> Access {
        if self.compares() { Access::Read } else { Access::Write }
    }
}

/// Kind and element size, if it is one of them.
fn kind(instruction: &Instruction) -> Option<(Kind, u8)> {
    use Mnemonic::*;
    if !instruction.is_string_instruction() {
        return None;
    }
    Some(match instruction.mnemonic() {
        Movsb => (Kind::Movs, 1),
        Movsw => (Kind::Movs, 2),
        Movsd => (Kind::Movs, 4),
        Movsq => (Kind::Movs, 8),
        Stosb => (Kind::Stos, 1),
        Stosw => (Kind::Stos, 2),
        Stosd => (Kind::Stos, 4),
        Stosq => (Kind::Stos, 8),
        Lodsb => (Kind::Lods, 1),
        Lodsw => (Kind::Lods, 2),
        Lodsd => (Kind::Lods, 4),
        Lodsq => (Kind::Lods, 8),
        Scasb => (Kind::Scas, 1),
        Scasw => (Kind::Scas, 2),
        Scasd => (Kind::Scas, 4),
        Scasq => (Kind::Scas, 8),
        Cmpsb => (Kind::Cmps, 1),
        Cmpsw => (Kind::Cmps, 2),
        Cmpsd => (Kind::Cmps, 4),
        Cmpsq => (Kind::Cmps, 8),
        _ => return None,
    })
}

fn repeats(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// Whether [`Emitter::string`] does it: 64-bit addresses, no base added, and a repetition that
/// means something.
pub(crate) fn is_translated(instruction: &Instruction) -> bool {
    let Some((kind, _)) = kind(instruction) else { return false };
    let wide = instruction.op_kinds().all(|operand| {
        matches!(operand, OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::Register)
    });
    let flat = !matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    let plain = match kind {
        Kind::Scas | Kind::Cmps => true,
        Kind::Lods => !repeats(instruction),
        Kind::Movs | Kind::Stos => !instruction.has_repne_prefix(),
    };
    wide && flat && plain
}

/// Whether it is a string instruction, by the number of its mnemonic.
pub(crate) fn is_string(mnemonic: u16) -> bool {
    use Mnemonic::*;
    const STRINGS: [Mnemonic; 20] = [
        Movsb, Movsw, Movsd, Movsq, Stosb, Stosw, Stosd, Stosq, Lodsb, Lodsw, Lodsd, Lodsq, Scasb,
        Scasw, Scasd, Scasq, Cmpsb, Cmpsw, Cmpsd, Cmpsq,
    ];
    STRINGS.iter().any(|&string| string as u16 == mnemonic)
}

impl Emitter<'_> {
    pub(crate) fn string(&mut self, instruction: &Instruction) -> Emitted {
        let (kind, size) = kind(instruction).ok_or(Unsupported)?;
        self.save_flags();
        self.unless_forward(instruction.mnemonic());
        if repeats(instruction) {
            self.repeated(kind, size, instruction.has_repne_prefix())
        } else {
            self.once(kind, size)
        }
    }

    /// Leaves to the fall-back engine if DF is set.
    fn unless_forward(&mut self, mnemonic: Mnemonic) {
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.put(&[0xf7, 0x87]); // test dword [rdi + ..], DF
        self.code.put(&OTHER_FLAGS.to_le_bytes());
        self.code.put(&(flag::DF as u32).to_le_bytes());
        let backward = self.code.jump_if(condition::NOT_EQUAL);
        self.leave_if(backward, Why::Step { mnemonic: mnemonic as u16, len: 0, then: None });
    }

    /// Host addresses of the elements to RSI and RDI, in the order the interpreter accesses them.
    fn elements(&mut self, kind: Kind, size: u8) -> Emitted {
        let resume = self.resume_place();
        if kind.uses_rsi() {
            self.load_home(host::RDI, RSI);
            self.lookup_string(Access::Read, size, resume)?;
            self.code.op_word(Op::Store, host::RDI, layout::STRING_SOURCE);
        }
        if kind.uses_rdi() {
            self.load_home(host::RDI, RDI);
            self.lookup_string(kind.target_access(), size, resume)?;
        }
        if kind.uses_rsi() {
            self.code.op_word(Op::Load, host::RSI, layout::STRING_SOURCE);
        }
        Ok(())
    }

    fn operation(&mut self, kind: Kind, size: u8) {
        match size {
            1 => self.code.put(&[kind.opcode()]),
            2 => self.code.put(&[0x66, kind.opcode() + 1]),
            4 => self.code.put(&[kind.opcode() + 1]),
            _ => self.code.put(&[0x48, kind.opcode() + 1]),
        }
    }

    /// One element, without a count.
    fn once(&mut self, kind: Kind, size: u8) -> Emitted {
        self.elements(kind, size)?;
        if kind == Kind::Movs || kind == Kind::Cmps {
            self.operation(kind, size);
        } else {
            self.code.op_word(Op::Store, host::RAX, layout::STRING_FLAGS);
            self.load_home(host::RAX, RAX);
            self.operation(kind, size);
            if kind == Kind::Lods {
                self.store_home(host::RAX, RAX);
            }
            if kind != Kind::Scas {
                self.code.op_word(Op::Load, host::RAX, layout::STRING_FLAGS);
            }
        }
        if kind.compares() {
            self.flags = Flags::Host;
        }
        for (moves, guest) in [(kind.uses_rsi(), RSI), (kind.uses_rdi(), RDI)] {
            if moves {
                self.load_home(host::RSI, guest);
                self.code.lea(host::RSI, host::RSI, i32::from(size));
                self.store_home(host::RSI, guest);
            }
        }
        Ok(())
    }

    fn repeated(&mut self, kind: Kind, size: u8, while_unequal: bool) -> Emitted {
        let top = self.code.here();
        self.code.put(&[0x48, 0x85, 0xc9]); // test rcx, rcx
        let none = self.code.jump_if(condition::EQUAL);
        self.elements(kind, size)?;
        self.code.op_word(Op::Store, host::RAX, layout::STRING_FLAGS);
        self.chunk(kind, size);
        if kind == Kind::Stos || kind == Kind::Scas {
            self.load_home(host::RAX, RAX);
        }
        self.code.put(&[if while_unequal { 0xf2 } else { 0xf3 }]);
        self.operation(kind, size);
        if kind.compares() {
            self.code.save_flags();
        } else {
            self.code.op_word(Op::Load, host::RAX, layout::STRING_FLAGS);
        }
        self.count_chunk(kind, size);
        self.code.put(&[0x48, 0x85, 0xc9]); // test rcx, rcx
        let done = self.code.jump_if(condition::EQUAL);
        if kind.compares() {
            self.code.put(&[0xf6, 0xc4, 0x40]); // test ah, ZF
            let on = if while_unequal { condition::EQUAL } else { condition::NOT_EQUAL };
            let again = self.code.jump_if(on);
            self.code.bind(again, top);
        } else {
            let again = self.code.jump();
            self.code.bind(again, top);
        }
        let here = self.code.here();
        self.code.bind(done, here);
        self.code.bind(none, here);
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.put(&[0x48, 0xc7, 0x87]); // mov qword [rdi + ..], 0
        self.code.put(&ITERATIONS.to_le_bytes());
        self.code.put(&[0; 4]);
        Ok(())
    }

    /// Elements to do at once to RCX and STRING_DONE; the count before them to STRING_COUNT. Uses
    /// RAX.
    fn chunk(&mut self, kind: Kind, size: u8) {
        self.code.op_word(Op::Store, host::RCX, layout::STRING_COUNT);
        self.code.put(&[0x89, 0xf8, 0x25, 0xff, 0x0f, 0, 0]); // mov eax, edi; and eax, 4095
        if kind.uses_rsi() {
            self.code.put(&[0x89, 0xf1, 0x81, 0xe1, 0xff, 0x0f, 0, 0]); // ecx from esi likewise
            self.code.put(&[0x39, 0xc8, 0x0f, 0x42, 0xc1]); // cmp eax, ecx; cmovb eax, ecx
        }
        self.code.put(&[0xb9, 0, 0x10, 0, 0, 0x29, 0xc1]); // mov ecx, 4096; sub ecx, eax
        self.code.put(&[0xc1, 0xe9, size.trailing_zeros() as u8]); // shr ecx, ..
        self.code.op_word(Op::Load, host::RAX, layout::STRING_COUNT);
        self.code.put(&[0x48, 0x39, 0xc1, 0x48, 0x0f, 0x47, 0xc8]); // cmp rcx, rax; cmova rcx, rax
        self.code.op_word(Op::Store, host::RCX, layout::STRING_DONE);
    }

    /// Takes the elements done, STRING_DONE less RCX, off the count and moves pointers and
    /// iterations on. The count to RCX. Uses RSI and RDI.
    fn count_chunk(&mut self, kind: Kind, size: u8) {
        self.code.op_word(Op::Load, host::RSI, layout::STRING_DONE);
        if kind.compares() {
            self.code.put(&[0x48, 0x29, 0xce]); // sub rsi, rcx
        }
        self.code.op_word(Op::Load, host::RCX, layout::STRING_COUNT);
        self.code.put(&[0x48, 0x29, 0xf1]); // sub rcx, rsi
        self.code.op_word(Op::Load, host::RDI, layout::REGISTERS);
        self.code.put(&[0x48, 0x01, 0xb7]); // add [rdi + ..], rsi
        self.code.put(&ITERATIONS.to_le_bytes());
        self.code.put(&[0x48, 0xc1, 0xe6, size.trailing_zeros() as u8]); // shl rsi, ..
        for (moves, guest) in [(kind.uses_rsi(), RSI), (kind.uses_rdi(), RDI)] {
            if moves {
                self.load_home(host::RDI, guest);
                self.code.put(&[0x48, 0x01, 0xf7]); // add rdi, rsi
                self.store_home(host::RDI, guest);
            }
        }
    }

    fn lookup_string(&mut self, access: Access, size: u8, resume: u32) -> Emitted {
        self.in_string = true;
        let found = self.lookup(access, u16::from(size), resume);
        self.in_string = false;
        found
    }
}
