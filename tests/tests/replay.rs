//! A run with inputs at arbitrary points, recorded and replayed (L1, L2, L5).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cpu::gpr;
use cpu::{Cpu, Engine, Exit};
use journal::{Entry, Input, What};
use machine::Stop;
use replay::{Divergence, Progress, Recorder, ReplayError, Replayer, Target};
use travel::{Halt, Position, Sandbox, Stops, Travel, first_difference};
use types::Gpa;
use whole::{Captured, Ended, Guest};

/// A log that outlives the recorder.
#[derive(Clone, Default)]
struct Shared(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An engine with a defect: it flips a bit of low memory where a branch is retired.
struct Faulty {
    inner: Box<dyn Engine>,
    /// Number of the branch.
    at: u64,
}

impl Faulty {
    fn flip(&self, cpu: &mut Cpu<'_>, before: u64) {
        if before < self.at && cpu.vcpu.branches >= self.at {
            let mut byte = [0];
            cpu.ram.read(Gpa(0x500), &mut byte).unwrap();
            cpu.ram.write(Gpa(0x500), &[byte[0] ^ 4]).unwrap();
        }
    }
}

impl Engine for Faulty {
    fn run(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit {
        let before = cpu.vcpu.branches;
        let until = if before < self.at { until.min(self.at) } else { until };
        let exit = self.inner.run(cpu, until);
        self.flip(cpu, before);
        exit
    }

    fn step(&mut self, cpu: &mut Cpu<'_>) -> Exit {
        let before = cpu.vcpu.branches;
        let exit = self.inner.step(cpu);
        self.flip(cpu, before);
        exit
    }

    fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.inner.set_breakpoints(addresses);
    }

    fn instructions(&self) -> u64 {
        self.inner.instructions()
    }

    fn name(&self) -> &'static str {
        "faulty"
    }
}

fn faulty(at: u64) -> Box<dyn Engine> {
    Box::new(Faulty { inner: engine("translate"), at })
}

fn engine(name: &str) -> Box<dyn Engine> {
    Guest::on(name, 64 << 20, Vec::new()).unwrap().engine
}

fn booted(engine: Box<dyn Engine>) -> Guest {
    let mut guest = Guest::with_engine(256 << 20, Vec::new(), engine).unwrap();
    guest.boot_mini("6.1", "quiet doppel.end=shell").unwrap();
    guest
}

/// Runs as a live machine does: quanta of changing length, anchors of a clock that wanders, and
/// somebody who types; until the guest powers off.
fn run_live(guest: &mut Guest, recorder: &Recorder<Shared>) -> Ended {
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut hashed, mut typed) = (0, false);
    loop {
        let Guest { machine, engine, outside } = guest;
        let until = machine.branches() + 20_000 + next() % 200_000;
        match machine.run(engine.as_mut(), outside, until) {
            Stop::Reached => {}
            Stop::Yielded | Stop::Breakpoint | Stop::Touched(_) => continue,
            // Mostly the deadline comes, sometimes something wakes the guest before.
            Stop::Idle { deadline: Some(_) } if next() % 8 != 0 => machine.skip_idle(outside),
            Stop::Idle { .. } => {}
            Stop::Power(event) => return Ended::Power(event),
            Stop::Shutdown => return Ended::Shutdown,
        }
        let (advance_ns, rate_millins) = (next() % 300_000, 15_000 + next() % 10_000);
        machine.inject(outside, Input::ClockAnchor { advance_ns, rate_millins });
        if !typed && outside.console().contains("# ") {
            typed = true;
            let bytes = b"echo rec; date; poweroff -f\n".to_vec();
            machine.inject(outside, Input::Console { port: 0, bytes });
        }
        if machine.branches() / 20_000_000 > hashed {
            hashed = machine.branches() / 20_000_000;
            let digest = outside.digest.value();
            recorder.check(machine, digest);
        }
    }
}

fn record() -> (Vec<u8>, Guest) {
    let mut guest = booted(engine("translate"));
    let log = Shared::default();
    let recorder = Recorder::start(&mut guest.machine, log.clone()).unwrap();
    let ended = run_live(&mut guest, &recorder);
    assert_eq!(ended, Ended::Power(devices::PowerEvent::PowerOff), "{}", guest.outside.console());
    let digest = guest.outside.digest.value();
    recorder.stop(&mut guest.machine, digest).unwrap();
    let bytes = log.0.lock().unwrap().clone();
    (bytes, guest)
}

