//! Instructions of the guest, with other operands, as host code. How those of a code are encoded is
//! seen from what the encoder makes of a few, and noted; the encoder does what has no such form.

use iced_x86::{Code, Encoder, Instruction, OpKind, Register};
use smallvec::SmallVec;

use crate::operands::{Operands, number};

/// Up to eight bytes; those behind them are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Few {
    pub(crate) bytes: u64,
    pub(crate) size: u8,
}

impl Few {
    /// The first `size` bytes of a word behind those that are there.
    fn append(&mut self, word: u64, size: u8) {
        if size != 0 {
            let unused = 64 - 8 * size;
            self.bytes |= word << unused >> unused << (8 * self.size);
            self.size += size;
        }
    }
}

/// An encoded instruction: what comes before displacement and immediate, and those; or all of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Encoded {
    pub(crate) head: Few,
    pub(crate) tail: Few,
}

impl Encoded {
    fn of(bytes: &[u8]) -> Encoded {
        let mut made = Encoded::default();
        let (head, tail) = bytes.split_at(bytes.len().min(8));
        head.iter().for_each(|&byte| made.head.append(byte.into(), 1));
        tail.iter().for_each(|&byte| made.tail.append(byte.into(), 1));
        made
    }

    /// The bytes, and how many they are.
    pub(crate) fn bytes(&self) -> ([u8; 16], usize) {
        let all = u128::from(self.head.bytes) | u128::from(self.tail.bytes) << (8 * self.head.size);
        (all.to_le_bytes(), usize::from(self.head.size + self.tail.size))
    }
}

/// REX, and its bits: a 64-bit operation, and one more bit of ModRM.reg, SIB.index and ModRM.rm.
const REX: u8 = 0x40;
const REX_W: u8 = 8;
const REX_R: u8 = 4;
const REX_X: u8 = 2;
const REX_B: u8 = 1;
/// ModRM.rm of a SIB, SIB.index of none, and ModRM.rm that cannot be without a displacement.
const SIB: u8 = 4;
const NO_INDEX: u8 = 4;
const NO_DISPLACEMENT: u8 = 5;

/// How instructions of a code are encoded: without VEX (SDM vol. 2, 2.1).
#[derive(Clone, Copy, Debug, Default)]
struct Form {
    /// 66, F2 or F3, or 0.
    prefix: u8,
    /// REX's W, or 0.
    rex: u8,
    opcode: u64,
    opcode_size: u8,
    /// ModRM with zeroes for operands, if there is one.
    modrm: Option<u8>,
    /// ModRM.rm is of memory.
    memory: bool,
    /// Register operands in ModRM.reg, in ModRM.rm, and in the opcode's last byte.
    reg: Option<u8>,
    rm: Option<u8>,
    plus: Option<u8>,
    /// An operand that is always this register.
    own: Option<(u8, Register)>,
    /// An immediate operand, and its size in bytes.
    immediate: Option<(u8, u8)>,
}

#[derive(Clone, Copy)]
enum Noted {
    Nothing,
    Form(Form),
    /// It has no such form.
    Other,
}

/// See the module.
pub(crate) struct Encodings {
    encoder: Encoder,
    /// By code, without a memory operand and with one.
    forms: Vec<Noted>,
}

/// What a register is whose number says something else with a REX than without.
const NEEDS_REX: u8 = 1;
const FORBIDS_REX: u8 = 2;

/// A register's number in an encoding, and what it asks for beside it.
fn encoded(register: Register) -> Option<(u8, u8)> {
    let from = |first: Register| (register as u32).wrapping_sub(first as u32) as u8;
    if Register::AX <= register && register <= Register::R15 {
        Some((from(Register::AX) & 15, 0))
    } else if register.is_gpr8() {
        Some(match from(Register::AL) {
            number @ 0..4 => (number, 0),
            number @ 4..8 => (number, FORBIDS_REX),
            number @ 8..12 => (number - 4, NEEDS_REX),
            number => (number - 4, 0),
        })
    } else if Register::XMM0 <= register && register <= Register::XMM15 {
        Some((from(Register::XMM0), 0))
    } else {
        None
    }
}

