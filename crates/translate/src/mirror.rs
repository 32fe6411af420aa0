//! Guest registers that are kept in words, held in scratch registers for as long as nothing else
//! needs those: loaded once, and stored when their place is taken or the block may leave.

use crate::assembler::Op;
use crate::block::{Emitter, Unsupported};
use crate::layout::{Budget, Flags, HOME, Home, host};

/// The scratch registers, in the order in which they are taken.
const SCRATCH: [u8; 3] = [host::RAX, host::RSI, host::RDI];

/// A word whose value a scratch register holds.
#[derive(Clone, Copy, Debug)]
struct Mirror {
    word: i32,
    /// The word itself is not right yet.
    dirty: bool,
}

/// What the scratch registers hold.
#[derive(Default)]
pub(crate) struct Mirrors {
    held: [Option<Mirror>; 3],
}

/// Its number in `SCRATCH`.
fn index(scratch: u8) -> usize {
    match scratch {
        host::RAX => 0,
        host::RSI => 1,
        _ => 2,
    }
}

impl Mirrors {
    fn of(&mut self, scratch: u8) -> &mut Option<Mirror> {
        &mut self.held[index(scratch)]
    }

    /// The scratch register that holds a word's value.
    pub(crate) fn find(&self, word: i32) -> Option<u8> {
        let holds = |scratch: &u8| self.held[index(*scratch)].is_some_and(|it| it.word == word);
        SCRATCH.into_iter().find(holds)
    }

    /// Whether the register holds no word's value.
    fn is_free(&self, scratch: u8) -> bool {
        self.held[index(scratch)].is_none()
    }
}

impl Emitter<'_> {
    /// Makes all words right; registers go on holding them. Keeps flags.
    pub(crate) fn store_mirrors(&mut self) {
        for scratch in SCRATCH {
            if let Some(mirror) = self.mirrors.of(scratch)
                && std::mem::take(&mut mirror.dirty)
            {
                let word = mirror.word;
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
        if let Some(Mirror { word, dirty: true }) = self.mirrors.of(scratch).take() {
            self.code.op_word(Op::Store, scratch, word);
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
    fn scratch(&self) -> impl Iterator<Item = u8> + Clone + use<> {
        SCRATCH.into_iter().skip(usize::from(!self.has_rax()))
    }

    /// Whether the register holds nothing.
    fn is_unused(&self, scratch: u8) -> bool {
        let counts = scratch == host::RSI && self.budget == Budget::Rsi;
        let leads = scratch == host::RDI && self.holds_group();
        self.mirrors.is_free(scratch) && !counts && !leads
    }

    /// A scratch register, free for anything; one that holds nothing if there is one. Keeps flags.
    pub(crate) fn any_scratch(&mut self) -> u8 {
        let unused = self.scratch().filter(|scratch| self.is_unused(*scratch)).last();
        let scratch = unused.unwrap_or(host::RDI);
        self.free(scratch);
        scratch
    }

    /// The scratch register that is used besides RDI.
    pub(crate) fn second(&self) -> u8 {
        if self.has_rax() { host::RAX } else { host::RSI }
    }

    /// The same, free for anything. Keeps flags.
    pub(crate) fn second_scratch(&mut self) -> u8 {
        let scratch = self.second();
        self.free(scratch);
        scratch
    }

    /// A scratch register for a guest register kept at `home`, not one of `taken`: the one that
    /// holds it, or one that holds nothing, or any.
    pub(crate) fn choose_scratch(&mut self, home: Home, taken: &[u8]) -> Result<u8, Unsupported> {
        if let Home::Word(word) = home
            && let Some(holder) = self.mirrors.find(word)
        {
            return if taken.contains(&holder) { Err(Unsupported) } else { Ok(holder) };
        }
        let others = self.scratch().filter(|other| !taken.contains(other));
        let mut unused = others.clone().filter(|scratch| self.is_unused(*scratch));
        let mut worded = others.clone().filter(|scratch| !self.mirrors.is_free(*scratch));
        let chosen = unused.next().or_else(|| worded.next()).or_else(|| others.clone().next());
        let chosen = chosen.ok_or(Unsupported)?;
        self.free(chosen);
        Ok(chosen)
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
                *held = held.filter(|mirror| mirror.word != word);
            }
            *self.mirrors.of(scratch) = Some(Mirror { word, dirty });
        }
    }
}
