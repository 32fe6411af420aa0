//! Known answers for forms of each family, faults, and the host state around a stub.

use std::arch::asm;

use cpu::{Registers, flag, gpr};
use iced_x86::{Decoder, DecoderOptions};

use crate::{NativeFault, Operand, Stubs};

/// A set of stubs and the state they work on.
struct Bench {
    stubs: Stubs,
    registers: Registers,
    operand: Operand,
}

impl Bench {
    fn new() -> Bench {
        let stubs = Stubs::new().expect("this host runs stubs");
        Bench { stubs, registers: Registers::reset(), operand: Operand::new() }
    }

    fn try_run(&mut self, bitness: u32, bytes: &[u8]) -> Option<Result<(), NativeFault>> {
        let instruction = Decoder::new(bitness, bytes, DecoderOptions::NONE).decode();
        assert_eq!(instruction.len(), bytes.len());
        let stub = self.stubs.get(&instruction)?;
        Some(self.stubs.run(stub, &mut self.registers, &mut self.operand))
    }

    fn run(&mut self, bitness: u32, bytes: &[u8]) -> Result<(), NativeFault> {
        self.try_run(bitness, bytes).unwrap_or_else(|| panic!("no stub for {bytes:02x?}"))
    }

    fn set_vector(&mut self, number: usize, lanes: [f32; 8]) {
        let bits = lanes.map(|lane| u64::from(lane.to_bits()));
        self.registers.ymm[number] =
            std::array::from_fn(|index| bits[2 * index] | bits[2 * index + 1] << 32);
    }

    fn vector(&self, number: usize) -> [f32; 8] {
        std::array::from_fn(|lane| {
            f32::from_bits((self.registers.ymm[number][lane / 2] >> (lane % 2 * 32)) as u32)
        })
    }
}