/// The first register like it.
fn first_like(register: Register) -> Register {
    match register.size() {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        8 => Register::RAX,
        _ => Register::XMM0,
    }
}

fn register_operands(instruction: &Instruction) -> impl Iterator<Item = u32> + use<> {
    let instruction = *instruction;
    (0..instruction.op_count()).filter(move |&op| instruction.op_kind(op) == OpKind::Register)
}

impl Encodings {
    pub(crate) fn new() -> Encodings {
        Encodings {
            encoder: Encoder::new(64),
            forms: vec![Noted::Nothing; Code::values().len() * 2],
        }
    }

    /// The instruction encoded; `None` if that cannot be.
    pub(crate) fn encode(&mut self, instruction: &Instruction) -> Option<Encoded> {
        if has_prefix(instruction) {
            return self.plainly(instruction).map(|bytes| Encoded::of(&bytes));
        }
        let memory = usize::from(has_memory(instruction));
        let at = instruction.code() as usize * 2 + memory;
        if let Noted::Nothing = self.forms[at] {
            self.forms[at] = self.form(instruction).map_or(Noted::Other, Noted::Form);
        }
        if let Noted::Form(form) = &self.forms[at]
            && let Some(encoded) = form.encode(instruction)
        {
            return Some(encoded);
        }
        self.plainly(instruction).map(|bytes| Encoded::of(&bytes))
    }

    /// The instruction with each general register operand in the host register that `home` says for
    /// a guest register, its memory operand at `memory`, and no prefixes of its own; `None` where
    /// that takes more than other operands.
    pub(crate) fn encode_renamed(
        &mut self,
        instruction: &Instruction,
        operands: &Operands,
        home: impl Fn(u8) -> Option<u8>,
        memory: Option<Memory>,
    ) -> Option<Encoded> {
        let at = instruction.code() as usize * 2 + usize::from(operands.memory);
        let Noted::Form(form) = &self.forms[at] else { return None };
        if form.own.is_some_and(|(_, own)| own != Register::CL || home(1) != Some(1)) {
            return None;
        }
        let register = |op: u8| match operands.named().iter().find(|named| named.operand == op) {
            Some(named) => {
                let number = home(named.guest)?;
                let low = named.size == 1 && (4..8).contains(&number);
                Some((number, if low { NEEDS_REX } else { 0 }))
            }
            None => encoded(instruction.op_register(u32::from(op))),
        };
        form.encode_with(instruction, register, memory)
    }

    /// By the encoder.
    fn plainly(&mut self, instruction: &Instruction) -> Option<SmallVec<[u8; 16]>> {
        let result = self.encoder.encode(instruction, 0);
        let mut bytes = self.encoder.take_buffer();
        let encoded = result.is_ok().then(|| SmallVec::from_slice(&bytes));
        bytes.clear();
        self.encoder.set_buffer(bytes);
        encoded
    }

    /// The instruction with the first registers there are, as far as it can have them.
    fn probe(&mut self, instruction: &Instruction) -> Option<Instruction> {
        let mut probe = *instruction;
        for op in register_operands(instruction) {
            let register = instruction.op_register(op);
            encoded(register)?;
            probe.set_op_register(op, first_like(register));
            if self.plainly(&probe).is_none() {
                probe.set_op_register(op, register);
            }
        }
        if has_memory(instruction) {
            if !probe.memory_base().is_gpr64() {
                return None;
            }
            probe.set_memory_base(Register::RAX);
            probe.set_memory_index(Register::None);
            probe.set_memory_index_scale(1);
            set_displacement(&mut probe, 0);
        }
        Some(probe)
    }

    /// Which byte another register as operand `op` changes, and by how much.
    fn place(
        &mut self,
        probe: &Instruction,
        bytes: &[u8],
        op: u32,
        register: Register,
    ) -> Option<(usize, u8)> {
        let mut other = *probe;
        other.set_op_register(op, register);
        let changed = self.plainly(&other)?;
        let mut differ = (0..bytes.len()).filter(|&at| changed.get(at) != Some(&bytes[at]));
        let at = differ.next()?;
        let alone = changed.len() == bytes.len() && differ.next().is_none();
        alone.then(|| (at, changed[at].wrapping_sub(bytes[at])))
    }

