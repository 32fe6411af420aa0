//! The start of a block: its entries, and whether the budget lasts for it.
//!
//! ```text
//! from RFLAGS: lahf; seto al                  from AX: mov rsi, budget · add al, 7fh; sahf
//! from AX:     sub budget, n; jb out          from RFLAGS: lea rsi, [rsi - n]
//!                                                 shrx rdi, rsi, rsp · movzx edi, [rsp + rdi + ..]
//! ```
//! On the right, in code whose accesses go by the host's page tables, flags and budget stay in
//! registers: a budget below 0, shifted, is no address, and the load faults. Blocks that jumps of
//! their page came to first begin so. Others of such code, and those that have to look at words,
//! begin as on the left, behind a store of RSI for who comes from RFLAGS. Who comes from AX has the
//! stack pointer checked, on which that code relies ([`crate::group::find_near`]), unless it comes
//! from such code ([`STACK_CHECK`]).

use memory::VISIT_SIZE;
use types::PAGE_SIZE;

use crate::assembler::{Form, Op, condition};
use crate::block::Emitter;
use crate::classify::{Class, Unit};
use crate::layout::{self, Budget, Flags, host};
use crate::plan::{End, Plan, Source};
use crate::site::{Faults, Why};
use crate::stub::Stub;
use crate::trampoline::Trampolines;

/// A run that need not be exact may end before its last branches, so many...
pub(crate) const SOFT_MARGIN: u32 = 3_000;
/// ...if it is longer than this.
pub(crate) const SOFT_RUN: u64 = 2 * SOFT_MARGIN as u64;

/// How blocks begin whose accesses go by the host's page tables, and no other code: with the check
/// of the stack pointer. Who comes from such a block to that entry had it checked, and enters
/// behind it.
pub(crate) const STACK_CHECK: [u8; 4] = [0xc4, 0xc2, 0xdb, 0xf7]; // shrx .., r11, rsp
/// Bytes of the check.
pub(crate) const STACK_CHECK_SIZE: u8 = 13;

/// Offsets of a block's entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entries {
    /// The one with flags in AX.
    pub(crate) saved: u32,
    /// The one with flags in RFLAGS.
    pub(crate) host: u32,
}

