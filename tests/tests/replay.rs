//! A run with inputs at arbitrary points, recorded and replayed (L1, L2, L5).

use journal::Input;
use machine::Stop;
use replay::{Divergence, Progress, Recorder, ReplayError, Replayer};
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

fn booted() -> Guest {
    let mut guest = Guest::new(256 << 20, Vec::new()).unwrap();
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
        let until = guest.machine.branches() + 20_000 + next() % 200_000;
        let stop = guest.machine.run(guest.engine.as_mut(), &mut guest.outside, until);
        let mut vtime_ns = guest.machine.now().0 + next() % 300_000;
        match stop {
            Stop::Reached | Stop::Yielded => {}
            Stop::Idle { deadline } => {
                vtime_ns = deadline.map_or(vtime_ns + 1_000_000, |at| at.0.max(vtime_ns));
            }
            Stop::Power(event) => return Ended::Power(event),
            Stop::Shutdown => return Ended::Shutdown,
        }
        let rate_millins = 15_000 + next() % 10_000;
        guest.machine.inject(Input::ClockAnchor { vtime_ns, rate_millins });
        if !typed && guest.outside.console().contains("# ") {
            typed = true;
            let bytes = b"echo rec; date; poweroff -f\n".to_vec();
            guest.machine.inject(Input::Console { port: 0, bytes });
        }
        if guest.machine.branches() / 20_000_000 > hashed {
            hashed = guest.machine.branches() / 20_000_000;
            recorder.checkpoint_hashes(&mut guest.machine);
        }
    }
}

fn record() -> (Vec<u8>, Guest) {
    let mut guest = booted();
    let log = Shared::default();
    let recorder = Recorder::start(&mut guest.machine, log.clone()).unwrap();
    let ended = run_live(&mut guest, &recorder);
    assert_eq!(ended, Ended::Power(devices::PowerEvent::PowerOff), "{}", guest.outside.console());
    recorder.stop(&mut guest.machine).unwrap();
    let bytes = log.0.lock().unwrap().clone();
    (bytes, guest)
}

/// The replayed machine's outside: what it puts out is compared, not sent.
fn replay(log: &[u8]) -> (Result<(Progress, u64), ReplayError>, Captured) {
    let mut guest = booted();
    let mut replayer = Replayer::new(log).unwrap();
    let progress =
        replayer.run(&mut guest.machine, guest.engine.as_mut(), &mut guest.outside, u64::MAX);
    (progress.map(|progress| (progress, replayer.checked)), guest.outside)
}

#[test]
#[ignore = "whole machine: cargo xtask test"]
fn replay_of_a_live_run_has_every_hash_and_output() {
    let (log, recorded) = record();
    let (progress, outside) = replay(&log);
    let (progress, checked) = progress.unwrap();
    assert_eq!(progress, Progress::End { orderly: true });
    assert!(checked >= 5, "{checked} hashes checked");
    assert_eq!(outside.consoles, recorded.outside.consoles);
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
        if let journal::Entry::Input { point, input: Input::Console { bytes, .. } } = &mut entry {
            bytes[0] ^= 1;
            typed_at = point.branches;
        }
        writer.append(&entry).unwrap();
    }
    writer.flush().unwrap();
    let (progress, _) = replay(&changed);
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
