//! The host instructions that translations are made of, besides the guest's own.

use crate::layout::host;

/// Arithmetic in ModRM form `op r, r/m`.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x03,
    Or = 0x0b,
    Xor = 0x33,
    Cmp = 0x3b,
    Load = 0x8b,
    Store = 0x89,
}

/// Arithmetic in ModRM form `op r/m, imm8`.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Add = 0,
    Sub = 5,
    Cmp = 7,
}

/// Bytes that are put at once.
const AT_ONCE: usize = 8;
/// By how much there is more room when there is none left.
const ROOM: usize = 4096;

/// Code of one block in the making.
#[derive(Default)]
pub(crate) struct Assembler {
    /// The code, and room behind it.
    bytes: Vec<u8>,
    size: usize,
}

fn rex_w(register: u8, rm: u8) -> u8 {
    0x48 | ((register >> 3) << 2) | (rm >> 3)
}

impl Assembler {
    /// Nothing, in the memory of what was made before.
    pub(crate) fn emptied(self) -> Assembler {
        Assembler { size: 0, ..self }
    }

    /// The code.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size]
    }

    /// The code at `at`, `size` bytes of it.
    pub(crate) fn bytes_at(&mut self, at: usize, size: usize) -> &mut [u8] {
        &mut self.bytes[..self.size][at..at + size]
    }

    /// Bytes whose number is known. Translation is calls of this: those are to be short, so that
    /// its code stays in the first cache of the processor.
    #[inline(always)]
    pub(crate) fn put<const N: usize>(&mut self, bytes: &[u8; N]) {
        for part in bytes.chunks(AT_ONCE) {
            let word = part.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.put_word(word, part.len());
        }
    }

    /// The first bytes of a word.
    #[inline(never)]
    pub(crate) fn put_word(&mut self, word: u64, size: usize) {
        if self.bytes.len() < self.size + AT_ONCE {
            self.make_room();
        }
        self.bytes[self.size..self.size + AT_ONCE].copy_from_slice(&word.to_le_bytes());
        self.size += size;
    }

    #[cold]
    fn make_room(&mut self) {
        self.bytes.resize(self.bytes.len() + ROOM, 0);
    }

    pub(crate) fn put_slice(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(AT_ONCE) {
            let mut word = [0; AT_ONCE];
            word[..part.len()].copy_from_slice(part);
            self.put_word(u64::from_le_bytes(word), part.len());
        }
    }

    pub(crate) fn here(&self) -> usize {
        self.size
    }

    /// What is before ModRM, `before` bytes of `start`, and ModRM, SIB and displacement of
    /// `[base + displacement]`: at most eight bytes.
    fn memory(&mut self, start: u64, before: u32, register: u8, base: u8, displacement: i32) {
        debug_assert!(before <= 2);
        let (register, low) = (u64::from(register & 7) << 3, u64::from(base & 7));
        let (mode, size) = match i8::try_from(displacement) {
            Ok(0) if low != 5 => (0x00, 0),
            Ok(_) => (0x40, 1),
            Err(_) => (0x80, 4),
        };
        let (mut word, mut bits) = (start, 8 * before);
        word |= (mode | register | low) << bits;
        bits += 8;
        if low == 4 {
            word |= 0x24 << bits;
            bits += 8;
        }
        word |= u64::from(displacement as u32) << bits;
        self.put_word(word, bits as usize / 8 + size);
    }

    /// `op register, [base + displacement]`, 64 bits (or the store).
    pub(crate) fn op_memory(&mut self, op: Op, register: u8, base: u8, displacement: i32) {
        let start = u64::from(rex_w(register, base)) | (op as u64) << 8;
        self.memory(start, 2, register, base, displacement);
    }

    /// `op register, word`, 64 bits (or the store).
    pub(crate) fn op_word(&mut self, op: Op, register: u8, word: i32) {
        self.op_memory(op, register, host::RSP, word);
    }

    /// `op qword word, value`.
    pub(crate) fn word_immediate(&mut self, form: Form, word: i32, value: i8) {
        self.memory(0x8348, 2, form as u8, host::RSP, word);
        self.put(&[value as u8]);
    }

    /// `add qword word, value`.
    pub(crate) fn add_word(&mut self, word: i32, value: i32) {
        self.memory(0x8148, 2, Form::Add as u8, host::RSP, word);
        self.put(&value.to_le_bytes());
    }

    /// `cmp byte word, 0`.
    pub(crate) fn is_zero(&mut self, word: i32) {
        self.memory(0x80, 1, 7, host::RSP, word);
        self.put(&[0]);
    }

    /// `mov byte word, 1`.
    pub(crate) fn set_flag(&mut self, word: i32) {
        self.plain_word(&[0xc6], 0, word);
        self.put(&[1]);
    }

    /// `cmp dword word, value`.
    pub(crate) fn compare_word(&mut self, word: i32, value: u32) {
        self.plain_word(&[0x81], Form::Cmp as u8, word);
        self.put(&value.to_le_bytes());
    }

    /// `cmp rsi, value`.
    pub(crate) fn compare_rsi(&mut self, value: u32) {
        self.put(&[0x48, 0x81, 0xfe]);
        self.put(&value.to_le_bytes());
    }

    /// `mov register, word`, the low 32 bits; `register` is one of the first eight.
    pub(crate) fn load_low(&mut self, register: u8, word: i32) {
        self.plain_word(&[0x8b], register, word);
    }

    /// Sets `size` bytes (1, 2, 4 or 8) at `[rdi + displacement]` to ones.
    pub(crate) fn fill_ones(&mut self, displacement: i32, size: usize) {
        let (start, before) = match size {
            1 => (0xc6, 1),
            2 => (0xc766, 2),
            4 => (0xc7, 1),
            _ => (0xc748, 2),
        };
        self.memory(start, before, 0, host::RDI, displacement);
        self.put_word(u64::MAX, size.min(4));
    }

    /// What is called addresses the words as its caller does: the return address stays below the
    /// stack pointer, in the red zone.
    pub(crate) fn begin_called(&mut self) {
        self.lea(host::RSP, host::RSP, 8);
    }

    /// Returns from it.
    pub(crate) fn end_called(&mut self) {
        self.lea(host::RSP, host::RSP, -8);
        self.put(&[0xc3]);
    }

    /// An instruction without REX whose memory operand is `word`.
    pub(crate) fn plain_word(&mut self, opcode: &[u8], form: u8, word: i32) {
        let start = opcode.iter().rev().fold(0, |start, byte| start << 8 | u64::from(*byte));
        self.memory(start, opcode.len() as u32, form, host::RSP, word);
    }

    /// `op register, [rsp + rsi + displacement]`, 64 bits.
    pub(crate) fn op_entry(&mut self, op: Op, register: u8, displacement: i32) {
        self.put(&[rex_w(register, 0), op as u8, 0x84 | ((register & 7) << 3), 0x34]);
        self.put(&displacement.to_le_bytes());
    }

    /// `mov to, from`, 64 bits.
    pub(crate) fn copy(&mut self, to: u8, from: u8) {
        self.put(&[rex_w(to, from), 0x8b, 0xc0 | ((to & 7) << 3) | (from & 7)]);
    }

    /// `lea to, [base + displacement]`, 64 bits.
    pub(crate) fn lea(&mut self, to: u8, base: u8, displacement: i32) {
        match displacement {
            0 if to == base => {}
            0 if base != host::RSP => self.copy(to, base),
            _ => {
                self.memory(u64::from(rex_w(to, base)) | 0x8d00, 2, to, base, displacement);
            }
        }
    }

    /// `lea to, [base + index * scale + displacement]`, 64 bits; `index` is not RSP.
    pub(crate) fn lea_scaled(&mut self, to: u8, base: Option<u8>, index: (u8, u8), disp: i32) {
        self.scaled(0x8d, to, base, index, disp);
    }

    fn scaled(&mut self, opcode: u8, to: u8, base: Option<u8>, index: (u8, u8), disp: i32) {
        let (index, scale) = index;
        let rex = rex_w(to, base.unwrap_or(0)) | ((index >> 3) << 1);
        let sib = ((scale.trailing_zeros() as u8) << 6) | ((index & 7) << 3);
        let to = (to & 7) << 3;
        self.put(&[rex, opcode]);
        match base {
            None => {
                self.put(&[to | 4, sib | 5]);
                self.put(&disp.to_le_bytes());
            }
            Some(base) => match i8::try_from(disp) {
                Ok(0) if base & 7 != 5 => self.put(&[to | 4, sib | (base & 7)]),
                Ok(short) => self.put(&[0x40 | to | 4, sib | (base & 7), short as u8]),
                Err(_) => {
                    self.put(&[0x80 | to | 4, sib | (base & 7)]);
                    self.put(&disp.to_le_bytes());
                }
            },
        }
    }

    /// `op register, [base + index * scale + displacement]`, 64 bits (or the store).
    pub(crate) fn op_scaled(
        &mut self,
        op: Op,
        register: u8,
        base: u8,
        index: (u8, u8),
        displacement: i32,
    ) {
        self.scaled(op as u8, register, Some(base), index, displacement);
    }

    /// `mov register, value`, 64 bits, in the shortest form that leaves flags alone.
    pub(crate) fn constant(&mut self, register: u8, value: u64) {
        if let Ok(short) = u32::try_from(value) {
            if register >= 8 {
                self.put(&[0x41]);
            }
            self.put(&[0xb8 | (register & 7)]);
            self.put(&short.to_le_bytes());
        } else if let Ok(signed) = i32::try_from(value as i64) {
            self.put(&[rex_w(0, register), 0xc7, 0xc0 | (register & 7)]);
            self.put(&signed.to_le_bytes());
        } else {
            self.put(&[rex_w(0, register), 0xb8 | (register & 7)]);
            self.put(&value.to_le_bytes());
        }
    }

    /// `lahf; seto al`.
    pub(crate) fn save_flags(&mut self) {
        self.put(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 7fh; sahf`.
    pub(crate) fn restore_flags(&mut self) {
        self.put(&[0x04, 0x7f, 0x9e]);
    }

    /// A jump with a displacement to be filled in; where that is.
    pub(crate) fn jump(&mut self) -> usize {
        self.put(&[0xe9, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// A conditional jump by condition number; where its displacement is.
    pub(crate) fn jump_if(&mut self, condition: u8) -> usize {
        self.put(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        self.here() - 4
    }

    /// Fills in the displacement at `at` to lead to `target`, both offsets in this code.
    pub(crate) fn bind(&mut self, at: usize, target: usize) {
        let displacement = target as i64 - (at as i64 + 4);
        self.bytes_at(at, 4).copy_from_slice(&(displacement as i32).to_le_bytes());
    }
}

/// Condition numbers of the jumps used.
pub(crate) mod condition {
    pub(crate) const BELOW: u8 = 2;
    pub(crate) const EQUAL: u8 = 4;
    pub(crate) const NOT_EQUAL: u8 = 5;
    pub(crate) const BELOW_OR_EQUAL: u8 = 6;
    pub(crate) const ABOVE: u8 = 7;
}
