//! The `monitor` commands.

use std::fmt::Write;
use std::time::Duration;

use travel::{Halt, Position, Touch, Travel, TravelError};
use types::VirtualTime;

use crate::debugger::{Debugger, remove};

const HELP: &str = "\
where                 the point, guest time and the next event
seek PLACE            go to a branch count, a guest time as 12.5s, an event as #17, start or end;
                      then `flushregs` in gdb
last-write ADDR [LEN] where the bytes were last changed before this point
events [COUNT]        the events around this point
diff PLACE PLACE      RAM pages and sections that differ between two places
cr3 [VALUE]           read memory by these page tables; without VALUE by those in use
console               what the first serial port printed last
checkpoints           checkpoints in memory
symbol NAME           the address of a symbol (doppel debug --symbols), or names like it
name ADDR             the symbol at an address
break NAME|ADDR       stop there; `unbreak` with the same removes it (break *ADDR of gdb does too)
";

/// How long gdb is kept waiting without a word.
pub(crate) const PATIENCE: Duration = Duration::from_millis(800);
/// Events shown before and after the present one.
const EVENTS_SHOWN: usize = 5;
/// Symbols that are named when none is meant for sure.
const SYMBOLS_SHOWN: usize = 20;
/// Pages that `diff` names.
const PAGES_SHOWN: usize = 64;

/// Does a command; what to print.
///
/// gdb waits two seconds for an answer, so `tick` is called on long journeys and has to print.
pub(crate) fn answer(
    debugger: &mut Debugger,
    command: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, TravelError> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        ["where"] => Ok(place(debugger)),
        ["seek", to] => seek(debugger, to, tick),
        ["last-write", address] => last_write(debugger, address, "8", tick),
        ["last-write", address, len] => last_write(debugger, address, len, tick),
        ["symbol", name] => Ok(symbol(debugger, name)),
        ["name", address] => Ok(match number(address) {
            Some(address) => format!("{}\n", debugger.name(address)),
            None => format!("{address}: write an address as 0xffffffff81000000\n"),
        }),
        ["break", place] => Ok(set_break(debugger, place, true)),
        ["unbreak", place] => Ok(set_break(debugger, place, false)),
        ["events"] => Ok(events(debugger, EVENTS_SHOWN)),
        ["events", count] => match count.parse() {
            Ok(count) => Ok(events(debugger, count)),
            Err(_) => Ok(format!("{count}: write a number\n")),
        },
        ["diff", one, other] => diff(&mut debugger.travel, one, other, tick),
        ["cr3"] => {
            debugger.cr3 = None;
            Ok("memory is read by the page tables in use\n".into())
        }
        ["cr3", value] => Ok(match number(value) {
            Some(cr3) => {
                debugger.cr3 = Some(cr3);
                format!("memory is read by the page tables at {cr3:#x}\n")
            }
            None => format!("{value}: write an address as 0x1234000\n"),
        }),
        ["console"] => Ok(String::from_utf8_lossy(debugger.travel.console()).into_owned()),
        ["checkpoints"] => {
            let (count, bytes) = debugger.travel.checkpoints();
            Ok(format!("{count} checkpoints, {} MiB\n", bytes >> 20))
        }
        _ => Ok(HELP.into()),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// An address, or a symbol's; what is wrong if it is neither.
fn address_of(debugger: &Debugger, text: &str) -> Result<u64, String> {
    if let Some(address) = number(text) {
        return Ok(address);
    }
    match debugger.symbols.find(text)[..] {
        [address] => Ok(address),
        [] => Err(format!("{text}: no such symbol, and no address as 0xffffffff81000000\n")),
        _ => Err(format!("{text}: several symbols; `symbol {text}` shows them\n")),
    }
}

fn symbol(debugger: &Debugger, name: &str) -> String {
    let mut text = String::new();
    for address in debugger.symbols.find(name) {
        let _ = writeln!(text, "{address:#x} {name}");
    }
    if text.is_empty() {
        for (address, name) in debugger.symbols.search(name).take(SYMBOLS_SHOWN) {
            let _ = writeln!(text, "{address:#x} {name}");
        }
    }
    if text.is_empty() {
        let _ = writeln!(text, "{name}: no such symbol; doppel debug --symbols FILE brings them");
    }
    text
}

fn set_break(debugger: &mut Debugger, place: &str, on: bool) -> String {
    let address = match address_of(debugger, place) {
        Ok(address) => address,
        Err(wrong) => return wrong,
    };
    if remove(&mut debugger.asked, &address) {
        remove(&mut debugger.stops.breakpoints, &address);
    }
    if on {
        debugger.asked.push(address);
        debugger.stops.breakpoints.push(address);
    }
    let what = if on { "stops at" } else { "no longer stops at" };
    format!("{what} {}\n", debugger.name(address))
}

fn point(debugger: &Debugger, position: Position) -> String {
    let Position { branches, rip, iterations } = position;
    let iterations =
        if iterations == 0 { String::new() } else { format!(" iteration {iterations}") };
    let name = debugger.symbols.at(rip).map(|name| format!(" ({name})")).unwrap_or_default();
    format!("branch {branches} rip {rip:#x}{name}{iterations}")
}

fn place(debugger: &Debugger) -> String {
    let travel = &debugger.travel;
    let (number, of) = (travel.entry_number(), travel.entries().len());
    let (here, now) = (point(debugger, travel.position()), travel.machine().now());
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

fn seek(debugger: &mut Debugger, to: &str, tick: &mut dyn FnMut()) -> Result<String, TravelError> {
    Ok(match go(&mut debugger.travel, to, tick)? {
        Some(wrong) => wrong,
        None => place(debugger),
    })
}

fn last_write(
    debugger: &mut Debugger,
    address: &str,
    len: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, TravelError> {
    let gva = match address_of(debugger, address) {
        Ok(gva) => gva,
        Err(wrong) => return Ok(wrong),
    };
    let Some(len) = number(len).filter(|len| (1..=4096).contains(len)) else {
        return Ok(format!("{len}: write 1 to 4096 bytes\n"));
    };
    Ok(match debugger.travel.last_write(gva, len, tick)? {
        Some(Touch { before, .. }) => {
            let at = point(debugger, before);
            format!("{gva:#x} was last changed by the instruction at {at}\n")
        }
        None => format!("{gva:#x} was not changed before this point\n"),
    })
}

fn events(debugger: &Debugger, around: usize) -> String {
    let travel = &debugger.travel;
    let next = travel.entry_number() as usize;
    let mut text = String::new();
    let first = next.saturating_sub(around);
    for (number, entry) in travel.entries().iter().enumerate().skip(first).take(2 * around) {
        let mark = if number == next { '>' } else { ' ' };
        let what = format!("{:?}", entry.what);
        let what: String = what.chars().take(80).collect();
        let place = point(debugger, entry.point.into());
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
