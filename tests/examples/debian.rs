//! Boots the Debian guest on a disk image with its console on standard error:
//! `debian DISK [KERNEL] [CMDLINE] [interp|translate]`. The disk is written to.

#![forbid(unsafe_code)]

use disk::{DiskIo, DiskSpec};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("the path of a disk image");
    let kernel = args.next().unwrap_or_else(|| "6.1".to_owned());
    let cmdline = args.next().unwrap_or_else(|| "doppel.end=poweroff".to_owned());
    let spec = DiskSpec { path: path.into(), format: None, read_only: false };
    let disk = DiskIo::spawn(disk::open(spec)?);
    let engine = args.next().unwrap_or_else(|| "interp".to_owned());
    let mut guest = whole::Guest::on(&engine, 1 << 30, vec![disk])?;
    guest.outside.echo = true;
    guest.boot_debian(&kernel, &cmdline)?;
    let started = std::time::Instant::now();
    let ended = guest.run(u64::MAX);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{ended:?} at {} after {seconds:.2} s", guest.machine.point());
    let rate = guest.engine.instructions() as f64 / seconds / 1e6;
    eprintln!("{rate:.1} M instructions/s, virtual time {}", guest.machine.now());
    for (name, count) in guest.engine.counters() {
        eprintln!("{count:>12} {name}");
    }
    Ok(())
}
