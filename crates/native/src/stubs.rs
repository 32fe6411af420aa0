//! The cache of stubs, and running one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use cpu::Registers;
use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic};

use crate::code_memory::{CODE_SIZE, CodeMemory};
use crate::fault;
use crate::generate::{self, HOST_MXCSR_AT, INVALID_MXCSR_AT};
use crate::signal::Watch;
use crate::{NativeError, NativeFault, Operand, plan, rewrite, support};

/// Stubs begin at multiples of this.
const ALIGNMENT: usize = 32;
/// Where the first stub begins, after the constants.
const FIRST: usize = 64;
const HOST_MXCSR: u32 = 0x1f80;

/// A stub: code that runs one instruction. Good for the [`Stubs`] that made it, until its
/// [`Stubs::generation`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    offset: u32,
    generation: u32,
}

/// Code memory and the stubs in it.
pub struct Stubs {
    // Dropped in this order: the handler forgets the code before it is unmapped.
    _watch: Watch,
    code: CodeMemory,
    used: usize,
    generation: u32,
    /// By the bytes of the neutral form; looked up only, never iterated.
    cache: BTreeMap<u128, Stub>,
    encoder: Encoder,
    factory: InstructionInfoFactory,
}

// SAFETY: the mappings and their pointers belong to this value alone and are not bound to a
// thread; the handler reads the exits table only, on whichever thread runs a stub.
unsafe impl Send for Stubs {}

/// A number no other `Stubs` and no earlier generation had.
fn next_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let generation = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(generation != u32::MAX, "stubs were flushed four billion times");
    generation
}

impl Stubs {
    /// Maps code memory; fails if the host CPU lacks an instruction of the model.
    pub fn new() -> Result<Stubs, NativeError> {
        support()?;
        let mut code = CodeMemory::new()?;
        code.write(HOST_MXCSR_AT, &HOST_MXCSR.to_le_bytes(), 0);
        code.write(INVALID_MXCSR_AT, &u32::MAX.to_le_bytes(), 0);
        let watch = fault::watch(&code)?;
        Ok(Stubs {
            _watch: watch,
            code,
            used: FIRST,
            generation: next_generation(),
            cache: BTreeMap::new(),
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
        })
    }

    /// Changes whenever all stubs are dropped: handles of an earlier generation are stale.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The stub that runs `instruction`, decoded in any mode; its memory operand, if any, is the
    /// stand-in. `None`: the instruction is not one that can run natively.
    ///
    /// For a bit test of memory with a register offset the caller has moved the address to the
    /// operand that holds the bit. Masked moves touch the stand-in only: faults of single
    /// elements are the caller's.
    pub fn get(&mut self, instruction: &Instruction) -> Option<Stub> {
        let neutral = rewrite::neutral(instruction)?;
        let is_64_bit = instruction.code_size() == iced_x86::CodeSize::Code64;
        let key = self.key(&neutral, is_64_bit)?;
        if let Some(&stub) = self.cache.get(&key) {
            return Some(stub);
        }
        let plan = plan::plan(&mut self.factory, &neutral, is_64_bit)?;
        let mut generated = generate::generate(&plan, &mut self.encoder, self.used)?;
        if self.used + generated.0.len() > CODE_SIZE {
            self.flush();
            generated = generate::generate(&plan, &mut self.encoder, self.used)?;
        }
        let (bytes, fault_exit) = generated;
        let stub = Stub { offset: self.used as u32, generation: self.generation };
        self.code.write(self.used, &bytes, (self.used + fault_exit) as u32);
        self.used = (self.used + bytes.len()).next_multiple_of(ALIGNMENT);
        self.cache.insert(key, stub);
        Some(stub)
    }

    /// The neutral form's bytes, which decide what the stub does. (VZEROALL also depends on the
    /// guest's mode.)
    fn key(&mut self, neutral: &Instruction, is_64_bit: bool) -> Option<u128> {
        let mut buffer = self.encoder.take_buffer();
        buffer.clear();
        self.encoder.set_buffer(buffer);
        let len = self.encoder.encode(neutral, 0).ok()?;
        let buffer = self.encoder.take_buffer();
        let mut key = [0; 16];
        key[..len].copy_from_slice(&buffer[..len]);
        let by_mode = matches!(neutral.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper);
        key[15] = len as u8 | u8::from(by_mode && is_64_bit) << 7;
        self.encoder.set_buffer(buffer);
        Some(u128::from_le_bytes(key))
    }

    /// Drops all stubs.
    fn flush(&mut self) {
        self.cache.clear();
        self.used = FIRST;
        self.generation = next_generation();
        // Code changed through another linear address: serialise before it is run again
        // (SDM vol. 3, 9.1.3).
        std::hint::black_box(std::arch::x86_64::__cpuid(0));
    }

    /// Runs the instruction: registers and operand are changed as the hardware changes them.
    /// On a fault they are as before, but for the flags that #XM leaves in MXCSR.
    ///
    /// MXCSR in `registers` has no reserved bit set; otherwise this is `GeneralProtection`.
    ///
    /// # Panics
    /// If the stub is of another generation.
    #[inline]
    pub fn run(
        &self,
        stub: Stub,
        registers: &mut Registers,
        operand: &mut Operand,
    ) -> Result<(), NativeFault> {
        assert_eq!(stub.generation, self.generation, "stale stub");
        // SAFETY: the generation is unique, so `offset` is the entry of a complete stub in this
        // code memory. A stub keeps the sysv64 convention, and accesses only the `Registers`
        // behind its first argument and at most 512 + 64 bytes of operand from its second, which
        // `Operand` has; both are exclusively borrowed. See `generate`.
        let result = unsafe {
            let entry = self.code.base().add(stub.offset as usize);
            let entry: extern "sysv64" fn(*mut Registers, *mut u8) -> u32 =
                std::mem::transmute(entry);
            entry(registers, operand.data())
        };
        if result == 0 { Ok(()) } else { Err(NativeFault::from_code(result)) }
    }
}
