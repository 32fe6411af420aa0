//! Random operands for a code: registers, addressing forms, immediates, branch targets.

use iced_x86::{OpCodeOperandKind as Kind, OpKind, Register};

use super::Draft;
use crate::layout;

/// What a memory operand is meant to point to, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    pub(crate) address: u64,
}

impl Draft {
    fn register(&mut self, first: Register) -> Register {
        let count = if self.bitness == 64 { 16 } else { 8 };
        first + self.random.below(count) as u32
    }

    fn byte_register(&mut self) -> Register {
        let count = if self.bitness == 64 { 20 } else { 8 };
        Register::AL + self.random.below(count) as u32
    }

    fn of_eight(&mut self, first: Register) -> Register {
        first + self.random.below(8) as u32
    }

    /// An address in data, or sometimes across its end or anywhere.
    pub(crate) fn address(&mut self) -> u64 {
        let random = &mut self.random;
        let writable_end = layout::DATA + layout::WRITABLE_SIZE;
        match random.below(24) {
            0 => layout::DATA + 0x1000 - random.below(64),
            1 => writable_end - random.below(64),
            2 => writable_end + random.below(0x1000),
            3 => layout::DATA + layout::DATA_SIZE - random.below(64),
            4 => layout::DATA - random.below(64),
            5 if random.one_in(4) => layout::CODE + random.below(layout::CODE_SIZE),
            5 if self.bitness == 64 && random.one_in(2) => 0x8000_0000_0000 + random.below(1 << 46),
            6..12 => layout::DATA + 0x200 + random.below(0x2000),
            _ => layout::DATA + 0x200 + (random.below(0x2000) & !31),
        }
    }

    /// Chooses all operands; `None` for a kind that the model does not have.
    pub(crate) fn operands(&mut self, rip: u64) -> Option<()> {
        let info = self.instruction.code().op_code();
        for (operand, &kind) in info.op_kinds().iter().enumerate() {
            self.operand(operand as u32, kind, rip)?;
        }
        Some(())
    }

    fn set_register(&mut self, operand: u32, register: Register) -> Option<()> {
        self.instruction.try_set_op_kind(operand, OpKind::Register).ok()?;
        self.instruction.try_set_op_register(operand, register).ok()
    }

    fn operand(&mut self, operand: u32, kind: Kind, rip: u64) -> Option<()> {
        if let Some(register) = self.register_operand(kind) {
            return self.set_register(operand, register);
        }
        match kind {
            Kind::mem | Kind::mem_offs => self.memory(operand, kind == Kind::mem_offs),
            Kind::mem_vsib32x | Kind::mem_vsib64x => self.gather(operand, Register::XMM0),
            Kind::mem_vsib32y | Kind::mem_vsib64y => self.gather(operand, Register::YMM0),
            Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::mm_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem => self.register_or_memory(operand, kind),
            Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI | Kind::seg_rBX_al => {
                self.implicit_memory(operand, kind)
            }
            Kind::br16_1
            | Kind::br32_1
            | Kind::br64_1
            | Kind::br16_2
            | Kind::br32_4
            | Kind::br64_4 => self.branch(operand, kind, rip),
            _ => self.immediate(operand, kind),
        }
    }

    fn register_operand(&mut self, kind: Kind) -> Option<Register> {
        Some(match kind {
            Kind::r8_reg | Kind::r8_opcode => self.byte_register(),
            Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => self.register(Register::AX),
            Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode | Kind::r32_vvvv => {
                self.register(Register::EAX)
            }
            Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode | Kind::r64_vvvv => {
                self.register(Register::RAX)
            }
            Kind::mm_reg | Kind::mm_rm => self.of_eight(Register::MM0),
            Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => {
                self.register(Register::XMM0)
            }
            Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => {
                self.register(Register::YMM0)
            }
            Kind::sti_opcode => self.of_eight(Register::ST0),
            Kind::st0 => Register::ST0,
            Kind::seg_reg => Register::ES + self.random.below(6) as u32,
            Kind::es => Register::ES,
            Kind::cs => Register::CS,
            Kind::ss => Register::SS,
            Kind::ds => Register::DS,
            Kind::fs => Register::FS,
            Kind::gs => Register::GS,
            Kind::al => Register::AL,
            Kind::cl => Register::CL,
            Kind::ax => Register::AX,
            Kind::dx => Register::DX,
            Kind::eax => Register::EAX,
            Kind::rax => Register::RAX,
            _ => return None,
        })
    }

