//! A difference, for people.

use iced_x86::{Formatter, IntelFormatter};

use crate::compare::Difference;
use crate::{Case, Outcome, corpus};

/// The instruction in Intel's syntax.
pub fn disassembly(case: &Case) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(&case.instruction(), &mut text);
    text
}

/// Everything about a case that went wrong.
pub fn describe(case: &Case, host: &Outcome, difference: &Difference, name: &str) -> String {
    let mut text = format!(
        "{} ({}-bit): {:02x?}, {:?}\n",
        disassembly(case),
        case.bitness,
        case.bytes,
        case.instruction().code()
    );
    text += &format!("host fault: {:x?}\nhost against {name}:\n", host.fault);
    for line in &difference.lines {
        text += &format!("  {line}\n");
    }
    text + "state before:\n" + &corpus::encode(case)
}
