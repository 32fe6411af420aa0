//! What the translator does with a guest instruction, and what the instruction does to flags.

use cpu::cpuid::Model;
use cpu::tlb::Tlb;
use cpu::{Vcpu, cr, tlb};
use iced_x86::{
    Code, CodeSize, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, RflagsBits,
};

use crate::shadow::ShadowMap;
use crate::{string, system};

/// Everything about the vCPU that a translation depends on; constant while translated code runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mode {
    /// Which side of the TLB accesses look in.
    pub(crate) side: u8,
    /// SSE instructions are available.
    pub(crate) sse: bool,
    /// AVX instructions are available.
    pub(crate) avx: bool,
    /// CPL is 0.
    pub(crate) kernel: bool,
    /// x87 and MMX instructions are available.
    pub(crate) x87: bool,
    /// SMAP is on.
    pub(crate) smap: bool,
    /// What CPUID shows.
    pub(crate) v3: bool,
    /// Accesses go by the host's page tables.
    pub(crate) direct: bool,
}

impl Mode {
    /// A small number for it.
    pub(crate) fn index(self) -> usize {
        usize::from(self.side & 3)
            | usize::from(self.sse) << 2
            | usize::from(self.avx) << 3
            | usize::from(self.kernel) << 4
            | usize::from(self.v3) << 5
            | usize::from(self.smap) << 6
            | usize::from(self.x87) << 7
            | usize::from(self.direct) << 8
    }

    /// Whether accesses of code of that mode go by the host's page tables.
    pub(crate) fn is_direct(index: usize) -> bool {
        index >> 8 & 1 != 0
    }

    /// One more than the largest number.
    pub(crate) const COUNT: usize = 512;

    /// That of the code that SYSCALL or SYSRET goes to, if IA32_FMASK clears AC.
    pub(crate) fn beyond(self, shadow: &ShadowMap, tlb: &Tlb) -> Mode {
        let (kernel, side) = (!self.kernel, self.side_beyond());
        Mode { kernel, side, direct: shadow.is_of(tlb, side), ..self }
    }

    /// The side of the TLB of that code.
    pub(crate) fn side_beyond(self) -> u8 {
        let kernel = !self.kernel;
        match () {
            () if !kernel => tlb::SIDE_USER,
            () if self.smap => tlb::SIDE_SUPERVISOR,
            () => tlb::SIDE_SUPERVISOR_ANY,
        }
    }

    /// What it is now; `None` where nothing is translated.
    #[inline]
    pub(crate) fn of(vcpu: &Vcpu, shadow: &ShadowMap) -> Option<Mode> {
        let mode = &vcpu.mode;
        if mode.bits != 64 || mode.side != mode.walk_side {
            return None;
        }
        let on = vcpu.cr0 & (cr::CR0_TS | cr::CR0_EM) == 0;
        let wanted = cr::XCR0_SSE | cr::XCR0_AVX;
        let avx = vcpu.cr4 & cr::CR4_OSXSAVE != 0 && vcpu.xcr0 & wanted == wanted;
        Some(Mode {
            side: mode.side,
            sse: on && vcpu.cr4 & cr::CR4_OSFXSR != 0,
            avx: vcpu.cr0 & cr::CR0_TS == 0 && avx,
            kernel: vcpu.cpl == 0,
            x87: on,
            smap: vcpu.cr4 & cr::CR4_SMAP != 0,
            v3: vcpu.model == Model::V3,
            direct: shadow.is_of(&vcpu.tlb, mode.side),
        })
    }
}

/// Registers that are loaded when a block that uses them is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// None.
    Integer,
    /// Vector registers or MXCSR.
    Vectors,
    /// The x87 stack, MMX registers or their control state.
    X87,
}

/// The families the translator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing happens.
    Nothing,
    /// Ends the block: near branches.
    Branch,
    /// PUSH, POP and LEAVE.
    Stack,
    /// LEA.
    Address,
    /// Computes on registers and at most one memory operand.
    Compute {
        /// The register file besides the general one.
        unit: Unit,
    },
    /// CLI, STI, CLD, STD, PUSHF, SWAPGS, CLAC, STAC, MOV from segment registers.
    System,
    /// MOVS, STOS, LODS, SCAS and CMPS.
    String,
    /// For the fall-back engine.
    Step,
}

/// The six status flags in iced's bits.
pub(crate) const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// What an instruction does to the status flags, as far as their place matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlagUse {
    /// It reads some.
    pub(crate) reads: bool,
    /// They must be in RFLAGS before it: it reads some, or leaves some as they are.
    pub(crate) needs: bool,
    /// They are in RFLAGS after it.
    pub(crate) changes: bool,
}

/// Whether it is a shift or rotation: what those do to flags depends on the count.
pub(crate) fn counts(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(instruction.mnemonic(), Rcl | Rcr | Rol | Ror | Shl | Shr | Sar | Sal | Shld | Shrd)
}

