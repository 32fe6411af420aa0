//! Going back in a minute of Debian at work: how long a debugger waits (L2).

use std::time::{Duration, Instant};

use whole::debian::{BOOT, Debian};
use whole::rsp::Rsp;
use whole::scratch::Scratch;

/// What the guest does: several things at once, for a minute.
const WORK: &str = "cp /mnt/w.c ~; cd ~
(while :; do gcc -O1 -c -o w.o w.c; done) &
(while :; do md5sum /usr/bin/* >/dev/null; done) &
(while :; do redis-benchmark -q -n 500 -t set,get >/dev/null; done) &
(while :; do dd if=/dev/urandom of=f bs=64k count=64 conv=fsync 2>/dev/null; done) &
echo WORKING; sleep 60; echo WORKED; exit 0
";
/// Steps back that are timed.
const STEPS: usize = 20;

/// Records a minute of work; `more` for `doppel run`.
fn record(scratch: &Scratch, more: &str) -> Debian {
    let debian = Debian::new("6.1");
    let program = "int f(int x){int i,s=0;for(i=0;i<x;i++)s+=i*i^s;return s;}";
    let files: &[(&str, &[u8])] = &[("job", WORK.as_bytes()), ("w.c", program.as_bytes())];
    let doppel = debian.with_job(files, true).file("--record", &scratch.path("rec")).args(more);
    doppel.start().end(BOOT).expect(0);
    debian
}

/// Median and most of durations.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// Goes back from the end to `address`, which the guest came to once or never; how long it took.
fn back_to(rsp: &mut Rsp, address: u64) -> (String, Duration) {
    rsp.monitor("seek end");
    assert_eq!(rsp.ask(&format!("Z0,{address:x},1")), "OK");
    let back = rsp.timed("bc");
    assert_eq!(rsp.ask(&format!("z0,{address:x},1")), "OK");
    back
}

fn rip(rsp: &mut Rsp) -> u64 {
    let said = rsp.monitor("where");
    let word = said.split("rip 0x").nth(1).and_then(|rest| rest.split([' ', ',']).next());
    u64::from_str_radix(word.expect("a rip"), 16).expect("a number")
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn reverse_step_and_reverse_continue_of_a_minute_of_debian_answer_soon() {
    let scratch = Scratch::new();
    let _debian = record(&scratch, "");
    let mut rsp = Rsp::start(&scratch, "rec");
    // Code of the kernel's start, which runs once.
    rsp.monitor("seek 20000");
    let (once, at) = (rip(&mut rsp), rsp.branches());
    let start = Instant::now();
    let said = rsp.monitor("seek end");
    println!("to the end in {:.1?}: {said}", start.elapsed());
    println!("{}", rsp.monitor("checkpoints"));
    let hot = rip(&mut rsp);
    let (median, most) = spread((0..STEPS).map(|_| rsp.timed("bs").1).collect());
    println!("reverse-step: median {median:.1?}, most {most:.1?}");
    // In the middle of it, after one journey there.
    rsp.monitor("seek 40s");
    rsp.ask("bs");
    let (median_there, most_there) = spread((0..STEPS).map(|_| rsp.timed("bs").1).collect());
    println!("in the middle: median {median_there:.1?}, most {most_there:.1?}");
    let (answer, took) = back_to(&mut rsp, once);
    println!("reverse-continue to {once:#x}: {answer} in {took:.1?}, {}", rsp.branches());
    println!("once {at}");
    // The middle of an instruction in a page that is always in use: every interval is run.
    let (answer, worst) = back_to(&mut rsp, hot + 1);
    println!("reverse-continue to nowhere: {answer} in {worst:.1?}");
    println!("{}", rsp.monitor("checkpoints"));
}
