//! Addresses of memory operands and their lookup in the TLB.
//!
//! ```text
//! lea rdi, [operand] · esi = TLB index · xor rdi, tag · cmp rdi, 4096 - size · ja miss
//! add rdi, page      → rdi is the host address
//! ```
//! A tag that matches leaves the offset in the page; anything else, and an access that crosses
//! the page's end, is above the limit.

use cpu::{Access, tlb};
use iced_x86::{Instruction, Register};

use crate::assembler::{Op, condition};
use crate::block::{Emitted, Emitter, Unsupported};
use crate::direct::{Operand, Uses};
use crate::group::Address;
use crate::layout::{self, Flags, HOME, Home, host};
use crate::operands::number;
use crate::plan::Planned;
use crate::site::Why;

/// Guest register `guest` as part of an address: in a host register, a word loaded into `scratch`.
fn part(emitter: &mut Emitter<'_>, guest: u8, scratch: u8) -> u8 {
    match HOME[usize::from(guest)] {
        Home::Host(host) => host,
        Home::Word(word) => emitter.mirrors.find(word).unwrap_or_else(|| {
            emitter.free(scratch);
            emitter.code.op_word(Op::Load, scratch, word);
            scratch
        }),
    }
}

fn displacement(value: u64) -> Result<i32, Unsupported> {
    i32::try_from(value as i64).map_err(|_| Unsupported)
}

