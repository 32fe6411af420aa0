//! What was not translated, counted by reason: nothing hot is interpreted in silence.

use iced_x86::Mnemonic;

const MNEMONICS: usize = 4096;

/// Reasons for the fall-back engine other than the instruction itself.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Reason {
    /// The instruction cannot be fetched from RAM.
    Fetch,
    /// Single-step, breakpoints or an interrupt shadow.
    Between,
    /// An access that faults, or to a device or a watched page, or to two pages.
    Access,
    /// As `Access`, of a string instruction: all of it is interpreted.
    StringAccess,
    /// The target of a branch cannot be fetched.
    Target,
    /// The hardware raised an exception.
    Exception,
    /// The page that an instruction reaches into changes too often.
    NextPage,
    /// 16- or 32-bit code, some branches at a time.
    Legacy,
    /// Alignment checks or data breakpoints, some branches at a time.
    Watched,
}

const REASONS: [&str; 9] = [
    "(fetch)",
    "(between instructions)",
    "(access)",
    "(access of a string instruction)",
    "(branch target)",
    "(exception)",
    "(next page)",
    "(run of 16- or 32-bit code)",
    "(run with alignment checks or data breakpoints)",
];

/// The counters.
pub(crate) struct Fallbacks {
    steps: Box<[u64]>,
    helped: Box<[u64]>,
    reasons: [u64; REASONS.len()],
}

impl Fallbacks {
    pub(crate) fn new() -> Fallbacks {
        let zeros = || vec![0; MNEMONICS].into_boxed_slice();
        Fallbacks { steps: zeros(), helped: zeros(), reasons: [0; REASONS.len()] }
    }

    pub(crate) fn note(&mut self, reason: Reason) {
        self.reasons[reason as usize] += 1;
    }

    /// The fall-back engine executes an instruction because of what it is.
    pub(crate) fn note_step(&mut self, mnemonic: u16) {
        self.steps[mnemonic as usize % MNEMONICS] += 1;
    }

    /// The dispatcher executed an instruction.
    pub(crate) fn note_helped(&mut self, mnemonic: u16) {
        self.helped[mnemonic as usize % MNEMONICS] += 1;
    }

    /// By name, most frequent first.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let named = |counts: &[u64]| -> Vec<(String, u64)> {
            let name = |mnemonic| format!("{mnemonic:?}").to_lowercase();
            Mnemonic::values().map(|m| (name(m), counts[m as usize])).collect()
        };
        let reasons = REASONS.into_iter().map(str::to_owned).zip(self.reasons);
        let steps = named(&self.steps).into_iter().chain(reasons).collect();
        let mut listed = Vec::new();
        for (what, mut counts) in [("fall-back", steps), ("helper", named(&self.helped))] {
            counts.retain(|(_, count)| *count != 0);
            counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), name.clone()));
            listed.extend(counts.into_iter().map(|(name, n)| (format!("{what} {name}"), n)));
        }
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallback_counters_are_sorted_by_count() {
        assert!(Mnemonic::values().all(|mnemonic| (mnemonic as usize) < MNEMONICS));
        let mut fallbacks = Fallbacks::new();
        fallbacks.note(Reason::Watched);
        fallbacks.note_step(Mnemonic::Cpuid as u16);
        fallbacks.note_step(Mnemonic::Cpuid as u16);
        fallbacks.note_helped(Mnemonic::Syscall as u16);
        let names: Vec<String> = fallbacks.counters().into_iter().map(|(name, _)| name).collect();
        let watched = "fall-back (run with alignment checks or data breakpoints)";
        assert_eq!(names, ["fall-back cpuid", watched, "helper syscall"]);
    }
}
