//! Where two outcomes of a case differ.

use cpu::{Registers, flag, gpr};
use iced_x86::{Code, Mnemonic, RflagsBits};

use crate::address::{address, memory_operand, operand_size};
use crate::{Case, Fault, Outcome, choice, layout};

/// The result of a comparison.
#[derive(Default)]
pub struct Difference {
    /// One line for each thing that differs.
    pub lines: Vec<String>,
    /// Flags that differ and are undefined after this instruction.
    pub undefined_flags: u64,
}

const NAMES: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip",
];
/// From here on Linux shows a program every page as present.
const LINUX_TASK_SIZE_MAX: u64 = 0x7fff_ffff_f000;
const COMPARED_FLAGS: u64 =
    flag::STATUS | flag::DF | flag::AC | flag::NT | flag::ID | flag::IF | flag::IOPL;

/// Compares two outcomes; `host` is the truth.
pub fn compare(case: &Case, host: &Outcome, other: &Outcome) -> Difference {
    let mut difference = Difference::default();
    if is_vendor_mxcsr(case, host) || choice::is_choice(case, host, other) {
        return difference;
    }
    let lines = &mut difference.lines;
    let comparable = |fault: Fault| comparable_fault(case, fault);
    if host.fault.map(comparable) != other.fault.map(comparable) {
        lines.push(format!("fault: {:x?} against {:x?}", host.fault, other.fault));
    }
    let mask = if case.bitness == 64 { u64::MAX } else { 0xffff_ffff };
    for (number, name) in NAMES.into_iter().enumerate() {
        let (left, right) = (host.registers.gpr[number] & mask, other.registers.gpr[number] & mask);
        if left != right {
            lines.push(format!("{name}: {left:#x} against {right:#x}"));
        }
    }
    let flags = (host.registers.rflags() ^ other.registers.rflags()) & COMPARED_FLAGS;
    difference.undefined_flags = flags & undefined_flags(case);
    if flags & !difference.undefined_flags != 0 {
        let (left, right) = (host.registers.rflags(), other.registers.rflags());
        lines.push(format!("rflags: {left:#x} against {right:#x}, differ in {flags:#x}"));
    }
    compare_vectors(lines, &host.registers, &other.registers);
    compare_area(lines, &host.registers, &other.registers);
    compare_data(lines, case, host, other);
    difference
}

/// What of a fault is defined. Linux reports every page beyond a program's as present, to hide
/// its own; which byte of a long operand faults first, and whether reading or writing, is the
/// processor's choice.
fn comparable_fault(case: &Case, mut fault: Fault) -> Fault {
    if fault.vector == 14 && fault.address >= LINUX_TASK_SIZE_MAX {
        fault.error_code &= !1;
    }
    let instruction = case.instruction();
    let is_masked = matches!(
        instruction.mnemonic(),
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    );
    if fault.vector == 14 && (is_masked || operand_size(&instruction) > 32) {
        return Fault { error_code: 0, address: 0, ..fault };
    }
    fault
}

/// Whether the host took an MXCSR with AMD's bit 17, which the model refuses.
fn is_vendor_mxcsr(case: &Case, host: &Outcome) -> bool {
    matches!(case.instruction().mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr)
        && host.registers.fx.mxcsr() & 1 << 17 != 0
}

fn undefined_flags(case: &Case) -> u64 {
    let undefined = case.instruction().rflags_undefined();
    [
        (RflagsBits::OF, flag::OF),
        (RflagsBits::SF, flag::SF),
        (RflagsBits::ZF, flag::ZF),
        (RflagsBits::AF, flag::AF),
        (RflagsBits::CF, flag::CF),
        (RflagsBits::PF, flag::PF),
    ]
    .into_iter()
    .filter(|(iced, _)| undefined & iced != 0)
    .fold(0, |set, (_, ours)| set | ours)
}

fn compare_vectors(lines: &mut Vec<String>, host: &Registers, other: &Registers) {
    for (number, (left, right)) in host.ymm.iter().zip(&other.ymm).enumerate() {
        if left != right {
            lines.push(format!("ymm{number}: {left:016x?} against {right:016x?}"));
        }
    }
}

fn compare_area(lines: &mut Vec<String>, host: &Registers, other: &Registers) {
    let fields = [("fcw", 0..2), ("fsw", 2..4), ("ftw", 4..5), ("mxcsr", 24..28)];
    let stack = (0..8).map(|number| ("st/mm", 32 + number * 16..42 + number * 16));
    for (name, range) in fields.into_iter().chain(stack) {
        let (left, right) = (&host.fx.0[range.clone()], &other.fx.0[range.clone()]);
        if left != right {
            lines.push(format!("{name} (byte {}): {left:02x?} against {right:02x?}", range.start));
        }
    }
    if other.fx.0[5..24].iter().chain(&other.fx.0[28..32]).any(|&byte| byte != 0)
        || other.fx.0[160..].iter().any(|&byte| byte != 0)
    {
        lines.push("parts of the FXSAVE area that must be zero are not".into());
    }
}

fn compare_data(lines: &mut Vec<String>, case: &Case, host: &Outcome, other: &Outcome) {
    if host.data == other.data {
        return;
    }
    let ignored = ignored_bits(case, host);
    for (offset, (left, right)) in host.data.iter().zip(&other.data).enumerate() {
        let at = layout::DATA + offset as u64;
        let ignore =
            ignored.iter().filter(|(place, _)| *place == at).fold(0, |set, (_, bits)| set | bits);
        if (left ^ right) & !ignore != 0 && lines.len() < 40 {
            lines.push(format!("[{at:#x}]: {left:02x} against {right:02x}"));
        }
    }
}

/// Bits of data that this way of running on the host spoils: the pointers of an FPU environment
/// and MXCSR_MASK, which are not guest state, TF in pushed flags; and what is its choice.
fn ignored_bits(case: &Case, host: &Outcome) -> Vec<(u64, u8)> {
    let instruction = case.instruction();
    let pointers = match instruction.code() {
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => 6..14,
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => 12..26,
        Code::Fxsave_m512byte | Code::Fxsave64_m512byte => {
            return ignored_at(case, (6..24).chain(28..32));
        }
        // SDM vol. 2, PUSH: a selector is zero-extended, or its 16 bits alone are written.
        Code::Pushd_CS
        | Code::Pushd_DS
        | Code::Pushd_ES
        | Code::Pushd_FS
        | Code::Pushd_GS
        | Code::Pushd_SS => {
            let rsp = host.registers.gpr[gpr::RSP];
            return [2, 3].map(|byte| (rsp.wrapping_add(byte), 0xff)).to_vec();
        }
        _ if matches!(
            instruction.mnemonic(),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq
        ) =>
        {
            return vec![(host.registers.gpr[gpr::RSP].wrapping_add(1), 1)];
        }
        _ => return Vec::new(),
    };
    ignored_at(case, pointers)
}

/// All bits of the memory operand's bytes at `offsets`.
fn ignored_at(case: &Case, offsets: impl Iterator<Item = u64>) -> Vec<(u64, u8)> {
    let instruction = case.instruction();
    let start = memory_operand(&instruction)
        .and_then(|operand| address(case, &instruction, operand))
        .unwrap_or(0);
    offsets.map(|offset| (start.wrapping_add(offset), 0xff)).collect()
}
