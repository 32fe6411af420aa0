//! From bytes to [`Insn`]: iced-x86 decodes, families claim, operands are put in handlers' form.

use cpu::{Seg, Unit, branch, cpuid::Model, gpr};
use iced_x86::{
    Code, CodeSize, ConditionCode, CpuidFeature, Decoder, DecoderError, DecoderOptions,
    EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};
use native::Stubs;

use crate::insn::{HIGH_BYTE, Handler, Insn, Repeat};
use crate::native_ops::{self, Touch};
use crate::system_segments::MEMORY;
use crate::{bcd, branches, data, gather, stack_ops, string, system, system_fpu, system_segments};

/// Longest instruction, bytes.
pub const INSTRUCTION_SIZE_MAX: usize = 15;

/// Marks an operand slot that has nothing.
pub const NO_REGISTER: u8 = 0xfe;

/// What came of decoding.
pub enum Decoded {
    /// An instruction (possibly one that raises #UD).
    Insn(Insn),
    /// The bytes end before the instruction does, or it is too long.
    NeedsMore,
}

/// Decodes instructions for one model.
pub struct InsnDecoder {
    factory: InstructionInfoFactory,
    model: Model,
}

impl InsnDecoder {
    /// A decoder for `model`.
    pub fn new(model: Model) -> InsnDecoder {
        InsnDecoder { factory: InstructionInfoFactory::new(), model }
    }

    /// The model it decodes for.
    pub fn model(&self) -> Model {
        self.model
    }

    /// Decodes the instruction at the start of `bytes`.
    pub fn decode(&mut self, stubs: &mut Stubs, bytes: &[u8], bits: u8) -> Decoded {
        let mut decoder = Decoder::with_ip(u32::from(bits), bytes, 0, DecoderOptions::NONE);
        let mut instruction = decoder.decode();
        let short = decoder.last_error() == DecoderError::NoMoreBytes
            // After that many bytes the library says "invalid", but the answer is #GP, not #UD.
            || decoder.position() == INSTRUCTION_SIZE_MAX;
        if instruction.is_invalid() && short {
            return Decoded::NeedsMore;
        }
        if self.model == Model::V2 {
            instruction.set_code(without_bit_counts(instruction.code()));
        }
        Decoded::Insn(self.build(stubs, &instruction))
    }

    fn build(&mut self, stubs: &mut Stubs, instruction: &Instruction) -> Insn {
        let mut insn = blank(instruction);
        set_memory(&mut insn, instruction);
        set_registers(&mut insn, instruction);
        set_immediates(&mut insn, instruction);
        if instruction.is_invalid() || !self.in_model(instruction) {
            return undefined(insn);
        }
        if let Some(handler) = family_handler(instruction) {
            insn.run = handler;
            adjust(&mut insn, instruction);
            if instruction.mnemonic() == Mnemonic::Maskmovq {
                insn.stub = stubs.get(instruction);
            }
            return insn;
        }
        let Some(stub) = stubs.get(instruction) else { return undefined(insn) };
        insn.stub = Some(stub);
        insn.run = self.native_handler(instruction, insn.unit);
        insn
    }

    fn native_handler(&mut self, instruction: &Instruction, unit: Unit) -> Handler {
        let touch = self.touch(instruction);
        let bit_string = touch != Touch::None
            && instruction.op1_kind() == OpKind::Register
            && matches!(
                instruction.mnemonic(),
                Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
            );
        match touch {
            Touch::None if unit == Unit::Integer => native_ops::native_register,
            Touch::None => native_ops::native_unit,
            Touch::Read if bit_string => native_ops::bit_test_read,
            Touch::Modify if bit_string => native_ops::bit_test_modify,
            Touch::Read => native_ops::native_read,
            Touch::Write => native_ops::native_write,
            Touch::Modify => native_ops::native_modify,
        }
    }

    fn touch(&mut self, instruction: &Instruction) -> Touch {
        let info = self.factory.info(instruction);
        let Some(memory) = info.used_memory().first() else { return Touch::None };
        match memory.access() {
            OpAccess::Read | OpAccess::CondRead => Touch::Read,
            // An x87 store with an unmasked exception leaves memory as it is.
            OpAccess::Write if unit(instruction) == Unit::X87 => Touch::Modify,
            OpAccess::Write => Touch::Write,
            OpAccess::NoMemAccess | OpAccess::None => Touch::None,
            OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => Touch::Modify,
        }
    }