    /// The form of an instruction's code, if it has one: its registers are changed one by one to
    /// see where they are.
    fn form(&mut self, instruction: &Instruction) -> Option<Form> {
        let known = |kind: OpKind| {
            matches!(kind, OpKind::Register | OpKind::Memory) || immediate_size(kind).is_some()
        };
        if !instruction.op_kinds().all(known) {
            return None;
        }
        let probe = self.probe(instruction)?;
        let bytes = self.plainly(&probe)?;
        let (mut form, modrm_at) = Form::of_prefixes(&bytes)?;
        for op in register_operands(&probe) {
            let register = probe.op_register(op);
            let other = if register == first_like(register) { register + 1u32 } else { register };
            match self.place(&probe, &bytes, op, other) {
                Some((at, 1)) if at + 1 == modrm_at => form.plus = Some(op as u8),
                Some((at, 8)) if at == modrm_at => form.reg = Some(op as u8),
                Some((at, 1)) if at == modrm_at => form.rm = Some(op as u8),
                None if form.own.is_none() => form.own = Some((op as u8, register)),
                _ => return None,
            }
        }
        form.memory = has_memory(&probe);
        let has_modrm = form.memory || form.reg.is_some() || form.rm.is_some();
        form.modrm = if has_modrm { Some(*bytes.get(modrm_at)?) } else { None };
        let size = bytes.len().checked_sub(modrm_at + usize::from(has_modrm))?;
        let sized = |op: u32| Some((op as u8, immediate_size(probe.op_kind(op))?));
        let immediates: SmallVec<[(u8, usize); 2]> =
            (0..probe.op_count()).filter_map(sized).collect();
        form.immediate = match (&immediates[..], size) {
            // A shift by one has no byte for that.
            ([], 0) | ([_], 0) => None,
            (&[(op, known)], _) if known == size => Some((op, size as u8)),
            _ => return None,
        };
        Some(form)
    }
}

impl Form {
    /// Prefixes and opcode of what is encoded in `bytes`, and where they end.
    fn of_prefixes(bytes: &[u8]) -> Option<(Form, usize)> {
        let mut form = Form::default();
        let mut at = 0;
        if matches!(bytes.first()?, 0x66 | 0xf2 | 0xf3) {
            form.prefix = bytes[0];
            at += 1;
        }
        if bytes.get(at)? & 0xf0 == REX {
            form.rex = bytes[at] & 0xf;
            at += 1;
        }
        if matches!(form.rex, 0 | REX_W)
            && !matches!(bytes.get(at)?, 0xc4 | 0xc5 | 0x62 | 0x66 | 0xf2 | 0xf3)
        {
            let size = match (bytes[at], bytes.get(at + 1)) {
                (0x0f, Some(0x38 | 0x3a)) => 3,
                (0x0f, _) => 2,
                _ => 1,
            };
            let opcode = bytes.get(at..at + size)?;
            form.opcode = opcode.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            form.opcode_size = size as u8;
            return Some((form, at + size));
        }
        None
    }

    /// The instruction as it is.
    fn encode(&self, instruction: &Instruction) -> Option<Encoded> {
        if self.own.is_some_and(|(op, own)| instruction.op_register(u32::from(op)) != own) {
            return None;
        }
        let register = |op: u8| encoded(instruction.op_register(u32::from(op)));
        let memory = if self.memory { Some(Memory::of(instruction)?) } else { None };
        self.encode_with(instruction, register, memory)
    }

