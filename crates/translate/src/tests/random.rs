//! Random programs: what instructions leave for each other (flags, words held in scratch
//! registers, addresses of groups) is right wherever a lookup misses or faults.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use interp::Interp;

use super::{ALIAS, DATA, STACK, trace, trace_shadowed};
use crate::{Options, Shadowing, Translator};

const PROGRAMS: u64 = 400;
/// Instructions of one, about.
const LENGTH: usize = 40;
/// Nothing is mapped there.
const UNMAPPED: u64 = 0x7000_0000;

/// Registers that are computed with; the others are pointers, a small index and a counter.
const FREE: [usize; 9] = [0, 1, 2, 5, 6, 7, 10, 11, 14];
const POINTERS: [Register; 4] = [Register::RBX, Register::R9, Register::R8, Register::R12];
const INDEX: Register = Register::R15;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let mixed = self.0 ^ (self.0 >> 29);
        mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// A register to compute with.
    fn register(&mut self, size: usize) -> Register {
        native::sized(self.one(&FREE) as u8, size)
    }

    /// Memory near a pointer, now and then across two pages or in two pages with one TLB entry.
    fn memory(&mut self) -> MemoryOperand {
        let base = self.one(&POINTERS);
        let near = [-16, -8, 0, 4, 8, 16, 24, 0x44, 0x1000, 0x0ffc, -0x1003];
        let displacement = self.one(&near);
        let index = if self.chance(4) { INDEX } else { Register::None };
        let scale = self.one(&[1, 2, 4, 8]);
        MemoryOperand::new(base, index, scale, displacement, 8, false, Register::None)
    }
}

/// Forms `op rm, r` for 8, 16, 32 and 64 bits, and the same as `op r, rm`.
macro_rules! arithmetic {
    ($($a:ident $b:ident $c:ident $d:ident, $e:ident $f:ident $g:ident $h:ident);* $(;)?) => {
        [$(([Code::$a, Code::$b, Code::$c, Code::$d], [Code::$e, Code::$f, Code::$g, Code::$h])),*]
    };
}

const ARITHMETIC: [([Code; 4], [Code; 4]); 10] = arithmetic! {
    Add_rm8_r8 Add_rm16_r16 Add_rm32_r32 Add_rm64_r64,
    Add_r8_rm8 Add_r16_rm16 Add_r32_rm32 Add_r64_rm64;
    Or_rm8_r8 Or_rm16_r16 Or_rm32_r32 Or_rm64_r64, Or_r8_rm8 Or_r16_rm16 Or_r32_rm32 Or_r64_rm64;
    Adc_rm8_r8 Adc_rm16_r16 Adc_rm32_r32 Adc_rm64_r64,
    Adc_r8_rm8 Adc_r16_rm16 Adc_r32_rm32 Adc_r64_rm64;
    Sbb_rm8_r8 Sbb_rm16_r16 Sbb_rm32_r32 Sbb_rm64_r64,
    Sbb_r8_rm8 Sbb_r16_rm16 Sbb_r32_rm32 Sbb_r64_rm64;
    And_rm8_r8 And_rm16_r16 And_rm32_r32 And_rm64_r64,
    And_r8_rm8 And_r16_rm16 And_r32_rm32 And_r64_rm64;
    Sub_rm8_r8 Sub_rm16_r16 Sub_rm32_r32 Sub_rm64_r64,
    Sub_r8_rm8 Sub_r16_rm16 Sub_r32_rm32 Sub_r64_rm64;
    Xor_rm8_r8 Xor_rm16_r16 Xor_rm32_r32 Xor_rm64_r64,
    Xor_r8_rm8 Xor_r16_rm16 Xor_r32_rm32 Xor_r64_rm64;
    Cmp_rm8_r8 Cmp_rm16_r16 Cmp_rm32_r32 Cmp_rm64_r64,
    Cmp_r8_rm8 Cmp_r16_rm16 Cmp_r32_rm32 Cmp_r64_rm64;
    Mov_rm8_r8 Mov_rm16_r16 Mov_rm32_r32 Mov_rm64_r64,
    Mov_r8_rm8 Mov_r16_rm16 Mov_r32_rm32 Mov_r64_rm64;
    Test_rm8_r8 Test_rm16_r16 Test_rm32_r32 Test_rm64_r64,
    Xchg_rm8_r8 Xchg_rm16_r16 Xchg_rm32_r32 Xchg_rm64_r64;
};

