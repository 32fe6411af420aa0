//! How many cases each code had, and which had none for what reason.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::generate::{self, Target};

/// Counts for one code in one mode.
#[derive(Clone, Copy, Default)]
pub struct Count {
    /// Cases compared.
    pub compared: u64,
    /// Cases that ended in a fault on the host.
    pub faulted: u64,
    /// Cases that the executor under test does not do.
    pub declined: u64,
    /// Cases that differ in undefined flags only.
    pub undefined: u64,
}

/// Counts for all codes.
#[derive(Default)]
pub struct Coverage {
    counts: BTreeMap<Target, Count>,
}

impl Coverage {
    /// The counts of a code, to be raised.
    pub fn count(&mut self, target: Target) -> &mut Count {
        self.counts.entry(target).or_default()
    }

    /// Counts as text, for another process to add up.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for (target, count) in &self.counts {
            let Count { compared, faulted, declined, undefined } = count;
            let code = target.code as u32;
            let bitness = target.bitness;
            let _ = writeln!(text, "{bitness} {code} {compared} {faulted} {declined} {undefined}");
        }
        text
    }

    /// Adds counts that another process encoded.
    pub fn add(&mut self, text: &str) {
        let targets = generate::targets();
        for line in text.lines() {
            let fields: Vec<u64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
            let &[bitness, code, compared, faulted, declined, undefined] = &fields[..] else {
                continue;
            };
            let known = targets
                .iter()
                .find(|target| u64::from(target.bitness) == bitness && target.code as u64 == code);
            if let Some(&target) = known {
                let count = self.count(target);
                count.compared += compared;
                count.faulted += faulted;
                count.declined += declined;
                count.undefined += undefined;
            }
        }
    }

    /// The report: totals, then codes without a case by reason, and flags that differed.
    pub fn report(&self, verbose: bool) -> String {
        let mut text = String::new();
        let mut missing: BTreeMap<&str, Vec<Target>> = BTreeMap::new();
        let mut total = Count::default();
        let (mut covered, mut all) = (0, 0);
        for target in generate::targets() {
            all += 1;
            let count = self.counts.get(&target).copied().unwrap_or_default();
            total.compared += count.compared;
            total.faulted += count.faulted;
            total.declined += count.declined;
            covered += usize::from(count.compared > 0);
            if count.compared == 0 {
                let reason = match generate::excluded(target) {
                    Some(reason) => reason,
                    None if count.declined > 0 => "declined by the executor",
                    None => "NO REASON: not reached in this run",
                };
                missing.entry(reason).or_default().push(target);
            }
            if verbose && count.compared > 0 {
                let Count { compared, faulted, declined, .. } = count;
                let _ = writeln!(
                    text,
                    "{} {:?}: {compared} compared, {faulted} faulted, {declined} declined",
                    target.bitness, target.code
                );
            }
            if count.undefined > 0 {
                let _ = writeln!(
                    text,
                    "undefined flags differ: {} {:?}, {} cases",
                    target.bitness, target.code, count.undefined
                );
            }
        }
        let _ = writeln!(
            text,
            "{} cases compared, {} of them faults, {} declined; {covered} of {all} forms covered",
            total.compared, total.faulted, total.declined
        );
        for (reason, targets) in missing {
            let _ = writeln!(text, "without a case, {reason}: {}", names(&targets, verbose));
        }
        text
    }
}

fn names(targets: &[Target], verbose: bool) -> String {
    let shown = if verbose { usize::MAX } else { 12 };
    let names: Vec<String> = targets
        .iter()
        .take(shown)
        .map(|target| format!("{:?}/{}", target.code, target.bitness))
        .collect();
    let rest = targets.len().saturating_sub(shown);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    names.join(" ") + &more
}