    fn register_or_memory(&mut self, operand: u32, kind: Kind) -> Option<()> {
        if self.random.one_in(2) {
            return self.memory(operand, false);
        }
        let register = match kind {
            Kind::r8_or_mem => self.byte_register(),
            Kind::r16_or_mem => self.register(Register::AX),
            Kind::r32_or_mem => self.register(Register::EAX),
            Kind::r64_or_mem => self.register(Register::RAX),
            Kind::mm_or_mem => self.of_eight(Register::MM0),
            Kind::xmm_or_mem => self.register(Register::XMM0),
            _ => self.register(Register::YMM0),
        };
        self.set_register(operand, register)
    }

    fn memory(&mut self, operand: u32, is_offset: bool) -> Option<()> {
        let address = self.address();
        self.aim = Some(Aim { address });
        self.instruction.try_set_op_kind(operand, OpKind::Memory).ok()?;
        let long = self.bitness == 64;
        let (wide, size) = if long { (Register::RAX, 8) } else { (Register::EAX, 4) };
        if is_offset {
            self.instruction.set_memory_displ_size(size);
            self.instruction.set_memory_displacement64(address);
            return Some(());
        }
        let first = if long && self.random.one_in(8) { Register::EAX } else { wide };
        let has_index = self.random.one_in(2);
        let has_base = !self.random.one_in(8);
        let displacement = match self.random.below(3) {
            0 => 0,
            1 => self.random.bits() as i8 as i64,
            _ => self.random.bits() as i16 as i64,
        };
        if has_base {
            let base = self.register(first);
            self.instruction.set_memory_base(base);
        } else if long && !has_index && self.random.one_in(2) && address >> 31 == 0 {
            self.instruction.set_memory_base(Register::RIP);
            self.instruction.set_memory_displ_size(8);
            self.instruction.set_memory_displacement64(address);
            return Some(());
        }
        if has_index {
            let index = self.register(first);
            if index.number() != 4 {
                self.instruction.set_memory_index(index);
                let scale = self.random.choose(&[1, 2, 4, 8]);
                self.instruction.set_memory_index_scale(scale);
            }
        }
        self.displacement(has_base, displacement, address, size);
        self.segment();
        Some(())
    }

    fn displacement(&mut self, has_base: bool, small: i64, address: u64, size: u32) {
        if !has_base {
            self.instruction.set_memory_displ_size(size);
            let low = if size == 8 { address as i32 as i64 as u64 } else { address & 0xffff_ffff };
            self.instruction.set_memory_displacement64(low);
        } else if small != 0 {
            let short = i8::try_from(small).is_ok();
            self.instruction.set_memory_displ_size(if short { 1 } else { size });
            let mask = if size == 8 { u64::MAX } else { 0xffff_ffff };
            self.instruction.set_memory_displacement64(small as u64 & mask);
        }
    }

    fn segment(&mut self) {
        if self.random.one_in(16) {
            let choices = [Register::DS, Register::ES, Register::SS, Register::CS];
            let segment = self.random.choose(&choices);
            self.instruction.set_segment_prefix(segment);
        }
    }

    fn gather(&mut self, operand: u32, first: Register) -> Option<()> {
        self.aim = Some(Aim { address: self.address() });
        self.instruction.try_set_op_kind(operand, OpKind::Memory).ok()?;
        let base = self.register(if self.bitness == 64 { Register::RAX } else { Register::EAX });
        let index = self.register(first);
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_index(index);
        let scale = self.random.choose(&[1, 2, 4, 8]);
        self.instruction.set_memory_index_scale(scale);
        Some(())
    }

