//! Recordings of everything that people run, while VMs are paused, kept and killed: each comes to
//! the same hashes on both engines, from its start and from checkpoints along it (L1, L2, L5).
//!
//! `DOPPEL_RECORDINGS=100` makes so many, the kinds by turns; `DOPPEL_RECORDINGS_KINDS=web,gcc`
//! takes these kinds alone; `DOPPEL_RECORDINGS_TIMES=2` replays each so often;
//! `DOPPEL_RECORDINGS_ENGINES=translate` on this engine alone; and `DOPPEL_RECORDINGS_SEED=7` does
//! other things at other times.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use whole::debian::{BOOT, Debian};
use whole::doppel::{Doppel, Ended, Running};
use whole::net::free_port;
use whole::random::Random;
use whole::scratch::Scratch;

/// How long a replay may take on the slower engine.
const LONG: Duration = Duration::from_secs(3600);
/// How long a guest that serves is under load.
const LOAD: Duration = Duration::from_secs(15);
const ENGINES: &str = "translate,interp";
/// Checkpoints that each recording is replayed from, beside its start.
const CHECKPOINTS: usize = 3;

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The mini guest comes up and powers off.
    Boot,
    /// The benchmark programs.
    Programs,
    /// nginx in Debian, with curl at the other end.
    Web,
    /// redis in Debian, with orders from the host.
    Redis,
    /// Compilations in Debian.
    Gcc,
    /// stress-ng in Debian.
    Stress,
}

const KINDS: [(&str, Kind); 6] = [
    ("boot", Kind::Boot),
    ("programs", Kind::Programs),
    ("web", Kind::Web),
    ("redis", Kind::Redis),
    ("gcc", Kind::Gcc),
    ("stress", Kind::Stress),
];

/// How a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest powers off.
    PowerOff,
    /// `doppel stop --force`.
    Forced,
    /// The process is killed.
    Killed,
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("DOPPEL_RECORDINGS{name}")).ok()
}

