//! Which status flags matter: what nobody looks at is not kept.
//!
//! An access that is looked up may leave the block, so the flags before it must be known there.
//! Where only such places ask for them, and the instruction that made them can be done once more,
//! the way out does that ([`Planned::redone`]) and the straight path keeps nothing.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use smallvec::SmallVec;

use crate::classify::{Class, Unit};
use crate::encode::Encodings;
use crate::group::Group;
use crate::plan::{INSTRUCTION_SIZE_MAX, Plan, Planned};

impl Plan {
    /// Notes in each instruction who needs the flags.
    pub(crate) fn find_flags(&mut self) {
        let mut live = true;
        for index in (0..self.insns.len()).rev() {
            let planned = &mut self.insns[index];
            // The check of the stack pointer may leave.
            live |= self.direct && planned.near.moves;
            planned.flags_after = live;
            live = flags_before(planned);
            planned.flags_before = live;
            live |= is_looked_up_before(&self.groups, index);
        }
        // There no lookup asks for RFLAGS.
        let insns = if self.direct { 0 } else { self.insns.len() };
        for index in 0..insns {
            let planned = &self.insns[index];
            self.insns[index].redone = planned.class == (Class::Compute { unit: Unit::Integer })
                && can_be_redone(planned)
                && self.only_misses_ask(index);
        }
    }

    /// Whether the flags that the instruction at `index` makes are asked for by nobody but who
    /// leaves at a lookup, and what it needs to be done again is still there then.
    fn only_misses_ask(&self, index: usize) -> bool {
        let inputs = self.insns[index].operands.bits();
        let (mut looked_up, mut lost) = (false, false);
        for (at, planned) in self.insns.iter().enumerate().skip(index + 1) {
            if is_looked_up_before(&self.groups, at) || looks_up(planned) {
                looked_up = true;
                if lost {
                    return false;
                }
            }
            let Some(user) = user(planned) else { return false };
            match user {
                User::Reads if looked_up => return false,
                User::Replaces => return looked_up,
                User::Changes => return looked_up && !planned.flags_after,
                User::Reads | User::None => {}
            }
            lost = lost || planned.effects.written & inputs != 0;
        }
        false
    }
}

/// For each instruction whether it is in a chain of carries: flags that the block made before it
/// are added by it or later. Moved out of a lookup's way and back they take the chain's time.
pub(crate) fn in_chains(insns: &[Planned]) -> Vec<bool> {
    use Mnemonic::*;
    let mut added = false;
    let mut chained = vec![false; insns.len()];
    for (index, planned) in insns.iter().enumerate().rev() {
        let adds = matches!(planned.instruction.mnemonic(), Adc | Sbb | Adcx | Adox);
        added = adds || (added && !matches!(user(planned), Some(User::Replaces)));
        chained[index] = added;
    }
    let made = insns.iter().position(|planned| planned.flags.changes);
    chained.iter_mut().take(made.map_or(insns.len(), |made| made + 1)).for_each(|one| *one = false);
    chained
}

/// What an instruction inside a block does with flags.
enum User {
    None,
    Reads,
    /// Some.
    Changes,
    /// All.
    Replaces,
}

/// `None` if the flags must be exact there whatever it does with them.
fn user(planned: &Planned) -> Option<User> {
    match planned.class {
        Class::Nothing | Class::Address => Some(User::None),
        Class::Stack if !planned.operands.memory => Some(User::None),
        Class::Branch if planned.inside => Some(match planned.instruction.mnemonic() {
            Mnemonic::Jmp => User::None,
            _ => User::Reads,
        }),
        Class::Compute { unit: Unit::Integer } if !planned.effects.of_code.may_fault => {
            let flags = planned.flags;
            Some(match (flags.reads, flags.needs, flags.changes) {
                (true, ..) => User::Reads,
                (_, true, _) => User::Changes,
                (_, _, true) => User::Replaces,
                _ => User::None,
            })
        }
        _ => None,
    }
}

/// Whether the flags before the instruction matter, its `flags_after` known.
fn flags_before(planned: &Planned) -> bool {
    if looks_up(planned) {
        return true;
    }
    match user(planned) {
        None | Some(User::Reads) => true,
        Some(User::Replaces) => false,
        Some(User::None | User::Changes) => planned.flags_after,
    }
}

fn is_looked_up_before(groups: &[Group], index: usize) -> bool {
    groups.iter().any(|group| group.before == index)
}

/// Whether the instruction looks something up itself, or may.
fn looks_up(planned: &Planned) -> bool {
    let memory = planned.operands.memory;
    match planned.class {
        Class::Compute { .. } => memory && planned.operand.is_none(),
        Class::Stack => memory || planned.stack.is_none(),
        _ => false,
    }
}

fn can_be_redone(planned: &Planned) -> bool {
    use Mnemonic::*;
    let (mnemonic, operands) = (planned.instruction.mnemonic(), &planned.operands);
    let twice = matches!(operands.named(), [a, b] if a.guest == b.guest);
    let undone = matches!(mnemonic, Add | Sub) && !twice;
    (undone || matches!(mnemonic, Cmp | Test | And | Or | Xor))
        && !operands.memory
        && !operands.has_high_byte()
}

/// At most two instructions.
pub(crate) type Redo = SmallVec<[u8; 2 * INSTRUCTION_SIZE_MAX]>;

/// Code that sets the flags as `made` did, which has been done, and changes nothing else.
pub(crate) fn redo(encodings: &mut Encodings, made: &Instruction) -> Option<Redo> {
    use Mnemonic::*;
    let steps: &[Instruction] = match made.mnemonic() {
        Cmp | Test => &[*made],
        Add | Sub => {
            let mut undone = *made;
            undone.set_code(opposite(made.code())?);
            &[undone, *made]
        }
        _ if made.op0_kind() == OpKind::Register => {
            let register = made.op0_register();
            let code = match register.size() {
                1 => Code::Test_rm8_r8,
                2 => Code::Test_rm16_r16,
                4 => Code::Test_rm32_r32,
                _ => Code::Test_rm64_r64,
            };
            &[Instruction::with2(code, register, register).ok()?]
        }
        _ => return None,
    };
    let mut redo = Redo::new();
    for step in steps {
        let (bytes, size) = encodings.encode(step)?.bytes();
        redo.extend_from_slice(&bytes[..size]);
    }
    Some(redo)
}

/// SUB for ADD and ADD for SUB.
fn opposite(code: Code) -> Option<Code> {
    macro_rules! forms {
        ($($add:ident $sub:ident),* $(,)?) => {
            match code {
                $(Code::$add => Some(Code::$sub), Code::$sub => Some(Code::$add),)*
                _ => None,
            }
        };
    }
    forms! {
        Add_rm8_r8 Sub_rm8_r8, Add_r8_rm8 Sub_r8_rm8, Add_rm8_imm8 Sub_rm8_imm8,
        Add_rm16_r16 Sub_rm16_r16, Add_r16_rm16 Sub_r16_rm16, Add_rm16_imm8 Sub_rm16_imm8,
        Add_rm16_imm16 Sub_rm16_imm16, Add_rm32_r32 Sub_rm32_r32, Add_r32_rm32 Sub_r32_rm32,
        Add_rm32_imm8 Sub_rm32_imm8, Add_rm32_imm32 Sub_rm32_imm32, Add_rm64_r64 Sub_rm64_r64,
        Add_r64_rm64 Sub_r64_rm64, Add_rm64_imm8 Sub_rm64_imm8, Add_rm64_imm32 Sub_rm64_imm32,
    }
}
