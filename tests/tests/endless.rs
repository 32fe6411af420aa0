//! Guests that never execute a branch give control back all the same.

use machine::Stop;
use whole::Guest;

/// A multiboot ELF32 kernel of one segment at 1 MiB that holds `code`.
fn kernel(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    let flags = 0u32;
    let magic = 0x1bad_b002u32;
    let mut segment: Vec<u8> = [magic, flags, 0u32.wrapping_sub(magic + flags)]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    segment.extend_from_slice(code);
    let size = segment.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    let words16 = |elf: &mut Vec<u8>, words: &[u16]| {
        words.iter().for_each(|word| elf.extend_from_slice(&word.to_le_bytes()));
    };
    let words32 = |elf: &mut Vec<u8>, words: &[u32]| {
        words.iter().for_each(|word| elf.extend_from_slice(&word.to_le_bytes()));
    };
    words16(&mut elf, &[2, 3]);
    words32(&mut elf, &[1, BASE + 12, 52, 0, 0]);
    words16(&mut elf, &[52, 32, 1, 0, 0, 0]);
    words32(&mut elf, &[1, 84, BASE, BASE, size, size, 7, 4]);
    elf.extend_from_slice(&segment);
    elf
}

#[test]
fn machine_yields_from_an_endless_string_instruction() {
    for repeated in [
        [0xf3, 0xac], // REP LODSB
        [0xf3, 0xa4], // REP MOVSB
        [0xf3, 0x6e], // REP OUTSB
    ] {
        let mut guest = Guest::new(16 << 20, Vec::new()).unwrap();
        // XOR ECX,ECX; DEC ECX; XOR ESI,ESI; XOR EDI,EDI; XOR EDX,EDX
        let mut code = vec![0x31, 0xc9, 0x49, 0x31, 0xf6, 0x31, 0xff, 0x31, 0xd2];
        code.extend_from_slice(&repeated);
        guest.boot(&kernel(&code), None, "").unwrap();
        let stop = guest.machine.run(guest.engine.as_mut(), &mut guest.outside, u64::MAX);
        assert_eq!(stop, Stop::Yielded, "{repeated:x?}");
        assert!(guest.machine.point().iterations > 0, "{repeated:x?}");
    }
}
