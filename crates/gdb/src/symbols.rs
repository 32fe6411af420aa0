//! Names of the guest kernel's addresses: from an ELF file with a symbol table, a System.map, or
//! what /proc/kallsyms said.

use std::fmt;

/// Farther than this from a symbol an address has no name.
const REACH: u64 = 1 << 20;
/// Most symbols read; a kernel has some 200,000.
const SYMBOLS_MAX: usize = 4 << 20;
/// Kinds of symbols in a map that name no place: absolute values and undefined ones.
const NO_PLACE: &[&str] = &["a", "A", "U", "w", "v", "?"];

const SHT_SYMTAB: u32 = 2;
const SECTION_HEADER_SIZE: usize = 64;
const SYMBOL_SIZE: usize = 24;
/// Kinds of ELF symbols that name a place: none, data, code.
const STT_PLACES: [u8; 3] = [0, 1, 2];

/// A number as people write it.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Names by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    /// In order.
    places: Vec<(u64, String)>,
}

/// An address by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// Of the symbol before it.
    pub name: &'a str,
    /// How far behind.
    pub offset: u64,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => f.write_str(self.name),
            offset => write!(f, "{}+{offset:#x}", self.name),
        }
    }
}

impl Symbols {
    /// Reads a file of any of the three kinds.
    ///
    /// # Errors
    /// In words, when it is none of them or has no symbol.
    pub fn read(file: &[u8]) -> Result<Symbols, String> {
        let mut places = match file.strip_prefix(b"\x7fELF") {
            Some(_) => elf_symbols(file).ok_or("the ELF file is damaged, or is not of 64 bits")?,
            None => map_symbols(file)?,
        };
        if places.is_empty() {
            return Err("there is no symbol in it".into());
        }
        if places.iter().all(|(address, _)| *address == 0) {
            return Err("all addresses are 0: /proc/kallsyms must be read as root".into());
        }
        places.sort();
        places.dedup();
        Ok(Symbols { places })
    }

    /// The name of an address.
    pub fn at(&self, address: u64) -> Option<Named<'_>> {
        let before = self.places.partition_point(|(at, _)| *at <= address).checked_sub(1)?;
        let (at, _) = self.places[before];
        // Of several names the first in the alphabet is as good as any.
        let first = self.places.partition_point(|(other, _)| *other < at);
        let offset = address - at;
        (offset <= REACH).then(|| Named { name: &self.places[first].1, offset })
    }

    /// The addresses that `name` has, which may be `NAME+OFFSET`.
    pub fn find(&self, name: &str) -> Vec<u64> {
        let (name, offset) = name.split_once('+').unwrap_or((name, "0"));
        let Some(offset) = number(offset) else { return Vec::new() };
        let named = self.places.iter().filter(|(_, other)| other == name);
        named.map(|(address, _)| address.wrapping_add(offset)).collect()
    }

    /// An address as people write it, or that of a symbol.
    ///
    /// # Errors
    /// In words, with a newline, when it is neither.
    pub(crate) fn address(&self, text: &str) -> Result<u64, String> {
        if let Some(address) = number(text) {
            return Ok(address);
        }
        match self.find(text)[..] {
            [address] => Ok(address),
            [] => Err(format!("{text}: no such symbol, and no address as 0xffffffff81000000\n")),
            _ => Err(format!("{text}: several symbols; `symbol {text}` shows them\n")),
        }
    }

    /// Symbols whose name has `part` in it.
    pub fn search<'a>(&'a self, part: &'a str) -> impl Iterator<Item = (u64, &'a str)> {
        let places = self.places.iter().map(|(address, name)| (*address, name.as_str()));
        places.filter(move |(_, name)| name.contains(part))
    }
}

/// Lines of an address, a kind, a name and, in /proc/kallsyms, a module.
fn map_symbols(file: &[u8]) -> Result<Vec<(u64, String)>, String> {
    let mut places = Vec::new();
    for line in file.split(|byte| *byte == b'\n').take(SYMBOLS_MAX) {
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, kind, name) = match words[..] {
            [] => continue,
            [address, kind, name] | [address, kind, name, _] => (address, kind, name),
            _ => return Err(not_a_map(&line)),
        };
        let address = u64::from_str_radix(address, 16).map_err(|_| not_a_map(&line))?;
        if !NO_PLACE.contains(&kind) {
            places.push((address, name.to_owned()));
        }
    }
    Ok(places)
}

fn not_a_map(line: &str) -> String {
    let line: String = line.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("neither an ELF file nor a System.map: {line:?}")
}

