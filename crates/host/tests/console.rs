//! Consoles with a real terminal, pseudo-terminal, socket, file and pipe at the other end.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use host::console::{Console, ConsoleError, ConsoleEvent, ConsoleSpec, KEPT_BYTES_MAX};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

const TIME_MAX: Duration = Duration::from_secs(10);

fn open(spec: &str) -> (Console, Receiver<ConsoleEvent>) {
    let (sender, events) = channel();
    let spec = spec.parse::<ConsoleSpec>().unwrap();
    (Console::open(&spec, move |event| _ = sender.send(event)).unwrap(), events)
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("doppel-console-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn typed(events: &Receiver<ConsoleEvent>, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        match events.recv_timeout(TIME_MAX).unwrap() {
            ConsoleEvent::Bytes(bytes) => all.extend(bytes),
            other => panic!("{other:?} after {all:?}"),
        }
    }
    all
}

fn read_count(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn file_gets_every_byte() {
    let path = scratch("file");
    let (console, _events) = open(&format!("file={}", path.display()));
    let line = [b'x'; 1000];
    for _ in 0..5000 {
        console.writer().write(&line);
    }
    let writer = console.writer();
    drop(console);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 5_000_000);
    assert_eq!(writer.dropped(), 0);
    std::fs::remove_file(path).unwrap();
    let missing: ConsoleSpec = "file=/nowhere/at/all".parse().unwrap();
    let error = Console::open(&missing, |_| ()).unwrap_err();
    assert!(matches!(error, ConsoleError::File { .. }), "{error}");
}

#[test]
fn full_device_ends_the_waiting() {
    let (console, _events) = open("file=/dev/full");
    for _ in 0..100 {
        console.writer().write(&[0; 100_000]);
    }
    assert!(console.writer().dropped() > 0);
}

#[test]
fn none_throws_away() {
    let (console, _events) = open("none");
    console.writer().write(b"abc");
    assert_eq!(console.writer().dropped(), 3);
}

#[test]
fn socket_serves_one_after_another_and_keeps_what_nobody_read() {
    let path = scratch("socket");
    let (console, events) = open(&format!("unix={}", path.display()));
    assert_eq!(console.place(), Some(path.as_path()));
    console.writer().write(b"boot");
    let mut first = UnixStream::connect(&path).unwrap();
    assert_eq!(read_count(&mut first, 4), b"boot");
    first.write_all(b"\x01x").unwrap();
    assert_eq!(typed(&events, 2), b"\x01x");
    drop(first);
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"2").unwrap();
    assert_eq!(typed(&events, 1), b"2");
    console.writer().write(b"again");
    assert_eq!(read_count(&mut second, 5), b"again");
    let mut third = UnixStream::connect(&path).unwrap();
    third.write_all(b"3").unwrap();
    assert_eq!(typed(&events, 1), b"3");
    let mut rest = String::new();
    second.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("took over"), "{rest:?}");
    console.writer().write(b"bye");
    drop(console);
    assert_eq!(read_count(&mut third, 3), b"bye");
    assert!(!path.exists());
}

#[test]
fn socket_without_reader_keeps_the_latest_and_never_waits() {
    let path = scratch("stuck");
    let (console, _events) = open(&format!("unix={}", path.display()));
    let stuck = UnixStream::connect(&path).unwrap();
    let started = Instant::now();
    let total = 20_000_000;
    for part in 0..total / 1000 {
        console.writer().write(&[part as u8; 1000]);
    }
    assert!(started.elapsed() < TIME_MAX);
    let dropped = console.writer().dropped();
    assert!(dropped as usize > total - 2 * KEPT_BYTES_MAX - 1_000_000, "{dropped}");
    drop(stuck);
    let mut next = UnixStream::connect(&path).unwrap();
    let last = read_count(&mut next, 100_000);
    assert!(last.len() == 100_000);
    drop(console);
}

#[test]
fn pty_carries_bytes_unchanged_both_ways() {
    let (console, events) = open("pty");
    console.writer().write(b"login: \r\n");
    let mut terminal =
        std::fs::OpenOptions::new().read(true).write(true).open(console.place().unwrap()).unwrap();
    assert_eq!(read_count(&mut terminal, 9), b"login: \r\n");
    let keys: Vec<u8> = (0..=255).collect();
    terminal.write_all(&keys).unwrap();
    assert_eq!(typed(&events, 256), keys);
    drop(terminal);
    for _ in 0..1000 {
        console.writer().write(&[b'.'; 1000]);
    }
    assert!(console.writer().dropped() > 0);
    let mut terminal = std::fs::File::open(console.place().unwrap()).unwrap();
    assert_eq!(read_count(&mut terminal, 100_000), vec![b'.'; 100_000]);
}

