//! What the manuals leave to the processor, so that host and model may differ: one row a rule.

use iced_x86::Mnemonic;

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

const CHOICES: [Choice; 6] = [
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
    // Which operand is read first: Zen 3 begins with [RDI], Intel's and Zen 5 with [RSI].
    Choice {
        mnemonics: &[Mnemonic::Cmpsb, Mnemonic::Cmpsw, Mnemonic::Cmpsd, Mnemonic::Cmpsq],
        accepts: both,
    },
    // SDM vol. 2, FXSAVE: whether a misaligned area is #GP or #AC, and which check comes first.
    Choice {
        mnemonics: &[Mnemonic::Fxsave, Mnemonic::Fxsave64, Mnemonic::Fxrstor, Mnemonic::Fxrstor64],
        accepts: both,
    },
];

/// Whether the outcomes differ only in what is the processor's choice.
pub fn is_choice(case: &Case, host: &Outcome, other: &Outcome) -> bool {
    let mnemonic = case.instruction().mnemonic();
    CHOICES.iter().any(|choice| {
        choice.mnemonics.contains(&mnemonic) && (choice.accepts)(host.fault, other.fault)
    })
}
