//! Vector memory accesses element by element: gathers, masked loads and stores. Elements whose
//! mask bit is clear are not touched and cannot fault.

use cpu::{Result, Seg, gpr};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::insn::{Exec, Handler, Insn, address_mask};
use crate::native_ops::native_unit;

/// The handler, if the instruction belongs to this family.
pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let store = instruction.op0_kind() == OpKind::Memory;
    Some(match instruction.mnemonic() {
        Mnemonic::Vgatherdps | Mnemonic::Vpgatherdd => gather::<4, 4>,
        Mnemonic::Vgatherdpd | Mnemonic::Vpgatherdq => gather::<4, 8>,
        Mnemonic::Vgatherqps | Mnemonic::Vpgatherqd => gather::<8, 4>,
        Mnemonic::Vgatherqpd | Mnemonic::Vpgatherqq => gather::<8, 8>,
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd if store => masked_store::<4>,
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq if store => masked_store::<8>,
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => masked_load::<4>,
        Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => masked_load::<8>,
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => byte_masked_store::<16>,
        Mnemonic::Maskmovq => byte_masked_store::<8>,
        _ => return None,
    })
}

/// Bytes of the vector index register of a gather: 16 or 32.
pub fn index_size(instruction: &Instruction) -> Option<u16> {
    match instruction.memory_index() {
        r if r.is_xmm() => Some(16),
        r if r.is_ymm() => Some(32),
        _ => None,
    }
}

/// Number of a vector register, 0 to 15.
pub fn vector_number(register: Register) -> u8 {
    register.number() as u8
}

type Bytes = [u8; 32];

fn bytes_of(register: [u64; 4]) -> Bytes {
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(register) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn register_of(bytes: Bytes) -> [u64; 4] {
    std::array::from_fn(|i| {
        u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("eight bytes"))
    })
}

fn vector(exec: &Exec<'_, '_>, register: u8) -> Bytes {
    bytes_of(exec.cpu.vcpu.regs.ymm[usize::from(register & 15)])
}

fn set_vector(exec: &mut Exec<'_, '_>, register: u8, bytes: Bytes) {
    exec.regs().ymm[usize::from(register & 15)] = register_of(bytes);
}

/// Sign-extended index element.
fn index_element(bytes: &Bytes, element: usize, size: usize) -> u64 {
    let at = element * size;
    if size == 4 {
        i32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as i64 as u64
    } else {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
    }
}

/// VGATHER and VPGATHER: `reg` is destination, vector index, mask; `imm2` the index register's
/// size in bytes, `mem_size` the destination's. Completed elements are kept on a fault.
fn gather<const INDEX: usize, const DATA: usize>(
    exec: &mut Exec<'_, '_>,
    insn: &Insn,
) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let [destination, index, mask] = insn.reg;
    let elements = (usize::from(insn.imm2) / INDEX).min(usize::from(insn.mem_size) / DATA);
    let indices = vector(exec, index);
    for element in 0..elements {
        let (at, sign) = (element * DATA, element * DATA + DATA - 1);
        let mut masks = vector(exec, mask);
        if masks[sign] & 0x80 != 0 {
            let base = exec.cpu.vcpu.regs.gpr[usize::from(insn.base)];
            let scaled = index_element(&indices, element, INDEX) << insn.scale;
            let offset =
                base.wrapping_add(scaled).wrapping_add(insn.disp) & address_mask(insn.address_bits);
            let mut data = [0; DATA];
            exec.cpu.read_bytes(insn.seg, offset, &mut data)?;
            let mut result = vector(exec, destination);
            result[at..at + DATA].copy_from_slice(&data);
            set_vector(exec, destination, result);
        }
        masks[at..at + DATA].fill(0);
        set_vector(exec, mask, masks);
    }
    set_vector(exec, mask, [0; 32]);
    let mut result = vector(exec, destination);
    result[elements * DATA..].fill(0);
    set_vector(exec, destination, result);
    Ok(())
}

/// VMASKMOV and VPMASKMOV loads: `reg` is destination, mask, memory.
fn masked_load<const DATA: usize>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let masks = vector(exec, insn.reg[1]);
    let base = exec.offset(insn);
    let mut result = [0; 32];
    for at in (0..usize::from(insn.mem_size)).step_by(DATA) {
        if masks[at + DATA - 1] & 0x80 != 0 {
            let offset = base.wrapping_add(at as u64) & address_mask(insn.address_bits);
            exec.cpu.read_bytes(insn.seg, offset, &mut result[at..at + DATA])?;
        }
    }
    set_vector(exec, insn.reg[0], result);
    Ok(())
}

/// Stores `SIZE`-byte elements of `data` that `chosen` picks, all or none.
fn store_chosen(
    exec: &mut Exec<'_, '_>,
    seg: Seg,
    base: u64,
    bits: u8,
    elements: &[(usize, &[u8])],
) -> Result<()> {
    let place = |at: usize| base.wrapping_add(at as u64) & address_mask(bits);
    for (at, data) in elements {
        exec.cpu.probe_write(seg, place(*at), data.len() as u64)?;
    }
    for (at, data) in elements {
        exec.cpu.write_bytes(seg, place(*at), data)?;
    }
    Ok(())
}

/// VMASKMOV and VPMASKMOV stores: `reg` is memory, mask, source.
fn masked_store<const DATA: usize>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let (masks, data) = (vector(exec, insn.reg[1]), vector(exec, insn.reg[2]));
    let base = exec.offset(insn);
    let chosen: Vec<(usize, &[u8])> = (0..usize::from(insn.mem_size))
        .step_by(DATA)
        .filter(|at| masks[at + DATA - 1] & 0x80 != 0)
        .map(|at| (at, &data[at..at + DATA]))
        .collect();
    store_chosen(exec, insn.seg, base, insn.address_bits, &chosen)
}

/// MASKMOVDQU and MASKMOVQ: bytes of `reg[1]` that the sign bits of `reg[2]` choose, at DS:RDI.
fn byte_masked_store<const SIZE: usize>(exec: &mut Exec<'_, '_>, insn: &Insn) -> Result<()> {
    exec.cpu.check_unit(insn.unit)?;
    let (data, masks) = if SIZE == 8 {
        (mmx(exec, insn.reg[1]), mmx(exec, insn.reg[2]))
    } else {
        (vector(exec, insn.reg[1]), vector(exec, insn.reg[2]))
    };
    let base = exec.regs().gpr[gpr::RDI] & address_mask(insn.address_bits);
    if SIZE == 8 {
        let gva = exec.cpu.vcpu.mode.bases[insn.seg as usize].wrapping_add(base);
        exec.cpu.check_aligned(insn.seg, gva, 8, 8)?;
    }
    let chosen: Vec<(usize, &[u8])> =
        (0..SIZE).filter(|&at| masks[at] & 0x80 != 0).map(|at| (at, &data[at..=at])).collect();
    if SIZE == 8 {
        // The switch to MMX state comes from the instruction itself, and before any fault.
        exec.operand.align(0);
        native_unit(exec, insn)?;
    }
    store_chosen(exec, insn.seg, base, insn.address_bits, &chosen)
}

/// An MMX register: the significand of the x87 register it aliases.
fn mmx(exec: &Exec<'_, '_>, register: u8) -> Bytes {
    let fx = &exec.cpu.vcpu.regs.fx;
    let top = fx.fsw() >> 11 & 7;
    let slot = usize::from((u16::from(register & 7).wrapping_sub(top)) & 7);
    let at = 32 + 16 * slot;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&fx.0[at..at + 8]);
    bytes
}
