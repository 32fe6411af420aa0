//! The kernel's log of a guest: what real machines do not print is not to be there.

/// Words that no line may have, whatever its level.
const NEVER: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "cut here",
    "general protection",
    "soft lockup",
    "rcu_sched self-detected",
    "rcu_preempt detected stalls",
    "hung_task",
    "blocked for more than",
    "segfault",
    "[Firmware Bug]",
    "I/O error",
    "EXT4-fs error",
    "unstable",
    "MCE",
];

/// Lines of warning level or worse that real machines print too.
const ALLOWED: &[&str] = &[
    // Debian's kernel says so of every machine whose boot loader gives it an unsigned module.
    "module verification failed",
    // Debian builds the kernel so; device-mapper says it on every machine.
    "CONFIG_IMA_DISABLE_HTABLE is disabled",
    // A host that ran something else meanwhile: the time is its, and passes.
    "hrtimer: interrupt took",
    // systemd and udev of Debian 12 use what newer kernels are leaving behind.
    "uses deprecated v1 cgroup",
    "systemd[1]: ",
    "systemd-journald[",
    "systemd-shutdown[",
    "systemd-remount-fs[",
];

/// The lines of a raw log (`dmesg -r`) that should not be there.
pub fn complaints(log: &str) -> Vec<&str> {
    log.lines().map(str::trim_end).filter(|line| is_complaint(line)).collect()
}

fn is_complaint(line: &str) -> bool {
    if NEVER.iter().any(|word| line.contains(word)) {
        return true;
    }
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    // The low three bits; above them is the facility.
    let level = level.and_then(|(number, _)| number.parse::<u32>().ok()).map(|number| number & 7);
    level.is_some_and(|level| level <= 4) && !ALLOWED.iter().any(|word| line.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_warnings_and_worse() {
        let log = "<6>[    0.1] fine\n<4>[    0.2] odd\n<12>[ 1.0] systemd[1]: old\r\n\
                   <6>[    0.3] BUG: bad\nplain\n";
        assert_eq!(complaints(log), ["<4>[    0.2] odd", "<6>[    0.3] BUG: bad"]);
    }
}
