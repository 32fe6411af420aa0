//! Code that is not on the straight path, put behind the block: ways out of it.

use crate::assembler::{Form, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::control::Arrival;
use crate::layout::{self, Budget, Flags, host};
use crate::mirror::Mirrors;
use crate::site::{Site, Why};

/// Where flags, budget and guest registers are at a jump.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    flags: Flags,
    budget: Budget,
    mirrors: Mirrors,
}

/// One piece of it.
#[derive(Clone, Copy)]
pub(crate) enum Stub {
    /// Leaves by a site.
    Leave { jump: usize, site: Site, state: State },
    /// Branches to another page, `target` from this one's start, by what `site` tells of.
    Far { jump: usize, target: i32, state: State, site: Site, side: u8 },
    /// Leaves a block before its end, by a branch to `target` in the page; `left` others do not
    /// retire.
    Aside { jump: usize, target: u16, left: u8, state: State },
    /// Goes over to the careful block at `offset`, giving back what this one took of the budget.
    /// `begins` if that is where it begins.
    Careful { jump: usize, offset: u16, unretired: u8, begins: bool, state: State },
    /// Ends a run that need not be exact; otherwise goes back to `back` if the budget in RSI is
    /// above `least`, or over to the careful block at `offset`.
    Ending { jump: usize, back: usize, least: u32, offset: u16, state: State },
    /// By an indirect branch that the table of linear addresses does not know; `next` is where the
    /// instruction behind it is.
    Arrive { jump: usize, arrival: Arrival, resume: u32, site: Site, next: u16 },
    /// Loads the registers of a unit by a trampoline and comes back.
    Load { jump: usize, back: usize, trampoline: u32 },
}

