//! Boots the mini guest with its console on standard error:
//! `boot [KERNEL] [BRANCHES] [CMDLINE] [interp|translate]`.

#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().unwrap_or_else(|| "6.1".to_owned());
    let until = args.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    let cmdline = args.next().unwrap_or_else(|| "doppel.end=poweroff".to_owned());
    let engine = args.next().unwrap_or_else(|| "interp".to_owned());
    let mut guest = whole::Guest::on(&engine, 512 << 20, Vec::new())?;
    guest.outside.echo = true;
    guest.boot_mini(&kernel, &cmdline)?;
    let started = std::time::Instant::now();
    let ended = guest.run(until);
    let seconds = started.elapsed().as_secs_f64();
    let per_second = |count: u64| count as f64 / seconds / 1e6;
    eprintln!("{ended:?} at {} after {seconds:.2} s", guest.machine.point());
    eprintln!(
        "{:.1} M instructions/s, {:.1} M branches/s, virtual time {}",
        per_second(guest.engine.instructions()),
        per_second(guest.machine.branches()),
        guest.machine.now()
    );
    for (name, count) in guest.engine.counters() {
        eprintln!("{count:>12} {name}");
    }
    Ok(())
}
