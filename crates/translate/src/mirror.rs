//! Guest registers that are kept in words, held in scratch registers for as long as nothing else
//! needs those: loaded once, and stored when their place is taken or the block is left. Whose place
//! is taken is told by who is read last; the budget in RSI takes part in that.

use smallvec::SmallVec;

use crate::assembler::Op;
use crate::block::{Emitter, Unsupported};
use crate::classify::Class;
use crate::layout::{self, Budget, Flags, HOME, Home, SPILLED_COUNT, SPILLED_GUESTS, host};
use crate::plan::Planned;

/// The scratch registers, in the order in which they are taken.
const SCRATCH: [u8; 3] = [host::RAX, host::RSI, host::RDI];
/// Where RAX, RSI and RDI are after a hardware exception.
const SAVED: [i32; 3] = [layout::FAULT_RAX, layout::EXIT_INDEX, layout::EXIT_ADDRESS];

/// Scratch registers that an instruction uses.
pub(crate) type Taken = SmallVec<[u8; 4]>;

pub(crate) fn is_scratch(register: u8) -> bool {
    SCRATCH.contains(&register)
}

/// When somebody reads them: for each guest register that is kept in a word, the index of an
/// instruction, or [`NEVER`].
pub(crate) type Reads = [u8; SPILLED_COUNT];

/// Nobody does in this block.
const NEVER: u8 = 255;
/// The budget is wanted back at the block's end.
const AT_END: u8 = 254;
/// A block with fewer reads of words leaves the budget where it is.
const MANY: usize = 6;

/// The guest registers that are kept in words, a bit for each.
const WORDS: u16 = {
    let (mut bits, mut index) = (0, 0);
    while index < SPILLED_COUNT {
        bits |= 1 << SPILLED_GUESTS[index];
        index += 1;
    }
    bits
};

/// Notes in each instruction who reads words next.
pub(crate) fn find_needs(insns: &mut [Planned]) {
    let mut next = [NEVER; SPILLED_COUNT];
    for (index, planned) in insns.iter_mut().enumerate().rev() {
        // The fall-back engine reads the words themselves.
        if planned.effects.read & WORDS != 0 && planned.class != Class::Step {
            for (next, guest) in next.iter_mut().zip(SPILLED_GUESTS) {
                if planned.effects.read & 1 << guest != 0 {
                    *next = index as u8;
                }
            }
        }
        planned.reads = next;
    }
}

/// What is known of a block's words where an instruction is emitted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Needs {
    /// Nothing if this is `None`.
    known: Option<Reads>,
    /// After this instruction.
    later: Reads,
    /// The budget's: it stays where it is if there are few others.
    budget: u8,
}

impl Needs {
    /// At instruction `index`, if they are `known`.
    pub(crate) fn at(insns: &[Planned], index: usize, known: bool, many: bool) -> Needs {
        let reads = |index: usize| insns.get(index).map_or([NEVER; SPILLED_COUNT], |it| it.reads);
        let known = known.then(|| reads(index));
        let budget = if many { AT_END } else { (index + 1) as u8 };
        Needs { known, later: reads(index + 1), budget }
    }
}

/// Whether a block reads words often enough for the budget to make room for them.
pub(crate) fn are_many(insns: &[Planned]) -> bool {
    let reads = insns.iter().map(|it| it.effects.read & WORDS).filter(|reads| *reads != 0);
    reads.map(|reads| reads.count_ones() as usize).sum::<usize>() >= MANY
}

/// A word whose value a scratch register holds. There are many copies of these.
#[derive(Clone, Copy, Debug)]
struct Mirror {
    /// Its number.
    number: u8,
    /// The word itself is not right yet.
    dirty: bool,
}

/// What the scratch registers hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mirrors {
    held: [Option<Mirror>; 3],
}

/// Words that are not right, by the scratch register that holds what they should: their numbers, or
/// 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held([u8; 3]);

