//! Random state for an instruction, with the registers it addresses memory by aimed at data.

use cpu::{Registers, flag, gpr};
use iced_x86::{FlowControl, Mnemonic, OpKind, Register};

use super::Draft;
use crate::{Case, layout};

impl Draft {
    /// Random registers, nothing aimed.
    pub(crate) fn registers(&mut self) -> Registers {
        let random = &mut self.random;
        let mut registers = Registers::reset();
        let count = if self.bitness == 64 { 16 } else { 8 };
        let mask = if self.bitness == 64 { u64::MAX } else { 0xffff_ffff };
        for number in 0..count {
            registers.gpr[number] = random.value() & mask;
        }
        let optional = flag::STATUS | flag::DF | flag::ID;
        let mut flags = random.bits() & optional | flag::IF;
        // Whether vector accesses are checked differs between vendors (SDM vol. 3, 6.15, #AC).
        let is_vector = self.instruction.op_kinds().enumerate().any(|(operand, kind)| {
            kind == OpKind::Register
                && self.instruction.op_register(operand as u32).is_vector_register()
        });
        if !is_vector && random.one_in(32) {
            flags |= flag::AC;
        }
        registers.set_rflags(flags);
        let vectors = if self.bitness == 64 { 16 } else { 8 };
        for number in 0..vectors {
            let kind = random.below(3);
            for lane in 0..4 {
                registers.ymm[number][lane] = match kind {
                    0 => random.float(),
                    1 => random.bits(),
                    _ => random.value(),
                };
            }
        }
        self.floating_point(&mut registers);
        registers
    }

    fn floating_point(&mut self, registers: &mut Registers) {
        let random = &mut self.random;
        let mut mxcsr = 0x1f80;
        if random.one_in(2) {
            mxcsr = random.bits() as u32 & 0xffff | 0x1f80;
        }
        if random.one_in(8) {
            mxcsr = random.bits() as u32 & 0xffff;
        }
        registers.fx.set_mxcsr(mxcsr);
        let mut control = 0x37f;
        if random.one_in(2) {
            control = random.bits() as u16 & 0xf00 | 0x7f;
        }
        if random.one_in(8) {
            control = random.bits() as u16 & 0xf3f | 0x40;
        }
        let mut status = random.bits() as u16 & 0x7f7f;
        if random.one_in(4) {
            status &= 0x3800;
        }
        // Summary and busy follow the unmasked exceptions (SDM vol. 1, 8.1.3.3).
        status &= !0x8080;
        if status & !control & 0x3f != 0 {
            // A pending exception only now and then, as it hides the instruction.
            if random.one_in(8) { status |= 0x8080 } else { status &= !0x3f }
        }
        let tags = if random.one_in(2) { 0xff } else { random.bits() as u8 };
        let area = &mut registers.fx.0;
        area[..2].copy_from_slice(&control.to_le_bytes());
        area[2..4].copy_from_slice(&status.to_le_bytes());
        area[4] = tags;
        for number in 0..8 {
            let (significand, sign_exponent) = random.extended();
            let at = 32 + number * 16;
            area[at..at + 8].copy_from_slice(&significand.to_le_bytes());
            area[at + 8..at + 10].copy_from_slice(&sign_exponent.to_le_bytes());
        }
    }

    /// Sets the registers that the decoded instruction addresses memory by.
    pub(crate) fn aim_registers(&mut self, case: &mut Case) {
        self.aim_implicit(case);
        self.aim_explicit(case);
        if case.bitness == 32 {
            case.registers.gpr[..16].iter_mut().for_each(|value| *value &= 0xffff_ffff);
        }
    }

    fn aim_implicit(&mut self, case: &mut Case) {
        let registers = &mut case.registers.gpr;
        if self.instruction.is_stack_instruction() || self.is(&[Mnemonic::Leave, Mnemonic::Enter]) {
            registers[gpr::RSP] = self.address() & if self.random.one_in(4) { !0 } else { !7 };
            if self.is(&[Mnemonic::Leave, Mnemonic::Enter]) {
                registers[gpr::RBP] = self.address();
            }
        }
        if self.instruction.is_string_instruction() {
            registers[gpr::RSI] = self.address();
            registers[gpr::RDI] = self.address();
            registers[gpr::RCX] = self.random.below(12);
        }
        if self.instruction.op_kinds().any(|kind| {
            matches!(kind, OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI)
        }) {
            registers[gpr::RDI] = self.address();
        }
        let is_loop = [Mnemonic::Loop, Mnemonic::Loope, Mnemonic::Loopne, Mnemonic::Jrcxz];
        if self.is(&is_loop) || self.is(&[Mnemonic::Jecxz, Mnemonic::Jcxz]) {
            registers[gpr::RCX] = self.random.choose(&[0, 1, 2, 1 << 32, 0x1_0000, 1 << 63]);
        }
        if self.is(&[Mnemonic::Xlatb]) {
            registers[gpr::RBX] = self.address();
        }
    }

