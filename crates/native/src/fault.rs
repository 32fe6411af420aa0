//! Hardware exceptions raised inside stubs, turned into values: the thread continues at the stub's
//! fault exit with the kind of fault in EAX.

use crate::NativeError;
use crate::code_memory::{CODE_SIZE, CodeMemory, EXIT_GRAIN};
use crate::signal::{self, Interrupted, Watch};

/// Exception that the instruction raised (SDM vol. 3, 6.15). Registers are as before it, except
/// for what the hardware records in MXCSR before #XM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NativeFault {
    /// #DE, vector 0.
    DivideError = 1,
    /// #UD, vector 6.
    InvalidOpcode = 2,
    /// #GP, vector 13: an operand that must be aligned is not, or a reserved bit is set.
    GeneralProtection = 3,
    /// #MF, vector 16: an unmasked x87 exception was pending.
    X87 = 4,
    /// #XM, vector 19: an unmasked SIMD exception.
    Simd = 5,
    /// #AC, vector 17. Stubs never load RFLAGS.AC, so only a host that forces it can cause this.
    AlignmentCheck = 6,
}

impl NativeFault {
    pub(crate) fn from_code(code: u32) -> NativeFault {
        match code {
            1 => NativeFault::DivideError,
            2 => NativeFault::InvalidOpcode,
            3 => NativeFault::GeneralProtection,
            4 => NativeFault::X87,
            5 => NativeFault::Simd,
            6 => NativeFault::AlignmentCheck,
            _ => unreachable!("fault exits are entered by the handler only"),
        }
    }

    fn from_vector(vector: i64) -> Option<NativeFault> {
        Some(match vector {
            0 => NativeFault::DivideError,
            6 => NativeFault::InvalidOpcode,
            13 => NativeFault::GeneralProtection,
            16 => NativeFault::X87,
            17 => NativeFault::AlignmentCheck,
            19 => NativeFault::Simd,
            _ => return None,
        })
    }
}

/// Watches `code`.
pub(crate) fn watch(code: &CodeMemory) -> Result<Watch, NativeError> {
    // SAFETY: `go_to_exit` reads the table of fault exits, which is mapped as long as `code` is,
    // and that outlives the watch: `Stubs` drops it first. The fault exits are stubs' own code.
    unsafe { signal::watch(code.base() as usize, CODE_SIZE, code.exits() as usize, go_to_exit) }
}

/// To the fault exit of the stub that the thread is in.
fn go_to_exit(exits: usize, base: usize, at: &mut Interrupted) -> bool {
    let grain = (at.rip as usize - base) / EXIT_GRAIN;
    // SAFETY: the table has an entry for each EXIT_GRAIN bytes of the CODE_SIZE, and RIP is in
    // them; it lives as long as it is watched.
    let exit = unsafe { (exits as *const u32).add(grain).read() };
    match NativeFault::from_vector(at.vector) {
        Some(fault) if exit != 0 => {
            at.rip = base as u64 + u64::from(exit);
            at.rax = fault as u64;
            true
        }
        _ => false,
    }
}
