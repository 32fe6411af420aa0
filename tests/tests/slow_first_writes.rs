//! How long a guest's first write to a page takes while a checkpoint is saved (C5, C6).

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use checkpoint::{Progress, SaveOptions, Saver};
use memory::Ram;
use types::Gpa;
use whole::random::Random;
use whole::scratch::Scratch;

const MEMORY: u64 = 512 << 20;
const PAGES: u64 = MEMORY / 4096;
/// What no write may take, time left out for which others had the CPU.
const DELAY_MAX: Duration = Duration::from_millis(1);
/// In a hundred thousand: the host of a virtual host does not say when it has its CPU.
const HELD_UP_MAX: usize = 5;

/// This thread's account with the scheduler.
struct Account(File);

impl Account {
    fn open() -> Account {
        Account(File::open("/proc/thread-self/schedstat").expect("a scheduler that counts"))
    }

    /// How long the thread has waited for a CPU that others had.
    fn waited(&self) -> Duration {
        let mut bytes = [0; 64];
        let count = self.0.read_at(&mut bytes, 0).expect("its account");
        let text = std::str::from_utf8(&bytes[..count]).expect("numbers");
        let field = text.split_whitespace().nth(1).and_then(|field| field.parse().ok());
        Duration::from_nanos(field.expect("a number"))
    }
}

/// RAM without a page that is like another.
fn full() -> Ram {
    let mut ram = Ram::new(MEMORY).expect("memory");
    let mut random = Random(1);
    let mut bytes = [0; 4096];
    for page in 0..PAGES {
        bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| {
            *word = random.below(u64::MAX).to_le_bytes();
        });
        ram.write(Gpa(page * 4096), &bytes).expect("RAM");
    }
    ram
}

/// What first writes took.
struct Delays {
    /// The longest by the clock.
    wall: Duration,
    /// Each, without what others had of the CPU, the shortest first.
    own: Vec<Duration>,
    copied: u64,
    overflowed: u64,
}

/// Writes all pages once, in no order, while a saver saves them.
fn write_all(copies_max: usize) -> Delays {
    let scratch = Scratch::new();
    let mut ram = full();
    let progress = Arc::new(Progress::default());
    let options = SaveOptions { copies_max, ..SaveOptions::default() };
    let pages = ram.pages();
    let prepared = Saver::prepare(&scratch.path("c"), &pages, options, Arc::clone(&progress));
    let (saver, guest) = prepared.expect("a folder");
    ram.begin_copy_on_write(guest);
    let saved = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&saved);
    let thread = std::thread::spawn(move || {
        let kept = saver.save_memory().map(drop);
        told.store(true, Ordering::Release);
        kept
    });
    let mut order: Vec<u64> = (0..PAGES).collect();
    let mut random = Random(2);
    for index in (1..order.len()).rev() {
        order.swap(index, random.below(index as u64 + 1) as usize);
    }
    let (mut wall, mut own, account) = (Duration::ZERO, Vec::new(), Account::open());
    for page in order {
        if saved.load(Ordering::Acquire) {
            break;
        }
        let waited = account.waited();
        let start = Instant::now();
        ram.write(Gpa(page * 4096 + 8), &[1]).expect("RAM");
        let took = start.elapsed();
        wall = wall.max(took);
        own.push(took.saturating_sub(account.waited() - waited));
    }
    thread.join().expect("no panic").expect("saved");
    own.sort_unstable();
    Delays {
        wall,
        own,
        copied: progress.copied.load(Ordering::Relaxed),
        overflowed: progress.overflowed.load(Ordering::Relaxed),
    }
}

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn first_writes_while_memory_is_saved_are_short() {
    for (limit, copies_max) in [("512M", PAGES as usize), ("16M", 4096)] {
        let delays = write_all(copies_max);
        let Delays { wall, own, copied, overflowed } = delays;
        let held_up = own.iter().filter(|delay| **delay > DELAY_MAX).count();
        let (writes, longest) = (own.len(), own[own.len() - 1]);
        let most = own[writes - 1 - writes / 10_000];
        println!(
            "--cow-limit {limit}: {writes} writes, {copied} copied, {overflowed} beyond the \
             limit; the longest took {wall:.1?} by the clock, {longest:.1?} of it its own; all \
             but one in ten thousand {most:.1?}; {held_up} took more than {DELAY_MAX:?}"
        );
        assert!(copied > 1000, "the saver was too fast");
        // Beyond the limit a write waits for the saver's write to the same file.
        assert_eq!(overflowed == 0, copies_max as u64 == PAGES, "{overflowed}");
        if overflowed == 0 {
            assert!(held_up * 100_000 <= HELD_UP_MAX * writes, "{held_up} of {writes}");
        }
    }
}