    /// Whether the model has the instruction: what `native` runs is checked there for v3.
    fn in_model(&self, instruction: &Instruction) -> bool {
        if self.model == Model::V3 {
            return true;
        }
        use CpuidFeature::*;
        !instruction.cpuid_features().iter().any(|feature| {
            matches!(feature, BMI1 | BMI2 | LZCNT | MOVBE | ADX | SHA | AVX | AVX2 | FMA | F16C)
                || matches!(feature, XSAVE | XSAVEOPT | XSAVEC | XSAVES)
        })
    }
}

/// TZCNT and LZCNT are BSF and BSR with a REP prefix that models without them ignore; compilers
/// rely on it.
fn without_bit_counts(code: Code) -> Code {
    match code {
        Code::Tzcnt_r16_rm16 => Code::Bsf_r16_rm16,
        Code::Tzcnt_r32_rm32 => Code::Bsf_r32_rm32,
        Code::Tzcnt_r64_rm64 => Code::Bsf_r64_rm64,
        Code::Lzcnt_r16_rm16 => Code::Bsr_r16_rm16,
        Code::Lzcnt_r32_rm32 => Code::Bsr_r32_rm32,
        Code::Lzcnt_r64_rm64 => Code::Bsr_r64_rm64,
        other => other,
    }
}

fn family_handler(instruction: &Instruction) -> Option<Handler> {
    system::handler(instruction)
        .or_else(|| system_segments::handler(instruction))
        .or_else(|| system_fpu::handler(instruction))
        .or_else(|| branches::handler(instruction))
        .or_else(|| stack_ops::handler(instruction))
        .or_else(|| string::handler(instruction))
        .or_else(|| gather::handler(instruction))
        .or_else(|| bcd::handler(instruction))
        .or_else(|| data::handler(instruction))
}

fn undefined(insn: Insn) -> Insn {
    Insn { run: branches::undefined, sets_rip: true, counts: false, ends_block: true, ..insn }
}

fn blank(instruction: &Instruction) -> Insn {
    let code = instruction.code();
    let counts = branch::counts(code);
    let repeat = match () {
        () if instruction.has_repne_prefix() => Repeat::WhileNotEqual,
        () if instruction.has_rep_prefix() => Repeat::WhileEqual,
        () => Repeat::No,
    };
    Insn {
        run: branches::undefined,
        imm: 0,
        disp: 0,
        stub: None,
        mem_size: instruction.memory_size().size() as u16,
        imm2: 0,
        len: instruction.len() as u8,
        seg: Seg::Ds,
        base: gpr::ZERO as u8,
        index: gpr::ZERO as u8,
        scale: 0,
        address_bits: address_bits(instruction),
        size: operand_size(instruction),
        reg: [NO_REGISTER; 3],
        unit: unit(instruction),
        repeat,
        sets_rip: sets_rip(instruction, counts),
        counts,
        ends_block: counts || ends_block(instruction.mnemonic()),
    }
}

fn sets_rip(instruction: &Instruction, counts: bool) -> bool {
    let interrupt = matches!(
        instruction.mnemonic(),
        Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Into | Mnemonic::Int1
    );
    counts || interrupt || string::handler(instruction).is_some()
}

/// Instructions after which mode, mappings or inhibitions may differ.
fn ends_block(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Int | Int3
            | Into
            | Int1
            | Hlt
            | Sti
            | Popf
            | Popfd
            | Popfq
            | Wrmsr
            | Lmsw
            | Clts
            | Invlpg
            | Invpcid
            | Stac
            | Clac
            | Xsetbv
            | Lgdt
            | Lidt
            | Lldt
            | Ltr
            | Lss
    )
}

fn address_bits(instruction: &Instruction) -> u8 {
    for kind in instruction.op_kinds() {
        match kind {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 64,
            OpKind::Memory => return memory_address_bits(instruction),
            _ => {}
        }
    }
    match instruction.op_code().address_size() {
        16 => 16,
        32 => 32,
        64 => 64,
        _ => instruction.code_size() as u8 * 16,
    }
}

fn memory_address_bits(instruction: &Instruction) -> u8 {
    let register = match instruction.memory_base() {
        Register::None => instruction.memory_index(),
        base => base,
    };
    let size = match register {
        Register::EIP => 4,
        Register::RIP => 8,
        r if r.is_gpr() => r.size(),
        _ => instruction.memory_displ_size() as usize,
    };
    match size {
        2 => 16,
        4 => 32,
        _ => 64,
    }
}