impl Emitter<'_> {
    fn state(&self) -> State {
        State { flags: self.flags, budget: self.budget, mirrors: self.mirrors }
    }

    /// What is emitted next is reached with flags and budget there; makes all words right.
    fn set_state(&mut self, state: State) {
        (self.flags, self.budget, self.mirrors) = (state.flags, state.budget, state.mirrors);
        self.drop_mirrors();
    }

    /// A site at the instruction being emitted.
    pub(crate) fn site(&self, why: Why) -> Site {
        assert!(self.ahead == 0, "guest RSP is in its register where a block is left");
        let Emitter { offset, unretired, in_string, .. } = *self;
        Site { why, offset, unretired, in_string }
    }

    /// Leaves by a site when the jump at `jump` is taken.
    pub(crate) fn leave_if(&mut self, jump: usize, why: Why) {
        let (site, state) = (self.site(why), self.state());
        self.stubs.push(Stub::Leave { jump, site, state });
    }

    /// Leaves at the end of a block that ends in no branch.
    pub(crate) fn leave_here(&mut self, why: Why) {
        let jump = self.code.jump();
        self.leave_if(jump, why);
    }

    /// Goes over to the careful block at this instruction when the jump at `jump` is taken.
    pub(crate) fn careful_if(&mut self, jump: usize) {
        self.push_careful(jump, false);
    }

    /// The same where the budget does not last for the block.
    pub(crate) fn careful_at_start_if(&mut self, jump: usize) {
        self.push_careful(jump, true);
    }

    fn push_careful(&mut self, jump: usize, begins: bool) {
        let (offset, unretired, state) = (self.offset, self.unretired, self.state());
        self.stubs.push(Stub::Careful { jump, offset, unretired, begins, state });
    }

    /// Where few branches are left ([`Stub::Ending`]), when the jump at `jump` is taken.
    pub(crate) fn end_softly_if(&mut self, jump: usize, least: u32) {
        let (back, offset, state) = (self.code.here(), self.offset, self.state());
        self.stubs.push(Stub::Ending { jump, back, least, offset, state });
    }

    /// To `target` if `condition` holds, before the block's end.
    pub(crate) fn leave_aside(&mut self, condition: u8, target: i64) -> Emitted {
        let left = self.unretired - 1;
        if left == 0 {
            self.store_mirrors();
            return self.link(Some(condition), target);
        }
        let far = i32::try_from(target).map_err(|_| Unsupported)?;
        assert!(self.flags == Flags::Host);
        let jump = self.code.jump_if(condition);
        self.stubs.push(match u16::try_from(target) {
            Ok(target) if target < 4096 => Stub::Aside { jump, target, left, state: self.state() },
            _ => self.far(jump, far),
        });
        Ok(())
    }

    /// Continues at `target` from the page's start, if `condition` holds: by a jump that can be
    /// linked when that is in the page.
    pub(crate) fn link(&mut self, condition: Option<u8>, target: i64) -> Emitted {
        let far = i32::try_from(target).map_err(|_| Unsupported)?;
        let near = u16::try_from(target).ok().filter(|offset| *offset < 4096);
        if let Some(target) = near {
            if self.mode.direct && !self.direct && self.flags == Flags::Host {
                return self.link_saved(condition, target);
            }
            self.place_budget();
        }
        let jump = match condition {
            Some(condition) => self.code.jump_if(condition),
            None => self.code.jump(),
        };
        let (flags, state) = (self.flags, self.state());
        self.stubs.push(match near {
            Some(offset) => {
                let (patch, direct) = (self.outside(jump), self.mode.direct);
                let why = Why::Link { patch, stub: 0, flags, direct };
                let site = Site { why, offset, unretired: 0, in_string: false };
                Stub::Leave { jump, site, state }
            }
            None => self.far(jump, far),
        });
        Ok(())
    }

    /// The same from RFLAGS to the entry with flags in AX.
    fn link_saved(&mut self, condition: Option<u8>, target: u16) -> Emitted {
        let Some(condition) = condition else {
            self.keep_state();
            return self.link(None, i64::from(target));
        };
        let jump = self.code.jump_if(condition);
        self.stubs.push(Stub::Aside { jump, target, left: 0, state: self.state() });
        Ok(())
    }

    fn far(&self, jump: usize, target: i32) -> Stub {
        let (state, site, side) = (self.state(), self.site(Why::Goto), self.mode.side);
        Stub::Far { jump, target, state, site, side }
    }

    /// Stubs may have stubs.
    pub(crate) fn emit_stubs(&mut self) {
        self.mirrors = Mirrors::default();
        let mut done = 0;
        while let Some(&stub) = self.stubs.get(done) {
            self.emit_stub(stub);
            done += 1;
        }
    }

    fn emit_stub(&mut self, stub: Stub) {
        let here = self.code.here();
        match stub {
            Stub::Leave { jump, mut site, state } => {
                self.code.bind(jump, here);
                if let Why::Far { stub, .. } | Why::Link { stub, .. } | Why::Careful { stub, .. } =
                    &mut site.why
                {
                    *stub = self.outside(here);
                }
                self.set_state(state);
                self.redo_flags();
                let id = self.add_site(site);
                self.code.put(&[0x68]);
                self.code.put(&id.to_le_bytes());
                let at = self.code.jump();
                let exit = self.workshop.trampolines.exit_from(self.flags, self.budget);
                self.bind_outside(at, exit);
            }
            Stub::Far { jump, target, state, site, side } => {
                self.code.bind(jump, here);
                self.set_state(state);
                self.mode.side = side;
                self.offset = site.offset;
                self.keep_state();
                self.give_back(site.unretired.saturating_sub(1));
                self.unretired = site.unretired.min(1);
                self.go_far(target);
            }
            Stub::Aside { jump, target, left, state } => {
                self.code.bind(jump, here);
                self.set_state(state);
                if self.direct {
                    self.place_budget();
                    self.code.lea(host::RSI, host::RSI, i32::from(left));
                } else {
                    self.keep_state();
                    self.give_back(left);
                }
                self.link(None, i64::from(target)).expect("in the page");
            }
            Stub::Careful { jump, offset, unretired, begins, state } => {
                self.code.bind(jump, here);
                self.set_state(state);
                self.keep_state();
                self.give_back(unretired);
                let jump = self.code.jump();
                let why = Why::Careful { patch: self.outside(jump), stub: 0, begins };
                let site = Site { why, offset, unretired: 0, in_string: false };
                self.stubs.push(Stub::Leave { jump, site, state: self.state() });
            }
            Stub::Ending { jump, back, least, offset, state } => {
                self.code.bind(jump, here);
                self.set_state(state);
                self.code.is_zero(layout::SOFT);
                let exact = self.code.jump_if(condition::EQUAL);
                let jump = self.code.jump();
                let site = Site { why: Why::Ending, offset, unretired: 0, in_string: false };
                self.stubs.push(Stub::Leave { jump, site, state });
                let here = self.code.here();
                self.code.bind(exact, here);
                self.code.compare_rsi(least);
                let lasts = self.code.jump_if(condition::ABOVE);
                self.code.bind(lasts, back);
                let jump = self.code.jump();
                let begins = true;
                self.stubs.push(Stub::Careful { jump, offset, unretired: 0, begins, state });
            }
            Stub::Arrive { jump, arrival, resume, site, next } => {
                self.code.bind(jump, here);
                let (flags, budget) = (Flags::Saved, Budget::Word);
                self.set_state(State { flags, budget, mirrors: Mirrors::default() });
                (self.offset, self.next, self.unretired) = (site.offset, next, site.unretired);
                self.arrive_slowly(arrival, resume);
            }
            Stub::Load { jump, back, trampoline } => {
                self.code.bind(jump, here);
                self.code.put(&[0xe8, 0, 0, 0, 0]);
                let at = self.code.here() - 4;
                self.bind_outside(at, trampoline);
                let at = self.code.jump();
                self.code.bind(at, back);
            }
        }
    }

    /// Flags to AX and the budget to its word, as who leaves has them.
    pub(crate) fn keep_state(&mut self) {
        self.spill_budget();
        self.keep_flags();
    }

    /// Makes `branches` of the budget available again. Clobbers RFLAGS.
    fn give_back(&mut self, branches: u8) {
        assert!(self.flags == Flags::Saved && self.budget == Budget::Word);
        if branches != 0 {
            self.code.word_immediate(Form::Add, layout::BUDGET, branches as i8);
        }
    }
}
