//! What the decoder's tables say of an instruction, asked once for each code and noted: an answer
//! is put together from many of them, which are in no cache when the next block is translated.

use iced_x86::{Code, Instruction, InstructionInfoFactory, OpKind};

use crate::classify::{Class, FlagUse, Mode, Unit, classify, counts, flag_use};

/// Classes by the number that is noted, from 1.
const CLASSES: [Class; 10] = [
    Class::Nothing,
    Class::Branch,
    Class::Stack,
    Class::Address,
    Class::Compute { unit: Unit::Integer },
    Class::Compute { unit: Unit::Vectors },
    Class::Compute { unit: Unit::X87 },
    Class::System,
    Class::String,
    Class::Step,
];
/// What [`classify`] asks of a mode, and whether there is a memory operand.
const WAYS: usize = 1 << 6;

/// See the module.
pub(crate) struct Tables {
    pub(crate) factory: InstructionInfoFactory,
    codes: usize,
    /// A class by way and code; 0 if it was not asked for.
    classes: Vec<u8>,
    /// [`FlagUse`] by code, three bits of it and one more; 0 if it was not asked for.
    flags: Vec<u8>,
}

impl Tables {
    pub(crate) fn new() -> Tables {
        let codes = Code::values().len();
        let (classes, flags) = (vec![0; codes * WAYS], vec![0; codes]);
        Tables { factory: InstructionInfoFactory::new(), codes, classes, flags }
    }

    /// As [`classify`].
    pub(crate) fn class(&mut self, instruction: &Instruction, mode: Mode) -> Class {
        let bits = [mode.sse, mode.avx, mode.kernel, mode.x87, mode.v3, has_memory(instruction)];
        let way = bits.into_iter().fold(0, |way, bit| way << 1 | usize::from(bit));
        let noted = &mut self.classes[way * self.codes + instruction.code() as usize];
        if let Some(class) = CLASSES.get(usize::from(*noted).wrapping_sub(1)) {
            return *class;
        }
        let class = classify(instruction, mode);
        // What those are depends on their prefixes as well.
        if !instruction.is_string_instruction() {
            let number = CLASSES.iter().position(|known| *known == class);
            *noted = number.expect("all are listed") as u8 + 1;
        }
        class
    }

    /// As [`flag_use`].
    pub(crate) fn flag_use(&mut self, instruction: &Instruction) -> FlagUse {
        let noted = &mut self.flags[instruction.code() as usize];
        if *noted == 0 {
            let answer = flag_use(instruction);
            if counts(instruction) {
                return answer;
            }
            let FlagUse { reads, needs, changes } = answer;
            *noted = 8 | u8::from(reads) << 2 | u8::from(needs) << 1 | u8::from(changes);
        }
        let bit = |bit: u8| *noted & bit != 0;
        FlagUse { reads: bit(4), needs: bit(2), changes: bit(1) }
    }
}

fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    /// Random bytes, half of them behind an opcode map or a prefix that has much behind it.
    #[test]
    fn what_is_noted_for_a_code_holds_for_all_its_instructions() {
        let mut state = 2811u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let first: [&[u8]; 8] =
            [&[], &[0x0f], &[0x66, 0x0f], &[0xf2], &[0xf3], &[0x48], &[0xc4], &[0x64, 0x67]];
        let mut tables = Tables::new();
        let mut codes = vec![false; tables.codes];
        for _ in 0..400_000 {
            let mut bytes = first[random() as usize % first.len()].to_vec();
            bytes.extend(random().to_le_bytes());
            bytes.extend(random().to_le_bytes());
            let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let [sse, avx, kernel, x87, v3] = [0, 1, 2, 3, 4].map(|bit| random() >> bit & 1 != 0);
            let mode = Mode { sse, avx, kernel, x87, v3, ..Mode::default() };
            let class = tables.class(&instruction, mode);
            assert_eq!(class, classify(&instruction, mode), "{bytes:02x?} {mode:?}");
            let (noted, right) = (tables.flag_use(&instruction), flag_use(&instruction));
            assert_eq!(noted, right, "{bytes:02x?}");
            codes[instruction.code() as usize] = true;
        }
        let met = codes.iter().filter(|met| **met).count();
        assert!(met > 1_000, "{met} codes");
    }
}
