//! Saved state: sections changed by somebody else. A machine refuses them with a message, or takes
//! them, and then runs on without a panic and saves what it can itself restore.
//!
//! Input: how long the machine ran before it was saved, then changes to sections.

use machine::Machine;
use saved::{Section, Sections};

use crate::input::Input;
use crate::rig::{self, IMAGE, Impatient};

const CHANGES_MAX: usize = 32;
const BRANCHES: u64 = 10_000;

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut engine = Impatient::new();
    let mut machine = rig::machine();
    rig::boot(&mut machine, &rig::flat_image(&program()));
    let warm_up = u64::from(input.u8()) * 2;
    rig::run(&mut machine, &mut engine, warm_up, warm_up);
    let mut sections: Vec<Section> = machine.save().iter().cloned().collect();
    for _ in 0..CHANGES_MAX {
        if input.is_empty() || sections.is_empty() {
            break;
        }
        change(&mut sections, &mut input);
    }
    if let Err(error) = machine.restore(collect(sections)) {
        assert!(!error.to_string().is_empty());
        return;
    }
    check_again(&mut machine);
    let until = machine.branches().saturating_add(BRANCHES);
    rig::run(&mut machine, &mut engine, until, BRANCHES);
    check_again(&mut machine);
}

/// What it saves now, it takes, and saves again.
fn check_again(machine: &mut Machine) {
    let first = machine.save();
    machine.restore(first.clone()).expect("a machine takes what it saved");
    assert!(machine.save() == first, "saved state changed on the way");
    machine.state_hash();
}

fn collect(sections: Vec<Section>) -> Sections {
    let mut collected = Sections::default();
    sections.into_iter().for_each(|section| collected.put(section));
    collected
}

fn change(sections: &mut Vec<Section>, input: &mut Input<'_>) {
    let index = usize::from(input.u8()) % sections.len();
    let section = &mut sections[index];
    match input.u8() % 16 {
        0 => section.version = input.u16(),
        1 => drop(sections.remove(index)),
        2 => {
            let copy = section.clone();
            sections.push(copy);
        }
        3 => section.body.truncate(usize::from(input.u16())),
        4 => {
            let len = usize::from(input.u8());
            section.body = input.take(len).to_vec();
        }
        5..=7 => {
            let (at, byte) = (usize::from(input.u16()), input.u8());
            let len = section.body.len().max(1);
            if let Some(old) = section.body.get_mut(at % len) {
                *old = byte;
            }
        }
        8 => {
            let (at, len) = (usize::from(input.u16()), usize::from(input.u8() % 32));
            let at = at % (section.body.len() + 1);
            section.body.splice(at..at, input.take(len).iter().copied());
        }
        _ => {
            let which = usize::from(input.u16());
            let value = match input.u8() {
                0..128 => input.pick(&[0, 1, 2, 0xff, 0xffff, 1 << 31, 1 << 63, u64::MAX]),
                128..192 => u64::from(input.u16()),
                _ => input.u64(),
            };
            set_number(&mut section.body, which, value);
        }
    }
}

/// Replaces unsigned number `which` (modulo how many there are) of a CBOR text by `value`.
fn set_number(body: &mut Vec<u8>, which: usize, value: u64) {
    let numbers = numbers(body);
    if numbers.is_empty() {
        return;
    }
    let range = numbers[which % numbers.len()].clone();
    let number = minicbor::to_vec(value).expect("into memory");
    body.splice(range, number);
}

/// Where unsigned numbers are in a CBOR text (RFC 8949, 3), as far as it is well formed.
fn numbers(body: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&first) = body.get(at) {
        let (major, short) = (first >> 5, first & 31);
        let extra = match short {
            24..=27 => 1 << (short - 24),
            _ => 0,
        };
        let Some(argument) = body.get(at + 1..at + 1 + extra) else { break };
        let argument = argument.iter().fold(0u64, |all, &byte| all << 8 | u64::from(byte));
        let end = at + 1 + extra;
        if major == 0 {
            found.push(at..end);
        }
        let len = if extra == 0 { u64::from(short) } else { argument };
        let skipped = if matches!(major, 2 | 3) { len.min(body.len() as u64) as usize } else { 0 };
        at = end + skipped;
    }
    found
}