    /// The instruction with these registers as its operands, and this for memory.
    fn encode_with(
        &self,
        instruction: &Instruction,
        register: impl Fn(u8) -> Option<(u8, u8)>,
        memory: Option<Memory>,
    ) -> Option<Encoded> {
        let operand = |op: Option<u8>| op.map_or(Some((0, 0)), &register);
        let (reg, reg_asks) = operand(self.reg)?;
        let (plus, plus_asks) = operand(self.plus)?;
        let (rm, rm_asks) = if self.memory { (0, 0) } else { operand(self.rm)? };
        let (base, index) = memory.map_or((rm | plus, 0), |it| (it.base, it.index));
        let extended = |number: u8, bit: u8| if number & 8 != 0 { bit } else { 0 };
        let bits = extended(reg, REX_R) | extended(index, REX_X) | extended(base, REX_B);
        let rex = self.rex | bits;
        let asks = reg_asks | rm_asks | plus_asks;
        let mut made = Encoded::default();
        if self.prefix != 0 {
            made.head.append(self.prefix.into(), 1);
        }
        if rex != 0 || asks & NEEDS_REX != 0 {
            if asks & FORBIDS_REX != 0 {
                return None;
            }
            made.head.append((REX | rex).into(), 1);
        }
        let last = 8 * (self.opcode_size - 1);
        made.head.append(self.opcode | u64::from(plus & 7) << last, self.opcode_size);
        if let Some(modrm) = self.modrm {
            let modrm = modrm | (reg & 7) << 3 | rm & 7;
            match memory {
                Some(memory) => memory.append(modrm, &mut made),
                None => made.head.append(modrm.into(), 1),
            }
        }
        if let Some((op, size)) = self.immediate {
            made.tail.append(instruction.immediate(u32::from(op)), size);
        }
        Some(made)
    }
}

/// A memory operand, its registers by number.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    base: u8,
    /// [`NO_INDEX`] if there is none.
    index: u8,
    /// Bits that it is shifted by.
    scale: u8,
    displacement: i32,
}

impl Memory {
    pub(crate) fn at(base: u8, index: Option<(u8, u8)>, displacement: i32) -> Memory {
        let (index, scale) = index.map_or((NO_INDEX, 1), |index| index);
        Memory { base, index, scale: scale.trailing_zeros() as u8, displacement }
    }

    /// That of an instruction, with a base of 64 bits.
    fn of(instruction: &Instruction) -> Option<Memory> {
        let number = |register: Register| register.is_gpr64().then(|| number(register));
        let index = match instruction.memory_index() {
            Register::None => NO_INDEX,
            register => number(register).filter(|index| *index != NO_INDEX)?,
        };
        Some(Memory {
            base: number(instruction.memory_base())?,
            index,
            scale: instruction.memory_index_scale().trailing_zeros() as u8,
            displacement: i32::try_from(instruction.memory_displacement64() as i64).ok()?,
        })
    }

    /// ModRM, of which the rest is known, and what belongs to it.
    fn append(self, modrm: u8, made: &mut Encoded) {
        let Memory { base, index, scale, displacement } = self;
        let (mode, size) = match i8::try_from(displacement) {
            Ok(0) if base & 7 != NO_DISPLACEMENT => (0x00, 0),
            Ok(_) => (0x40, 1),
            Err(_) => (0x80, 4),
        };
        let modrm = u64::from(mode | modrm);
        let rm = base & 7;
        if index == NO_INDEX && rm != SIB {
            made.head.append(modrm | u64::from(rm), 1);
        } else {
            let sib = u64::from(scale << 6 | (index & 7) << 3 | rm);
            made.head.append(modrm | u64::from(SIB) | sib << 8, 2);
        }
        made.tail.append(displacement as u64, size);
    }
}

/// Bytes of an immediate operand.
fn immediate_size(kind: OpKind) -> Option<usize> {
    use OpKind::*;
    match kind {
        Immediate8 | Immediate8_2nd | Immediate8to16 | Immediate8to32 | Immediate8to64 => Some(1),
        Immediate16 => Some(2),
        Immediate32 | Immediate32to64 => Some(4),
        Immediate64 => Some(8),
        _ => None,
    }
}

/// In the form that the encoder takes: nothing, one byte, or (it says 8) four.
pub(crate) fn set_displacement(instruction: &mut Instruction, displacement: i32) {
    let size = match i8::try_from(displacement) {
        Ok(0) => 0,
        Ok(_) => 1,
        Err(_) => 8,
    };
    instruction.set_memory_displacement64(displacement as u64);
    instruction.set_memory_displ_size(size);
}

