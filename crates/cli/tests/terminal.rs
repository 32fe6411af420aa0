//! The terminal is left as it was, whatever way the VM ends.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};

use common::guest::Guest;
use common::{Place, finish, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A terminal: the user's side and the program's side.
struct Terminal {
    user: File,
    program: OwnedFd,
}

impl Terminal {
    fn open() -> Terminal {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        Terminal { user: user.into(), program: program.into() }
    }

    fn settings(&self) -> Termios {
        tcgetattr(self.program.as_fd()).unwrap()
    }

    fn is_raw(&self) -> bool {
        !self.settings().local_modes.contains(LocalModes::ICANON)
    }

    fn spawn(&self, command: &mut Command) -> Child {
        let end = || self.program.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    /// Reads what the program shows until `word` is among it.
    fn read_until(&mut self, word: &str) -> String {
        let mut seen = String::new();
        let mut buffer = [0; 1024];
        while !seen.contains(word) {
            let count = self.user.read(&mut buffer).unwrap();
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        seen
    }
}

fn same(a: &Termios, b: &Termios) -> bool {
    (a.input_modes, a.output_modes, a.control_modes, a.local_modes)
        == (b.input_modes, b.output_modes, b.control_modes, b.local_modes)
}

/// Runs a guest on a terminal, lets `act` end it, and checks status and settings.
fn check(
    what: &str,
    guest: Guest,
    more: &[&str],
    status: Option<i32>,
    act: fn(&mut Terminal, Pid),
) {
    let place = Place::new();
    let kernel = place.file("k", &guest.image());
    let mut terminal = Terminal::open();
    let before = terminal.settings();
    let arguments = [&["run", "--memory", "4M", "--kernel", kernel.to_str().unwrap()], more];
    let child = terminal.spawn(&mut place.doppel(&arguments.concat()));
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    act(&mut terminal, pid);
    // Somebody must read, or the console cannot be written out.
    let mut user = terminal.user.try_clone().unwrap();
    std::thread::spawn(move || while user.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {});
    assert_eq!(finish(child).status.code(), status, "{what}");
    assert!(same(&terminal.settings(), &before), "{what}: the terminal is not as it was");
}

fn up() -> Guest {
    Guest::new().print("up\n")
}

#[test]
fn terminal_is_restored_on_every_way_out() {
    check("power-off", up().power_off(), &[], Some(0), |_, _| ());
    check("triple fault", up().triple_fault(), &[], Some(8), |_, _| ());
    check("bad memory", up(), &["--memory", "0"], Some(2), |_, _| ());
    check("bad disk", up(), &["--disk", "path=gone"], Some(2), |_, _| ());
    check("quit", up().spin(), &[], Some(12), |terminal, _| {
        terminal.read_until("up");
        assert!(terminal.is_raw());
        terminal.user.write_all(b"\x01x").unwrap();
    });
    check("signal", up().wait_power_button().power_off(), &[], Some(0), |terminal, pid| {
        terminal.read_until("up");
        kill_process(pid, Signal::TERM).unwrap();
    });
    check("two signals", up().spin(), &[], Some(12), |terminal, pid| {
        terminal.read_until("up");
        kill_process(pid, Signal::TERM).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        kill_process(pid, Signal::TERM).unwrap();
    });
    check("quit signal", up().spin(), &[], None, |terminal, pid| {
        terminal.read_until("up");
        kill_process(pid, Signal::QUIT).unwrap();
    });
    check("abort", up().spin(), &[], None, |terminal, pid| {
        terminal.read_until("up");
        kill_process(pid, Signal::ABORT).unwrap();
    });
}

#[test]
fn interrupt_key_goes_to_the_guest() {
    // What comes back is what was typed, Ctrl-C included, then the `q` that ends the echo.
    check("echo", up().echo().power_off(), &[], Some(0), |terminal, _| {
        terminal.read_until("up");
        terminal.user.write_all(b"a\x03bq").unwrap();
        terminal.read_until("a\x03bq");
    });
}

#[test]
fn attached_terminal_detaches_and_is_restored() {
    let place = Place::new();
    let vm = place.start("a", &up().spin().image(), &["--console", "none"]);
    let mut terminal = Terminal::open();
    let before = terminal.settings();
    let child = terminal.spawn(&mut place.doppel(&["console", "a"]));
    terminal.read_until("up");
    wait_for("raw mode", || terminal.is_raw());
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(finish(child).status.code(), Some(0));
    assert!(same(&terminal.settings(), &before));
    assert_eq!(vm.inspect("state"), "running");
}
