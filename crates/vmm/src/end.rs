//! How a VM ends, and the one table of exit statuses.
//!
//! QEMU's debug-exit device makes odd statuses, `(value << 1) | 1`; all others here are even, so
//! that a test kernel's verdict is never mistaken for something else.

/// Why a VM is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, and it was started with `--no-reboot`.
    Reset,
    /// Triple fault.
    TripleFault,
    /// The guest's kernel reported a panic.
    GuestPanic,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u32),
    /// Somebody outside ended it: a second signal, Ctrl-A X, `doppel stop --force`, or a guest
    /// that did not power off in time.
    Killed,
    /// It came to the branch count of `--stop-at`.
    StopPoint,
}

/// Exit statuses of the command `doppel`. The table in the long help is made from this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest powered off, or the verb did what was asked.
    Success = 0,
    /// What was asked for is wrong or cannot be had: flags, files, names.
    Configuration = 2,
    /// The host failed: out of memory or threads, an I/O error.
    Host = 4,
    /// See [`End::Reset`].
    Reset = 6,
    /// See [`End::TripleFault`].
    TripleFault = 8,
    /// See [`End::GuestPanic`].
    GuestPanic = 10,
    /// See [`End::Killed`].
    Killed = 12,
    /// A defect of this program.
    Internal = 14,
    /// A replay did not come to the same as its recording.
    Divergence = 16,
}

impl Status {
    /// Every status with what it means, for people.
    pub const TABLE: [(Status, &str); 9] = [
        (Status::Success, "the guest powered off; other verbs: done"),
        (Status::Configuration, "a flag, a file or a name is wrong"),
        (Status::Host, "the host failed"),
        (Status::Reset, "the guest asked for a reset, with --no-reboot"),
        (Status::TripleFault, "the guest's CPU shut down (triple fault)"),
        (Status::GuestPanic, "the guest's kernel panicked"),
        (Status::Killed, "the VM was ended from outside before the guest powered off"),
        (Status::Internal, "a defect of doppel"),
        (Status::Divergence, "a replay did not come to the same as its recording"),
    ];
}

impl End {
    /// The exit status of the process.
    pub const fn status(self) -> u8 {
        match self {
            End::PowerOff | End::StopPoint => Status::Success as u8,
            End::Reset => Status::Reset as u8,
            End::TripleFault => Status::TripleFault as u8,
            End::GuestPanic => Status::GuestPanic as u8,
            // As QEMU; the system keeps the low eight bits.
            End::DebugExit(value) => ((value << 1) | 1) as u8,
            End::Killed => Status::Killed as u8,
        }
    }

    /// One word or a few, for events and messages.
    pub const fn reason(self) -> &'static str {
        match self {
            End::PowerOff => "power-off",
            End::Reset => "reset",
            End::TripleFault => "triple-fault",
            End::GuestPanic => "guest-panic",
            End::DebugExit(_) => "debug-exit",
            End::Killed => "killed",
            End::StopPoint => "stop-point",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_differ_and_are_even_but_for_debug_exit() {
        let mut seen: Vec<u8> = Status::TABLE.iter().map(|(status, _)| *status as u8).collect();
        assert!(seen.iter().all(|status| status % 2 == 0));
        seen.dedup();
        assert_eq!(seen.len(), Status::TABLE.len());
        for (value, status) in [(0, 1), (0x10, 33), (0x7f, 255), (0x80, 1)] {
            assert_eq!(End::DebugExit(value).status(), status);
        }
    }
}