/// Runs in a child, with a terminal or pipe as standard input; does what `CONSOLE_CHILD` says.
#[test]
fn child() {
    let Ok(how) = std::env::var("CONSOLE_CHILD") else { return };
    let (console, events) = open("stdio");
    let spec = ConsoleSpec::Stdio;
    assert!(matches!(Console::open(&spec, |_| ()), Err(ConsoleError::StdioTaken)));
    console.writer().write(b"<ready>");
    let mut watch = None;
    if how == "watch" {
        let writer = console.writer();
        let tell = move |signal| writer.write(format!("<{signal:?}>").as_bytes());
        watch = Some(host::signals::watch(&[host::signals::Signal::Terminate], tell).unwrap());
    }
    loop {
        match events.recv().unwrap() {
            ConsoleEvent::Bytes(bytes) => {
                console.writer().write(&bytes);
                if bytes.contains(&b'!') {
                    break;
                }
            }
            ConsoleEvent::Quit => {
                console.writer().write(b"<quit>");
                break;
            }
            ConsoleEvent::Closed => {
                console.writer().write(b"<closed>");
                break;
            }
        }
    }
    drop(watch);
    match how.as_str() {
        "drop" | "watch" => drop(console),
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        "panic" => panic!("on purpose"),
        other => panic!("{other}?"),
    }
}

struct Terminal {
    master: std::fs::File,
    slave: OwnedFd,
    before: Termios,
}

impl Terminal {
    fn new() -> Terminal {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
        let before = tcgetattr(&slave).unwrap();
        tcsetattr(&slave, OptionalActions::Now, &before).unwrap();
        Terminal { master: master.into(), slave, before }
    }

    fn start(&self, how: &str) -> Child {
        let end = || Stdio::from(self.slave.as_fd().try_clone_to_owned().unwrap());
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("CONSOLE_CHILD", how)
            .env("RUST_BACKTRACE", "0")
            .stdin(end())
            .stdout(end())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap()
    }

    fn expect(&mut self, text: &str) {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(text) {
            seen.push(read_count(&mut self.master, 1)[0]);
        }
    }

    fn is_raw(&self) -> bool {
        use rustix::termios::LocalModes;
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn assert_restored(&self) {
        let now = tcgetattr(&self.slave).unwrap();
        assert_eq!(now.local_modes, self.before.local_modes);
        assert_eq!(now.input_modes, self.before.input_modes);
        assert_eq!(now.output_modes, self.before.output_modes);
        assert_eq!(now.control_modes, self.before.control_modes);
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < TIME_MAX, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn terminal_is_restored_on_every_way_out() {
    for how in ["drop", "exit", "abort", "panic"] {
        let mut terminal = Terminal::new();
        let mut child = terminal.start(how);
        terminal.expect("<ready>");
        assert!(terminal.is_raw(), "{how}");
        terminal.master.write_all(b"\x03\x1a\x1c!").unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.success(), matches!(how, "drop" | "exit"), "{how}: {status}");
        terminal.assert_restored();
    }
}

#[test]
fn terminal_is_restored_when_a_signal_ends_the_process() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::new();
        let mut child = terminal.start("drop");
        terminal.expect("<ready>");
        assert!(terminal.is_raw());
        kill_process(pid(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
        terminal.assert_restored();
    }
}

#[test]
fn terminal_is_restored_while_stopped_and_raw_again_after() {
    let mut terminal = Terminal::new();
    let mut child = terminal.start("drop");
    terminal.expect("<ready>");
    kill_process(pid(&child), Signal::TSTP).unwrap();
    wait_until("cooked", || !terminal.is_raw());
    terminal.assert_restored();
    // Only a stopped process can be continued; until then SIGCONT might come too early.
    let stat = format!("/proc/{}/stat", child.id());
    wait_until("stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    kill_process(pid(&child), Signal::CONT).unwrap();
    wait_until("raw", || terminal.is_raw());
    terminal.master.write_all(b"go on!").unwrap();
    terminal.expect("go on!");
    assert!(child.wait().unwrap().success());
    terminal.assert_restored();
}

#[test]
fn escape_keys_work_at_a_terminal() {
    let mut terminal = Terminal::new();
    let mut child = terminal.start("drop");
    terminal.expect("<ready>");
    terminal.master.write_all(b"\x01h").unwrap();
    terminal.expect("send Ctrl-A to the guest");
    terminal.master.write_all(b"a\x01\x01b").unwrap();
    terminal.expect("a\x01b");
    terminal.master.write_all(b"\x01x").unwrap();
    terminal.expect("<quit>");
    assert!(child.wait().unwrap().success());
    terminal.assert_restored();
}

#[test]
fn watched_signals_do_not_end_the_process() {
    let mut terminal = Terminal::new();
    let mut child = terminal.start("watch");
    terminal.expect("<ready>");
    terminal.master.write_all(b"+").unwrap();
    terminal.expect("+");
    kill_process(pid(&child), Signal::TERM).unwrap();
    terminal.expect("<Terminate>");
    terminal.master.write_all(b"!").unwrap();
    assert!(child.wait().unwrap().success());
    terminal.assert_restored();
}

#[test]
fn pipes_carry_any_byte_and_end() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("CONSOLE_CHILD", "drop")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\x01x\x01h").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("\x01x\x01h<closed>"), "{said:?}");
}