/// 32-bit code that leaves no device untouched, with a disk request under way, and then loops.
fn program() -> Vec<u8> {
    let mut code = Vec::new();
    for (port, value) in PORTS {
        // mov dx, port; mov al, value; out dx, al; in al, dx
        code.extend([0x66, 0xba, port as u8, (port >> 8) as u8, 0xb0, value, 0xee, 0xec]);
    }
    for (gpa, value) in MEMORY {
        // mov dword [gpa], value
        code.extend([0xc7, 0x05]);
        code.extend(gpa.to_le_bytes().into_iter().chain(value.to_le_bytes()));
    }
    for status in [3, 11] {
        code.extend(byte_to(DISK + 0x14, status));
    }
    for (gpa, value) in QUEUE {
        code.extend([0xc7, 0x05]);
        code.extend(gpa.to_le_bytes().into_iter().chain(value.to_le_bytes()));
    }
    // mov word [queue_enable], 1
    code.extend([0x66, 0xc7, 0x05]);
    code.extend((DISK + 0x1c).to_le_bytes().into_iter().chain([1, 0]));
    code.extend(byte_to(DISK + 0x14, 15));
    code.extend([0x66, 0xc7, 0x05]);
    code.extend((DISK + 0x1000).to_le_bytes().into_iter().chain([0, 0]));
    // inc ecx; rdtsc; jmp to inc
    code.extend([0x41, 0x0f, 0x31, 0xeb, 0xfb]);
    code.resize(RINGS, 0);
    code.extend(rings());
    code
}

/// mov byte [gpa], value
fn byte_to(gpa: u32, value: u8) -> Vec<u8> {
    [0xc6, 0x05].into_iter().chain(gpa.to_le_bytes()).chain([value]).collect()
}

/// Offset in the program of the disk's queue: descriptors, and a page on each ring.
const RINGS: usize = 0x1000;
const QUEUE_GPA: u32 = IMAGE + 0x1000 + RINGS as u32;
/// Registers of the disk, the first function with a BAR.
const DISK: u32 = 0xc000_0000;

const PORTS: [(u16, u8); 20] = [
    (0x20, 0x11),
    (0x21, 0x20),
    (0x21, 0x04),
    (0x21, 0x01),
    (0x21, 0x00),
    (0x43, 0x34),
    (0x40, 0x10),
    (0x40, 0x01),
    (0x43, 0xb0),
    (0x42, 0x55),
    (0x70, 0x0a),
    (0x71, 0x26),
    (0x70, 0x0b),
    (0x71, 0x42),
    (0x3fb, 0x03),
    (0x3f9, 0x0f),
    (0x3f8, b'x'),
    (0x2fc, 0x1f),
    (0x2f8, b'y'),
    (0x64, 0x20),
];

/// Local APIC timer and error entry, I/O APIC pin 2, features of the disk.
const MEMORY: [(u32, u32); 11] = [
    (0xfee0_00f0, 0x1ff),
    (0xfee0_0320, 0x2_0040),
    (0xfee0_03e0, 0xb),
    (0xfee0_0380, 0x1000),
    (0xfee0_0370, 0x41),
    (0xfec0_0000, 0x14),
    (0xfec0_0010, 0x42),
    (DISK + 8, 0),
    (DISK + 12, 0x2000_0000),
    (DISK + 8, 1),
    (DISK + 12, 1),
];

const QUEUE: [(u32, u32); 3] = [
    (DISK + 0x20, QUEUE_GPA),
    (DISK + 0x28, QUEUE_GPA + 0x1000),
    (DISK + 0x30, QUEUE_GPA + 0x2000),
];

/// Descriptors of one read of eight sectors, and the ring that offers it.
fn rings() -> Vec<u8> {
    let mut bytes = Vec::new();
    let buffer = QUEUE_GPA + 0x3000;
    for (gpa, len, flags, next) in
        [(buffer, 16u32, 1u16, 1u16), (buffer + 0x100, 4096, 3, 2), (buffer + 0x80, 1, 2, 0)]
    {
        bytes.extend(u64::from(gpa).to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
    }
    bytes.resize(0x1000, 0);
    bytes.extend([0, 0, 1, 0, 0, 0]);
    bytes.resize(0x5000, 0);
    bytes
}
