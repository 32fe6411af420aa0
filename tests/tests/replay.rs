//! A run with inputs at arbitrary points, recorded and replayed (L1, L2, L5).

use journal::{Input, What};
use machine::Stop;
use replay::{Divergence, Progress, Recorder, ReplayError, Replayer, Target};
use whole::{Captured, Ended, Guest};

/// A log that outlives the recorder.
#[derive(Clone, Default)]
struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn booted(engine: &str) -> Guest {
    let mut guest = Guest::on(engine, 256 << 20, Vec::new()).unwrap();
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
    let mut guest = booted("translate");
    let log = Shared::default();
    let recorder = Recorder::start(&mut guest.machine, log.clone()).unwrap();
    let ended = run_live(&mut guest, &recorder);
    assert_eq!(ended, Ended::Power(devices::PowerEvent::PowerOff), "{}", guest.outside.console());
    let digest = guest.outside.digest.value();
    recorder.stop(&mut guest.machine, digest).unwrap();
    let bytes = log.0.lock().unwrap().clone();
    (bytes, guest)
}

/// Replays on the engine of that name; what the machine put out is kept.
fn replay(log: &[u8], engine: &str) -> (Result<(Progress, u64), ReplayError>, Captured) {
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
    for engine in ["translate", "interp"] {
        let (progress, outside) = replay(&log, engine);
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
    let (progress, _) = replay(&changed, "translate");
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