impl Held {
    /// Where each is after a hardware exception, and which guest register it is.
    pub(crate) fn registers(self) -> impl Iterator<Item = (i32, usize)> {
        let dirty = SAVED.into_iter().zip(self.0).filter(|(_, number)| *number != 0);
        dirty.map(|(saved, number)| (saved, SPILLED_GUESTS[layout::spilled(i32::from(number) * 8)]))
    }
}

/// Its number in `SCRATCH`.
fn index(scratch: u8) -> usize {
    match scratch {
        host::RAX => 0,
        host::RSI => 1,
        _ => 2,
    }
}

impl Mirror {
    fn word(self) -> i32 {
        layout::word(self.number.into())
    }
}

impl Mirrors {
    fn of(&mut self, scratch: u8) -> &mut Option<Mirror> {
        &mut self.held[index(scratch)]
    }

    /// The scratch register that holds a word's value.
    pub(crate) fn find(&self, word: i32) -> Option<u8> {
        let holds = |scratch: &u8| self.held[index(*scratch)].is_some_and(|it| it.word() == word);
        SCRATCH.into_iter().find(holds)
    }

    /// Whether no register holds one.
    fn are_unused(&self) -> bool {
        self.held.iter().all(Option::is_none)
    }

    /// Those whose words are not right.
    pub(crate) fn held(&self) -> Held {
        if self.are_unused() {
            return Held::default();
        }
        let number = |mirror: Mirror| if mirror.dirty { mirror.number } else { 0 };
        Held(self.held.map(|mirror| mirror.map_or(0, number)))
    }

    /// Whether the register holds no word's value.
    fn is_free(&self, scratch: u8) -> bool {
        self.held[index(scratch)].is_none()
    }
}

