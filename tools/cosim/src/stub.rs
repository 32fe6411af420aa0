//! `native::Stubs` under test, with addresses and memory by the simplest means.

use cpu::gpr;
use iced_x86::Register;
use native::{NativeError, NativeFault, Operand, Stubs};

use crate::address::{address, memory_operand, operand_size};
use crate::{Case, Executor, Fault, Outcome, layout};

/// Runs what stubs can run and what needs no memory beyond the writable data.
pub struct StubExecutor {
    stubs: Stubs,
    operand: Operand,
}

impl StubExecutor {
    /// Fails where stubs do.
    pub fn new() -> Result<StubExecutor, NativeError> {
        Ok(StubExecutor { stubs: Stubs::new()?, operand: Operand::new() })
    }
}

fn vector(fault: NativeFault) -> u8 {
    match fault {
        NativeFault::DivideError => 0,
        NativeFault::InvalidOpcode => 6,
        NativeFault::GeneralProtection => 13,
        NativeFault::X87 => 16,
        NativeFault::Simd => 19,
        NativeFault::AlignmentCheck => 17,
    }
}

impl Executor for StubExecutor {
    fn name(&self) -> &'static str {
        "stubs"
    }

    fn execute(&mut self, case: &Case) -> Option<Outcome> {
        let instruction = case.instruction();
        let stub = self.stubs.get(&instruction)?;
        let mut outcome =
            Outcome { registers: case.registers.clone(), data: case.data(), fault: None };
        let mut place = None;
        if let Some(operand) = memory_operand(&instruction) {
            let is_code = instruction.memory_segment() == Register::CS && case.bitness == 32;
            if case.registers.rflags() & cpu::flag::AC != 0 || is_code {
                return None;
            }
            let size = operand_size(&instruction);
            let address = address(case, &instruction, operand)?;
            let start = address.wrapping_sub(layout::DATA);
            if start >= layout::WRITABLE_SIZE || start + size as u64 > layout::WRITABLE_SIZE {
                return None;
            }
            let range = start as usize..start as usize + size;
            self.operand.align(address);
            self.operand.slice_mut(size).copy_from_slice(&outcome.data[range.clone()]);
            place = Some(range);
        }
        match self.stubs.run(stub, &mut outcome.registers, &mut self.operand) {
            Err(fault) => {
                outcome.fault = Some(Fault { vector: vector(fault), error_code: 0, address: 0 });
            }
            Ok(()) => {
                let next = case.registers.rip() + instruction.len() as u64;
                outcome.registers.gpr[gpr::RIP] = next;
                if let Some(range) = place {
                    let after = self.operand.slice(range.len());
                    outcome.data[range].copy_from_slice(after);
                }
            }
        }
        Some(outcome)
    }
}