/// `op rm, imm8` for 32 and 64 bits.
const IMMEDIATE: [[Code; 2]; 8] = [
    [Code::Add_rm32_imm8, Code::Add_rm64_imm8],
    [Code::Or_rm32_imm8, Code::Or_rm64_imm8],
    [Code::Adc_rm32_imm8, Code::Adc_rm64_imm8],
    [Code::And_rm32_imm8, Code::And_rm64_imm8],
    [Code::Sub_rm32_imm8, Code::Sub_rm64_imm8],
    [Code::Cmp_rm32_imm8, Code::Cmp_rm64_imm8],
    [Code::Rol_rm32_imm8, Code::Ror_rm64_imm8],
    [Code::Shl_rm32_imm8, Code::Sar_rm64_imm8],
];

/// `op rm`.
const ONE: [[Code; 4]; 5] = [
    [Code::Inc_rm8, Code::Inc_rm16, Code::Inc_rm32, Code::Inc_rm64],
    [Code::Dec_rm8, Code::Dec_rm16, Code::Dec_rm32, Code::Dec_rm64],
    [Code::Neg_rm8, Code::Neg_rm16, Code::Neg_rm32, Code::Neg_rm64],
    [Code::Not_rm8, Code::Not_rm16, Code::Not_rm32, Code::Not_rm64],
    [Code::Sete_rm8, Code::Setb_rm8, Code::Setg_rm8, Code::Seto_rm8],
];

/// Other forms `op r, rm` of 32 and 64 bits.
const OTHER: [[Code; 2]; 8] = [
    [Code::Imul_r32_rm32, Code::Imul_r64_rm64],
    [Code::Cmove_r32_rm32, Code::Cmovb_r64_rm64],
    [Code::Cmovg_r32_rm32, Code::Cmovo_r64_rm64],
    [Code::Popcnt_r32_rm32, Code::Tzcnt_r64_rm64],
    [Code::Bsf_r32_rm32, Code::Bsr_r64_rm64],
    [Code::Mov_r32_rm32, Code::Mov_r64_rm64],
    [Code::Movsxd_r64_rm32, Code::Movsxd_r64_rm32],
    [Code::Add_r32_rm32, Code::Sub_r64_rm64],
];

/// Conditional jumps, one for each condition.
const JUMPS: [Code; 8] = [
    Code::Jo_rel8_64,
    Code::Jb_rel8_64,
    Code::Je_rel8_64,
    Code::Jbe_rel8_64,
    Code::Js_rel8_64,
    Code::Jp_rel8_64,
    Code::Jl_rel8_64,
    Code::Jle_rel8_64,
];

fn instruction(random: &mut Random) -> Instruction {
    let size = random.below(4);
    let register = random.register(1 << size);
    let wide = random.below(2);
    let long = random.register(4 << wide);
    let built = match random.below(16) {
        0..=3 => {
            let (_, code) = random.one(&ARITHMETIC);
            if code[0] == Code::Xchg_rm8_r8 {
                Instruction::with2(code[size], random.memory(), register)
            } else {
                Instruction::with2(code[size], register, random.memory())
            }
        }
        4 => Instruction::with2(random.one(&ARITHMETIC).0[size], random.memory(), register),
        5..=7 => {
            let other = random.register(1 << size);
            Instruction::with2(random.one(&ARITHMETIC).0[size], other, register)
        }
        8 => Instruction::with2(random.one(&IMMEDIATE)[wide], long, random.below(100) as i32),
        9 => {
            let at = random.memory();
            Instruction::with2(random.one(&IMMEDIATE)[wide], at, random.below(100) as i32)
        }
        10 => {
            let codes = random.one(&ONE);
            let byte = codes[0] == Code::Sete_rm8;
            let register = if byte { random.register(1) } else { register };
            Instruction::with1(codes[size], register)
        }
        11 => {
            let code = random.one(&OTHER)[wide];
            let narrow = code == Code::Movsxd_r64_rm32;
            let to = random.register(if narrow { 8 } else { 4 << wide });
            let from = random.register(if narrow { 4 } else { 4 << wide });
            if random.chance(2) {
                Instruction::with2(code, to, from)
            } else {
                Instruction::with2(code, to, random.memory())
            }
        }
        12 => Instruction::with2(Code::Lea_r64_m, random.register(8), random.memory()),
        13 => Instruction::with1(Code::Push_r64, random.register(8)),
        14 if random.chance(2) => Instruction::with1(Code::Push_rm64, random.memory()),
        14 => Instruction::with1(Code::Pop_r64, random.register(8)),
        _ => match random.below(6) {
            0 => Instruction::with1(Code::Mul_rm64, random.register(8)),
            1 => Ok(Instruction::with(Code::Cqo)),
            2 => Instruction::with2(Code::Shl_rm64_CL, random.register(8), Register::CL),
            3 => Instruction::with2(Code::Bt_rm64_r64, random.memory(), INDEX),
            4 => Instruction::with2(Code::Xadd_rm64_r64, random.memory(), random.register(8)),
            _ => Instruction::with2(Code::Cmpxchg_rm64_r64, random.memory(), random.register(8)),
        },
    };
    built.unwrap()
}

