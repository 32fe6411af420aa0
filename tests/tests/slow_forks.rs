//! A hundred copies of a Debian at once, and a hundred restores of one checkpoint: what they cost,
//! and that each is a machine of its own (C1 to C7).

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use whole::debian::{BOOT, Debian, log_in};
use whole::doppel::{Running, SHORT, program};
use whole::scratch::{Scratch, text};
use whole::shell::{json, shell_in, verb};

/// Copies, and restores.
const COUNT: usize = 100;
/// Copies that are asked for something at once.
const AT_ONCE: usize = 10;
/// What a hundred copies may take on a host that is busy with other things: several times what
/// they take on one that is not.
const FORK_MAX: Duration = Duration::from_secs(20);
/// How long a copy may be silent while a hundred of them wake up.
const SILENCE: Duration = Duration::from_secs(120);

/// Copies of a VM, ended with the test.
struct Copies {
    report: Value,
}

impl Copies {
    fn list(&self) -> &[Value] {
        self.report["copies"].as_array().expect("copies")
    }

    fn names(&self) -> Vec<String> {
        self.list().iter().map(name).collect()
    }

    fn macs(&self) -> BTreeSet<String> {
        let mac = |copy: &Value| copy["nets"][0]["mac"].as_str().expect("an address").to_owned();
        self.list().iter().map(mac).collect()
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let ids = self.list().iter().filter_map(|copy| i32::try_from(copy["pid"].as_i64()?).ok());
        for id in ids.filter_map(Pid::from_raw) {
            // The second one insists. In order, so that each ends its passt.
            let start = Instant::now();
            while kill_process(id, Signal::TERM).is_ok() && start.elapsed() < SHORT {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn name(copy: &Value) -> String {
    copy["name"].as_str().expect("a name").to_owned()
}

/// What the shell on the console of each copy makes of `words`.
fn answers(scratch: &Scratch, names: &[String], words: &str) -> Vec<String> {
    let mut consoles = Vec::new();
    for name in names {
        let socket = scratch.path(&format!("doppel/{name}/console.sock"));
        let mut console = UnixStream::connect(socket).expect("its console");
        console.set_read_timeout(Some(SILENCE)).expect("a timeout");
        // Quotes tell what is printed from what was typed.
        let line = format!("echo BEG\"\"IN-{words}-E\"\"ND\n");
        console.write_all(line.as_bytes()).expect("typing");
        consoles.push(console);
    }
    let answer = |mut console: UnixStream| {
        let mut said = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&said);
            let printed = text.split_once("BEGIN-").and_then(|(_, rest)| rest.split_once("-END"));
            if let Some((printed, _)) = printed {
                return printed.to_owned();
            }
            let mut bytes = [0; 4096];
            let count = console.read(&mut bytes).expect("an answer on the console");
            assert!(count > 0, "the console ended: {text}");
            said.extend_from_slice(&bytes[..count]);
        }
    };
    consoles.into_iter().map(answer).collect()
}

/// Port of the host that leads to the ssh server of a copy.
fn ssh_port(copy: &Value) -> u16 {
    let forward = copy["nets"][0]["forwards"][0].as_str().expect("a port");
    let port = forward.trim_start_matches("tcp:127.0.0.1:").split('-').next();
    port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {forward}"))
}

/// What the shells of a few copies make of `words`, and that their ssh servers greet. The others
/// stand still: a hundred are more than two CPUs can run well.
fn ask_few(scratch: &Scratch, copies: &[Value], words: &str) -> Vec<String> {
    let names: Vec<String> = copies.iter().map(name).collect();
    let all = |order: &str| {
        for name in &names {
            verb(scratch, &format!("{order} {name}")).expect(0);
        }
    };
    all("resume");
    let said = answers(scratch, &names, words);
    std::thread::scope(|scope| {
        copies.iter().for_each(|copy| drop(scope.spawn(|| greet(ssh_port(copy)))));
    });
    all("pause");
    said
}

/// The generation id in memory of a VM.
fn generation(scratch: &Scratch, name: &str) -> [u8; 16] {
    let folder = scratch.path("generation");
    json(scratch, &format!("checkpoint {name} {} --keep-parent", text(&folder)));
    let memory = fs::File::open(folder.join("memory.img")).expect("its memory");
    let mut id = [0; 16];
    memory.read_exact_at(&mut id, boot::GENERATION).expect("its generation id");
    fs::remove_dir_all(folder).expect("removing it");
    id
}

/// A card's driver bound anew reads the address that the copy has.
fn check_rebound(scratch: &Scratch, copy: &Value) {
    let rebind = "$(cd /sys/bus/virtio/drivers/virtio_net; D=$(ls -d virtio*); echo $D > unbind; \
                  echo $D > bind; sleep 2; cat /sys/class/net/e*/address)";
    let said = answers(scratch, &[name(copy)], rebind);
    assert_eq!(copy["nets"][0]["mac"].as_str(), Some(said[0].as_str()));
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn hundred_copies_of_debian_answer_and_are_machines_of_their_own() {
    // Debian's 6.1 has no driver for generation ids.
    let mut debian = Debian::new("backports");
    debian.memory = "512M";
    let port = whole::net::free_port();
    let mut vm = debian
        .doppel("")
        .args("--name one --net")
        .arg(format!("user,hostfwd=tcp:{port}-:22"))
        .typed()
        .start();
    log_in(&mut vm);
    let scratch = &debian.scratch;
    greet(port);
    let start = Instant::now();
    let copies = Copies { report: json(scratch, &format!("fork one -n {COUNT}")) };
    let forked = start.elapsed();
    let names = copies.names();
    let said = answers(scratch, &names, "$((6 * 7))");
    let on_console = start.elapsed();
    assert!(said.iter().all(|line| line == "42"), "{said:?}");
    for name in &names {
        verb(scratch, &format!("pause {name}")).expect(0);
    }
    println!(
        "{COUNT} copies: fork {forked:.1?} (kept after {} ms, ready after {} ms), all answered on \
         the console after {on_console:.1?}",
        copies.report["checkpoint_ms"], copies.report["ready_ms"]
    );
    assert!(forked < FORK_MAX, "fork took {forked:?}");
    let reseeded = "$(dmesg | grep -c 'virtual machine fork'; head -c 16 /dev/urandom | md5sum; \
                    head -c 16 /dev/hwrng | md5sum)";
    let few = copies.list().chunks(AT_ONCE);
    let said = few.flat_map(|copies| ask_few(scratch, copies, reseeded));
    let said: Vec<String> = said.collect();
    assert!(said.iter().all(|line| line.starts_with("1 ")), "not told of the fork: {said:?}");
    for field in [1, 3] {
        let numbers = said.iter().map(|line| line.split_whitespace().nth(field));
        assert_eq!(numbers.collect::<BTreeSet<_>>().len(), COUNT, "the same numbers: {said:?}");
    }
    assert_eq!(copies.macs().len(), COUNT);
    let first = &copies.list()[0];
    let of = ["one", &names[0], &names[COUNT - 1]].map(|name| generation(scratch, name));
    assert_eq!(BTreeSet::from(of).len(), of.len(), "{of:?}");
    verb(scratch, &format!("resume {}", names[0])).expect(0);
    check_rebound(scratch, first);
    // The original was not told anything, and goes on.
    let original = answers(scratch, &["one".into()], "$(dmesg | grep -c 'virtual machine fork')");
    assert_eq!(original, ["0"]);
    assert_eq!(verb(scratch, "list").console.lines().count(), 1 + 1 + COUNT);
}

/// Waits until an ssh server greets at this port of the host.
fn greet(port: u16) {
    let start = Instant::now();
    let greeting = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).map(|()| bytes)
    };
    // passt gives a busy guest ten seconds for an answer; people try again then.
    while !greeting().is_ok_and(|bytes| &bytes == b"SSH-2.0-") {
        assert!(start.elapsed() < BOOT, "no ssh server at port {port}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `doppel restore` as `fork` starts it: it says its name when it is ready, and again when the
/// guest goes on.
struct Restored(Child);

impl Restored {
    fn start(scratch: &Scratch, number: usize, words: &str) -> Restored {
        let mut command = Command::new(program());
        command.args(["restore", "c", "--copy", "--discard", "--console", "none", "--disks", "d"]);
        command.args(words.split_whitespace()).args(["--name", &format!("r{number}")]);
        command.current_dir(scratch.root()).env("XDG_RUNTIME_DIR", scratch.root());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Restored(command.spawn().expect("doppel starts"))
    }

    /// Waits until it has said its name `times` times.
    fn wait(&mut self, number: usize, times: usize) {
        let mut said = vec![0; format!("r{number}\n").len() * times];
        let stdout = self.0.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut said).expect("it comes up");
    }

    /// Kilobytes that it has alone, and its share of all that it has.
    fn memory(&self) -> (u64, u64) {
        let path = format!("/proc/{}/smaps_rollup", self.0.id());
        let rollup = fs::read_to_string(path).expect("a running process");
        let field = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.unwrap_or_else(|| panic!("no {name} in {rollup}"))
        };
        (field("Private_Dirty:") + field("Private_Clean:"), field("Pss:"))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Milliseconds from the start of `doppel restore` until the guest goes on, least and median.
fn time_to_go_on(scratch: &Scratch) -> (f64, f64) {
    let mut times = Vec::new();
    for number in 0..21 {
        let start = Instant::now();
        let mut restored = Restored::start(scratch, number, "--together");
        restored.0.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("a byte");
        restored.wait(number, 2);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    (times[0], times[times.len() / 2])
}

/// Kilobytes that one more restore costs when there are a hundred, and that it has alone.
fn memory_of_the_hundredth(scratch: &Scratch) -> (u64, u64) {
    let mut restores = Vec::new();
    let mut before = 0;
    for number in 0..COUNT {
        let all = |restores: &[Restored]| restores.iter().map(|one| one.memory().1).sum();
        if number == COUNT - 1 {
            before = all(&restores);
        }
        let mut restored = Restored::start(scratch, number, "--together");
        restored.wait(number, 1);
        restores.push(restored);
        if number == COUNT - 1 {
            let after: u64 = all(&restores);
            return (after.saturating_sub(before), restores[number].memory().0);
        }
    }
    unreachable!("there is a last one");
}

fn guest(scratch: &Scratch, memory: &str) -> Running {
    let image = whole::images::create(scratch, "d.qcow2", "qcow2", "32M");
    shell_in(scratch, "one", &image, &format!("--memory {memory}"))
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn restores_are_quick_and_small_whatever_the_size_of_memory() {
    for memory in ["512M", "8G"] {
        let scratch = Scratch::new();
        let vm = guest(&scratch, memory);
        json(&scratch, "checkpoint one c");
        vm.kill_off();
        let (least, median) = time_to_go_on(&scratch);
        let (more, alone) = memory_of_the_hundredth(&scratch);
        println!(
            "{memory}: the guest goes on after {least:.1} ms at best, {median:.1} ms in the \
             middle; the {COUNT}th restore costs {more} KiB, {alone} KiB of them its own"
        );
        assert!(least < 30.0, "{memory}: {least} ms");
        assert!(more < 5000 && alone < 5000, "{memory}: {more} KiB, {alone} KiB alone");
    }
}
