//! From a guest instruction to its neutral form: 64-bit code, memory operand `[RSI]` (or `[RDI]`
//! where the encoding names it), no prefix without a meaning here. Or nothing, if the
//! instruction is not a computation on registers and one memory operand.

use iced_x86::{
    Code, CodeSize, CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits,
};

/// The neutral form of `guest`, if it can run natively.
pub(crate) fn neutral(guest: &Instruction) -> Option<Instruction> {
    if !is_computation(guest) {
        return None;
    }
    let mut instruction = *guest;
    instruction.set_code_size(CodeSize::Code64);
    instruction.set_code(code_in_64_bit_mode(guest.code()));
    instruction.set_segment_prefix(Register::None);
    instruction.set_has_lock_prefix(false);
    instruction.set_has_rep_prefix(false);
    instruction.set_has_repne_prefix(false);
    instruction.set_has_xacquire_prefix(false);
    instruction.set_has_xrelease_prefix(false);
    if guest.mnemonic() == Mnemonic::Xlatb {
        // The caller computed [RBX + AL]; what is left is a load.
        instruction.set_op0_kind(OpKind::Register);
        instruction.set_op0_register(Register::AL);
        instruction.set_op1_kind(OpKind::Memory);
    }
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::Memory => set_memory_base(&mut instruction, Register::RSI),
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => {
                instruction.set_op_kind(operand, OpKind::MemorySegRDI);
            }
            _ => {}
        }
    }
    Some(instruction)
}

/// Whether the neutral form's memory operand is the one RDI names implicitly.
pub(crate) fn memory_is_rdi(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::MemorySegRDI)
}

/// Makes the memory operand `[base]`.
pub(crate) fn set_memory_base(instruction: &mut Instruction, base: Register) {
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(0);
    instruction.set_memory_displ_size(0);
}

/// The code that does the same in 64-bit mode, where the guest's does not exist or cannot take
/// `[RSI]`.
fn code_in_64_bit_mode(code: Code) -> Code {
    match code {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        Code::Mov_AL_moffs8 | Code::Xlat_m8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        other => other,
    }
}

/// Whether the instruction only computes on registers and at most one memory operand, and the model
/// has it: exactly these run natively.
pub fn is_computation(guest: &Instruction) -> bool {
    const NOT_STATUS: u32 = RflagsBits::DF | RflagsBits::IF | RflagsBits::AC | RflagsBits::UIF;
    guest.flow_control() == FlowControl::Next
        && !guest.is_invalid()
        && !guest.is_privileged()
        && !guest.is_stack_instruction()
        && !guest.is_string_instruction()
        && !guest.is_vsib()
        && guest.rflags_modified() & NOT_STATUS == 0
        && guest.cpuid_features().iter().all(|&feature| is_in_model(feature))
        && !is_excluded(guest.mnemonic())
        && guest.op_kinds().enumerate().all(|(operand, kind)| {
            kind != OpKind::Register || is_computed_on(guest.op_register(operand as u32))
        })
}

fn is_computed_on(register: Register) -> bool {
    register.is_gpr()
        || register.is_xmm()
        || register.is_ymm()
        || register.is_mm()
        || register.is_st()
}

fn is_in_model(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | CMOV
            | CX8
            | CMPXCHG16B
            | FPU
            | FPU287
            | FPU387
            | MMX
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | POPCNT
            | LZCNT
            | BMI1
            | BMI2
            | ADX
            | MOVBE
            | F16C
            | FMA
            | AVX
            | AVX2
            | AES
            | PCLMULQDQ
            | SHA
            | MULTIBYTENOP
    )
}

/// Instructions that none of the general rules excludes: system instructions open to user mode,
/// those that compute addresses, fences, hints, and the approximations of [`crate::approx`].
fn is_excluded(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Lea | In
            | Out
            | Bound
            | Arpl
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Sldt
            | Smsw
            | Str
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | Lfence
            | Mfence
            | Sfence
            | Pause
            | Prefetchnta
            | Prefetcht0
            | Prefetcht1
            | Prefetcht2
            | Prefetchw
            | Reservednop
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Vrcpps
            | Vrcpss
            | Vrsqrtps
            | Vrsqrtss
    )
}

/// Whether the instruction is a bit test of memory whose offset reaches beyond the operand.
pub(crate) fn is_bit_string(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
}

/// Whether the instruction reads or writes MXCSR: the SIMD floating-point computations, whose
/// mnemonics say it, and the two that move MXCSR itself.
pub(crate) fn uses_mxcsr(instruction: &Instruction) -> bool {
    const STEMS: [&str; 20] = [
        "Add", "Sub", "Mul", "Div", "Sqrt", "Min", "Max", "Cmp", "Comi", "Ucomi", "Cvt", "Round",
        "Dpp", "Hadd", "Hsub", "Fmadd", "Fmsub", "Fnmadd", "Fnmsub", "Addsub",
    ];
    const CONTROL: [Mnemonic; 4] =
        [Mnemonic::Ldmxcsr, Mnemonic::Stmxcsr, Mnemonic::Vldmxcsr, Mnemonic::Vstmxcsr];
    if CONTROL.contains(&instruction.mnemonic()) {
        return true;
    }
    let is_simd = instruction.op_kinds().enumerate().any(|(operand, kind)| {
        kind == OpKind::Register && instruction.op_register(operand as u32).is_vector_register()
    });
    if !is_simd {
        // CVTSD2SI, CVTPS2PI and the like with a memory source have no vector register.
        let name = format!("{:?}", instruction.mnemonic());
        return name.starts_with("Cvt") || name.starts_with("Vcvt");
    }
    let name = format!("{:?}", instruction.mnemonic());
    let stem = name.strip_prefix('V').map(capitalised).unwrap_or(name);
    STEMS.iter().any(|known| stem.starts_with(known))
}

fn capitalised(stem: &str) -> String {
    let mut letters = stem.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Whether the instruction works on the x87 stack, the MMX registers or their control state.
pub fn uses_x87(instruction: &Instruction) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387, MMX};
    let by_feature = instruction
        .cpuid_features()
        .iter()
        .any(|feature| matches!(*feature, FPU | FPU287 | FPU387 | MMX));
    by_feature
        || instruction.mnemonic() == Mnemonic::Wait
        || instruction.op_kinds().enumerate().any(|(operand, kind)| {
            kind == OpKind::Register && {
                let register = instruction.op_register(operand as u32);
                register.is_mm() || register.is_st()
            }
        })
}
