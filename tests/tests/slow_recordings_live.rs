//! Recordings of a Debian at work, begun while it runs (`doppel record`), paused, kept and killed
//! meanwhile: each comes to the same hashes on both engines, from its start and from checkpoints
//! along it (L1, L2, L5). What can be set is in `whole::recordings`.
//!
//! The work takes a second or two, so that the interpreter can do it again eight times over.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::thread::scope;
use std::time::{Duration, Instant};

use whole::debian::{Debian, log_in};
use whole::net::free_port;
use whole::random::Random;
use whole::recordings::{End, Made, Server, disturb, finish, load, make_and_replay, order};
use whole::scratch::Scratch;
use whole::shell::{ask, json, restore};

/// How long a server is under load.
const LOAD: Duration = Duration::from_secs(2);
/// How long anything else may take.
const LONG: Duration = Duration::from_secs(300);
/// How far apart disturbances are at most.
const STEP: Duration = Duration::from_millis(800);
/// How often there is a checkpoint along the recording.
const EVERY: &str = "150ms";

/// What is typed, or who is asked from outside.
#[derive(Clone, Copy, Debug)]
enum Work {
    Typed(&'static str),
    Asked(Server, u16),
}

/// Ports of the guest's servers.
const NGINX: u16 = 8080;
const REDIS: u16 = 8081;

const KINDS: [(&str, Work); 10] = [
    ("web", Work::Asked(Server::Nginx, NGINX)),
    ("redis", Work::Asked(Server::Redis, REDIS)),
    ("gcc", Work::Typed("cd /var/tmp; for o in 0 1 2 3; do gcc -O$o -o a$o a.c && ./a$o; done")),
    ("stress-cpu", Work::Typed("stress-ng --cpu 1 --cpu-ops 40 --verify -t 20s --quiet; echo $?")),
    (
        "stress-vm",
        Work::Typed(
            "stress-ng --vm 1 --vm-bytes 4M --vm-ops 3000 --verify -t 20s --quiet; echo $?",
        ),
    ),
    ("stress-fork", Work::Typed("stress-ng --fork 1 --fork-ops 250 -t 20s --quiet; echo $?")),
    (
        "stress-switch",
        Work::Typed("stress-ng --switch 1 --switch-ops 30000 -t 20s --quiet; echo $?"),
    ),
    ("stress-signal", Work::Typed("stress-ng --sigq 1 --sigq-ops 30000 -t 20s --quiet; echo $?")),
    (
        "python",
        Work::Typed(
            "python3 -c 'import json,random; d=[random.random() for _ in range(60000)]; \
             print(sum(json.loads(json.dumps(sorted(d)))))'; date +%N",
        ),
    ),
    (
        "disk",
        Work::Typed(
            "for n in 1 2 3 4 5; do dd if=/usr/bin/perl of=/var/tmp/p bs=64k conv=fsync 2>&1; \
             echo 3 >/proc/sys/vm/drop_caches; md5sum /var/tmp/p; done",
        ),
    ),
];

/// A Debian that has come up, with servers, kept.
struct Base {
    debian: Debian,
    folder: PathBuf,
}

impl Base {
    fn make() -> Base {
        let mut debian = Debian::new("6.1");
        debian.memory = "512M";
        let net = format!("--name base --net user,hostfwd=tcp:127.0.0.1:{}-:{NGINX}", free_port());
        let mut vm = debian.doppel("").args(&net).typed();
        vm.command().env("XDG_STATE_HOME", debian.scratch.path("state"));
        let mut vm = vm.start();
        log_in(&mut vm);
        let conf = format!("events {{}}\\nhttp {{server {{listen {NGINX};root /usr/bin;}}}}");
        ask(&mut vm, &format!("printf '{conf}' >/etc/nginx/nginx.conf"), "conf");
        ask(&mut vm, "systemctl restart nginx; systemctl stop redis-server", "nginx");
        let redis = format!("redis-server --port {REDIS} --protected-mode no --save ''");
        ask(&mut vm, &format!("{redis} --daemonize yes >/dev/null"), "redis");
        let source = "'#include <stdio.h>' 'int main(void){int s=0;for(int i=0;i<9999;i++)\
                      s=s*31+i;printf(\"%d,\",s);}'";
        ask(&mut vm, &format!("printf '%s\\n' {source} >/var/tmp/a.c"), "source");
        ask(&mut vm, "stress-ng --cpu 1 --cpu-ops 1 --quiet; sleep 5; sync", "warm");
        json(&debian.scratch, "checkpoint base base --keep-parent");
        order(&debian.scratch, "stop base --force");
        let _ = vm.end(LONG);
        let folder = debian.scratch.path("base");
        Base { debian, folder }
    }

    /// Restores it, and records what it does then.
    fn record(&self, work: Work, random: &mut Random) -> Made {
        let end = End::choose(random);
        let scratch = Scratch::new();
        let (port, base) = (free_port(), self.folder.display());
        let inside = if let Work::Asked(_, inside) = work { inside } else { NGINX };
        let net = format!("--net user,hostfwd=tcp:127.0.0.1:{port}-:{inside}");
        let start = Instant::now();
        let mut vm = restore(&scratch, &format!("{base} --name vm --paused {net}"));
        vm.wait_ready(&scratch, "vm");
        json(&scratch, &format!("record vm rec --checkpoint-every {EVERY}"));
        order(&scratch, "resume vm").expect(0);
        scope(|scope| {
            let over = Instant::now() + LOAD;
            match work {
                Work::Asked(server, _) => {
                    scope.spawn(move || load(server, port, over));
                    disturb(&scratch, &mut vm, random, STEP, |_| Instant::now() > over);
                }
                Work::Typed(command) => {
                    vm.type_text(&format!("{command}; echo done-$((6*7))\n"));
                    let early = end != End::Orderly;
                    disturb(&scratch, &mut vm, random, STEP, |vm| {
                        vm.console().contains("done-42") || early && Instant::now() > over
                    });
                }
            }
        });
        if end == End::Orderly {
            json(&scratch, "record --stop vm");
            order(&scratch, "stop vm --force");
        }
        finish(&scratch, vm, end);
        Made { scratch, disks: None, end, took: start.elapsed() }
    }
}

#[test]
#[ignore = "minutes: cargo xtask test --slow"]
fn recordings_of_work_begun_while_it_runs_come_to_the_same() {
    let base = Base::make();
    make_and_replay(&KINDS, |work, random| base.record(work, random));
    drop(base.debian);
}
