//! Cases as text: one `key=value` a line, hexadecimal, an empty line after each case.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use cpu::Registers;

use crate::{Case, layout};

/// A case as text.
pub fn encode(case: &Case) -> String {
    let mut text = String::new();
    let registers = &case.registers;
    let _ = writeln!(text, "bits={}\ncode={}", case.bitness, hex(&case.bytes));
    for number in (0..17).filter(|&number| registers.gpr[number] != 0) {
        let _ = writeln!(text, "gpr{number}={:x}", registers.gpr[number]);
    }
    let _ = writeln!(text, "rflags={:x}", registers.rflags());
    for (number, value) in registers.ymm.iter().enumerate().filter(|(_, value)| **value != [0; 4]) {
        let bytes: Vec<u8> = value.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = writeln!(text, "ymm{number}={}", hex(&bytes));
    }
    let _ = writeln!(text, "fx={}", hex(&registers.fx.0[..160]));
    for (address, bytes) in &case.patches {
        let _ = writeln!(text, "at{address:x}={}", hex(bytes));
    }
    text + "\n"
}

/// All cases of a text.
pub fn decode(text: &str) -> Result<Vec<Case>> {
    text.split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty())
        .map(|block| decode_case(block).with_context(|| format!("in the case\n{block}")))
        .collect()
}

fn decode_case(block: &str) -> Result<Case> {
    let mut case =
        Case { bitness: 64, bytes: Vec::new(), registers: Registers::reset(), patches: Vec::new() };
    for line in block.lines().filter(|line| !line.starts_with('#')) {
        let (key, value) = line.split_once('=').context("a line without =")?;
        decode_line(&mut case, key, value).with_context(|| format!("in the line {line}"))?;
    }
    let rip = case.registers.rip();
    let last = rip.checked_add(case.bytes.len() as u64);
    ensure!(
        rip >= layout::CODE && last.is_some_and(|last| last <= layout::CODE + layout::CODE_SIZE),
        "the instruction is not in the code pages"
    );
    Ok(case)
}

fn decode_line(case: &mut Case, key: &str, value: &str) -> Result<()> {
    let registers = &mut case.registers;
    match key.trim_end_matches(|letter: char| letter.is_ascii_digit()) {
        "bits" => case.bitness = value.parse()?,
        "code" => case.bytes = unhex(value)?,
        "rflags" => registers.set_rflags(u64::from_str_radix(value, 16)?),
        "gpr" => {
            let slot = registers.gpr.get_mut(key[3..].parse::<usize>()?).context("no such GPR")?;
            *slot = u64::from_str_radix(value, 16)?;
        }
        "ymm" => {
            let slot = registers.ymm.get_mut(key[3..].parse::<usize>()?).context("no such YMM")?;
            let bytes = unhex(value)?;
            ensure!(bytes.len() == 32, "a YMM register has 32 bytes");
            for (word, bytes) in slot.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(bytes.try_into()?);
            }
        }
        "fx" => {
            let bytes = unhex(value)?;
            ensure!(bytes.len() == 160, "fx has 160 bytes");
            registers.fx.0[..160].copy_from_slice(&bytes);
        }
        _ if key.starts_with("at") => {
            let (address, bytes) = (u64::from_str_radix(&key[2..], 16)?, unhex(value)?);
            let end = address.checked_add(bytes.len() as u64).context("wraps around")?;
            ensure!(
                address >= layout::DATA && end <= layout::DATA + layout::DATA_SIZE,
                "the bytes are not in data"
            );
            case.patches.push((address, bytes));
        }
        _ => bail!("unknown key"),
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), "an odd number of digits");
    (0..text.len() / 2).map(|index| Ok(u8::from_str_radix(&text[index * 2..][..2], 16)?)).collect()
}
