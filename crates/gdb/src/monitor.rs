//! The `monitor` commands that every subject has.

use std::fmt::Write;
use std::time::Duration;

use crate::debugger::{Debugger, remove};
use crate::subject::Subject;
use crate::symbols::number;

const HELP: &str = "\
cr3 [VALUE]           read memory by these page tables; without VALUE by those in use
symbol NAME           the address of a symbol (doppel debug --symbols), or names like it
name ADDR             the symbol at an address
break NAME|ADDR       stop there; `unbreak` with the same removes it (break *ADDR of gdb does too)
";

/// How long gdb is kept waiting without a word.
pub(crate) const PATIENCE: Duration = Duration::from_millis(800);
/// Symbols that are named when none is meant for sure.
const SYMBOLS_SHOWN: usize = 20;

/// Does a command; what to print.
///
/// gdb waits two seconds for an answer, so `tick` is called on long journeys and has to print.
pub(crate) fn answer<S: Subject>(
    debugger: &mut Debugger<S>,
    command: &str,
    tick: &mut dyn FnMut(),
) -> Result<String, S::Error> {
    let words: Vec<&str> = command.split_whitespace().collect();
    Ok(match words[..] {
        ["symbol", name] => symbol(debugger, name),
        ["name", address] => match number(address) {
            Some(address) => format!("{}\n", debugger.name(address)),
            None => format!("{address}: write an address as 0xffffffff81000000\n"),
        },
        ["break", place] => set_break(debugger, place, true),
        ["unbreak", place] => set_break(debugger, place, false),
        ["cr3"] => {
            debugger.cr3 = None;
            "memory is read by the page tables in use\n".into()
        }
        ["cr3", value] => match number(value) {
            Some(cr3) => {
                debugger.cr3 = Some(cr3);
                format!("memory is read by the page tables at {cr3:#x}\n")
            }
            None => format!("{value}: write an address as 0x1234000\n"),
        },
        _ => {
            let said = debugger.subject.monitor(&debugger.symbols, &words, tick)?;
            said.unwrap_or_else(|| format!("{}{HELP}", S::HELP))
        }
    })
}

fn symbol<S>(debugger: &Debugger<S>, name: &str) -> String {
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

fn set_break<S>(debugger: &mut Debugger<S>, place: &str, on: bool) -> String {
    let address = match debugger.symbols.address(place) {
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
