//! From a plan to the bytes of a stub.
//!
//! ```text
//! save callee-saved · load guest state · THE INSTRUCTION · store guest state · host state · ret
//! fault exit:  [store MXCSR or x87] · host state · ret   (EAX: the fault, set by the handler)
//! ```
//!
//! A stub is `extern "sysv64" fn(*mut Registers, *mut u8) -> u32`: RDI the registers, RSI the
//! operand's data; 0 or a fault in EAX.

use std::mem::offset_of;

use cpu::Registers;
use iced_x86::Encoder;

use crate::assembler::Assembler;
use crate::plan::{Plan, host};

const STATUS: i32 = offset_of!(Registers, status) as i32;
const FX: i32 = offset_of!(Registers, fx) as i32;
const FX_OPCODE: i32 = FX + 6;
const FX_POINTERS: i32 = FX + 8;
const MXCSR: i32 = FX + 24;
const MXCSR_MASK: i32 = FX + 28;

/// Offset in code memory of the host's MXCSR, 1F80h.
pub(crate) const HOST_MXCSR_AT: usize = 16;
/// Offset in code memory of an MXCSR that LDMXCSR refuses.
pub(crate) const INVALID_MXCSR_AT: usize = 32;

fn gpr(guest: u8) -> i32 {
    (offset_of!(Registers, gpr) + usize::from(guest) * 8) as i32
}

fn vector(number: u8) -> i32 {
    (offset_of!(Registers, ymm) + usize::from(number) * 32) as i32
}

fn members(set: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |&number| set & (1 << number) != 0)
}

struct Generator<'a> {
    plan: &'a Plan,
    code: Assembler,
    /// Where in code memory the stub will be.
    origin: usize,
    /// The host register that points to the guest's registers.
    context: u8,
    /// The host register that points to the operand.
    data: u8,
}

/// Bytes of the stub, and the offset of its fault exit in them. `None`: it cannot be encoded.
pub(crate) fn generate(
    plan: &Plan,
    encoder: &mut Encoder,
    origin: usize,
) -> Option<(Vec<u8>, usize)> {
    let (context, data) =
        if plan.memory_is_rdi { (host::RSI, host::RDI) } else { (host::RDI, host::RSI) };
    let mut generator = Generator { plan, code: Assembler::default(), origin, context, data };
    generator.load();
    encoder.set_buffer(Vec::new());
    let encoded = encoder.encode(&plan.instruction, 0);
    let bytes = encoder.take_buffer();
    encoded.ok()?;
    generator.code.put(&bytes);
    generator.store();
    generator.code.put(&[0x31, 0xc0]); // xor eax, eax
    generator.leave();
    let fault_exit = generator.code.bytes.len();
    if plan.uses_x87 {
        // A conversion to MM registers that raises #XM has already left x87 for MMX state.
        generator.store_x87();
    } else if plan.uses_mxcsr {
        generator.code.store_mxcsr(context, MXCSR);
    }
    generator.leave();
    Some((generator.code.bytes, fault_exit))
}

impl Generator<'_> {
    fn load(&mut self) {
        let (plan, context) = (self.plan, self.context);
        for &register in &plan.saved {
            self.code.push(register);
        }
        if plan.memory_is_rdi {
            self.code.put(&[0x48, 0x87, 0xfe]); // xchg rsi, rdi
        }
        if plan.uses_x87 {
            self.code.load_x87(context, FX);
        } else if plan.uses_mxcsr {
            self.code.load_mxcsr(context, MXCSR);
        }
        for number in members(plan.load_vectors) {
            self.move_vector(false, number);
        }
        if plan.load_flags {
            self.code.load_flags(context, STATUS);
        }
        for placed in plan.gprs.iter().filter(|placed| placed.load) {
            self.code.load_gpr(placed.host, context, gpr(placed.guest));
        }
        if plan.loads_mxcsr {
            self.code.skip_if_high_half_zero(self.data);
            self.code.load_mxcsr_constant(self.origin, INVALID_MXCSR_AT);
        }
        if let Some(bits) = plan.bit_string {
            self.code.move_sized(false, bits.size, bits.scratch, self.data);
        }
    }

    fn move_vector(&mut self, store: bool, number: u8) {
        if self.plan.is_vex {
            self.code.move_ymm(store, number, self.context, vector(number));
        } else {
            self.code.move_xmm(store, number, self.context, vector(number));
        }
    }

    /// Stores what the instruction wrote. Nothing before the flags are stored changes them.
    fn store(&mut self) {
        let (plan, context) = (self.plan, self.context);
        if let Some(bits) = plan.bit_string.filter(|bits| bits.store) {
            self.code.move_sized(true, bits.size, bits.scratch, self.data);
        }
        for placed in plan.gprs.iter().filter(|placed| placed.store) {
            self.code.store_gpr(placed.host, context, gpr(placed.guest));
        }
        if plan.store_flags {
            self.code.store_flags(context, STATUS);
        }
        for number in members(plan.store_vectors) {
            self.move_vector(true, number);
        }
        if plan.uses_x87 {
            self.store_x87();
        } else if plan.uses_mxcsr {
            self.code.store_mxcsr(context, MXCSR);
        }
    }

    /// Stores x87 state, leaving zero what is not the guest's: the XMM part, the pointers, and the
    /// host's MXCSR_MASK.
    fn store_x87(&mut self) {
        for number in members(self.plan.load_vectors | self.plan.store_vectors) {
            self.code.zero_xmm(number);
        }
        self.code.store_x87(self.context, FX);
        self.code.zero_memory(self.context, FX_OPCODE, 2);
        self.code.zero_memory(self.context, FX_POINTERS, 16);
        self.code.zero_memory(self.context, MXCSR_MASK, 4);
        if let Some((offset, size)) = self.plan.fpu_pointers {
            self.code.zero_memory(self.data, i32::from(offset), size);
        }
    }

    /// Restores host state and returns; EAX is kept.
    fn leave(&mut self) {
        let plan = self.plan;
        if plan.uses_x87 {
            self.code.put(&[0xdb, 0xe3]); // fninit
        }
        if plan.uses_x87 || plan.uses_mxcsr {
            self.code.load_mxcsr_constant(self.origin, HOST_MXCSR_AT);
        }
        if plan.is_vex {
            self.code.put(&[0xc5, 0xf8, 0x77]); // vzeroupper
        }
        for &register in plan.saved.iter().rev() {
            self.code.pop(register);
        }
        self.code.put(&[0xc3]); // ret
    }
}
