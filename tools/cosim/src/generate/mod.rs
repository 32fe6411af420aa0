//! Cases: every code of the model in turn, with operands and state that are likely to matter.

mod codes;
mod operands;
mod state;

use iced_x86::{Code, Encoder, Instruction, Mnemonic};

pub use codes::{Target, excluded, targets};

use crate::random::Random;
use crate::{Case, layout};

/// Makes cases from a seed.
pub struct Generator {
    seed: u64,
    targets: Vec<Target>,
}

/// An instruction that has been encoded, and what its state must be for it to make sense.
pub(crate) struct Draft {
    pub(crate) random: Random,
    pub(crate) bitness: u32,
    pub(crate) instruction: Instruction,
    /// Address that the explicit memory operand is meant to have.
    pub(crate) aim: Option<operands::Aim>,
}

impl Generator {
    /// Cases for the codes that are not excluded, or for those of one mnemonic.
    pub fn new(seed: u64, only: Option<&str>) -> Generator {
        let is_wanted = |code: Code| {
            only.is_none_or(|name| format!("{:?}", code.mnemonic()).eq_ignore_ascii_case(name))
        };
        let targets = targets()
            .into_iter()
            .filter(|target| excluded(*target).is_none() && is_wanted(target.code))
            .collect();
        Generator { seed, targets }
    }

    /// The codes in turn.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Case `index` of the seed; `None` if the draft could not be encoded.
    pub fn case(&self, index: u64) -> Option<(Target, Case)> {
        let target = self.targets[(index % self.targets.len() as u64) as usize];
        let mut seeds = Random::new(self.seed ^ index.wrapping_mul(0xd134_2543_de82_ef95));
        (0..16).find_map(|_| {
            let random = Random::new(seeds.bits());
            Some((target, case(target, random)?))
        })
    }
}

fn case(target: Target, mut random: Random) -> Option<Case> {
    let rip = if random.one_in(16) {
        layout::CODE + 0x1000 - random.below(16)
    } else {
        layout::CODE + 0x100 + random.below(64)
    };
    let mut draft =
        Draft { random, bitness: target.bitness, instruction: Instruction::default(), aim: None };
    draft.instruction.set_code(target.code);
    draft.operands(rip)?;
    draft.prefixes();
    let mut encoder = Encoder::new(target.bitness);
    encoder.encode(&draft.instruction, rip).ok()?;
    let bytes = encoder.take_buffer();
    let mut registers = draft.registers();
    registers.gpr[cpu::gpr::RIP] = rip;
    let mut case = Case { bitness: target.bitness, bytes, registers, patches: Vec::new() };
    let decoded = case.instruction();
    // What the bytes mean may be another code, for instance where encodings overlap.
    let decoded_target = Target { bitness: target.bitness, code: decoded.code() };
    if decoded.code() != target.code && excluded(decoded_target).is_some() {
        return None;
    }
    draft.instruction = decoded;
    draft.aim_registers(&mut case);
    draft.patch(&mut case);
    Some(case)
}

impl Draft {
    fn prefixes(&mut self) {
        let code = self.instruction.code();
        let info = code.op_code();
        if info.can_use_lock_prefix() && self.random.one_in(4) {
            self.instruction.set_has_lock_prefix(true);
        }
        if self.instruction.is_string_instruction() {
            match self.random.below(3) {
                0 if info.can_use_rep_prefix() => self.instruction.set_has_rep_prefix(true),
                1 if info.can_use_repne_prefix() => self.instruction.set_has_repne_prefix(true),
                _ => {}
            }
        }
    }

    /// Whether the instruction's memory operands may be beyond its explicit one.
    pub(crate) fn is(&self, mnemonics: &[Mnemonic]) -> bool {
        mnemonics.contains(&self.instruction.mnemonic())
    }
}
