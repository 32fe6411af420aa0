//! What the decoder's tables say of an instruction, asked once for each code and noted: an answer
//! is put together from many of them, which are in no cache when the next block is translated.

use iced_x86::{Code, Instruction, InstructionInfoFactory};

use crate::classify::{Class, FlagUse, Mode, Unit, classify, counts, flag_use};
use crate::effects::{Effects, Pattern, is_special};
use crate::operands::Operands;

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
    factory: InstructionInfoFactory,
    codes: usize,
    /// A class by way and code; 0 if it was not asked for.
    classes: Vec<u8>,
    /// [`FlagUse`] by code, three bits of it and one more; 0 if it was not asked for.
    flags: Vec<u8>,
    /// Effects by code, without a memory operand and with one.
    patterns: Vec<Option<Pattern>>,
}

impl Tables {
    pub(crate) fn new() -> Tables {
        let codes = Code::values().len();
        let (classes, flags) = (vec![0; codes * WAYS], vec![0; codes]);
        let patterns = vec![None; codes * 2];
        Tables { factory: InstructionInfoFactory::new(), codes, classes, flags, patterns }
    }

    /// As [`classify`]; whether it has a memory operand is known.
    pub(crate) fn class(&mut self, instruction: &Instruction, memory: bool, mode: Mode) -> Class {
        let way = usize::from(mode.sse)
            | usize::from(mode.avx) << 1
            | usize::from(mode.kernel) << 2
            | usize::from(mode.x87) << 3
            | usize::from(mode.v3) << 4
            | usize::from(memory) << 5;
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

    /// As [`Effects::of`].
    pub(crate) fn effects(&mut self, instruction: &Instruction, operands: &Operands) -> Effects {
        if is_special(instruction) {
            return Effects::of(instruction, &mut self.factory);
        }
        let at = instruction.code() as usize * 2 + usize::from(operands.memory);
        self.patterns[at]
            .get_or_insert_with(|| Pattern::of(instruction, operands, &mut self.factory))
            .effects(instruction, operands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::decoded::{decoded, xorshift};

    /// Random bytes, half of them behind an opcode map or a prefix that has much behind it.
    #[test]
    fn what_is_noted_for_a_code_holds_for_all_its_instructions() {
        let mut random = xorshift(2811);
        let first: [&[u8]; 8] =
            [&[], &[0x0f], &[0x66, 0x0f], &[0xf2], &[0xf3], &[0x48], &[0xc4], &[0x64, 0x67]];
        let mut tables = Tables::new();
        let mut codes = vec![false; tables.codes];
        for _ in 0..400_000 {
            let (bytes, instruction) = decoded(&mut random, &first);
            let [sse, avx, kernel, x87, v3] = [0, 1, 2, 3, 4].map(|bit| random() >> bit & 1 != 0);
            let mode = Mode { sse, avx, kernel, x87, v3, ..Mode::default() };
            let operands = Operands::of(&instruction);
            let class = tables.class(&instruction, operands.memory, mode);
            assert_eq!(class, classify(&instruction, mode), "{bytes:02x?} {mode:?}");
            let (noted, right) = (tables.flag_use(&instruction), flag_use(&instruction));
            assert_eq!(noted, right, "{bytes:02x?}");
            let noted = tables.effects(&instruction, &operands);
            let right = Effects::of(&instruction, &mut tables.factory);
            assert_eq!(noted, right, "{bytes:02x?}");
            codes[instruction.code() as usize] = true;
        }
        let met = codes.iter().filter(|met| **met).count();
        assert!(met > 1_000, "{met} codes");
    }
}
