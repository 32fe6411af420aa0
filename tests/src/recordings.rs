//! Recordings by the dozen: guests are disturbed while they are recorded, and what was recorded is
//! replayed on both engines, from its start and from checkpoints along it (L1, L2, L5).
//!
//! `DOPPEL_RECORDINGS=100` makes so many, the kinds by turns; `DOPPEL_RECORDINGS_KINDS=web,gcc`
//! takes these kinds alone; `DOPPEL_RECORDINGS_TIMES=2` replays each so often;
//! `DOPPEL_RECORDINGS_ENGINES=translate` on this engine alone; and `DOPPEL_RECORDINGS_SEED=7` does
//! other things at other times.

use std::any::Any;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::doppel::{Ended, Running};
use crate::random::Random;
use crate::scratch::Scratch;
use crate::shell::verb_within;

/// How long a replay may take on the slower engine.
const LONG: Duration = Duration::from_secs(3600);
const ENGINES: &str = "translate,interp";
/// Checkpoints that each recording is replayed from, beside its start.
const CHECKPOINTS: usize = 3;
/// How long a guest that ends may take.
const END: Duration = Duration::from_secs(1200);

/// How a recording ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest ends, or `doppel record --stop`.
    Orderly,
    /// `doppel stop --force`.
    Forced,
    /// The process is killed.
    Killed,
}

impl End {
    /// One of them.
    pub fn choose(random: &mut Random) -> End {
        match random.below(4) {
            0 => End::Forced,
            1 => End::Killed,
            _ => End::Orderly,
        }
    }
}

/// A server in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// nginx, with Debian's /usr/bin.
    Nginx,
    /// redis.
    Redis,
}

/// A recording of VM `vm` in `rec`.
pub struct Made {
    /// Its folder.
    pub scratch: Scratch,
    /// What has its disks.
    pub disks: Option<Box<dyn Any>>,
    /// How it ended.
    pub end: End,
    /// How long it took to make.
    pub took: Duration,
}

fn setting(name: &str) -> Option<String> {
    std::env::var(format!("DOPPEL_RECORDINGS{name}")).ok()
}

fn number(name: &str, otherwise: u64) -> u64 {
    setting(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Runs `doppel` with these words in the scratch folder.
pub fn order(scratch: &Scratch, words: &str) -> Ended {
    verb_within(scratch, words, LONG)
}

/// Keeps the server that the guest has at this port of the host busy until `end`; it may be gone at
/// any time.
pub fn load(server: Server, port: u16, end: Instant) {
    while Instant::now() < end {
        match server {
            Server::Nginx => {
                let url = format!("http://127.0.0.1:{port}/{{git,openssl,perl,systemctl,gcc-12}}");
                let mut curl = Command::new("curl");
                curl.args(["-s", "-o", "/dev/null", "--max-time", "5", &url]);
                let _ = curl.stdin(Stdio::null()).status();
            }
            Server::Redis => drop(orders(port)),
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

/// Pauses, resumes and keeps the VM at random times, `step` or less apart, until `is_over` says so
/// or it ends.
pub fn disturb(
    scratch: &Scratch,
    vm: &mut Running,
    random: &mut Random,
    step: Duration,
    mut is_over: impl FnMut(&Running) -> bool,
) {
    let step = step.as_millis() as u64;
    let mut count = 0;
    while vm.is_running() && !is_over(vm) {
        sleep(Duration::from_millis(step / 8 + random.below(step)));
        match random.below(3) {
            0 => {
                order(scratch, "pause vm");
                sleep(Duration::from_millis(random.below(step / 2)));
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

/// Ends the VM as wanted, if it has not ended by itself.
///
/// # Panics
/// When it complains.
pub fn finish(scratch: &Scratch, mut vm: Running, end: End) {
    match end {
        _ if !vm.is_running() => {}
        End::Orderly => {}
        End::Forced => drop(order(scratch, "stop vm --force")),
        End::Killed => vm.signal(Signal::KILL),
    }
    let ended = vm.end(END);
    assert!(ended.stderr.is_empty() || end == End::Killed, "{}", ended.stderr);
}

/// What `doppel verify` says of a recording.
fn verify(scratch: &Scratch, words: &str) -> Value {
    let ended = order(scratch, &format!("verify {words} --json"));
    assert_eq!(ended.code(), Some(0), "verify {words}: {}", ended.stderr);
    serde_json::from_str(&ended.console).expect("JSON")
}

/// What replays of a recording came to, all of them to the same.
struct Replays {
    branches: u64,
    checks: u64,
    checkpoints: usize,
}

/// Replays a recording on both engines, from its start and from checkpoints.
fn replay(scratch: &Scratch, random: &mut Random) -> Replays {
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
    Replays {
        branches: of(first, "branches"),
        checks: all.iter().map(|value| of(value, "checks")).sum(),
        checkpoints: places.len() - 1,
    }
}

/// Has as many recordings made as are wanted, `kinds` by turns, and replays each.
///
/// # Panics
/// When a replay differs. The recording is kept then, to be looked at.
pub fn make_and_replay<K: Copy>(
    kinds: &[(&'static str, K)],
    mut make: impl FnMut(K, &mut Random) -> Made,
) {
    let wanted = setting("_KINDS").unwrap_or_default();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|it| it == name);
    let kinds: Vec<_> = kinds.iter().filter(|(name, _)| is_wanted(name)).collect();
    let seed = number("_SEED", 1);
    let mut failed = Vec::new();
    assert!(!kinds.is_empty(), "no such kind: {wanted}");
    let count = number("", kinds.len() as u64);
    println!("{count} recordings of {:?}", kinds.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for index in 0..count {
        let (name, kind) = kinds[index as usize % kinds.len()];
        let mixed = (seed * 1000 + index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Random(mixed);
        (0..8).for_each(|_| _ = random.below(2));
        let Made { scratch, disks, end, took } = make(*kind, &mut random);
        let recording = scratch.path("rec");
        let log = recording.join("events.log").metadata().expect("a log").len();
        let start = Instant::now();
        let replayed = std::panic::catch_unwind(|| replay(&scratch, &mut random.clone()));
        match replayed {
            Ok(Replays { branches, checks, checkpoints }) => println!(
                "{index} {name}, {end:?}: recorded in {took:.1?}, {branches} branches, {log} bytes \
                 of log; {checks} checks from the start and {checkpoints} checkpoints equal in \
                 {:.0?}",
                start.elapsed()
            ),
            Err(_) => {
                let kept = std::env::temp_dir().join(format!("doppel-diverged-{seed}-{index}"));
                let _ = std::fs::rename(&recording, &kept);
                println!("{index} {name}, {end:?}: differs; kept in {}", kept.display());
                failed.push(index);
            }
        }
        drop(disks);
    }
    assert!(failed.is_empty(), "recordings {failed:?} differ");
}