fn encoded(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, 0).unwrap();
    encoder.take_buffer()
}

/// A loop of random instructions with branches forward; it ends by HLT or in a fault.
fn program(seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut code = Vec::new();
    let mut set = |register, value: u64| {
        code.extend(encoded(&Instruction::with2(Code::Mov_r64_imm64, register, value).unwrap()));
    };
    for (pointer, at) in POINTERS.into_iter().zip([DATA, DATA + 0x1ff8, DATA + ALIAS, STACK - 64]) {
        set(pointer, at + random.one(&[0, 0, 8, 0x7f0, 0xff0, 0xffd]));
    }
    set(INDEX, random.below(40) as u64);
    set(Register::R13, 3);
    let top = code.len();
    let fault_at = if random.chance(3) { random.below(LENGTH) } else { LENGTH };
    for index in 0..LENGTH {
        if index == fault_at {
            set_unmapped(&mut code);
        }
        if random.chance(6) {
            let skipped: Vec<u8> =
                (0..=random.below(3)).flat_map(|_| encoded(&instruction(&mut random))).collect();
            let jump = Instruction::with_branch(random.one(&JUMPS), skipped.len() as u64 + 2);
            code.extend(encoded(&jump.unwrap()));
            code.extend(skipped);
        } else {
            code.extend(encoded(&instruction(&mut random)));
        }
    }
    code.extend([0x49, 0xff, 0xcd, 0x0f, 0x85]); // dec r13; jnz top
    let back = top as i32 - (code.len() as i32 + 4);
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    code
}

/// Reads what is not mapped: the flags are pushed.
fn set_unmapped(code: &mut Vec<u8>) {
    let at = MemoryOperand::with_displ(UNMAPPED, 8);
    code.extend(encoded(&Instruction::with2(Code::Mov_r64_rm64, Register::R10, at).unwrap()));
}

#[test]
fn random_programs_agree_with_the_interpreter() {
    let normal = Options::default();
    let shadowed = Options { shadow: Shadowing::Always, margin: 0, ..normal };
    let settings = [
        normal,
        Options { traces: false, ..normal },
        Options { groups: false, ..normal },
        Options { flush_every: 5, ..normal },
        shadowed,
        Options { margin: 3, traces: false, ..shadowed },
        Options { flush_every: 5, ..shadowed },
        Options { shadow: Shadowing::Fickle, ..shadowed },
    ];
    for seed in 0..PROGRAMS {
        let code = program(seed);
        for stride in [1, 3, 1000] {
            let fallback = Box::new(Interp::new().unwrap());
            let options = settings[(seed as usize + stride as usize) % settings.len()];
            let trace = match options.shadow {
                Shadowing::Always | Shadowing::Fickle => trace_shadowed,
                _ => trace,
            };
            let truth = trace(Box::new(Interp::new().unwrap()), &code, stride);
            let engine = Box::new(Translator::new(fallback, options).unwrap());
            let states = trace(engine, &code, stride);
            for (state, true_state) in states.iter().zip(&truth) {
                assert_eq!(state, true_state, "program {seed}, stride {stride}, {options:?}");
            }
            assert_eq!(states.len(), truth.len(), "program {seed}, stride {stride}");
        }
    }
}