/// See [`FlagUse`].
pub(crate) fn flag_use(instruction: &Instruction) -> FlagUse {
    use Mnemonic::*;
    // A shift by 0 changes nothing, whatever is listed.
    if counts(instruction) {
        let reads = instruction.rflags_read() & STATUS != 0;
        return FlagUse { reads, needs: true, changes: true };
    }
    let modified = instruction.rflags_modified() & STATUS;
    let defined =
        instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    // AF is undefined after these, but no processor makes it depend on what it was: it is 0.
    let logic = matches!(instruction.mnemonic(), And | Or | Xor | Test);
    let all = modified == STATUS && (defined & STATUS == STATUS || logic);
    let reads = instruction.rflags_read() & STATUS != 0;
    FlagUse { reads, needs: reads || (modified != 0 && !all), changes: modified != 0 }
}

/// The class of an instruction in 64-bit code.
pub(crate) fn classify(instruction: &Instruction, mode: Mode) -> Class {
    use Mnemonic::*;
    if instruction.is_invalid() || instruction.code_size() != CodeSize::Code64 {
        return Class::Step;
    }
    match instruction.mnemonic() {
        Nop | Pause | Endbr64 | Endbr32 | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchnta
        | Prefetchw | Prefetch | Lfence | Sfence | Mfence => return Class::Nothing,
        Push | Pop | Leave => return Class::Stack,
        Lea => return Class::Address,
        Cli | Sti | Swapgs | Clac | Stac if mode.kernel => return Class::System,
        Cld | Std | Pushfq => return Class::System,
        Mov if system::read_selector(instruction).is_some() => return Class::System,
        Jmp | Call | Ret | Loop | Loope | Loopne | Jrcxz => return branch(instruction),
        _ if instruction.is_jcc_short_or_near() => return branch(instruction),
        _ if string::is_translated(instruction) => return Class::String,
        _ => {}
    }
    if !native::is_computation(instruction) {
        return Class::Step;
    }
    if native::uses_x87(instruction) {
        return x87(instruction, mode);
    }
    compute(instruction, mode)
}

/// Not what stores or loads pointers, nor what uses vector registers as well.
fn x87(instruction: &Instruction, mode: Mode) -> Class {
    use CpuidFeature::{FPU, FPU287, FPU387, MMX};
    use Mnemonic::*;
    let environment = matches!(
        instruction.mnemonic(),
        Fnstenv | Fstenv | Fldenv | Fnsave | Fsave | Frstor | Maskmovq
    );
    let features = instruction.cpuid_features();
    let plain = features.iter().all(|feature| matches!(*feature, FPU | FPU287 | FPU387 | MMX));
    let plain = plain || instruction.mnemonic() == Wait;
    if mode.x87 && plain && !environment { Class::Compute { unit: Unit::X87 } } else { Class::Step }
}

fn branch(instruction: &Instruction) -> Class {
    if instruction.mnemonic() == Mnemonic::Ret {
        let near = matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16);
        return if near { Class::Branch } else { Class::Step };
    }
    let direct = instruction.op0_kind() == OpKind::NearBranch64;
    let wide = match instruction.op0_kind() {
        OpKind::NearBranch64 => true,
        OpKind::Register => instruction.op0_register().size() == 8,
        OpKind::Memory => {
            let far = instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect();
            !far && instruction.memory_size().size() == 8
        }
        _ => false,
    };
    let counts_rcx = matches!(
        instruction.mnemonic(),
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz
    );
    // With an address-size prefix these count ECX.
    let rcx_whole = !counts_rcx || instruction.op_code().address_size() == 64;
    if wide && rcx_whole && (!counts_rcx || direct) { Class::Branch } else { Class::Step }
}

fn compute(instruction: &Instruction, mode: Mode) -> Class {
    use CpuidFeature::*;
    use Mnemonic::*;
    if matches!(
        instruction.mnemonic(),
        Ldmxcsr
            | Stmxcsr
            | Vldmxcsr
            | Vstmxcsr
            | Xlatb
            | Lahf
            | Sahf
            | Emms
            | Maskmovdqu
            | Vmaskmovdqu
            | Vmaskmovps
            | Vmaskmovpd
            | Vpmaskmovd
            | Vpmaskmovq
    ) {
        return Class::Step;
    }
    let has = |wanted: &[CpuidFeature]| {
        instruction.cpuid_features().iter().any(|feature| wanted.contains(feature))
    };
    let beyond_v2 = [BMI1, BMI2, LZCNT, MOVBE, ADX, SHA, AVX, AVX2, FMA, F16C];
    if !mode.v3 && has(&beyond_v2) {
        return Class::Step;
    }
    if matches!(instruction.mnemonic(), Crc32 | Movnti) {
        return Class::Compute { unit: Unit::Integer };
    }
    if instruction.op_code().encoding() == EncodingKind::VEX {
        return match has(&[BMI1, BMI2]) {
            true => Class::Compute { unit: Unit::Integer },
            false if mode.avx => Class::Compute { unit: Unit::Vectors },
            false => Class::Step,
        };
    }
    if has(&[SSE, SSE2, SSE3, SSSE3, SSE4_1, SSE4_2, AES, PCLMULQDQ, SHA]) {
        return if mode.sse { Class::Compute { unit: Unit::Vectors } } else { Class::Step };
    }
    let vector_register = (0..instruction.op_count()).any(|op| {
        instruction.op_kind(op) == OpKind::Register
            && instruction.op_register(op).is_vector_register()
    });
    if vector_register { Class::Step } else { Class::Compute { unit: Unit::Integer } }
}