    /// Solves base + index * scale + displacement = aim for the base.
    fn aim_explicit(&mut self, case: &mut Case) {
        let Some(aim) = self.aim else { return };
        let (base, index) = (self.instruction.memory_base(), self.instruction.memory_index());
        if index.is_vector_register() {
            self.aim_lanes(case, index);
        } else if index != Register::None && index != base && self.random.one_in(2) {
            case.registers.gpr[index.number()] = self.random.below(512);
        }
        if self.is(&[Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc])
            && self.instruction.op1_kind() == OpKind::Register
            && self.random.one_in(2)
        {
            let number = self.instruction.op1_register().full_register().number();
            case.registers.gpr[number] = self.random.below(0x2000).wrapping_sub(0x1000);
        }
        if !base.is_gpr() || index == base {
            return;
        }
        let scaled = if index.is_gpr() {
            let scale = u64::from(self.instruction.memory_index_scale());
            case.registers.gpr[index.number()].wrapping_mul(scale)
        } else {
            0
        };
        let displacement = self.instruction.memory_displacement64();
        let needed = aim.address.wrapping_sub(scaled).wrapping_sub(displacement);
        case.registers.gpr[base.number()] = if base.size() == 8 {
            needed
        } else {
            needed & 0xffff_ffff | (self.random.bits() << 32)
        };
    }

    fn aim_lanes(&mut self, case: &mut Case, index: Register) {
        let vector = &mut case.registers.ymm[index.number()];
        let spread = self.random.choose(&[16, 64, 512, 0x1000]);
        for word in vector.iter_mut() {
            let (low, high) = (self.random.below(spread), self.random.below(spread));
            let wide = self.instruction.memory_size().element_size() == 8 && self.random.one_in(2);
            *word = if wide { low } else { low | high << 32 };
        }
    }

    /// Puts interesting values where the instruction will read.
    pub(crate) fn patch(&mut self, case: &mut Case) {
        let mut places: Vec<u64> = self.aim.iter().map(|aim| aim.address).collect();
        if self.instruction.is_stack_instruction() {
            places.push(case.registers.gpr[gpr::RSP]);
        }
        if self.instruction.is_string_instruction() {
            places.extend([case.registers.gpr[gpr::RSI], case.registers.gpr[gpr::RDI]]);
        }
        for address in places {
            let bytes = match self.instruction.mnemonic() {
                Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => self.area(),
                _ => self.contents(),
            };
            push_patch(case, address, &bytes);
        }
    }

    /// What FXRSTOR can load, most of the time.
    fn area(&mut self) -> Vec<u8> {
        let mut registers = Registers::reset();
        self.floating_point(&mut registers);
        let area = &mut registers.fx.0;
        if self.random.one_in(8) {
            area[26] = 1 << self.random.choose(&[0, 2, 7]);
        }
        area[160..].fill_with(|| self.random.bits() as u8);
        area.to_vec()
    }

    fn contents(&mut self) -> Vec<u8> {
        let is_branch = !matches!(self.instruction.flow_control(), FlowControl::Next);
        let mut bytes = Vec::with_capacity(112);
        let kind = self.random.below(4);
        while bytes.len() < 112 {
            let random = &mut self.random;
            match kind {
                _ if is_branch && !random.one_in(4) => {
                    bytes.extend((layout::CODE + random.below(0x2000)).to_le_bytes());
                }
                0 => {
                    let (significand, sign_exponent) = random.extended();
                    bytes.extend(significand.to_le_bytes());
                    bytes.extend(sign_exponent.to_le_bytes());
                }
                1 => bytes.extend(random.float().to_le_bytes()),
                _ => bytes.extend(random.value().to_le_bytes()),
            }
        }
        bytes
    }
}

/// Adds what of `bytes` at `address` is data.
fn push_patch(case: &mut Case, address: u64, bytes: &[u8]) {
    let end = layout::DATA + layout::DATA_SIZE;
    let (first, last) =
        (address.max(layout::DATA), address.wrapping_add(bytes.len() as u64).min(end));
    if address.checked_add(bytes.len() as u64).is_none() || first >= last {
        return;
    }
    let part = &bytes[(first - address) as usize..(last - address) as usize];
    case.patches.push((first, part.to_vec()));
}