fn number(name: &str, otherwise: u64) -> u64 {
    setting(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// A guest of `kind` to be, and what holds its files.
fn guest(kind: Kind, port: u16) -> (Scratch, Option<Debian>, Doppel) {
    let scratch = Scratch::new();
    let serve = format!("--net user,hostfwd=tcp:127.0.0.1:{port}-:8080");
    let script = match kind {
        Kind::Boot | Kind::Programs => {
            let run = match kind {
                Kind::Boot => "",
                _ => {
                    "doppel.run=intloop doppel.run=syscalls doppel.run=calls doppel.run=simd \
                      doppel.run=forks doppel.run=memtouch doppel.run=nbody"
                }
            };
            let doppel = Doppel::new(&scratch, "run")
                .guest("mini", "6.1", &format!("quiet {run} doppel.end=poweroff"))
                .args("--memory 256M");
            return (scratch, None, doppel);
        }
        Kind::Web => {
            "printf 'events {}\\nhttp {server {listen 8080;root /usr/bin;}}' >/etc/nginx/nginx.conf
            systemctl restart nginx; echo SERVING; sleep 25"
        }
        Kind::Redis => {
            "systemctl stop redis-server
            redis-server --port 8080 --protected-mode no --save '' --daemonize yes >/dev/null
            echo SERVING; sleep 25"
        }
        Kind::Gcc => {
            "cd /var/tmp; for n in $(seq 800); do echo \"int f$n(int x){int i,s=$n;\
            for(i=0;i<x;i++)s=s*31+(i^$n);return s;}\"; done >a.c
            for o in 0 1 2 3; do gcc -O$o -c -o a$o.o a.c && md5sum a$o.o; done"
        }
        Kind::Stress => {
            "for s in cpu vm fork switch signal; do stress-ng --$s 1 --vm-bytes 32M --verify -t 2s \
            --temp-path /var/tmp >/dev/null 2>&1 && echo $s ok; done"
        }
    };
    let debian = Debian::new("6.1");
    let doppel = debian.with_job(&[("job", script.as_bytes())], true);
    let net = matches!(kind, Kind::Web | Kind::Redis);
    let doppel = if net { doppel.args(&serve) } else { doppel };
    (scratch, Some(debian), doppel)
}

/// Keeps the server in the guest busy until `end`; it may be gone at any time.
fn load(kind: Kind, port: u16, end: Instant) {
    while Instant::now() < end {
        match kind {
            Kind::Web => {
                let url = format!("http://127.0.0.1:{port}/{{git,openssl,perl,systemctl,gcc-12}}");
                let mut curl = Command::new("curl");
                curl.args(["-s", "-o", "/dev/null", "--max-time", "5", &url]);
                let _ = curl.stdin(Stdio::null()).status();
            }
            _ => drop(orders(port)),
        }
    }
}

/// Some orders to redis.
fn orders(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    for number in 0..500u32 {
        let order = format!("SET key:{number} {}\r\nGET key:{}\r\n", "x".repeat(200), number / 2);
        stream.write_all(order.as_bytes())?;
        let _ = stream.read(&mut [0; 4096])?;
    }
    Ok(())
}

fn order(scratch: &Scratch, words: &str) -> Ended {
    let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
    let mut doppel = Doppel::new(scratch, verb).args(rest);
    doppel.command().current_dir(scratch.root()).env("XDG_STATE_HOME", scratch.path("state"));
    doppel.run(LONG)
}

/// Pauses, resumes and keeps the VM at random times until it ends or `end` comes.
fn disturb(scratch: &Scratch, vm: &mut Running, random: &mut Random, end: Instant) {
    let mut count = 0;
    while Instant::now() < end && vm.is_running() {
        sleep(Duration::from_millis(200 + random.below(1500)));
        match random.below(3) {
            0 => {
                order(scratch, "pause vm");
                sleep(Duration::from_millis(random.below(700)));
                order(scratch, "resume vm");
            }
            1 => {
                count += 1;
                order(scratch, &format!("checkpoint vm kept-{count}"));
                let _ = std::fs::remove_dir_all(scratch.path(&format!("kept-{count}")));
            }
            _ => {}
        }
    }
}

/// Records a guest; where.
fn record(
    kind: Kind,
    end: End,
    random: &mut Random,
) -> (Scratch, Option<Debian>, PathBuf, Duration) {
    let port = free_port();
    let (scratch, debian, doppel) = guest(kind, port);
    let recording = scratch.path("rec");
    let every = if debian.is_some() { "10s" } else { "2s" };
    let mut doppel =
        doppel.file("--record", &recording).args(&format!("--name vm --checkpoint-every {every}"));
    doppel.command().env("XDG_RUNTIME_DIR", scratch.root());
    doppel.command().env("XDG_STATE_HOME", scratch.path("state"));
    let start = Instant::now();
    let mut vm = doppel.start();
    vm.wait_ready(&scratch, "vm");
    let serves = matches!(kind, Kind::Web | Kind::Redis);
    if serves {
        vm.wait_for("SERVING", BOOT);
    }
    let most = match end {
        End::PowerOff => BOOT,
        _ if serves => LOAD,
        _ if debian.is_some() => Duration::from_secs(25 + random.below(20)),
        _ => Duration::from_secs(4 + random.below(4)),
    };
    scope(|scope| {
        if serves {
            scope.spawn(|| load(kind, port, Instant::now() + LOAD));
        }
        disturb(&scratch, &mut vm, random, Instant::now() + most);
    });
    match end {
        _ if !vm.is_running() => {}
        End::PowerOff => {}
        End::Forced => drop(order(&scratch, "stop vm --force")),
        End::Killed => vm.signal(Signal::KILL),
    }
    let ended = vm.end(BOOT);
    let fine = ended.stderr.is_empty() || end == End::Killed;
    assert!(fine, "{kind:?}: {}", ended.stderr);
    (scratch, debian, recording, start.elapsed())
}

/// What `doppel verify` says of a recording.
fn verify(scratch: &Scratch, words: &str) -> Value {
    let ended = order(scratch, &format!("verify {words} --json"));
    assert_eq!(ended.code(), Some(0), "verify {words}: {}", ended.stderr);
    serde_json::from_str(&ended.console).expect("JSON")
}

/// Replays a recording on both engines, from its start and from checkpoints.
fn replay(scratch: &Scratch, random: &mut Random) -> (u64, u64) {
    let count = (1..).take_while(|n| scratch.path(&format!("rec/checkpoint-{n}")).exists());
    let mut places: Vec<usize> = count.collect();
    while places.len() > CHECKPOINTS {
        places.remove(random.below(places.len() as u64) as usize);
    }
    places.insert(0, 0);
    let mut all = Vec::new();
    let engines = setting("_ENGINES").unwrap_or_else(|| ENGINES.to_owned());
    for _ in 0..number("_TIMES", 1) {
        for engine in engines.split(',') {
            for place in &places {
                let words = format!("rec --engine {engine} --from-checkpoint {place}");
                all.push(verify(scratch, &words));
            }
        }
    }
    let (first, of) = (&all[0], |value: &Value, name: &str| value[name].as_u64().unwrap_or(0));
    for value in &all {
        for name in ["branches", "virtual_time_ns", "events"] {
            assert_eq!(of(value, name), of(first, name), "{name}: {value} {first}");
        }
    }
    (of(first, "branches"), all.iter().map(|value| of(value, "checks")).sum())
}

#[test]
#[ignore = "minutes for each: cargo xtask test --slow"]
fn recordings_of_all_kinds_come_to_the_same() {
    let wanted = setting("_KINDS").unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|it| it == name);
    let kinds: Vec<_> = KINDS.into_iter().filter(|(name, _)| is_wanted(name)).collect();
    assert!(!kinds.is_empty(), "no such kind: {wanted}");
    let seed = number("_SEED", 1);
    let mut failed = Vec::new();
    for index in 0..number("", kinds.len() as u64) {
        let (name, kind) = kinds[index as usize % kinds.len()];
        let mixed = (seed * 1000 + index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Random(mixed);
        (0..8).for_each(|_| _ = random.below(2));
        let end = match random.below(4) {
            0 => End::Forced,
            1 => End::Killed,
            _ => End::PowerOff,
        };
        let (scratch, _debian, recording, took) = record(kind, end, &mut random);
        let log = recording.join("events.log").metadata().expect("a log").len();
        let start = Instant::now();
        let replayed = std::panic::catch_unwind(|| replay(&scratch, &mut random.clone()));
        match replayed {
            Ok((branches, checks)) => println!(
                "{index} {name}, {end:?}: recorded in {took:.0?}, {branches} branches, {log} bytes \
                 of log, {checks} checks equal in {:.0?}",
                start.elapsed()
            ),
            Err(_) => {
                // To be looked at.
                let kept = std::env::temp_dir().join(format!("doppel-diverged-{seed}-{index}"));
                let _ = std::fs::rename(&recording, &kept);
                println!("{index} {name}, {end:?}: differs; kept in {}", kept.display());
                failed.push(index);
            }
        }
    }
    assert!(failed.is_empty(), "recordings {failed:?} differ");
}