/// One integer case: mode, bytes, registers and flags before, operand before; then the same after.
struct Row {
    bitness: u32,
    bytes: &'static [u8],
    before: (&'static [(usize, u64)], u64, u64),
    after: (&'static [(usize, u64)], u64, u64),
}

const fn row(
    bitness: u32,
    bytes: &'static [u8],
    before: (&'static [(usize, u64)], u64, u64),
    after: (&'static [(usize, u64)], u64, u64),
) -> Row {
    Row { bitness, bytes, before, after }
}

use flag::{AF, CF, OF, PF, SF, ZF};
use gpr::{R8, R11, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};

const ROWS: &[Row] = &[
    // add rax, rbx
    row(
        64,
        &[0x48, 0x01, 0xd8],
        (&[(RAX, u64::MAX), (RBX, 1)], 0, 0),
        (&[(RAX, 0), (RBX, 1)], ZF | AF | PF | CF, 0),
    ),
    // adc rsp, rdi, carry in
    row(64, &[0x48, 0x11, 0xfc], (&[(RSP, 5), (RDI, 7)], CF, 0), (&[(RSP, 13), (RDI, 7)], 0, 0)),
    // add [rsi+rbx], rsi: the stand-in, not the address
    row(
        64,
        &[0x48, 0x01, 0x34, 0x1e],
        (&[(RSI, 3), (RBX, 9)], 0, 40),
        (&[(RSI, 3), (RBX, 9)], PF, 43),
    ),
    // inc eax in its short form, carry kept
    row(
        32,
        &[0x40],
        (&[(RAX, 0x7fff_ffff)], CF, 0),
        (&[(RAX, 0x8000_0000)], OF | SF | AF | PF | CF, 0),
    ),
    // dec di
    row(16, &[0x4f], (&[(RDI, 0x1_0000)], 0, 0), (&[(RDI, 0x1_ffff)], SF | AF | PF, 0)),
    // mov ah, [rsi]
    row(64, &[0x8a, 0x26], (&[(RAX, 0x1122)], 0, 0x7f), (&[(RAX, 0x7f22)], 0, 0x7f)),
    // movzx esp, bh
    row(
        64,
        &[0x0f, 0xb6, 0xe7],
        (&[(RSP, u64::MAX), (RBX, 0xab00)], 0, 0),
        (&[(RSP, 0xab), (RBX, 0xab00)], 0, 0),
    ),
    // xchg bh, bl
    row(64, &[0x86, 0xdf], (&[(RBX, 0x1234)], 0, 0), (&[(RBX, 0x3412)], 0, 0)),
    // add spl, bpl
    row(
        64,
        &[0x40, 0x00, 0xec],
        (&[(RSP, 0x1ff), (RBP, 2)], 0, 0),
        (&[(RSP, 0x101), (RBP, 2)], AF | CF, 0),
    ),
    // shl r8, cl with a count of 0 keeps flags
    row(
        64,
        &[0x49, 0xd3, 0xe0],
        (&[(R8, 3), (RCX, 64)], ZF | CF, 0),
        (&[(R8, 3), (RCX, 64)], ZF | CF, 0),
    ),
    // mulx r11, rsp, [rbx]
    row(
        64,
        &[0xc4, 0x62, 0xdb, 0xf6, 0x1b],
        (&[(RDX, 1 << 63)], CF, 6),
        (&[(R11, 3), (RSP, 0), (RDX, 1 << 63)], CF, 6),
    ),
    // lock cmpxchg [rdi], rbx, equal
    row(
        64,
        &[0xf0, 0x48, 0x0f, 0xb1, 0x1f],
        (&[(RAX, 5), (RBX, 6)], 0, 5),
        (&[(RAX, 5), (RBX, 6)], ZF | PF, 6),
    ),
    // lock cmpxchg8b [rdi]
    row(
        64,
        &[0xf0, 0x0f, 0xc7, 0x0f],
        (&[(RAX, 1), (RDX, 2), (RBX, 8), (RCX, 9)], CF, 2 << 32 | 1),
        (&[(RAX, 1), (RDX, 2), (RBX, 8), (RCX, 9)], ZF | CF, 9 << 32 | 8),
    ),
    // bts [rsi], ecx: the offset modulo 32
    row(64, &[0x0f, 0xab, 0x0e], (&[(RCX, 33)], 0, 0), (&[(RCX, 33)], 0, 2)),
    // btr word [bx], sp
    row(16, &[0x0f, 0xb3, 0x27], (&[(RSP, 0x10004)], 0, 0xffff), (&[(RSP, 0x10004)], CF, 0xffef)),
    // bsf eax, [rsi] of zero keeps the destination
    row(64, &[0x48, 0x0f, 0xbc, 0x06], (&[(RAX, 77)], 0, 0), (&[(RAX, 77)], ZF, 0)),
    // xlatb
    row(64, &[0xd7], (&[(RAX, 0x1234), (RBX, 5)], 0, 0xee), (&[(RAX, 0x12ee), (RBX, 5)], 0, 0xee)),
    // mov [moffs], al
    row(32, &[0xa2, 1, 2, 3, 4], (&[(RAX, 0x99)], 0, 0x1100), (&[(RAX, 0x99)], 0, 0x1199)),
    // xadd rsi, rdi
    row(
        64,
        &[0x48, 0x0f, 0xc1, 0xfe],
        (&[(RSI, 1), (RDI, 2)], CF, 0),
        (&[(RSI, 3), (RDI, 1)], PF, 0),
    ),
    // div rbx
    row(
        64,
        &[0x48, 0xf7, 0xf3],
        (&[(RAX, 100), (RBX, 7)], 0, 0),
        (&[(RAX, 14), (RBX, 7), (RDX, 2)], 0, 0),
    ),
    // sahf; setc and cmov read flags
    row(64, &[0x9e], (&[(RAX, 0x4500)], OF, 0), (&[(RAX, 0x4500)], ZF | PF | CF | OF, 0)),
    row(64, &[0x41, 0x0f, 0x92, 0xc4], (&[], CF, 0), (&[(12, 1)], CF, 0)),
    row(
        64,
        &[0x0f, 0x44, 0xc3],
        (&[(RAX, u64::MAX), (RBX, 1)], 0, 0),
        (&[(RAX, 0xffff_ffff), (RBX, 1)], 0, 0),
    ),
    // pext, andn, popcnt, crc32, adox
    row(
        64,
        &[0xc4, 0xe2, 0xe2, 0xf5, 0xc1],
        (&[(RBX, 0xabcd), (RCX, 0xf0f0)], 0, 0),
        (&[(RAX, 0xac), (RBX, 0xabcd), (RCX, 0xf0f0)], 0, 0),
    ),
    row(64, &[0xf3, 0x0f, 0xb8, 0x07], (&[], CF, 0xff), (&[(RAX, 8)], 0, 0xff)),
    row(
        64,
        &[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xe5],
        (&[(RSP, 1), (RBP, u64::MAX)], OF, 0),
        (&[(RSP, 1), (RBP, u64::MAX)], OF, 0),
    ),
];

#[test]
fn integer_forms_give_known_answers() {
    let mut bench = Bench::new();
    for row in ROWS {
        bench.registers = Registers::reset();
        let (registers, flags, memory) = row.before;
        registers.iter().for_each(|&(index, value)| bench.registers.gpr[index] = value);
        bench.registers.set_rflags(flags);
        bench.operand.align(row.bytes.len() as u64 * 3);
        bench.operand.store_u128(u128::from(memory));
        let mut expected = bench.registers.gpr;
        row.after.0.iter().for_each(|&(index, value)| expected[index] = value);
        assert_eq!(bench.run(row.bitness, row.bytes), Ok(()), "{:02x?}", row.bytes);
        assert_eq!(bench.registers.gpr, expected, "{:02x?}", row.bytes);
        let defined = if row.bytes[1..].contains(&0xf7) || row.bytes.contains(&0xf5) {
            0 // DIV leaves all flags undefined
        } else if row.bytes[0] == 0x0f || row.bytes[1..].contains(&0xbc) {
            CF | ZF
        } else {
            flag::STATUS
        };
        let flags = bench.registers.rflags() & defined;
        assert_eq!(flags, row.after.1 & defined, "{:02x?}", row.bytes);
        assert_eq!(bench.operand.load_u64(), row.after.2, "{:02x?}", row.bytes);
    }
}

#[test]
fn sse_keeps_upper_half_and_avx_zeroes_it() {
    let mut bench = Bench::new();
    bench.set_vector(1, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    bench.set_vector(9, [10.0; 8]);
    // addps xmm9, xmm1
    assert_eq!(bench.run(64, &[0x44, 0x0f, 0x58, 0xc9]), Ok(()));
    assert_eq!(bench.vector(9), [11.0, 12.0, 13.0, 14.0, 10.0, 10.0, 10.0, 10.0]);
    // vaddps xmm9, xmm1, xmm1
    assert_eq!(bench.run(64, &[0xc5, 0x70, 0x58, 0xc9]), Ok(()));
    assert_eq!(bench.vector(9), [2.0, 4.0, 6.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
    // vaddps ymm2, ymm1, [rax]
    bench.operand.align(17);
    bench.operand.slice_mut(32).copy_from_slice(&1.0f32.to_le_bytes().repeat(8));
    assert_eq!(bench.run(64, &[0xc5, 0xf4, 0x58, 0x10]), Ok(()));
    assert_eq!(bench.vector(2), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
}

#[test]
fn vzeroall_outside_64_bit_mode_spares_the_upper_eight() {
    let mut bench = Bench::new();
    bench.registers.ymm = [[1; 4]; 16];
    assert_eq!(bench.run(32, &[0xc5, 0xfc, 0x77]), Ok(()));
    assert_eq!((bench.registers.ymm[7], bench.registers.ymm[8]), ([0; 4], [1; 4]));
    assert_eq!(bench.run(64, &[0xc5, 0xfc, 0x77]), Ok(()));
    assert_eq!(bench.registers.ymm[8], [0; 4]);
}

#[test]
fn simd_status_is_the_guests() {
    let mut bench = Bench::new();
    bench.set_vector(0, [1.0; 8]);
    bench.set_vector(1, [3.0; 8]);
    // Round towards zero, masked: inexact is recorded.
    bench.registers.fx.set_mxcsr(0x7f80);
    assert_eq!(bench.run(64, &[0x0f, 0x5e, 0xc1]), Ok(())); // divps xmm0, xmm1
    assert_eq!(bench.vector(0)[0].to_bits(), 0x3eaa_aaaa);
    assert_eq!(bench.registers.fx.mxcsr(), 0x7fa0);
    // Unmasked divide by zero: #XM, flag recorded, registers kept.
    bench.registers.fx.set_mxcsr(0x1d80);
    bench.set_vector(1, [0.0; 8]);
    let before = bench.registers.ymm;
    assert_eq!(bench.run(64, &[0x0f, 0x5e, 0xc1]), Err(NativeFault::Simd));
    assert_eq!((bench.registers.ymm, bench.registers.fx.mxcsr()), (before, 0x1d84));
    // LDMXCSR of a reserved bit, also the one that AMD has.
    for bit in [16, 17, 31] {
        bench.operand.store_u32(1 << bit);
        assert_eq!(bench.run(64, &[0x0f, 0xae, 0x16]), Err(NativeFault::GeneralProtection));
    }
    assert_eq!(bench.registers.fx.mxcsr(), 0x1d84);
}

#[test]
fn x87_state_lives_in_the_area_and_pointers_stay_zero() {
    let mut bench = Bench::new();
    bench.operand.store_u64(2.5f64.to_bits());
    assert_eq!(bench.run(64, &[0xdd, 0x07]), Ok(())); // fld qword [rdi]
    assert_eq!(bench.run(64, &[0xd8, 0xc8]), Ok(())); // fmul st, st
    assert_eq!(bench.run(64, &[0xdd, 0x17]), Ok(())); // fst qword [rdi]
    assert_eq!(bench.operand.load_u64(), 6.25f64.to_bits());
    assert_eq!(bench.registers.fx.0[6..24], [0; 18]);
    assert_eq!(bench.registers.fx.0[28..32], [0; 4]);
    assert_eq!(bench.registers.fx.0[160..], [0; 352]);
    assert_eq!(bench.run(64, &[0xd9, 0x37]), Ok(())); // fnstenv [rdi]
    assert_eq!(bench.operand.slice(26)[12..], [0; 14]);
    // Unmask all, divide by zero: pending, then raised by the next waiting instruction.
    bench.operand.store_u16(0x340);
    assert_eq!(bench.run(64, &[0xd9, 0x2f]), Ok(())); // fldcw [rdi]
    assert_eq!(bench.run(64, &[0xd9, 0xee]), Ok(())); // fldz
    assert_eq!(bench.run(64, &[0xd8, 0xf9]), Ok(())); // fdivr st, st(1)
    assert_eq!(bench.run(64, &[0x9b]), Err(NativeFault::X87)); // fwait
    assert_eq!(bench.registers.fx.0[6..24], [0; 18]);
    assert_eq!(bench.run(64, &[0xdf, 0xe0]), Ok(())); // fnstsw ax
    assert_eq!(bench.registers.gpr[RAX] & 0x84, 0x84);
}

#[test]
fn mmx_and_sse_mix() {
    let mut bench = Bench::new();
    bench.operand.store_u64(7 << 32 | 3);
    assert_eq!(bench.run(64, &[0x0f, 0x6f, 0x0f]), Ok(())); // movq mm1, [rdi]
    assert_eq!(bench.run(64, &[0x0f, 0xfe, 0xc9]), Ok(())); // paddd mm1, mm1
    assert_eq!(bench.run(64, &[0x0f, 0x2a, 0xd1]), Ok(())); // cvtpi2ps xmm2, mm1
    assert_eq!(bench.vector(2)[..2], [6.0, 14.0]);
    assert_eq!(bench.registers.fx.0[160..], [0; 352]);
    // maskmovq mm1, mm1: bytes with the top bit set
    assert_eq!(bench.run(64, &[0x0f, 0xf7, 0xc9]), Ok(()));
    assert_eq!(bench.operand.load_u64(), 7 << 32 | 3);
    assert_eq!(bench.run(64, &[0x0f, 0x77]), Ok(())); // emms
}

#[test]
fn faults_are_values_and_change_nothing() {
    let mut bench = Bench::new();
    bench.registers.gpr[RAX] = 9;
    let before = bench.registers.gpr;
    assert_eq!(bench.run(64, &[0x48, 0xf7, 0xf1]), Err(NativeFault::DivideError)); // div rcx
    assert_eq!(bench.registers.gpr, before);
    bench.operand.align(0x1008);
    let movaps = [0x0f, 0x28, 0x07];
    assert_eq!(bench.run(64, &movaps), Err(NativeFault::GeneralProtection));
    bench.operand.align(0x1010);
    assert_eq!(bench.run(64, &movaps), Ok(()));
    // cmpxchg16b wants 16 bytes' alignment
    bench.operand.align(8);
    let cmpxchg16b = [0x48, 0x0f, 0xc7, 0x0f];
    assert_eq!(bench.run(64, &cmpxchg16b), Err(NativeFault::GeneralProtection));
}

#[test]
fn what_is_not_a_computation_has_no_stub() {
    let mut bench = Bench::new();
    let refused: &[&[u8]] = &[
        &[0x50],
        &[0xc3],
        &[0x0f, 0xa2],
        &[0x0f, 0x31],
        &[0xf4],
        &[0xa4],
        &[0x8e, 0xd8],
        &[0xfc],
        &[0x0f, 0x05],
        &[0x48, 0x8d, 0x00],
        &[0x0f, 0x53, 0xc0],
        &[0x0f, 0xae, 0x00],
        &[0xec],
        &[0x0f, 0x0b],
        &[0x9d],
        &[0xeb, 0x00],
        &[0x0f, 0xc7, 0xf0],
        &[0x8c, 0xd8],
        &[0xc9],
        &[0xc4, 0xe2, 0x79, 0x92, 0x04, 0x08],
    ];
    for bytes in refused {
        assert_eq!(bench.try_run(64, bytes), None, "{bytes:02x?}");
    }
}

#[test]
fn host_state_survives_stubs_and_faults() {
    let mut bench = Bench::new();
    bench.registers.fx.set_mxcsr(0x0000);
    bench.registers.gpr[..16].fill(0x5555);
    let programs: &[&[u8]] = &[
        &[0x0f, 0xc7, 0x0f],
        &[0x0f, 0x58, 0xc1],
        &[0xd9, 0xe8],
        &[0xd9, 0xfa],
        &[0x0f, 0x5e, 0xc1],
        &[0xc5, 0xfc, 0x58, 0xc1],
        &[0x48, 0x01, 0xec],
        &[0x4d, 0x01, 0xfe],
        &[0x00, 0xfb],
        &[0x66, 0x0f, 0xf7, 0xc1],
    ];
    for bytes in programs {
        let (before, after): (u32, u32);
        let (mut mxcsr, mut control) = (0u32, 0u16);
        // SAFETY: STMXCSR and FNSTCW write the two variables given.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &mut mxcsr, options(nostack));
        }
        before = mxcsr & 0xffc0;
        let _ = bench.run(64, bytes);
        // SAFETY: as above.
        unsafe {
            asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut control,
                options(nostack));
        }
        after = mxcsr & 0xffc0;
        assert_eq!((before, 0x37f), (after, control), "{bytes:02x?}");
        let flags: u64;
        // SAFETY: pushes and pops one word.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
        assert_eq!(flags & (flag::DF | flag::AC | flag::TF), 0, "{bytes:02x?}");
    }
}

#[test]
fn full_code_memory_starts_a_new_generation() {
    let mut bench = Bench::new();
    let first = bench.stubs.generation();
    let mut value = 0u32;
    while bench.stubs.generation() == first {
        value += 1;
        let mut bytes = [0x48, 0x81, 0xc4, 0, 0, 0, 0]; // add rsp, imm32
        bytes[3..].copy_from_slice(&value.to_le_bytes());
        bench.registers.gpr[RSP] = 1;
        assert_eq!(bench.run(64, &bytes), Ok(()));
        assert_eq!(bench.registers.gpr[RSP], 1 + u64::from(value));
    }
    assert!(value > 100_000);
}

#[test]
#[ignore = "a measurement, not a test"]
fn speed_of_an_addition() {
    let mut bench = Bench::new();
    let bytes = [0x48, 0x01, 0xd8];
    let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    let stub = bench.stubs.get(&instruction).expect("add has a stub");
    // SAFETY: RDTSC has no precondition.
    let start = unsafe { std::arch::x86_64::_rdtsc() };
    for _ in 0..10_000_000 {
        let _ = bench.stubs.run(stub, &mut bench.registers, &mut bench.operand);
    }
    // SAFETY: as above.
    let cycles = unsafe { std::arch::x86_64::_rdtsc() } - start;
    println!("{} cycles", cycles / 10_000_000);
}
