//! One instruction with the state it starts from, and what came of it.

use cpu::Registers;
use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::layout;

/// An instruction and everything it can see.
#[derive(Clone)]
pub struct Case {
    /// 64 or 32.
    pub bitness: u32,
    /// The instruction.
    pub bytes: Vec<u8>,
    /// State before; RIP is where the instruction is.
    pub registers: Registers,
    /// Data that differs from [`layout::pattern`]: address and bytes, in order.
    pub patches: Vec<(u64, Vec<u8>)>,
}

/// An exception that the instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, SDM vol. 3, 6.15.
    pub vector: u8,
    /// Error code, 0 where there is none.
    pub error_code: u32,
    /// CR2 of a page fault, otherwise 0.
    pub address: u64,
}

/// State after an instruction.
#[derive(Clone)]
pub struct Outcome {
    /// Registers, also after a fault.
    pub registers: Registers,
    /// All [`layout::DATA_SIZE`] bytes of data.
    pub data: Vec<u8>,
    /// What it raised.
    pub fault: Option<Fault>,
}

/// Something that can run a case.
pub trait Executor {
    /// A word for reports.
    fn name(&self) -> &'static str;

    /// Runs the case; `None` if this executor does not do such instructions.
    fn execute(&mut self, case: &Case) -> Option<Outcome>;
}

impl Case {
    /// The instruction, decoded.
    pub fn instruction(&self) -> Instruction {
        let rip = self.registers.rip();
        Decoder::with_ip(self.bitness, &self.bytes, rip, DecoderOptions::NONE).decode()
    }

    /// Data as it is before.
    pub fn data(&self) -> Vec<u8> {
        let mut data: Vec<u8> = pattern_data().to_vec();
        for (address, bytes) in &self.patches {
            let start = (address - layout::DATA) as usize;
            data[start..start + bytes.len()].copy_from_slice(bytes);
        }
        data
    }
}

/// Data without patches.
pub fn pattern_data() -> &'static [u8] {
    static DATA: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    DATA.get_or_init(|| (0..layout::DATA_SIZE).map(layout::pattern).collect())
}