    fn implicit_memory(&mut self, operand: u32, kind: Kind) -> Option<()> {
        let narrow = self.random.one_in(8);
        let op_kind = match (kind, self.bitness, narrow) {
            (Kind::seg_rSI, 64, false) => OpKind::MemorySegRSI,
            (Kind::seg_rSI, 64, true) | (Kind::seg_rSI, _, _) => OpKind::MemorySegESI,
            (Kind::es_rDI, 64, false) => OpKind::MemoryESRDI,
            (Kind::es_rDI, _, _) => OpKind::MemoryESEDI,
            (Kind::seg_rDI, 64, false) => OpKind::MemorySegRDI,
            (Kind::seg_rDI, _, _) => OpKind::MemorySegEDI,
            _ => OpKind::Memory,
        };
        if op_kind == OpKind::Memory {
            let base = if self.bitness == 64 { Register::RBX } else { Register::EBX };
            self.instruction.set_memory_base(base);
            self.instruction.set_memory_index(Register::AL);
        }
        // The other operand of a pair must have the same address size.
        if operand == 1
            && let Some(first) = self.address_size_of(0)
            && Some(first) != size_of_kind(op_kind)
        {
            return None;
        }
        self.instruction.try_set_op_kind(operand, op_kind).ok()
    }

    fn address_size_of(&self, operand: u32) -> Option<u32> {
        size_of_kind(self.instruction.op_kind(operand))
    }

    fn branch(&mut self, operand: u32, kind: Kind, rip: u64) -> Option<()> {
        let distance = match kind {
            Kind::br16_1 | Kind::br32_1 | Kind::br64_1 => self.random.bits() as i8 as i64,
            _ => self.random.bits() as i16 as i64,
        };
        let target = rip.wrapping_add(distance as u64);
        let op_kind = match kind {
            Kind::br16_1 | Kind::br16_2 => OpKind::NearBranch16,
            Kind::br32_1 | Kind::br32_4 => OpKind::NearBranch32,
            _ => OpKind::NearBranch64,
        };
        self.instruction.try_set_op_kind(operand, op_kind).ok()?;
        match op_kind {
            OpKind::NearBranch16 => self.instruction.set_near_branch16(target as u16),
            OpKind::NearBranch32 => self.instruction.set_near_branch32(target as u32),
            _ => self.instruction.set_near_branch64(target),
        }
        Some(())
    }

    fn immediate(&mut self, operand: u32, kind: Kind) -> Option<()> {
        let value = self.random.value();
        let op_kind = match kind {
            Kind::imm8 | Kind::imm8_const_1 if self.has_immediate_before(operand) => {
                OpKind::Immediate8_2nd
            }
            Kind::imm8 | Kind::imm8_const_1 => OpKind::Immediate8,
            Kind::imm8sex16 => OpKind::Immediate8to16,
            Kind::imm8sex32 => OpKind::Immediate8to32,
            Kind::imm8sex64 => OpKind::Immediate8to64,
            Kind::imm16 => OpKind::Immediate16,
            Kind::imm32 => OpKind::Immediate32,
            Kind::imm32sex64 => OpKind::Immediate32to64,
            Kind::imm64 => OpKind::Immediate64,
            _ => return None,
        };
        self.instruction.try_set_op_kind(operand, op_kind).ok()?;
        let instruction = &mut self.instruction;
        match kind {
            Kind::imm8_const_1 => instruction.set_immediate8(1),
            Kind::imm8 if op_kind == OpKind::Immediate8_2nd => {
                instruction.set_immediate8_2nd(value as u8);
            }
            Kind::imm8 => instruction.set_immediate8(value as u8),
            Kind::imm8sex16 => instruction.set_immediate8to16(i16::from(value as i8)),
            Kind::imm8sex32 => instruction.set_immediate8to32(i32::from(value as i8)),
            Kind::imm8sex64 => instruction.set_immediate8to64(i64::from(value as i8)),
            Kind::imm16 => instruction.set_immediate16(value as u16),
            Kind::imm32 => instruction.set_immediate32(value as u32),
            Kind::imm32sex64 => instruction.set_immediate32to64(i64::from(value as i32)),
            _ => instruction.set_immediate64(value),
        }
        Some(())
    }

    fn has_immediate_before(&self, operand: u32) -> bool {
        (0..operand).any(|before| {
            matches!(self.instruction.op_kind(before), OpKind::Immediate8 | OpKind::Immediate16)
        })
    }
}

fn size_of_kind(kind: OpKind) -> Option<u32> {
    match kind {
        OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI => Some(8),
        OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => Some(4),
        _ => None,
    }
}
