//! What a stub must load, run and store: the neutral form's registers placed in the host's.

use iced_x86::{
    Code, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};

use crate::rewrite;

/// Numbers of host registers with a part to play.
pub(crate) mod host {
    pub(crate) const RAX: u8 = 0;
    pub(crate) const RCX: u8 = 1;
    pub(crate) const RDX: u8 = 2;
    pub(crate) const RBX: u8 = 3;
    pub(crate) const RBP: u8 = 5;
    /// Address of the operand's data, unless the instruction names RDI for it.
    pub(crate) const RSI: u8 = 6;
    /// Address of the guest's registers, unless the instruction names RDI for its operand.
    pub(crate) const RDI: u8 = 7;
}

const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// A guest GPR and where the stub keeps it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) guest: u8,
    pub(crate) host: u8,
    pub(crate) load: bool,
    pub(crate) store: bool,
}

/// A bit test of memory, run on a register that holds the operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BitString {
    pub(crate) scratch: u8,
    pub(crate) size: usize,
    pub(crate) store: bool,
}

/// Everything the generator needs to know.
pub(crate) struct Plan {
    /// The instruction to be encoded in the stub.
    pub(crate) instruction: Instruction,
    pub(crate) gprs: Vec<Placed>,
    /// Callee-saved host registers that the stub uses.
    pub(crate) saved: Vec<u8>,
    pub(crate) load_flags: bool,
    pub(crate) store_flags: bool,
    /// Bit n: XMMn or YMMn.
    pub(crate) load_vectors: u16,
    pub(crate) store_vectors: u16,
    /// Whole YMM registers are moved, as VEX instructions zero the upper half.
    pub(crate) is_vex: bool,
    pub(crate) uses_x87: bool,
    pub(crate) uses_mxcsr: bool,
    /// The operand is a new MXCSR. AMD's bit 17 is reserved for the guest, on every host.
    pub(crate) loads_mxcsr: bool,
    /// The operand's address belongs in RDI and the guest registers' in RSI.
    pub(crate) memory_is_rdi: bool,
    pub(crate) bit_string: Option<BitString>,
    /// Offset and length of the instruction and data pointers in an FPU environment stored.
    pub(crate) fpu_pointers: Option<(u8, u8)>,
}

/// Registers the neutral form uses, by kind.
#[derive(Default)]
struct Used {
    gpr_load: u16,
    gpr_store: u16,
    vector_load: u16,
    vector_store: u16,
}

/// Plans the stub of a neutral form; `is_64_bit` is the guest's mode.
pub(crate) fn plan(
    factory: &mut InstructionInfoFactory,
    neutral: &Instruction,
    is_64_bit: bool,
) -> Option<Plan> {
    let is_vex = neutral.encoding() == EncodingKind::VEX;
    let used = used_registers(factory, neutral, is_vex, is_64_bit)?;
    let (load_flags, store_flags) = status_flags(neutral);
    let mut plan = Plan {
        instruction: *neutral,
        gprs: Vec::new(),
        saved: Vec::new(),
        load_flags,
        store_flags,
        load_vectors: used.vector_load,
        store_vectors: used.vector_store,
        is_vex: is_vex && used.vector_load | used.vector_store != 0,
        uses_x87: rewrite::uses_x87(neutral),
        uses_mxcsr: rewrite::uses_mxcsr(neutral),
        loads_mxcsr: matches!(neutral.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr),
        memory_is_rdi: rewrite::memory_is_rdi(neutral),
        bit_string: None,
        fpu_pointers: fpu_pointers(neutral.code()),
    };
    place(&mut plan, &used);
    Some(plan)
}