impl Emitter<'_> {
    /// Makes all words right; registers go on holding them. Keeps flags.
    pub(crate) fn store_mirrors(&mut self) {
        if self.mirrors.are_unused() {
            return;
        }
        for scratch in SCRATCH {
            if let Some(mirror) = self.mirrors.of(scratch)
                && std::mem::take(&mut mirror.dirty)
            {
                let word = mirror.word();
                self.code.op_word(Op::Store, scratch, word);
            }
        }
    }

    /// Makes all words right; no register holds one. Keeps flags.
    pub(crate) fn drop_mirrors(&mut self) {
        self.store_mirrors();
        self.mirrors = Mirrors::default();
    }

    /// Makes all words right and RSI and RDI free. Keeps flags.
    pub(crate) fn end_mirrors(&mut self) {
        self.drop_mirrors();
        self.spill_budget();
    }

    /// Makes a scratch register free for something else than a group's address. Keeps flags.
    pub(crate) fn free(&mut self, scratch: u8) {
        if let Some(mirror @ Mirror { dirty: true, .. }) = self.mirrors.of(scratch).take() {
            self.code.op_word(Op::Store, scratch, mirror.word());
        }
        if scratch == host::RSI {
            self.spill_budget();
        }
    }

    /// Whether RAX is one of them: in code whose accesses move no flags to AX, while none are
    /// there.
    fn has_rax(&self) -> bool {
        self.direct && self.flags == Flags::Host
    }

    /// Those that there are.
    fn scratch(&self) -> impl DoubleEndedIterator<Item = u8> + Clone + use<> {
        SCRATCH.into_iter().skip(usize::from(!self.has_rax()))
    }

    /// Whether an instruction has a scratch register for each of so many guest registers kept in
    /// words.
    pub(crate) fn has_scratch_for(&self, words: usize, natural_rax: bool) -> bool {
        words + usize::from(natural_rax && self.has_rax()) <= self.scratch().count()
    }

    /// When what the register holds is read: the index of an instruction.
    fn needed(&self, scratch: u8) -> u8 {
        let counts = scratch == host::RSI && self.budget == Budget::Rsi;
        match self.mirrors.held[index(scratch)] {
            Some(mirror) => {
                self.needs.known.map_or(AT_END, |reads| reads[layout::spilled(mirror.word())])
            }
            None if counts => self.needs.budget,
            None if scratch == host::RDI && self.holds_group() => 0,
            None => NEVER,
        }
    }

    /// Whether the register holds nothing.
    fn is_unused(&self, scratch: u8) -> bool {
        self.mirrors.is_free(scratch) && self.needed(scratch) == NEVER
    }

    /// The greater, the better the register can be had: it holds nothing, or what is read last.
    fn spare(&self, scratch: u8) -> (bool, u8) {
        (self.is_unused(scratch), self.needed(scratch))
    }

    /// A scratch register, free for anything, not one of `taken`; there is one. Keeps flags.
    pub(crate) fn any_scratch(&mut self, taken: &[u8]) -> u8 {
        let others = self.scratch().filter(|other| !taken.contains(other));
        let scratch = others.max_by_key(|other| self.spare(*other));
        let scratch = scratch.expect("an address takes at most two");
        self.free(scratch);
        scratch
    }

    /// The scratch register that is used besides RDI.
    pub(crate) fn second(&self) -> u8 {
        if self.has_rax() { host::RAX } else { host::RSI }
    }

    /// A scratch register for a guest register kept at `home`, not one of `taken`: the one that
    /// holds it, or the one whose contents are wanted last.
    pub(crate) fn choose_scratch(&mut self, home: Home, taken: &[u8]) -> Result<u8, Unsupported> {
        if let Home::Word(word) = home
            && let Some(holder) = self.mirrors.find(word)
        {
            return Ok(holder);
        }
        let others = self.scratch().filter(|other| !taken.contains(other)).rev();
        let chosen = others.max_by_key(|other| self.spare(*other));
        let chosen = chosen.ok_or(Unsupported)?;
        self.free(chosen);
        Ok(chosen)
    }

    /// Guest register `guest` in a host register: a scratch register, which `taken` has then, if it
    /// is kept in a word.
    pub(crate) fn held_part(&mut self, guest: u8, taken: &mut Taken) -> Result<u8, Unsupported> {
        let home = HOME[usize::from(guest)];
        let word = match home {
            Home::Host(host) => return Ok(host),
            Home::Word(word) => word,
        };
        let held = self.mirrors.find(word).is_some();
        let scratch = self.choose_scratch(home, taken)?;
        if !held {
            self.code.op_word(Op::Load, scratch, word);
            self.note_loaded(scratch, guest);
        }
        taken.push(scratch);
        Ok(scratch)
    }

    /// Whether a word that an instruction could have as its memory operand had better be loaded: a
    /// scratch register holds nothing, or what is read later than the word.
    pub(crate) fn is_worth_holding(&self, word: i32) -> bool {
        let Some(_) = self.needs.known.filter(|_| self.has_rax()) else { return false };
        let later = self.needs.later[layout::spilled(word)];
        let mut others = self.scratch();
        others.any(|other| self.is_unused(other) || self.needed(other) > later)
    }

    /// A scratch register holds what the guest register will be from now on.
    pub(crate) fn defer_home(&mut self, scratch: u8, guest: u8) {
        self.note_mirror(scratch, guest, true);
    }

    /// A scratch register was loaded from a guest register.
    pub(crate) fn note_loaded(&mut self, scratch: u8, guest: u8) {
        self.note_mirror(scratch, guest, false);
    }

    fn note_mirror(&mut self, scratch: u8, guest: u8, dirty: bool) {
        if let Home::Word(word) = HOME[usize::from(guest)] {
            for held in &mut self.mirrors.held {
                *held = held.filter(|mirror| mirror.word() != word);
            }
            *self.mirrors.of(scratch) = Some(Mirror { number: (word / 8) as u8, dirty });
        }
    }
}
