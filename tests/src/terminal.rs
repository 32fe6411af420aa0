//! A terminal as a user has one: the user's side types and reads, the program's side runs doppel.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::doppel::{Doppel, Running, tail};

/// A pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    user: File,
    program: File,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// A new one.
    ///
    /// # Panics
    /// When the host has none.
    pub fn open() -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user = openpt(flags).expect("a pseudo-terminal");
        grantpt(&user).expect("a pseudo-terminal");
        unlockpt(&user).expect("a pseudo-terminal");
        let name = ptsname(&user, Vec::new()).expect("its name");
        let name = name.to_str().expect("its name in UTF-8");
        let program = File::options().read(true).write(true).open(name).expect("its other side");
        let user = File::from(user);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut from, kept) = (user.try_clone().expect("a descriptor"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..count]);
            }
        });
        Terminal { user, program, shown }
    }

    /// Starts `doppel` in the foreground of this terminal, as a shell would.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, mut doppel: Doppel) -> Running {
        let side = || self.program.try_clone().expect("a descriptor");
        doppel.command().stdin(side()).stdout(side()).stderr(side());
        doppel.start()
    }

    /// The settings that programs can change.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn settings(&self) -> [u32; 4] {
        let all: Termios = tcgetattr(self.program.as_fd()).expect("a terminal");
        [
            all.input_modes.bits(),
            all.output_modes.bits(),
            all.control_modes.bits(),
            all.local_modes.bits(),
        ]
    }

    /// Whether keys are passed on one by one.
    pub fn is_raw(&self) -> bool {
        self.settings()[3] & LocalModes::ICANON.bits() == 0
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn type_text(&mut self, text: &str) {
        self.user.write_all(text.as_bytes()).expect("typing");
    }

    /// What was shown so far.
    pub fn shown(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits until `wanted` is shown.
    ///
    /// # Panics
    /// When it is not, in `time_max`.
    pub fn wait_for(&self, wanted: &str, time_max: Duration) {
        let deadline = Instant::now() + time_max;
        while !self.shown().contains(wanted) {
            let shown = self.shown();
            assert!(Instant::now() < deadline, "no {wanted:?} but:\n{}", tail(&shown));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
