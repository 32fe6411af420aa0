//! Two replays of one recording side by side, to find the first instruction after which they are
//! not the same: an engine's defect is there.

use replay::ReplayError;

use crate::travel::{Halt, Position, Travel, TravelError};

/// Branches between two looks while nothing differs.
const STRETCH_BRANCHES: u64 = 20_000_000;
/// Instructions looked at one by one: between two branches there are not more.
const STEPS_MAX: u32 = 1 << 20;

/// Where two replays part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where the instruction is after which they are not the same.
    pub at: Position,
    /// What of the machine differs, or what one of them failed with.
    pub what: String,
}

/// The first difference between two replays that stand at the beginning of the same recording;
/// `tick` is called now and then.
///
/// # Errors
/// When one cannot be gone back with; one that leaves the recording differs.
pub fn first_difference(
    one: &mut Travel,
    other: &mut Travel,
    tick: &mut dyn FnMut(),
) -> Result<Option<Difference>, TravelError> {
    let mut low = 0;
    let high = loop {
        tick();
        let next = low + STRETCH_BRANCHES;
        match look(one, other, next)? {
            Look::Differ => break next,
            Look::AtEnd => return Ok(None),
            Look::Same => low = next,
        }
    };
    let mut high = high;
    while high - low > 1 {
        tick();
        let middle = low + (high - low) / 2;
        match look(one, other, middle)? {
            Look::Differ => high = middle,
            Look::Same | Look::AtEnd => low = middle,
        }
    }
    if low == 0 {
        one.go_to_start()?;
        other.go_to_start()?;
    } else {
        one.go_to_branch(low)?;
        other.go_to_branch(low)?;
    }
    walk(one, other).map(Some)
}

/// What two replays are to each other at one branch count.
enum Look {
    Same,
    Differ,
    /// Both are at the end, and the same.
    AtEnd,
}

fn look(one: &mut Travel, other: &mut Travel, branches: u64) -> Result<Look, TravelError> {
    let halts = [there(one.go_to_branch(branches))?, there(other.go_to_branch(branches))?];
    Ok(match halts {
        [Ok(a), Ok(b)] => match compare(one, other) {
            Some(_) => Look::Differ,
            None if (a, b) == (Halt::End, Halt::End) => Look::AtEnd,
            None => Look::Same,
        },
        _ => Look::Differ,
    })
}

/// A journey, or why the machine left its recording on it.
fn there(halt: Result<Halt, TravelError>) -> Result<Result<Halt, String>, TravelError> {
    match halt {
        Err(TravelError::Replay(ReplayError::Divergence(why))) => Ok(Err(why.to_string())),
        halt => halt.map(Ok),
    }
}

fn compare(one: &mut Travel, other: &mut Travel) -> Option<String> {
    if one.position() != other.position() {
        return Some("the point".to_owned());
    }
    let (these, those) = (one.section_hashes(), other.section_hashes());
    let differs = these.iter().zip(&those).find(|(this, that)| this != that);
    differs.map(|((name, _), _)| name.clone())
}

/// From a point where they are the same, instruction by instruction.
fn walk(one: &mut Travel, other: &mut Travel) -> Result<Difference, TravelError> {
    for _ in 0..STEPS_MAX {
        let at = one.position();
        let halts = [there(one.step())?, there(other.step())?];
        if let [Err(what), _] | [_, Err(what)] = halts {
            return Ok(Difference { at, what });
        }
        if let Some(what) = compare(one, other) {
            return Ok(Difference { at, what });
        }
    }
    Err(TravelError::NoSuchPoint)
}
