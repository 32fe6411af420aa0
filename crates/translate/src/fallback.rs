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

/// Counts of instructions by mnemonic.
struct Tally {
    counts: Box<[u64]>,
    /// Mnemonics with a count, as they came: a machine at work is asked for its counters twice a
    /// second, and most of the 4,096 have none.
    seen: Vec<u16>,
}

impl Tally {
    fn new() -> Tally {
        Tally { counts: vec![0; MNEMONICS].into_boxed_slice(), seen: Vec::new() }
    }

    fn note(&mut self, mnemonic: u16) {
        let Some(count) = self.counts.get_mut(usize::from(mnemonic)) else { return };
        if *count == 0 {
            self.seen.push(mnemonic);
        }
        *count += 1;
    }

    fn named(&self) -> Vec<(String, u64)> {
        let name = |m: u16| Mnemonic::try_from(usize::from(m)).map(|m| format!("{m:?}"));
        let named = self
            .seen
            .iter()
            .filter_map(|&m| Some((name(m).ok()?.to_lowercase(), self.counts[usize::from(m)])));
        named.collect()
    }
}

/// The counters.
pub(crate) struct Fallbacks {
    steps: Tally,
    helped: Tally,
    reasons: [u64; REASONS.len()],
}

impl Fallbacks {
    pub(crate) fn new() -> Fallbacks {
        Fallbacks { steps: Tally::new(), helped: Tally::new(), reasons: [0; REASONS.len()] }
    }

    pub(crate) fn note(&mut self, reason: Reason) {
        self.reasons[reason as usize] += 1;
    }

    /// The fall-back engine executes an instruction because of what it is.
    pub(crate) fn note_step(&mut self, mnemonic: u16) {
        self.steps.note(mnemonic);
    }

    /// The dispatcher executed an instruction.
    pub(crate) fn note_helped(&mut self, mnemonic: u16) {
        self.helped.note(mnemonic);
    }

    /// By name, most frequent first.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        let reasons = REASONS.into_iter().map(str::to_owned).zip(self.reasons);
        let mut steps = self.steps.named();
        steps.extend(reasons.filter(|(_, count)| *count != 0));
        let mut listed = Vec::new();
        for (what, mut counts) in [("fall-back", steps), ("helper", self.helped.named())] {
            counts.sort_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b)));
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
