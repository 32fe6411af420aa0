//! What the manuals leave to the processor, so that host and model may differ: one row a rule.

use cpu::gpr;
use iced_x86::{Instruction, Mnemonic, OpKind};
use types::PAGE_MASK;

use crate::address::{address, memory_operand, operand_size};
use crate::{Case, Fault, Outcome};

/// A rule: for which instructions, and when two outcomes count as the same.
struct Choice {
    mnemonics: &'static [Mnemonic],
    accepts: fn(host: Option<Fault>, other: Option<Fault>) -> bool,
}

fn both(host: Option<Fault>, other: Option<Fault>) -> bool {
    host.is_some() && other.is_some()
}

fn host_faults(host: Option<Fault>, _other: Option<Fault>) -> bool {
    host.is_some()
}

const CHOICES: [Choice; 10] = [
    // SDM vol. 2, MASKMOVDQU: faults for bytes not chosen are implementation-specific.
    Choice {
        mnemonics: &[Mnemonic::Maskmovdqu, Mnemonic::Vmaskmovdqu, Mnemonic::Maskmovq],
        accepts: host_faults,
    },
    // SDM vol. 3, 5.3: at the 4 GiB limit, and for operands accessed in parts, which part faults
    // first and how.
    Choice {
        mnemonics: &[
            Mnemonic::Vmaskmovps,
            Mnemonic::Vmaskmovpd,
            Mnemonic::Vpmaskmovd,
            Mnemonic::Vpmaskmovq,
            Mnemonic::Fbld,
            Mnemonic::Fld,
            Mnemonic::Fbstp,
            Mnemonic::Fstp,
            Mnemonic::Bound,
            Mnemonic::Fldenv,
            Mnemonic::Fnstenv,
            Mnemonic::Frstor,
            Mnemonic::Fnsave,
        ],
        accepts: both,
    },
    // How much of a multi-part instruction was done before its fault.
    Choice { mnemonics: &[Mnemonic::Popa, Mnemonic::Popad, Mnemonic::Enter], accepts: both },
    // MOVSXD r16 of memory reads two bytes on Intel's, four on AMD's processors.
    Choice { mnemonics: &[Mnemonic::Movsxd], accepts: host_faults },
    // SDM vol. 2, REP: after a fault of REPNE SCAS or CMPS the flags are those before all of it, or
    // those of the last iteration.
    Choice {
        mnemonics: &[Mnemonic::Scasb, Mnemonic::Scasw, Mnemonic::Scasd, Mnemonic::Scasq],
        accepts: both,
    },
    // Which operand is read first: Zen 3 begins with [RDI], Intel's and Zen 5 with [RSI].
    Choice {
        mnemonics: &[Mnemonic::Cmpsb, Mnemonic::Cmpsw, Mnemonic::Cmpsd, Mnemonic::Cmpsq],
        accepts: both,
    },
    // SDM vol. 2, VGATHER: what the mask holds when an element faults (Intel's processors have made
    // each of its elements all ones or zeroes by then).
    Choice {
        mnemonics: &[
            Mnemonic::Vgatherdps,
            Mnemonic::Vgatherdpd,
            Mnemonic::Vgatherqps,
            Mnemonic::Vgatherqpd,
            Mnemonic::Vpgatherdd,
            Mnemonic::Vpgatherdq,
            Mnemonic::Vpgatherqd,
            Mnemonic::Vpgatherqq,
        ],
        accepts: both,
    },
    // Whether the return address is on the stack when the target turns out not to be canonical.
    Choice { mnemonics: &[Mnemonic::Call], accepts: both },
    // Whether MXCSR has the flags of a conversion whose store faults.
    Choice { mnemonics: &[Mnemonic::Vcvtps2ph], accepts: both },
    // SDM vol. 2, FXSAVE: whether a misaligned area is #GP or #AC, and which check comes first.
    Choice {
        mnemonics: &[Mnemonic::Fxsave, Mnemonic::Fxsave64, Mnemonic::Fxrstor, Mnemonic::Fxrstor64],
        accepts: both,
    },
];