/// Replays on an engine; what the machine put out is kept.
fn replay(log: &[u8], engine: Box<dyn Engine>) -> (Result<(Progress, u64), ReplayError>, Captured) {
    let mut guest = booted(engine);
    let log = std::io::Cursor::new(log.to_vec());
    let mut replayer = Replayer::new(journal::LogReader::new(log).unwrap()).unwrap();
    let Guest { machine, engine, outside } = &mut guest;
    let mut progress = replayer.run(machine, engine.as_mut(), outside, Target::END);
    if matches!(progress, Ok(Progress::Power(_))) {
        progress = replayer.finish(machine, engine.as_mut(), outside);
    }
    (progress.map(|progress| (progress, replayer.checked())), guest.outside)
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn replay_of_a_live_run_has_every_hash_and_output() {
    let (log, recorded) = record();
    for name in ["translate", "interp"] {
        let (progress, outside) = replay(&log, engine(name));
        let (progress, checked) = progress.unwrap();
        assert_eq!(progress, Progress::End { orderly: true });
        assert!(checked >= 5, "{checked} checks");
        assert_eq!(outside.consoles, recorded.outside.consoles);
    }
    let minutes = recorded.machine.now().0 as f64 / 60e9;
    eprintln!("log: {} bytes for {minutes:.2} minutes of guest time", log.len());
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn replay_with_a_changed_input_diverges_at_the_next_hash() {
    let (log, _) = record();
    let mut changed = Vec::new();
    let mut reader = journal::LogReader::new(&log[..]).unwrap();
    let mut writer = journal::LogWriter::new(&mut changed).unwrap();
    let mut typed_at = 0;
    while let Some(mut entry) = reader.next_entry().unwrap() {
        if let What::Input(Input::Console { bytes, .. }) = &mut entry.what {
            bytes[0] ^= 1;
            typed_at = entry.point.branches;
        }
        writer.append(&entry).unwrap();
    }
    writer.flush().unwrap();
    let (progress, _) = replay(&changed, engine("translate"));
    match progress {
        Err(ReplayError::Divergence(Divergence::State { point, .. })) => {
            assert!(point.branches >= typed_at);
        }
        Err(ReplayError::Divergence(Divergence::Stopped { found, .. })) => {
            assert!(found.branches >= typed_at);
        }
        other => panic!("a changed input was not noticed: {other:?}"),
    }
}

fn entries(log: &[u8]) -> Vec<Entry> {
    let mut reader = journal::LogReader::new(log).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

fn traveller(log: &[u8], engine: Box<dyn Engine>) -> Travel {
    let Guest { machine, engine, .. } = booted(engine);
    let never = Box::new(|_: &mut machine::Machine| Err("a reset".to_owned()));
    Travel::new(machine, engine, Sandbox::new(Vec::new()), entries(log), never, true).unwrap()
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn defect_of_an_engine_is_noticed_at_the_next_check_and_found_at_its_instruction() {
    let (log, recorded) = record();
    let at = recorded.machine.branches() / 2 + 12_345;
    let checks = entries(&log).into_iter().filter(|entry| matches!(entry.what, What::Check(_)));
    let next = checks.map(|check| check.point.branches).find(|check| *check >= at).unwrap();
    let (progress, _) = replay(&log, faulty(at));
    match progress {
        Err(ReplayError::Divergence(Divergence::State { point, section })) => {
            assert_eq!((point.branches, section.as_str()), (next, "ram"));
        }
        other => panic!("a defect was not noticed: {other:?}"),
    }
    let mut sound = traveller(&log, engine("translate"));
    let mut other = traveller(&log, faulty(at));
    let found = first_difference(&mut sound, &mut other, &mut || ()).unwrap().unwrap();
    assert_eq!((found.at.branches, found.what.as_str()), (at - 1, "ram"), "{found:?}");
}

/// Where a search backwards from the end halts, so many times in a row.
fn halts(travel: &mut Travel, stops: &Stops, count: usize) -> Vec<(Halt, Position)> {
    travel.go_to_branch(u64::MAX).unwrap();
    let mut halts = Vec::new();
    for _ in 0..count {
        let halt = travel.go_back(stops, &mut || false).unwrap();
        halts.push((halt, travel.position()));
    }
    halts
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn searches_on_all_cpus_find_what_one_finds() {
    let (log, recorded) = record();
    let mut alone = traveller(&log, engine("translate"));
    let mut many = traveller(&log, engine("translate"));
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    many.use_scouts(Box::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        Some(engine("translate"))
    }));
    let end = recorded.machine.branches();
    let mut seen = BTreeSet::new();
    for part in [1, 5, 20, 60, 95] {
        alone.go_to_branch(end / 100 * part).unwrap();
        let breakpoint = alone.linear_rip();
        let rsp = alone.machine().vcpu().regs.gpr[gpr::RSP];
        let breaks = Stops { breakpoints: vec![breakpoint], ..Stops::default() };
        let watches = Stops { watches: vec![(rsp, 8)], ..Stops::default() };
        for stops in [breaks, watches] {
            let expected = halts(&mut alone, &stops, 3);
            assert_eq!(halts(&mut many, &stops, 3), expected, "{part} % {stops:?}");
            seen.extend(expected.iter().map(|(halt, _)| format!("{halt:?}")));
        }
    }
    assert!(seen.contains("Breakpoint") && seen.contains("Touched(0)"), "{seen:?}");
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    assert!(made.load(Ordering::Relaxed) > 0 || cpus == 1, "nobody was sent");
}