/// The symbol table of a 64-bit little-endian ELF file; `None` where it is damaged.
fn elf_symbols(file: &[u8]) -> Option<Vec<(u64, String)>> {
    if file.get(4..6)? != [2, 1] {
        return None;
    }
    let sections = usize::try_from(u64_at(file, 0x28)?).ok()?;
    let count = usize::from(u16_at(file, 0x3c)?);
    let header = |index: usize| {
        let at = sections.checked_add(index.checked_mul(SECTION_HEADER_SIZE)?)?;
        file.get(at..at.checked_add(SECTION_HEADER_SIZE)?)
    };
    let contents = |header: &[u8]| {
        let at = usize::try_from(u64_at(header, 0x18)?).ok()?;
        file.get(at..at.checked_add(usize::try_from(u64_at(header, 0x20)?).ok()?)?)
    };
    let mut places = Vec::new();
    for index in 0..count {
        let section = header(index)?;
        if u32_at(section, 4)? != SHT_SYMTAB {
            continue;
        }
        let names = contents(header(u32_at(section, 0x28)? as usize)?)?;
        for symbol in contents(section)?.chunks_exact(SYMBOL_SIZE).take(SYMBOLS_MAX) {
            let (name, kind) = (u32_at(symbol, 0)? as usize, symbol[4] & 15);
            let (section, value) = (u16_at(symbol, 6)?, u64_at(symbol, 8)?);
            // Undefined ones and absolute values are no places.
            if !STT_PLACES.contains(&kind) || section == 0 || section >= 0xff00 {
                continue;
            }
            let name = names.get(name..)?.split(|byte| *byte == 0).next()?;
            if !name.is_empty() {
                places.push((value, String::from_utf8_lossy(name).into_owned()));
            }
        }
    }
    Some(places)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "0000000000000000 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\nffffffff81000000 T _text\nffffffff81000100 t do_one\n\
        ffffffffc0001000 t remove_entry\t[culprit]\n";

    #[test]
    fn map_names_addresses_and_finds_them() {
        let symbols = Symbols::read(MAP.as_bytes()).unwrap();
        let at = |address| symbols.at(address).map(|named| named.to_string());
        assert_eq!(at(0xffff_ffff_8100_0000).unwrap(), "_stext");
        assert_eq!(at(0xffff_ffff_8100_0120).unwrap(), "do_one+0x20");
        assert_eq!(at(0xffff_ffff_80ff_ffff), None);
        assert_eq!(at(0xffff_ffff_9000_0000), None, "too far");
        assert_eq!(symbols.find("remove_entry"), [0xffff_ffff_c000_1000]);
        assert_eq!(symbols.find("remove_entry+0x10"), [0xffff_ffff_c000_1010]);
        assert!(symbols.find("nothing").is_empty() && symbols.find("do_one+x").is_empty());
        assert_eq!(symbols.search("_te").count(), 1);
    }

    #[test]
    fn elf_table_is_read_and_a_damaged_one_is_refused() {
        let mut file = vec![0; 64 + 3 * SECTION_HEADER_SIZE];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&64u64.to_le_bytes());
        file[0x3c..0x3e].copy_from_slice(&3u16.to_le_bytes());
        let end = file.len() as u64;
        let mut section = |index: usize, kind: u32, at: u64, size: u64, link: u32| {
            let header = &mut file[64 + index * SECTION_HEADER_SIZE..];
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            header[0x28..0x2c].copy_from_slice(&link.to_le_bytes());
        };
        section(1, SHT_SYMTAB, end, SYMBOL_SIZE as u64, 2);
        section(2, 3, end + SYMBOL_SIZE as u64, 6, 0);
        let mut symbol = [0; SYMBOL_SIZE];
        (symbol[0], symbol[4], symbol[6]) = (1, 2, 1);
        symbol[8..16].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
        file.extend(symbol);
        file.extend(b"\0main\0");
        assert_eq!(Symbols::read(&file).unwrap().find("main"), [0xffff_ffff_8100_0000]);
        for len in 4..file.len() - 6 {
            assert!(Symbols::read(&file[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn what_is_no_map_is_refused_in_words() {
        assert!(Symbols::read(b"hello world\n").unwrap_err().contains("hello world"));
        assert!(Symbols::read(b"").unwrap_err().contains("no symbol"));
        let hidden = b"0000000000000000 T _text\n0000000000000000 T x\n";
        assert!(Symbols::read(hidden).unwrap_err().contains("root"));
    }
}
