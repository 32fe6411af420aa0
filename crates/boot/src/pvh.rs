//! The PVH entry (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): 32-bit
//! protected mode with EBX pointing at `hvm_start_info`.

use cpu::gpr;
use memory::Ram;
use types::Gpa;

use crate::entry::Entry;
use crate::error::BootError;
use crate::memory_map::memory_map;
use crate::places;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;

/// Writes `hvm_start_info` and what it points at; the state to enter with.
pub(crate) fn prepare(
    ram: &mut Ram,
    entry: u64,
    initrd: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let map = memory_map(ram.layout());
    let modules_at = places::START_INFO + START_INFO_SIZE;
    let map_at = modules_at + MODULE_SIZE;
    let mut bytes = Vec::new();
    let doubles = |bytes: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    };
    let quads = |bytes: &mut Vec<u8>, values: &[u64]| {
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    };
    doubles(&mut bytes, &[MAGIC, VERSION, 0, initrd.is_some().into()]);
    let modules = if initrd.is_some() { modules_at } else { 0 };
    quads(&mut bytes, &[modules, places::CMDLINE, rsdp, map_at]);
    doubles(&mut bytes, &[map.len() as u32, 0]);
    debug_assert_eq!(bytes.len() as u64, START_INFO_SIZE);
    let (gpa, size) = initrd.unwrap_or((0, 0));
    quads(&mut bytes, &[gpa, size, 0, 0]);
    for range in map {
        quads(&mut bytes, &[range.gpa, range.size]);
        doubles(&mut bytes, &[range.kind as u32, 0]);
    }
    ram.write(Gpa(places::START_INFO), &bytes)?;
    let entry = Entry::protected(entry).with(gpr::RBX, places::START_INFO);
    entry.write_gdt(ram)?;
    Ok(entry)
}
