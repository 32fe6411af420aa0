//! Loops: several rounds in one block.

use super::check;
use crate::Options;
use crate::classify::Mode;
use crate::plan::{self, End, Source, Variant};
use crate::tables::Tables;

/// Copies of a loop's last branch in the block at its start, and whether the last one ends it.
fn rounds(code: &[u8], variant: Variant) -> (usize, bool) {
    let mut page = [0x90; 4096];
    page[..code.len()].copy_from_slice(code);
    let breakpoints = Vec::new();
    let (start, next, marks, crosses) = (0, None, None, false);
    let from_flags = false;
    let read = |offset: u16, into: &mut [u8]| {
        into.copy_from_slice(&page[usize::from(offset)..][..into.len()]);
    };
    let read = &read;
    let source = Source { read, start, next, marks, crosses, breakpoints, from_flags };
    let mut tables = Tables::new();
    let (options, mode) = (Options::default(), Mode::default());
    let plan = plan::discover(options, mode, variant, &source, &mut tables, Vec::new());
    let last = code.len() as u16 - 2;
    let copies = plan.insns.iter().filter(|planned| planned.offset == last);
    let ends = plan.end == End::Branch && !plan.insns.last().expect("some").inside;
    (copies.count(), ends)
}

#[test]
fn loops_are_repeated_as_long_as_they_are_short() {
    let short = [0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9]; // 1: add rax, rcx; dec ecx; jnz 1b
    assert_eq!(rounds(&short, Variant::Fast), (8, true));
    assert_eq!(rounds(&short, Variant::Careful), (1, true));
    let with_branches = |before: &[u8], adds: usize| {
        let mut code = before.to_vec();
        code.extend([0x48, 0x01, 0xc8].repeat(adds));
        code.extend([0xff, 0xc9, 0x75]);
        code.push(0u8.wrapping_sub(code.len() as u8 + 1));
        code
    };
    let long = |adds| with_branches(&[], adds);
    assert_eq!(rounds(&long(6), Variant::Fast), (8, true));
    assert_eq!(rounds(&long(31), Variant::Fast), (6, true));
    assert_eq!(rounds(&long(38), Variant::Fast), (5, true));
    let skips = [0x75, 0x01, 0x90]; // jnz 2f; nop
    assert_eq!(rounds(&with_branches(&skips, 15), Variant::Fast), (1, true));
}

#[test]
fn loops_that_end_in_any_round() {
    for count in 1..20 {
        check(
            "rounds",
            &[
                0xb9, count, 0, 0, 0, // mov ecx, count
                0x48, 0x8d, 0x73, 0xe0, // lea rsi, [rbx - 32]
                0x48, 0x89, 0x06, // 1: mov [rsi], rax
                0x48, 0x13, 0x46, 0x08, // adc rax, [rsi + 8]
                0x48, 0x83, 0xc6, 0x08, // add rsi, 8
                0xa8, 0x40, // test al, 40h
                0x75, 3, // jnz 2f
                0x48, 0xff, 0xc0, // inc rax
                0xff, 0xc9, // 2: dec ecx
                0x75, 0xea, // jnz 1b
                0x0f, 0x94, 0xc2, // setz dl
                0xf4,
            ],
        );
    }
}
