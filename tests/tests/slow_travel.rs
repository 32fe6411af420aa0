//! Going back in a minute of Debian at work: how long a debugger waits (L2).

use std::time::{Duration, Instant};

use whole::debian::{BOOT, Debian};
use whole::rsp::Rsp;
use whole::scratch::Scratch;

/// What the guest does: several things at once, for a minute.
const WORK: &str = "grep -E ' (start_kernel|rest_init)$' /proc/kallsyms
cp /mnt/w.c /mnt/once.c ~; cd ~
gcc -nostdlib -static -no-pie -o once once.c && nm once | grep ' _*once$' && ./once
(while :; do gcc -O1 -c -o w.o w.c; done) &
(while :; do md5sum /usr/bin/* >/dev/null; done) &
(while :; do redis-benchmark -q -n 500 -t set,get >/dev/null; done) &
(while :; do dd if=/dev/urandom of=f bs=64k count=64 conv=fsync 2>/dev/null; done) &
echo WORKING; sleep 60; echo WORKED; exit 0
";
/// Functions that run once, at the beginning: the last one of a program.
const NAMES: [&str; 3] = ["start_kernel", "rest_init", "once"];
/// The program.
const ONCE: &str = "void once(void) { __asm__ volatile (\"syscall\" : : \"a\" (60), \"D\" (0)); }
void _start(void) { once(); }
";
/// Steps back that are timed.
const STEPS: usize = 20;

/// Records a minute of work; `more` for `doppel run`. What was on the console.
fn record(scratch: &Scratch, more: &str) -> (Debian, String) {
    let debian = Debian::new("6.1");
    let program = "int f(int x){int i,s=0;for(i=0;i<x;i++)s+=i*i^s;return s;}";
    let files: &[(&str, &[u8])] =
        &[("job", WORK.as_bytes()), ("w.c", program.as_bytes()), ("once.c", ONCE.as_bytes())];
    let doppel = debian.with_job(files, true).file("--record", &scratch.path("rec")).args(more);
    let ended = doppel.run(BOOT);
    let output = ended.expect(0).output_of("job");
    (debian, output)
}

/// Median and most of durations.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// Steps back; how long it took, and how much CPU time.
fn step(rsp: &mut Rsp) -> (Duration, Duration) {
    let before = rsp.server().cpu_time();
    let took = rsp.timed("bs").1;
    (took, rsp.server().cpu_time() - before)
}

/// Median and most of [`STEPS`] steps back, the most by the clock or by CPU time if that is less.
fn steps(rsp: &mut Rsp, place: &str) -> (Duration, Duration) {
    let steps: Vec<_> = (0..STEPS).map(|_| step(rsp)).collect();
    let (median, most) = spread(steps.iter().map(|(took, _)| *took).collect());
    println!("reverse-step {place}: median {median:.1?}, most {most:.1?}");
    (median, spread(steps.iter().map(|(took, worked)| *took.min(worked)).collect()).1)
}

/// Goes back from the end to `address`, which the guest came to once; how long it took, and how
/// much CPU time, which says more where the host has other things to do.
fn back_to(rsp: &mut Rsp, address: u64) -> (String, Duration, Duration) {
    rsp.monitor("seek end");
    assert_eq!(rsp.ask(&format!("Z0,{address:x},1")), "OK");
    let before = rsp.server().cpu_time();
    let (answer, took) = rsp.timed("bc");
    let worked = rsp.server().cpu_time() - before;
    assert_eq!(rsp.ask(&format!("z0,{address:x},1")), "OK");
    (answer, took, worked)
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn reverse_step_and_reverse_continue_of_a_minute_of_debian_answer_soon() {
    let scratch = Scratch::new();
    let (_debian, output) = record(&scratch, "");
    let symbols = output.lines().filter(|line| NAMES.iter().any(|name| line.ends_with(name)));
    let map = scratch.write("map", symbols.collect::<Vec<_>>().join("\n"));
    let mut rsp = Rsp::start(&scratch, &format!("rec --symbols {}", map.display()));
    let start = Instant::now();
    let said = rsp.monitor("seek end");
    let worked = rsp.server().cpu_time();
    println!("to the end in {:.1?}, {worked:.1?} of work: {said}", start.elapsed());
    println!("{}", rsp.monitor("checkpoints"));
    let there = steps(&mut rsp, "at the end");
    rsp.monitor("seek 40s");
    let first = step(&mut rsp);
    println!("the first one at 40 s: {:.1?}, {:.1?} of work", first.0, first.1);
    let middle = steps(&mut rsp, "there");
    // They run once, at the beginning; the second in a page that is always in use.
    let mut slowest = Duration::ZERO;
    for name in NAMES {
        let said = rsp.monitor(&format!("symbol {name}"));
        let address = said.strip_prefix("0x").and_then(|said| said.split(' ').next());
        let address = u64::from_str_radix(address.expect("a symbol"), 16).expect("an address");
        let (answer, took, worked) = back_to(&mut rsp, address);
        let place = rsp.monitor("where");
        println!("reverse-continue to {name} in {took:.1?}, {worked:.1?} of work: {place}");
        assert!(answer.contains("swbreak") && place.contains(&format!("({name})")), "{answer}");
        slowest = slowest.max(worked.min(took));
    }
    println!("{}", rsp.monitor("checkpoints"));
    for (what, took, most) in [
        ("reverse-step at the end", there.0.max(there.1), 150),
        ("the first one in the middle", first.0.min(first.1), 150),
        ("reverse-step in the middle", middle.0.max(middle.1), 150),
        ("reverse-continue", slowest, 10_000),
    ] {
        assert!(took <= Duration::from_millis(most), "{what}: {took:.1?}");
    }
}
