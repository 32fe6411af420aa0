//! Boots the mini guest under interpreter and translator at once and compares state hashes:
//! `lockstep [KERNEL] [BRANCHES] [CMDLINE] [OPTION=VALUE,...] [DISK]`. With a disk image it is the
//! Debian guest, on two copies of the image beside it.
//!
//! Every 10,000 branches in the first million, then every million; with the option `every=N` every
//! N branches to the end. At the first difference both machines start again and run to the last
//! point that agreed; from there they are compared every 1,000 branches, and once more at each.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result, bail};
use cpu::Engine;
use disk::{DiskIo, DiskSpec};
use interp::Interp;
use translate::{Options, Shadowing, Translator};
use whole::{Ended, Guest};

struct Arguments {
    kernel: String,
    until: u64,
    cmdline: String,
    options: Options,
    /// Branches between hashes after the first million.
    every: u64,
    disk: Option<String>,
}

/// 0 to 3.
fn shadowing(number: u64) -> Result<Shadowing> {
    let all = [Shadowing::Never, Shadowing::Earned, Shadowing::Always, Shadowing::Fickle];
    all.get(number as usize).copied().with_context(|| format!("shadow={number}: 0 to 3"))
}

fn options(text: &str) -> Result<(Options, u64)> {
    let mut options = Options::default();
    let mut every = 1_000_000;
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').with_context(|| format!("{pair}: no value"))?;
        let number: u64 = value.parse().with_context(|| format!("{pair}: not a number"))?;
        match name {
            "cache" => options.cache_size = number as usize,
            "insns" => options.block_insns_max = number as usize,
            "links" => options.links = number != 0,
            "flush" => options.flush_every = number,
            "slow" => options.always_slow = number != 0,
            "shadow" => options.shadow = shadowing(number)?,
            "margin" => options.margin = u8::try_from(number).context("margin: up to 255")?,
            "every" => every = number.max(1),
            _ => bail!("{name}: cache, insns, links, flush, slow, shadow, margin or every"),
        }
    }
    Ok((options, every))
}

fn boot(arguments: &Arguments, translated: bool) -> Result<Guest> {
    let mut engine: Box<dyn Engine> = Box::new(Interp::new()?);
    if translated {
        engine = Box::new(Translator::new(engine, arguments.options)?);
    }
    let Some(disk) = &arguments.disk else {
        let mut guest = Guest::with_engine(256 << 20, Vec::new(), engine)?;
        guest.boot_mini(&arguments.kernel, &arguments.cmdline)?;
        return Ok(guest);
    };
    let image = Path::new(disk);
    let prefix = if translated { "translate-" } else { "interp-" };
    let name = image.file_name().context("the disk is no file")?.to_string_lossy();
    let path = image.with_file_name(format!("{prefix}{name}"));
    std::fs::copy(image, &path).with_context(|| format!("cannot copy {disk}"))?;
    let spec = DiskSpec { path, format: None, read_only: false };
    let disk = DiskIo::spawn(disk::open(spec)?);
    let mut guest = Guest::with_engine(1 << 30, vec![disk], engine)?;
    guest.boot_debian(&arguments.kernel, &arguments.cmdline)?;
    Ok(guest)
}

fn pair(arguments: &Arguments) -> Result<[Guest; 2]> {
    Ok([boot(arguments, false)?, boot(arguments, true)?])
}

/// Runs both to `until`; whether they agree there.
fn agree(guests: &mut [Guest; 2], until: u64) -> (bool, [Ended; 2]) {
    let ended = [guests[0].run(until), guests[1].run(until)];
    let same = guests[0].machine.state_hash() == guests[1].machine.state_hash();
    (same && ended[0] == ended[1], ended)
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let kernel = args.next().unwrap_or_else(|| "6.1".to_owned());
    let until = args.next().map_or(Ok(u64::MAX), |text| text.parse())?;
    let cmdline = args.next().unwrap_or_else(|| "doppel.end=poweroff".to_owned());
    let (options, every) = options(&args.next().unwrap_or_default())?;
    let arguments = Arguments { kernel, until, cmdline, options, every, disk: args.next() };
    let mut guests = pair(&arguments)?;
    let mut good = 0;
    while good < arguments.until {
        let step = if good < 1_000_000 { 10_000 } else { arguments.every };
        let next = good + step;
        let (same, ended) = agree(&mut guests, next);
        if !same {
            eprintln!("they differ between {good} and {next}: {ended:?}");
            return narrow(&arguments, good, next);
        }
        if ended[0] != Ended::Reached {
            println!("equal to the end: {:?} at {}", ended[0], guests[0].machine.point());
            return Ok(());
        }
        good = next;
    }
    println!("equal to branch {good}");
    Ok(())
}