impl Emitter<'_> {
    /// Offset of the memory operand to `to`, which may be RDI; uses RDI and RSI, keeps flags.
    pub(crate) fn operand_offset(&mut self, instruction: &Instruction, to: u8) -> Emitted {
        let disp = instruction.memory_displacement64();
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base == Register::EIP || index.is_vector_register() {
            return Err(Unsupported);
        }
        if base == Register::RIP {
            let disp = displacement(disp)?;
            self.free(host::RDI);
            self.code.op_word(Op::Load, host::RDI, layout::PAGE);
            self.code.lea(to, host::RDI, disp);
            return Ok(());
        }
        if base == Register::None && index == Register::None {
            self.code.constant(to, disp);
            return Ok(());
        }
        let narrow = base.is_gpr32() || index.is_gpr32();
        let disp = displacement(if narrow { disp as i32 as u64 } else { disp })?;
        let scale = instruction.memory_index_scale() as u8;
        let base = (base != Register::None).then(|| part(self, number(base), host::RDI));
        if index == Register::None {
            self.code.lea(to, base.ok_or(Unsupported)?, disp);
        } else {
            // RDI may lead to a group where accesses are looked up.
            let first = base != Some(host::RDI) && (self.direct || base == Some(host::RSI));
            let scratch = if first { host::RDI } else { self.second() };
            let index = part(self, number(index), scratch);
            self.code.lea_scaled(to, base, (index, scale), disp);
        }
        if narrow {
            self.truncate(to);
        }
        Ok(())
    }

    /// `mov r32, r32` to itself: zeroes the upper half.
    fn truncate(&mut self, register: u8) {
        if register >= 8 {
            self.code.put(&[0x45]);
        }
        self.code.put(&[0x89, 0xc0 | ((register & 7) << 3) | (register & 7)]);
    }

    /// LEA.
    pub(crate) fn load_address(&mut self, instruction: &Instruction) -> Emitted {
        let target = instruction.op0_register();
        if target.size() < 4 || instruction.memory_base() == Register::EIP {
            return Err(Unsupported);
        }
        let guest = number(target);
        if self.direct
            && let Some(operand) = self.renamed(instruction, Uses { words: 1, ..Uses::default() })
        {
            return self.load_renamed(operand, guest, target.size());
        }
        let base = instruction.memory_base();
        let base_in_host = base == Register::None
            || (base.is_gpr() && matches!(HOME[usize::from(number(base))], Home::Host(_)));
        let to = match HOME[usize::from(guest)] {
            Home::Host(host) => host,
            Home::Word(_) => {
                self.free(host::RDI);
                host::RDI
            }
        };
        if base_in_host && to != host::RDI {
            self.kept_rdi();
        }
        self.operand_offset(instruction, to)?;
        if target.size() == 4 {
            self.truncate(to);
        }
        self.defer_home(to, guest);
        Ok(())
    }

    /// LEA of an operand in host registers.
    fn load_renamed(&mut self, operand: Operand, guest: u8, size: usize) -> Emitted {
        let to = match HOME[usize::from(guest)] {
            Home::Host(host) => host,
            home @ Home::Word(_) => self.choose_scratch(home, &operand.scratch())?,
        };
        let Operand { base, index, displacement } = operand;
        match index {
            None => self.code.lea(to, base, displacement),
            Some(index) => self.code.lea_scaled(to, Some(base), index, displacement),
        }
        if size == 4 {
            self.truncate(to);
        }
        self.defer_home(to, guest);
        Ok(())
    }

    /// The memory operand's host address is RDI and what is returned, after its lookup, for which
    /// flags are moved to AX, or by its group.
    pub(crate) fn operand(
        &mut self,
        planned: &Planned,
        access: Access,
    ) -> Result<i32, Unsupported> {
        if let Some(member) = planned.operand {
            return Ok(self.member(member));
        }
        let instruction = &planned.instruction;
        let size = instruction.memory_size().size() as u16;
        let resume = self.resume_place();
        self.operand_offset(instruction, host::RDI)?;
        self.add_segment_base(instruction);
        self.lookup(access, size, resume)?;
        Ok(0)
    }

    /// A group's linear address to RDI; keeps flags.
    pub(crate) fn group_address(&mut self, address: &Address) {
        let base = match address.base {
            Some(base) => part(self, base, host::RDI),
            None => {
                self.code.op_word(Op::Load, host::RDI, layout::PAGE);
                host::RDI
            }
        };
        match address.index {
            Some((index, scale)) => {
                let index = part(self, index, host::RSI);
                let displacement = address.displacement;
                self.code.lea_scaled(host::RDI, Some(base), (index, scale), displacement);
            }
            None => self.code.lea(host::RDI, base, address.displacement),
        }
    }

    /// From offset to linear address in RDI. Clobbers RFLAGS.
    pub(crate) fn add_segment_base(&mut self, instruction: &Instruction) {
        match instruction.memory_segment() {
            Register::FS => self.code.op_word(Op::Add, host::RDI, layout::FS_BASE),
            Register::GS => self.code.op_word(Op::Add, host::RDI, layout::GS_BASE),
            _ => {}
        }
    }

    /// RDI from linear to host address, or out by a site that comes back to `resume`. Clobbers RSI
    /// and RFLAGS.
    pub(crate) fn lookup(&mut self, access: Access, size: u16, resume: u32) -> Emitted {
        if self.workshop.options.always_slow || size == 0 || size > 64 {
            return Err(Unsupported);
        }
        self.check(access, size, resume);
        self.add_page();
        Ok(())
    }

    /// The lookup without its last step: RDI is the offset in the page, RSI the entry's.
    pub(crate) fn check(&mut self, access: Access, size: u16, resume: u32) {
        let jump = self.compare_tag(access, size);
        self.leave_if(jump, Why::Miss { access, size, resume });
    }

    /// RDI from linear address to offset in the page, RSI the entry's; where the displacement of
    /// the jump is for what is not all in a cached page.
    pub(crate) fn compare_tag(&mut self, access: Access, size: u16) -> usize {
        assert!(self.flags != Flags::Host);
        let shift = 12 - tlb::layout::ENTRY_SIZE.trailing_zeros() as u8;
        let mask = ((tlb::layout::ENTRIES_COUNT - 1) * tlb::layout::ENTRY_SIZE) as u32;
        if self.workshop.rotates {
            self.code.put(&[0xc4, 0xe3, 0x7b, 0xf0, 0xf7, shift]); // rorx esi, edi, shift
        } else {
            self.code.put(&[0x89, 0xfe, 0xc1, 0xee, shift]); // mov esi, edi; shr esi, shift
        }
        self.code.put(&[0x81, 0xe6]); // and esi, mask
        self.code.put(&mask.to_le_bytes());
        let tag = match access {
            Access::Read => tlb::layout::READ,
            Access::Write => tlb::layout::WRITE,
            Access::Exec => tlb::layout::EXEC,
        };
        self.code.op_entry(Op::Xor, host::RDI, self.entry(tag));
        self.code.put(&[0x48, 0x81, 0xff]); // cmp rdi, 4096 - size
        self.code.put(&(4096 - u32::from(size)).to_le_bytes());
        self.code.jump_if(condition::ABOVE)
    }

    /// Offset in the page to host address.
    pub(crate) fn add_page(&mut self) {
        self.code.op_entry(Op::Add, host::RDI, self.entry(tlb::layout::PAGE));
    }

    /// Displacement of a field of the entry whose offset is in RSI.
    pub(crate) fn entry(&self, field: usize) -> i32 {
        layout::in_block(tlb::layout::side(self.mode.side) + field)
    }
}