impl Emitter<'_> {
    pub(crate) fn prologue(&mut self, plan: &Plan, from_flags: bool) {
        let units =
            |unit| plan.insns.iter().any(|planned| planned.class == Class::Compute { unit });
        let (vectors, x87) = (units(Unit::Vectors), units(Unit::X87));
        let words = vectors || x87 || self.workshop.options.count_instructions;
        if self.direct && (from_flags || plan.loops()) && !words {
            return self.begin_in_registers(plan);
        }
        self.begin_in_words(plan);
        if self.workshop.options.count_instructions {
            let counted = |planned: &&crate::plan::Planned| planned.class != Class::Step;
            let count = plan.insns.iter().filter(counted).count();
            self.code.word_immediate(Form::Add, layout::INSTRUCTIONS, count.min(127) as i8);
        }
        let Trampolines { vectors: load_vectors, x87: load_x87, .. } = self.workshop.trampolines;
        for (used, word, trampoline) in
            [(vectors, layout::VECTORS, load_vectors), (x87, layout::X87, load_x87)]
        {
            if !used {
                continue;
            }
            self.code.is_zero(word);
            let jump = self.code.jump_if(condition::EQUAL);
            let back = self.code.here();
            self.stubs.push(Stub::Load { jump, back, trampoline });
        }
    }

    fn begin_in_words(&mut self, plan: &Plan) {
        self.entries.host = 0;
        if self.mode.direct {
            self.code.op_word(Op::Store, host::RSI, layout::BUDGET);
        }
        self.code.save_flags();
        self.entries.saved = self.code.here() as u32;
        if self.direct {
            self.check_stack_on_entry();
        }
        let (form, jump) = match (self.unretired, plan.end) {
            (0, _) => (Form::Cmp, condition::EQUAL),
            (_, End::Branch) => (Form::Sub, condition::BELOW),
            // Nothing may follow the last branch of the budget.
            _ => (Form::Sub, condition::BELOW_OR_EQUAL),
        };
        self.code.word_immediate(form, layout::BUDGET, self.unretired as i8);
        let jump = self.code.jump_if(jump);
        if plan.insns.iter().any(|planned| planned.inside) {
            self.careful_at_start_if(jump);
        } else {
            self.leave_if(jump, Why::Budget);
        }
    }

    fn begin_in_registers(&mut self, plan: &Plan) {
        self.entries.saved = 0;
        self.check_stack_on_entry();
        self.code.op_word(Op::Load, host::RSI, layout::BUDGET);
        self.compare_budget();
        // The budget lasts, so nobody asks for flags that the block replaces first.
        if plan.insns.first().is_none_or(|first| first.flags_before) {
            self.code.restore_flags();
        }
        self.entries.host = self.code.here() as u32;
        (self.flags, self.budget) = (Flags::Host, Budget::Rsi);
        self.code.lea(host::RSI, host::RSI, -i32::from(self.unretired));
        let mut least = host::RSI;
        if self.unretired == 0 || plan.end != End::Branch {
            least = host::RDI;
            self.code.lea(host::RDI, host::RSI, -1);
        }
        self.shift_by_words(host::RDI, least);
        let start = self.place();
        self.load_byte(host::RDI, layout::BUDGET_BYTES);
        self.note_fault(start, Faults::Budget);
    }

    /// Where few branches of the run are left, by the budget in RSI: ends it if it need not be
    /// exact; goes over to the careful block if the budget hardly lasts. A fault for it takes as
    /// long as some hundred branches of careful blocks.
    fn compare_budget(&mut self) {
        let branches = std::mem::take(&mut self.unretired);
        let least = u32::from(branches) + u32::from(self.workshop.options.margin);
        self.code.compare_rsi(least.max(SOFT_MARGIN));
        let jump = self.code.jump_if(condition::BELOW_OR_EQUAL);
        self.end_softly_if(jump, least);
        self.unretired = branches;
    }

    /// The block ends without a branch.
    pub(crate) fn note_fall(&mut self) {
        let held = match self.budget {
            Budget::Rsi => host::RSI,
            Budget::Word => {
                self.free(host::RDI);
                self.code.op_word(Op::Load, host::RDI, layout::BUDGET);
                host::RDI
            }
        };
        self.code.op_word(Op::Store, held, layout::NOT_BEHIND);
    }

    /// Before the block's branches were taken off the budget.
    fn check_stack_on_entry(&mut self) {
        let branches = std::mem::take(&mut self.unretired);
        let start = self.code.here();
        self.check_stack_pointer(Faults::Check);
        let check = &self.code.bytes()[start..];
        assert!(check.starts_with(&STACK_CHECK) && check.len() == usize::from(STACK_CHECK_SIZE));
        self.unretired = branches;
    }

    /// `shrx to, from, rsp`: the words' address ends in the number of bits.
    pub(crate) fn shift_by_words(&mut self, to: u8, from: u8) {
        self.code.put(&[0xc4, 0xe2 ^ ((from >> 3) << 5), 0xdb, 0xf7]);
        self.code.put(&[0xc0 | to << 3 | (from & 7)]);
    }

    /// `movzx register, byte [rsp + register + displacement]`.
    pub(crate) fn load_byte(&mut self, register: u8, displacement: i32) {
        self.code.put(&[0x0f, 0xb6, 0x84 | register << 3, 0x04 | register << 3]);
        self.code.put(&displacement.to_le_bytes());
    }

    /// Marks the block's code as executed, where that is asked for.
    pub(crate) fn mark(&mut self, plan: &Plan, source: &Source<'_>) {
        let Some(marks) = source.marks else { return };
        self.code.constant(host::RDI, marks);
        for &(first, end) in &plan.extents {
            let end = u64::from(end).min(PAGE_SIZE).div_ceil(VISIT_SIZE) as i32;
            let mut mark = i32::from(first) / VISIT_SIZE as i32;
            while mark < end {
                let size = [8, 4, 2, 1].into_iter().find(|size| mark + size <= end).unwrap_or(1);
                self.code.fill_ones(mark, size as usize);
                mark += size;
            }
        }
    }

    /// The budget to its word, if it is in RSI. Keeps flags.
    pub(crate) fn spill_budget(&mut self) {
        if self.budget == Budget::Rsi {
            self.code.op_word(Op::Store, host::RSI, layout::BUDGET);
            self.budget = Budget::Word;
        }
    }

    /// The budget to RSI. Keeps flags.
    fn hold_budget(&mut self) {
        if self.budget == Budget::Word {
            self.free(host::RSI);
            self.code.op_word(Op::Load, host::RSI, layout::BUDGET);
            self.budget = Budget::Rsi;
        }
    }

    /// Puts the budget where a block of the page expects it that is entered with flags where they
    /// are. Keeps flags.
    pub(crate) fn place_budget(&mut self) {
        if self.direct && self.flags == Flags::Host {
            self.hold_budget();
        } else {
            self.spill_budget();
        }
    }
}