fn set_memory(insn: &mut Insn, instruction: &Instruction) {
    let memory = instruction.op_kinds().any(is_memory_kind);
    if !memory {
        return;
    }
    insn.seg = memory_segment(instruction);
    if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        return;
    }
    insn.disp = instruction.memory_displacement64();
    insn.base = address_register(instruction.memory_base());
    if let Some(size) = gather::index_size(instruction) {
        insn.imm2 = size;
    } else {
        insn.index = address_register(instruction.memory_index());
    }
    insn.scale = instruction.memory_index_scale().trailing_zeros() as u8;
}

/// Segment of the memory operand. 64-bit code knows FS and GS only; which of the others it is
/// decides between #SS and #GP, by the base register (SDM vol. 1, 3.3.4).
fn memory_segment(instruction: &Instruction) -> Seg {
    let named = segment(instruction.memory_segment()).unwrap_or(Seg::Ds);
    if instruction.code_size() != CodeSize::Code64 || matches!(named, Seg::Fs | Seg::Gs) {
        return named;
    }
    let base = instruction.memory_base();
    let stack = base != Register::None
        && base.is_gpr()
        && matches!(base.full_register(), Register::RSP | Register::RBP);
    if stack { Seg::Ss } else { Seg::Ds }
}

fn is_memory_kind(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Memory
            | OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

fn segment(register: Register) -> Option<Seg> {
    register.is_segment_register().then(|| Seg::from_index(register.number() as u8)).flatten()
}

fn address_register(register: Register) -> u8 {
    match register {
        Register::None => gpr::ZERO as u8,
        Register::RIP | Register::EIP => gpr::RIP as u8,
        r => r.full_register().number() as u8,
    }
}

fn register_number(register: Register) -> u8 {
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return HIGH_BYTE | register.full_register().number() as u8;
    }
    if register.is_gpr() {
        return register.full_register().number() as u8;
    }
    register.number() as u8
}

fn set_registers(insn: &mut Insn, instruction: &Instruction) {
    for op in 0..instruction.op_count().min(3) {
        let kind = instruction.op_kind(op);
        insn.reg[op as usize] = match kind {
            OpKind::Register => register_number(instruction.op_register(op)),
            kind if is_memory_kind(kind) => MEMORY,
            _ => NO_REGISTER,
        };
    }
    if let Some(size) = gather::index_size(instruction) {
        insn.imm2 = size;
        insn.reg[1] = gather::vector_number(instruction.memory_index());
        insn.mem_size = instruction.op0_register().size() as u16;
    }
}

fn set_immediates(insn: &mut Insn, instruction: &Instruction) {
    let len = instruction.len() as u64;
    for op in 0..instruction.op_count() {
        match instruction.op_kind(op) {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                insn.imm = instruction.near_branch_target().wrapping_sub(len);
            }
            OpKind::FarBranch16 => {
                insn.imm = u64::from(instruction.far_branch16());
                insn.imm2 = instruction.far_branch_selector();
            }
            OpKind::FarBranch32 => {
                insn.imm = u64::from(instruction.far_branch32());
                insn.imm2 = instruction.far_branch_selector();
            }
            OpKind::Immediate8_2nd => insn.imm2 = u16::from(instruction.immediate8_2nd()),
            kind if is_immediate(kind) => insn.imm = instruction.immediate(op),
            _ => {}
        }
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn operand_size(instruction: &Instruction) -> u8 {
    match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() as u8,
        OpKind::Memory => instruction.memory_size().size() as u8,
        _ => 0,
    }
}

/// Operand facts that differ from the general rule, by family.
fn adjust(insn: &mut Insn, instruction: &Instruction) {
    let mnemonic = instruction.mnemonic();
    if instruction.condition_code() != ConditionCode::None {
        insn.imm2 = condition_number(instruction);
    }
    insn.size = match mnemonic {
        Mnemonic::In => instruction.op0_register().size() as u8,
        Mnemonic::Out => instruction.op1_register().size() as u8,
        Mnemonic::Iret => 2,
        Mnemonic::Iretd => 4,
        Mnemonic::Iretq => 8,
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            if matches!(instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
                2
            } else {
                4
            }
        }
        Mnemonic::Jmp | Mnemonic::Call if has_far_pointer(instruction) => {
            far_pointer_size(instruction)
        }
        _ if insn.counts => branches::offset_size(instruction),
        _ => insn.size,
    };
    if matches!(mnemonic, Mnemonic::In | Mnemonic::Out) {
        let immediate = instruction.op_kinds().any(is_immediate);
        insn.imm2 = u16::from(immediate);
    }
    if system_fpu::is_approximation(instruction) {
        let vex = instruction.op_code().encoding() == EncodingKind::VEX;
        insn.imm2 = if vex { system_fpu::VEX } else { 0 };
    }
}

