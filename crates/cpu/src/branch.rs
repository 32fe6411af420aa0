//! What counts as a branch: the one definition that interpreter and translator share
//! (mechanisms L1, L3).
//!
//! A branch is a retired control-transfer instruction, taken or not, or a delivery through the
//! IDT (exception, software or external interrupt). So no loop of the guest runs without
//! counting, and a monitor exit never counts. INT n counts once: as the delivery.

use iced_x86::{Code, FlowControl};

/// Whether the instruction, when it retires, counts as a branch by itself.
pub fn counts(code: Code) -> bool {
    matches!(
        code.flow_control(),
        FlowControl::UnconditionalBranch
            | FlowControl::IndirectBranch
            | FlowControl::ConditionalBranch
            | FlowControl::Return
            | FlowControl::Call
            | FlowControl::IndirectCall
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_transfers_count() {
        for code in [
            Code::Jmp_rel8_64,
            Code::Je_rel8_64,
            Code::Call_rm64,
            Code::Retnq,
            Code::Loop_rel8_64_RCX,
            Code::Jrcxz_rel8_64,
            Code::Syscall,
            Code::Sysretq,
            Code::Iretq,
            Code::Jmp_m1664,
        ] {
            assert!(counts(code), "{code:?}");
        }
    }

    #[test]
    fn others_do_not_count() {
        for code in
            [Code::Int_imm8, Code::Int3, Code::Ud2, Code::Hlt, Code::Nopd, Code::Movsb_m8_m8]
        {
            assert!(!counts(code), "{code:?}");
        }
    }
}