/// Narrows a difference down to one branch, and names it.
fn narrow(arguments: &Arguments, good: u64, bad: u64) -> Result<()> {
    let (mut good, mut bad) = (good, bad);
    // Whether they differ may depend on where they stopped before: narrow it down by running on.
    for step in [1000, 1] {
        let mut guests = pair(arguments)?;
        let (same, _) = agree(&mut guests, good);
        eprintln!("agree at {good}: {same}");
        while good + step < bad {
            if !agree(&mut guests, good + step).0 {
                bad = good + step;
                break;
            }
            good += step;
        }
        eprintln!("agree at {good}, differ at {bad}");
    }
    let mut guests = pair(arguments)?;
    let (same, _) = agree(&mut guests, good);
    eprintln!("agree at {good}: {same}, {}", guests[0].machine.point());
    let code = code_at(&guests[0]);
    eprintln!("code there: {code:02x?}");
    let before = guests[0].machine.vcpu().regs.clone();
    agree(&mut guests, bad);
    for (name, guest) in ["interp", "translate"].into_iter().zip(&guests) {
        eprintln!("{name}: {}", guest.machine.point());
        describe(&before, guest);
    }
    let pages = (guests[0].machine.ram().size() >> 12) as usize;
    for page in 0..pages {
        let hash = |guest: &Guest| guest.machine.ram().page_hash(page);
        if hash(&guests[0]) != hash(&guests[1]) {
            describe_page(&guests, page);
        }
    }
    bail!("engines differ at branch {bad}");
}

fn code_at(guest: &Guest) -> Vec<u8> {
    let vcpu = guest.machine.vcpu();
    let side = vcpu.mode.walk_side;
    let mut bytes = vec![0; 96];
    match vcpu.tlb.lookup_exec(side, vcpu.regs.rip()) {
        Some(at) => guest.machine.ram().load_bytes(memory::RamOffset(at), &mut bytes),
        None => bytes.clear(),
    }
    bytes
}

fn describe(before: &cpu::Registers, guest: &Guest) {
    let regs = &guest.machine.vcpu().regs;
    for (index, (old, new)) in before.gpr.iter().zip(&regs.gpr).enumerate() {
        let mark = if old == new { "" } else { "  (new)" };
        eprintln!("  r{index:<2} {new:#018x}{mark}");
    }
    eprintln!("  rflags {:#x}", regs.rflags());
    for (index, (old, new)) in before.ymm.iter().zip(&regs.ymm).enumerate() {
        if old != new {
            eprintln!("  ymm{index} {new:x?}");
        }
    }
    let vcpu = guest.machine.vcpu();
    eprintln!("  cr2 {:#x} cr3 {:#x} cpl {}", vcpu.cr2, vcpu.cr3, vcpu.cpl);
}

fn describe_page(guests: &[Guest; 2], page: usize) {
    let mut bytes = [[0u8; 4096]; 2];
    for (guest, into) in guests.iter().zip(&mut bytes) {
        guest.machine.ram().load_bytes(memory::RamOffset((page as u64) << 12), into);
    }
    let differing: Vec<usize> = (0..4096).filter(|&at| bytes[0][at] != bytes[1][at]).collect();
    for &at in differing.iter().take(16) {
        eprintln!("  RAM {:#x}: {:02x} {:02x}", (page << 12) + at, bytes[0][at], bytes[1][at]);
    }
}