fn has_far_pointer(instruction: &Instruction) -> bool {
    instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect()
}

fn far_pointer_size(instruction: &Instruction) -> u8 {
    (instruction.memory_size().size() - 2) as u8
}

/// The condition as encoded, 0 to 15; 0 where there is none.
fn condition_number(instruction: &Instruction) -> u16 {
    match instruction.condition_code() {
        ConditionCode::None | ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    }
}

/// Whether an x87 instruction first raises what an earlier one left pending.
fn waits(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    !matches!(
        mnemonic,
        Fninit | Fnclex | Fnstcw | Fnstsw | Fnstenv | Fnsave | Fneni | Fndisi | Fnsetpm
    )
}

/// Register file the instruction computes on.
fn unit(instruction: &Instruction) -> Unit {
    use CpuidFeature::*;
    let mnemonic = instruction.mnemonic();
    if mnemonic == Mnemonic::Wait {
        return Unit::Wait;
    }
    if matches!(mnemonic, Mnemonic::Crc32 | Mnemonic::Movnti) {
        return Unit::Integer;
    }
    let features = instruction.cpuid_features();
    let has = |wanted: &[CpuidFeature]| features.iter().any(|f| wanted.contains(f));
    if instruction.op_code().encoding() == EncodingKind::VEX {
        return if has(&[BMI1, BMI2]) { Unit::Integer } else { Unit::Avx };
    }
    if has(&[FPU, FPU287, FPU387]) {
        return if waits(mnemonic) { Unit::X87 } else { Unit::X87Control };
    }
    let uses_mmx = instruction
        .op_kinds()
        .enumerate()
        .any(|(op, kind)| kind == OpKind::Register && instruction.op_register(op as u32).is_mm());
    if has(&[MMX]) || uses_mmx {
        return Unit::Mmx;
    }
    if has(&[SSE, SSE2, SSE3, SSSE3, SSE4_1, SSE4_2, AES, PCLMULQDQ, SHA]) {
        return Unit::Sse;
    }
    Unit::Integer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `bytes` decode to an instruction that runs in `model`.
    fn exists(model: Model, bytes: &[u8]) -> bool {
        let mut stubs = Stubs::new().expect("this host runs stubs");
        let mut decoder = InsnDecoder::new(model);
        match decoder.decode(&mut stubs, bytes, 64) {
            Decoded::Insn(insn) => insn.stub.is_some() && usize::from(insn.len) == bytes.len(),
            Decoded::NeedsMore => panic!("{bytes:x?} is whole"),
        }
    }

    #[test]
    fn v2_takes_tzcnt_for_bsf_and_has_no_avx() {
        let tzcnt = [0xf3, 0x0f, 0xbc, 0xc1];
        let andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1];
        let vaddps = [0xc5, 0xf4, 0x58, 0xc2];
        assert!(exists(Model::V2, &tzcnt) && exists(Model::V3, &tzcnt));
        assert!(!exists(Model::V2, &andn) && exists(Model::V3, &andn));
        assert!(!exists(Model::V2, &vaddps) && exists(Model::V3, &vaddps));
    }

    #[test]
    fn memory_segment_in_64_bit_code_is_by_base_register() {
        let mut stubs = Stubs::new().expect("this host runs stubs");
        let mut decoder = InsnDecoder::new(Model::V3);
        for (bytes, expected) in [
            (&[0x36, 0x8b, 0x03][..], Seg::Ds),
            (&[0x8b, 0x45, 0x00], Seg::Ss),
            (&[0x64, 0x8b, 0x45, 0x00], Seg::Fs),
            (&[0x3e, 0x8b, 0x04, 0x24], Seg::Ss),
        ] {
            let Decoded::Insn(insn) = decoder.decode(&mut stubs, bytes, 64) else {
                panic!("{bytes:x?} is whole");
            };
            assert_eq!(insn.seg, expected, "{bytes:x?}");
        }
    }
}
