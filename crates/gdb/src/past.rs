//! A recording as what gdb debugs: its commands become journeys.

use std::fmt::Write;
use std::time::Duration;

use travel::{Halt, NotMapped, Position, Stops, Touch, Travel, TravelError};
use types::VirtualTime;

use crate::arch::X86Registers;
use crate::subject::{Move, Subject};
use crate::symbols::{Symbols, number};

/// How long a journey takes until gdb is told that it goes on.
const PATIENCE: Duration = Duration::from_millis(800);
/// Events shown before and after the present one.
const EVENTS_SHOWN: usize = 5;
/// Pages that `diff` names.
const PAGES_SHOWN: usize = 64;

impl Subject for Travel {
    type Error = TravelError;

    const HELP: &'static str = "\
where                 the point, guest time and the next event
seek PLACE            go to a branch count, a guest time as 12.5s, an event as #17, start or end;
                      then `flushregs` in gdb
last-write ADDR [LEN] where the bytes were last changed before this point
events [COUNT]        the events around this point
diff PLACE PLACE      RAM pages and sections that differ between two places
console               what the first serial port printed last
checkpoints           checkpoints in memory
";

    fn registers(&mut self) -> Result<X86Registers, TravelError> {
        Ok(X86Registers::of(self.machine().vcpu(), self.linear_rip()))
    }

    fn read(&mut self, cr3: Option<u64>, gva: u64, into: &mut [u8]) -> Result<(), NotMapped> {
        Travel::read(self, cr3, gva, into)
    }

    fn go(
        &mut self,
        how: Move,
        stops: &Stops,
        interrupted: &mut dyn FnMut() -> bool,
    ) -> Result<Halt, TravelError> {
        match how {
            Move::GoOn => self.go_on(stops, interrupted),
            Move::GoBack => self.go_back(stops, interrupted),
            Move::Step => self.step(),
            Move::StepBack => self.step_back(),
        }
    }

    fn no_way_back(&mut self) -> Option<String> {
        None
    }

    fn monitor(
        &mut self,
        symbols: &Symbols,
        words: &[&str],
        tick: &mut dyn FnMut(),
    ) -> Result<Option<String>, TravelError> {
        let said = match words {
            ["where"] => place(self, symbols),
            ["seek", to] => seek(self, symbols, to, tick)?,
            ["last-write", address] => last_write(self, symbols, address, "8", tick)?,
            ["last-write", address, len] => last_write(self, symbols, address, len, tick)?,
            ["events"] => events(self, symbols, EVENTS_SHOWN),
            ["events", count] => match count.parse() {
                Ok(count) => events(self, symbols, count),
                Err(_) => format!("{count}: write a number\n"),
            },
            ["diff", one, other] => diff(self, one, other, tick)?,
            ["console"] => String::from_utf8_lossy(self.console()).into_owned(),
            ["checkpoints"] => {
                let (count, bytes) = self.checkpoints();
                format!("{count} checkpoints, {} MiB\n", bytes >> 20)
            }
            _ => return Ok(None),
        };
        Ok(Some(said))
    }
}

fn point(symbols: &Symbols, position: Position) -> String {
    let Position { branches, rip, iterations } = position;
    let iterations =
        if iterations == 0 { String::new() } else { format!(" iteration {iterations}") };
    let name = symbols.at(rip).map(|name| format!(" ({name})")).unwrap_or_default();
    format!("branch {branches} rip {rip:#x}{name}{iterations}")
}

fn place(travel: &Travel, symbols: &Symbols) -> String {
    let (number, of) = (travel.entry_number(), travel.entries().len());
    let (here, now) = (point(symbols, travel.position()), travel.machine().now());
    format!("{here}, {now} of guest time, before event {number} of {of}\n")
}