fn used_registers(
    factory: &mut InstructionInfoFactory,
    neutral: &Instruction,
    is_vex: bool,
    is_64_bit: bool,
) -> Option<Used> {
    let mut used = Used::default();
    if matches!(neutral.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper) {
        // Outside 64-bit mode only the first eight exist (SDM vol. 2C, VZEROALL).
        let all = if is_64_bit { 0xffff } else { 0x00ff };
        return Some(Used { vector_load: all, vector_store: all, ..used });
    }
    // Without a base register, RSI is listed only where the guest itself uses it.
    let mut baseless = *neutral;
    rewrite::set_memory_base(&mut baseless, Register::None);
    let skip_rdi = rewrite::memory_is_rdi(neutral);
    let may_keep = matches!(neutral.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
    for entry in factory.info(&baseless).used_registers() {
        let (register, access) = (entry.register(), entry.access());
        let writes = matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        let overwrites = access == OpAccess::Write;
        if register.is_gpr() {
            let full = register.full_register();
            if skip_rdi && full == Register::RDI {
                continue;
            }
            let bit = 1 << full.number();
            let whole = overwrites && register.size() == 8 && !may_keep;
            used.gpr_load |= if whole { 0 } else { bit };
            used.gpr_store |= if writes { bit } else { 0 };
        } else if register.is_vector_register() {
            let bit = 1 << register.number();
            used.vector_load |= if overwrites && is_vex { 0 } else { bit };
            used.vector_store |= if writes { bit } else { 0 };
        } else if !register.is_mm() && !register.is_st() {
            return None;
        }
    }
    Some(used)
}

/// Whether status flags must be loaded, and stored.
fn status_flags(neutral: &Instruction) -> (bool, bool) {
    // A rotation by a multiple of its width is listed as changing no flag, but may leave OF
    // undefined; a shift by a count of 0 keeps all.
    let is_counted = matches!(
        neutral.mnemonic(),
        Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Sal
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    if is_counted {
        return (true, true);
    }
    let modified = neutral.rflags_modified() & STATUS != 0;
    let defined = neutral.rflags_written() | neutral.rflags_cleared() | neutral.rflags_set();
    let load = neutral.rflags_read() & STATUS != 0 || (modified && defined & STATUS != STATUS);
    (load, modified)
}

fn fpu_pointers(code: Code) -> Option<(u8, u8)> {
    match code {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => Some((6, 8)),
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => Some((12, 14)),
        _ => None,
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Chooses a host register for each guest register. RDI and RSI are taken, RSP is the host's,
/// and callee-saved ones cost a push: explicit operands are moved to free registers instead.
fn place(plan: &mut Plan, used: &Used) {
    let explicit = explicit_gprs(&plan.instruction);
    let high_byte = (0..plan.instruction.op_count()).any(|operand| {
        plan.instruction.op_kind(operand) == OpKind::Register
            && is_high_byte(plan.instruction.op_register(operand))
    });
    // With AH to BH there is no REX prefix, so only the first eight registers exist.
    let pool: &[u8] = if high_byte {
        &[host::RCX, host::RDX, host::RAX, host::RBX]
    } else {
        &[host::RCX, host::RDX, 8, 9, 10, 11, host::RAX]
    };
    let moved: u16 = if high_byte { 0b1111_0000 } else { 0b1111_0000_1111_1000 };
    let all = used.gpr_load | used.gpr_store;
    let mut free = pool.iter().copied().filter(|&register| all & (1 << register) == 0);
    for guest in 0..16u8 {
        let bit = 1 << guest;
        if all & bit == 0 {
            continue;
        }
        let host = if explicit & moved & bit != 0 {
            free.next().expect("at most four registers are used")
        } else {
            guest
        };
        let (load, store) = (used.gpr_load & bit != 0, used.gpr_store & bit != 0);
        plan.gprs.push(Placed { guest, host, load, store });
    }
    let scratch = free.next();
    rename_operands(plan);
    if rewrite::is_bit_string(&plan.instruction) {
        to_bit_string(plan, scratch.expect("a bit test uses two registers"));
    }
    for callee_saved in [host::RBX, host::RBP, 12, 13, 14, 15] {
        if plan.gprs.iter().any(|placed| placed.host == callee_saved) {
            plan.saved.push(callee_saved);
        }
    }
}

fn explicit_gprs(instruction: &Instruction) -> u16 {
    (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand))
        .filter(|register| register.is_gpr())
        .fold(0, |set, register| set | 1 << register.full_register().number())
}

/// The general register of a number in a size in bytes; never a high byte (SDM vol. 2, 3.1.1.1).
#[inline]
pub fn sized(number: u8, size: usize) -> Register {
    let number = u32::from(number);
    match size {
        8 => Register::RAX + number,
        4 => Register::EAX + number,
        2 => Register::AX + number,
        _ if number < 4 => Register::AL + number,
        _ => Register::SPL + (number - 4),
    }
}

fn rename_operands(plan: &mut Plan) {
    for operand in 0..plan.instruction.op_count() {
        if plan.instruction.op_kind(operand) != OpKind::Register {
            continue;
        }
        let register = plan.instruction.op_register(operand);
        if !register.is_gpr() || is_high_byte(register) {
            continue;
        }
        let guest = register.full_register().number() as u8;
        if let Some(placed) = plan.gprs.iter().find(|placed| placed.guest == guest) {
            let renamed = sized(placed.host, register.size());
            plan.instruction.set_op_register(operand, renamed);
        }
    }
}

fn to_bit_string(plan: &mut Plan, scratch: u8) {
    let like = plan.instruction.op1_register();
    let store = plan.instruction.mnemonic() != Mnemonic::Bt;
    plan.bit_string = Some(BitString { scratch, size: like.size(), store });
    plan.instruction.set_op0_kind(OpKind::Register);
    plan.instruction.set_op0_register(sized(scratch, like.size()));
}