/// Whether x87 state has become that of MMX when the access of an MMX instruction faults.
fn is_mmx(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_mm()
    })
}

/// SDM vol. 3, 5.3: what reaches beyond 4 GiB wraps around on Intel's processors and raises #GP or
/// #SS on AMD's.
fn reaches_beyond_4_gib(case: &Case, instruction: &Instruction) -> bool {
    let start = memory_operand(instruction)
        .and_then(|operand| address(case, instruction, operand))
        .unwrap_or(0);
    case.bitness == 32 && start + operand_size(instruction) as u64 > 1 << 32
}

/// A store that faults, of what cannot be converted: an unmasked exception may come first, and then
/// nothing is stored. (The next x87 instruction raises it; here ES in the status word shows it.)
fn pends_instead(mnemonic: Mnemonic, host: &Outcome, other: &Outcome) -> bool {
    const ES: u8 = 0x80;
    use Mnemonic::{Fbstp, Fist, Fistp, Fisttp, Fst, Fstp};
    [Fbstp, Fist, Fistp, Fisttp, Fst, Fstp].contains(&mnemonic)
        && host.fault.is_none()
        && other.fault.is_some()
        && host.registers.fx.0[2] & ES != 0
}

/// SDM vol. 2, PUSH: of a selector the processor may write 16 bits alone, which are aligned where
/// 32 are not (#AC), or in one page where those are in two (#PF in the second).
fn is_half_push(instruction: &Instruction, host: &Outcome, other: &Outcome) -> bool {
    let halved = |fault: Fault| match fault.vector {
        17 => host.fault.is_none_or(|fault| fault.vector != 17),
        14 => host.fault.is_none() && fault.address & PAGE_MASK == 0,
        _ => false,
    };
    instruction.mnemonic() == Mnemonic::Push
        && instruction.op_kind(0) == OpKind::Register
        && instruction.op0_register().is_segment_register()
        && other.fault.is_some_and(halved)
}

/// Whether string instructions that count in ESI, EDI and ECX have cleared the upper halves of the
/// registers when their first access faults.
fn is_short_string(case: &Case, instruction: &Instruction) -> bool {
    let short = [OpKind::MemorySegESI, OpKind::MemorySegEDI, OpKind::MemoryESEDI];
    case.bitness == 64
        && (0..instruction.op_count()).any(|operand| short.contains(&instruction.op_kind(operand)))
}

/// String instructions that count in ECX and find 0 there do nothing; some processors clear the
/// upper halves of their registers all the same.
fn is_idle_short_string(
    case: &Case,
    instruction: &Instruction,
    host: &Outcome,
    other: &Outcome,
) -> bool {
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let idle = case.registers.gpr[gpr::RCX] as u32 == 0;
    let (ours, theirs) = (&other.registers, &host.registers);
    let cleared = |number| {
        [gpr::RSI, gpr::RDI, gpr::RCX].contains(&number)
            && theirs.gpr[number] == ours.gpr[number] & 0xffff_ffff
    };
    is_short_string(case, instruction)
        && repeats
        && idle
        && host.fault.or(other.fault).is_none()
        && (0..17).all(|number| theirs.gpr[number] == ours.gpr[number] || cleared(number))
        && theirs.rflags() == ours.rflags()
        && host.data == other.data
}

/// Whether the outcomes differ only in what is the processor's choice.
pub fn is_choice(case: &Case, host: &Outcome, other: &Outcome) -> bool {
    let instruction = case.instruction();
    let mnemonic = instruction.mnemonic();
    if both(host.fault, other.fault)
        && (is_mmx(&instruction)
            || reaches_beyond_4_gib(case, &instruction)
            || is_short_string(case, &instruction))
    {
        return true;
    }
    if pends_instead(mnemonic, host, other)
        || is_half_push(&instruction, host, other)
        || is_idle_short_string(case, &instruction, host, other)
    {
        return true;
    }
    CHOICES.iter().any(|choice| {
        choice.mnemonics.contains(&mnemonic) && (choice.accepts)(host.fault, other.fault)
    })
}