/// Goes to a place as people write it; what is wrong if it is none.
fn go(
    travel: &mut Travel,
    to: &str,
    tick: &mut dyn FnMut(),
) -> Result<Option<String>, TravelError> {
    travel.set_patience(Some(PATIENCE));
    loop {
        let halt = match go_for_a_while(travel, to)? {
            Ok(halt) => halt,
            Err(wrong) => return Ok(Some(wrong)),
        };
        if halt != Halt::Interrupted {
            travel.set_patience(None);
            return Ok(None);
        }
        tick();
    }
}

fn go_for_a_while(travel: &mut Travel, to: &str) -> Result<Result<Halt, String>, TravelError> {
    let seconds = |text: &str| text.parse::<f64>().ok().filter(|seconds| *seconds >= 0.0);
    let halt = if to == "start" {
        travel.go_to_start()?;
        Halt::Start
    } else if to == "end" {
        travel.go_to_branch(u64::MAX)?
    } else if let Some(event) = to.strip_prefix('#').and_then(number) {
        travel.go_to_entry(event)?
    } else if let Some(seconds) = to.strip_suffix('s').and_then(seconds) {
        travel.go_to_time(VirtualTime((seconds * 1e9) as u64))?
    } else if let Some(branches) = number(to) {
        travel.go_to_branch(branches)?
    } else {
        let places = "write a branch count, 12.5s, #17, start or end";
        return Ok(Err(format!("{to}: {places}\n")));
    };
    Ok(Ok(halt))
}

fn seek(
    travel: &mut Travel,
    symbols: &Symbols,
    to: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, TravelError> {
    Ok(match go(travel, to, tick)? {
        Some(wrong) => wrong,
        None => place(travel, symbols),
    })
}

fn last_write(
    travel: &mut Travel,
    symbols: &Symbols,
    address: &str,
    len: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, TravelError> {
    let gva = match symbols.address(address) {
        Ok(gva) => gva,
        Err(wrong) => return Ok(wrong),
    };
    let Some(len) = number(len).filter(|len| (1..=4096).contains(len)) else {
        return Ok(format!("{len}: write 1 to 4096 bytes\n"));
    };
    Ok(match travel.last_write(gva, len, tick)? {
        Some(Touch { before, .. }) => {
            let at = point(symbols, before);
            format!("{gva:#x} was last changed by the instruction at {at}\n")
        }
        None => format!("{gva:#x} was not changed before this point\n"),
    })
}

fn events(travel: &Travel, symbols: &Symbols, around: usize) -> String {
    let next = travel.entry_number() as usize;
    let mut text = String::new();
    let first = next.saturating_sub(around);
    for (number, entry) in travel.entries().iter().enumerate().skip(first).take(2 * around) {
        let mark = if number == next { '>' } else { ' ' };
        let what = format!("{:?}", entry.what);
        let what: String = what.chars().take(80).collect();
        let place = point(symbols, entry.point.into());
        let _ = writeln!(text, "{mark} {number} {} {place} {what}", entry.at);
    }
    text
}

fn diff(
    travel: &mut Travel,
    one: &str,
    other: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, TravelError> {
    let origin = travel.position();
    let mut sides = Vec::new();
    for place in [one, other] {
        if let Some(wrong) = go(travel, place, tick)? {
            return Ok(wrong);
        }
        tick();
        sides.push((travel.page_hashes(), travel.section_hashes()));
        tick();
    }
    go(travel, &origin.branches.to_string(), tick)?;
    travel.go_to(origin)?;
    let [(pages, sections), (pages_then, sections_then)] = &sides[..] else {
        return Ok(String::new());
    };
    let mut text = String::new();
    for ((name, now), (_, then)) in sections.iter().zip(sections_then) {
        if now != then {
            let _ = writeln!(text, "section {name}");
        }
    }
    let differ = (0..pages.len()).filter(|&page| pages[page] != pages_then[page]);
    let differ: Vec<usize> = differ.collect();
    let _ = writeln!(text, "{} pages of RAM", differ.len());
    for page in differ.iter().take(PAGES_SHOWN) {
        let _ = writeln!(text, "  RAM page {page:#x}");
    }
    Ok(text)
}
