//! Guest registers that are kept in words, held in RSI and RDI for as long as nothing else needs
//! those: loaded once, and stored when their place is taken or the block may leave.

use crate::assembler::Op;
use crate::block::{Emitter, Unsupported};
use crate::layout::{HOME, Home, host};

/// A word whose value a scratch register holds.
#[derive(Clone, Copy, Debug)]
struct Mirror {
    word: i32,
    /// The word itself is not right yet.
    dirty: bool,
}

/// What RSI and RDI hold.
#[derive(Default)]
pub(crate) struct Mirrors {
    rsi: Option<Mirror>,
    rdi: Option<Mirror>,
}

impl Mirrors {
    fn of(&mut self, scratch: u8) -> &mut Option<Mirror> {
        if scratch == host::RSI { &mut self.rsi } else { &mut self.rdi }
    }

    /// The scratch register that holds a word's value.
    pub(crate) fn find(&self, word: i32) -> Option<u8> {
        let holds = |mirror: &Option<Mirror>| mirror.is_some_and(|mirror| mirror.word == word);
        if holds(&self.rsi) { Some(host::RSI) } else { holds(&self.rdi).then_some(host::RDI) }
    }

    /// Whether the register holds no word's value.
    fn is_free(&self, scratch: u8) -> bool {
        if scratch == host::RSI { self.rsi.is_none() } else { self.rdi.is_none() }
    }
}

impl Emitter<'_> {
    /// Makes all words right; registers go on holding them. Keeps flags.
    pub(crate) fn store_mirrors(&mut self) {
        for scratch in [host::RSI, host::RDI] {
            if let Some(mirror) = self.mirrors.of(scratch)
                && std::mem::take(&mut mirror.dirty)
            {
                let word = mirror.word;
                self.code.op_word(Op::Store, scratch, word);
            }
        }
    }

    /// Makes all words right and RSI and RDI free.
    pub(crate) fn end_mirrors(&mut self) {
        self.store_mirrors();
        self.mirrors = Mirrors::default();
    }

    /// Makes a scratch register free for something else than a group's address. Keeps flags.
    pub(crate) fn free(&mut self, scratch: u8) {
        if let Some(Mirror { word, dirty: true }) = self.mirrors.of(scratch).take() {
            self.code.op_word(Op::Store, scratch, word);
        }
    }

    /// A scratch register, free for anything; one that holds nothing if there is one. Keeps flags.
    pub(crate) fn any_scratch(&mut self) -> u8 {
        let scratch = if self.mirrors.is_free(host::RDI) { host::RDI } else { host::RSI };
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
        let others = [host::RSI, host::RDI].into_iter().filter(|other| !taken.contains(other));
        let free = |scratch: &u8| {
            self.mirrors.is_free(*scratch) && (*scratch != host::RDI || !self.holds_group())
        };
        let chosen = others.clone().find(free).or(others.clone().next()).ok_or(Unsupported)?;
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
            let other = if scratch == host::RSI { host::RDI } else { host::RSI };
            let other = self.mirrors.of(other);
            *other = other.filter(|mirror| mirror.word != word);
            *self.mirrors.of(scratch) = Some(Mirror { word, dirty });
        }
    }
}