/// Whether it has prefixes of its own.
fn has_prefix(instruction: &Instruction) -> bool {
    instruction.has_lock_prefix()
        || instruction.has_rep_prefix()
        || instruction.has_repne_prefix()
        || instruction.has_segment_prefix()
}

fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::decoded::{decoded, xorshift};

    /// With its registers eight further, the instruction is what the encoder makes of that, or it
    /// is not encoded; whether it is.
    fn check_renamed(encodings: &mut Encodings, instruction: &Instruction, random: u64) -> bool {
        let operands = Operands::of(instruction);
        // RCX stays, for shifts by CL.
        let home = |guest: u8| if guest == 1 { 1 } else { guest ^ 8 };
        let mut other = *instruction;
        for named in operands.named() {
            other.set_op_register(
                named.operand.into(),
                native::sized(home(named.guest), named.size.into()),
            );
        }
        let displacement = random as i32 >> (random >> 59);
        if operands.memory {
            other.set_memory_base(Register::R9);
            other.set_memory_index(Register::RDI);
            other.set_memory_index_scale(4);
            set_displacement(&mut other, displacement);
        }
        let memory = operands.memory.then(|| Memory::at(9, Some((7, 4)), displacement));
        let made =
            encodings.encode_renamed(instruction, &operands, |guest| Some(home(guest)), memory);
        let is_valid = encodings.plainly(instruction).is_some();
        let Some(made) = made.filter(|_| is_valid && !has_prefix(instruction)) else {
            return false;
        };
        let (bytes, size) = made.bytes();
        let right = encodings.plainly(&other);
        assert_eq!(Some(&bytes[..size]), right.as_deref(), "{:?}", instruction.code());
        true
    }

    /// Random instructions with a base register and other registers than they had, each once by the
    /// encoder.
    #[test]
    fn forms_are_what_the_encoder_makes() {
        let mut random = xorshift(2911);
        let first: [&[u8]; 8] =
            [&[], &[], &[0x0f], &[0x66, 0x0f], &[0xf2, 0x0f], &[0xf3, 0x0f], &[0x48], &[0x66]];
        let mut encodings = Encodings::new();
        let mut codes = vec![false; Code::values().len()];
        let mut renamed = 0;
        for _ in 0..400_000 {
            let (bytes, mut instruction) = decoded(&mut random, &first);
            if instruction.is_invalid() {
                continue;
            }
            for op in register_operands(&instruction.clone()) {
                let register = instruction.op_register(op);
                if encoded(register).is_some() && random() & 1 != 0 {
                    let most = if register.size() == 1 { 20 } else { 16 };
                    let other = first_like(register) + (random() % most) as u32;
                    instruction.set_op_register(op, other);
                }
            }
            if has_memory(&instruction) {
                let index = match random() % 16 {
                    4 => Register::None,
                    number => Register::RAX + number as u32,
                };
                let displacement = [0, random() as i8 as i64, random() as i32 as i64];
                let displacement = displacement[random() as usize % 3] as i32;
                instruction.set_segment_prefix(Register::None);
                instruction.set_memory_base(Register::RAX + (random() % 16) as u32);
                instruction.set_memory_index(index);
                let scale = if index == Register::None { 1 } else { 1 << (random() % 4) };
                instruction.set_memory_index_scale(scale);
                set_displacement(&mut instruction, displacement);
            }
            let right = encodings.plainly(&instruction);
            let made = encodings.encode(&instruction).map(|encoded| encoded.bytes());
            let made = made.as_ref().map(|(bytes, size)| &bytes[..*size]);
            assert_eq!(made, right.as_deref(), "{:?} {bytes:02x?}", instruction.code());
            renamed += usize::from(check_renamed(&mut encodings, &instruction, random()));
            let at = instruction.code() as usize * 2;
            let formed = |noted: &Noted| matches!(noted, Noted::Form(_));
            codes[at / 2] |= encodings.forms[at..at + 2].iter().any(formed);
        }
        let formed = codes.iter().filter(|formed| **formed).count();
        assert!(formed > 400, "{formed} codes");
        assert!(renamed > 100_000, "{renamed} instructions");
    }
}
