//! Recordings of everything that people run, from power-on, while VMs are paused, kept and killed:
//! each comes to the same hashes on both engines, from its start and from checkpoints along it
//! (L1, L2, L5). What can be set is in `whole::recordings`.

#![forbid(unsafe_code)]

use std::thread::scope;
use std::time::{Duration, Instant};

use whole::debian::{BOOT, Debian};
use whole::doppel::Doppel;
use whole::net::free_port;
use whole::random::Random;
use whole::recordings::{End, Made, Server, disturb, finish, load, make_and_replay};
use whole::scratch::Scratch;

/// How long a guest that serves is under load.
const LOAD: Duration = Duration::from_secs(15);
/// How far apart disturbances are at most.
const STEP: Duration = Duration::from_millis(1600);

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

/// Records a guest.
fn record(kind: Kind, random: &mut Random) -> Made {
    let end = End::choose(random);
    let port = free_port();
    let (scratch, debian, doppel) = guest(kind, port);
    let every = if debian.is_some() { "10s" } else { "300ms" };
    let mut doppel = doppel
        .file("--record", &scratch.path("rec"))
        .args(&format!("--name vm --checkpoint-every {every}"));
    doppel.command().env("XDG_RUNTIME_DIR", scratch.root());
    doppel.command().env("XDG_STATE_HOME", scratch.path("state"));
    let start = Instant::now();
    let mut vm = doppel.start();
    vm.wait_ready(&scratch, "vm");
    let server = match kind {
        Kind::Web => Some(Server::Nginx),
        Kind::Redis => Some(Server::Redis),
        _ => None,
    };
    if server.is_some() {
        vm.wait_for("SERVING", BOOT);
    }
    let most = match end {
        End::Orderly => BOOT,
        _ if server.is_some() => LOAD,
        _ if debian.is_some() => Duration::from_secs(25 + random.below(20)),
        _ => Duration::from_secs(4 + random.below(4)),
    };
    scope(|scope| {
        if let Some(server) = server {
            scope.spawn(move || load(server, port, Instant::now() + LOAD));
        }
        let over = Instant::now() + most;
        disturb(&scratch, &mut vm, random, STEP, |_| Instant::now() > over);
    });
    finish(&scratch, vm, end);
    let disks = debian.map(|debian| Box::new(debian) as _);
    Made { scratch, disks, end, took: start.elapsed() }
}

#[test]
#[ignore = "minutes for each: cargo xtask test --slow"]
fn recordings_of_all_kinds_come_to_the_same() {
    make_and_replay(&KINDS, record);
}
