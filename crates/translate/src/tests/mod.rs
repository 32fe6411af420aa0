//! Small guests under interpreter and translator, compared at every branch, under every setting
//! (mechanisms L1, L3).

mod coverage;
mod crossing;
mod debugged;
pub(crate) mod decoded;
mod loops;
mod random;
mod room;
mod shadowed;

use cpu::cpuid::Model;
use cpu::{Cpu, EmptyBus, Engine, Exit, Seg, Segment, Table, Vcpu, cr, gpr};
use interp::Interp;
use memory::Ram;
use types::Gpa;

use crate::{Options, Shadowing, Translator};

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x18_0000;
const STACK: u64 = 0x1f_0000;
const HANDLER: u64 = 0x9000;
/// 4 KiB pages: at this address, from this offset of CODE, by this table.
const SMALL: u64 = 0x40_0000;
const SMALL_TO: u64 = 0x3000;
const SMALL_TABLE: u64 = 0x5000;
/// A distance at which pages fall in one TLB entry.
const ALIAS: u64 = (cpu::tlb::layout::ENTRIES_COUNT as u64) << 12;
const BRANCHES_MAX: u64 = 3000;

/// What an engine counted under a name.
fn count(counters: &[(String, u64)], name: &str) -> u64 {
    let counter = counters.iter().find(|(known, _)| known == name);
    counter.unwrap_or_else(|| panic!("no counter {name}: {counters:?}")).1
}

struct Guest {
    vcpu: Vcpu,
    ram: Ram,
}

/// Two times 2 MiB of RAM at their own addresses, and the first again at ALIAS; four pages of the
/// user's at SMALL, with SMAP on; every vector leads to HLT.
fn guest(code: &[u8]) -> Guest {
    let mut ram = Ram::new(4 << 20).unwrap();
    let mut put = |at: u64, value: u64| ram.write(Gpa(at), &value.to_le_bytes()).unwrap();
    put(0x1000, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, 0x83);
    put(0x3008, 0x20_0083);
    put(0x3000 + (ALIAS >> 21) * 8, 0x83);
    put(0x3010, SMALL_TABLE | 7);
    for page in 0..4 {
        put(SMALL_TABLE + page * 8, (CODE + SMALL_TO + (page << 12)) | 7);
    }
    put(0x4008, 0x00af_9b00_0000_ffff);
    put(0x4018, 0x00af_fb00_0000_ffff);
    put(0x4020, 0x00cf_f300_0000_ffff);
    put(0xa004, STACK);
    for vector in 0..32 {
        put(0x8000 + 16 * vector, HANDLER | 0x8 << 16 | 0x8e00 << 32);
    }
    ram.write(Gpa(HANDLER), &[0xf4]).unwrap();
    ram.write(Gpa(CODE), code).unwrap();
    let mut vcpu = Vcpu::new(0, Model::V3);
    let flat = |attributes| Segment { selector: 8, base: 0, limit: u32::MAX, attributes };
    vcpu.segments = [flat(0xc093); 6];
    vcpu.segments[Seg::Cs as usize] = flat(0xa09b);
    vcpu.gdtr = Table { base: 0x4000, limit: 0xff };
    vcpu.tr = Segment { selector: 0x40, base: 0xa000, limit: 0x67, attributes: 0x8b };
    vcpu.idtr = Table { base: 0x8000, limit: 0xfff };
    vcpu.cr0 = cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_WP | cr::CR0_PG;
    vcpu.cr3 = 0x1000;
    vcpu.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE | cr::CR4_SMAP;
    vcpu.xcr0 = cr::XCR0_X87 | cr::XCR0_SSE | cr::XCR0_AVX;
    vcpu.msrs.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
    vcpu.rederive();
    for (register, value) in vcpu.regs.gpr[..16].iter_mut().enumerate() {
        value.clone_from(&(0x1111_1111_1111_1111u64.wrapping_mul(register as u64 + 1)));
    }
    vcpu.regs.gpr[gpr::RSP] = STACK;
    vcpu.regs.gpr[gpr::RBX] = DATA;
    vcpu.regs.gpr[gpr::RIP] = CODE;
    Guest { vcpu, ram }
}

/// State after each `stride` branches, to the end.
fn trace(engine: Box<dyn Engine>, code: &[u8], stride: u64) -> Vec<(u64, Vec<u64>, u128)> {
    trace_guest(engine, guest(code), stride)
}

/// The same guest without SMAP: then code that is all at CPL 0 can have the shadow.
fn shadowed_guest(code: &[u8]) -> Guest {
    let mut guest = guest(code);
    guest.vcpu.cr4 &= !cr::CR4_SMAP;
    guest.vcpu.rederive();
    guest
}

fn trace_shadowed(engine: Box<dyn Engine>, code: &[u8], stride: u64) -> Vec<(u64, Vec<u64>, u128)> {
    trace_guest(engine, shadowed_guest(code), stride)
}

fn trace_guest(
    mut engine: Box<dyn Engine>,
    guest: Guest,
    stride: u64,
) -> Vec<(u64, Vec<u64>, u128)> {
    let Guest { mut vcpu, mut ram } = guest;
    let mut states = Vec::new();
    while vcpu.branches < BRANCHES_MAX {
        let until = vcpu.branches - vcpu.branches % stride + stride;
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        let exit = engine.run(&mut cpu, until);
        assert!(exit != Exit::Shutdown, "triple fault at branch {}", vcpu.branches);
        if !matches!(exit, Exit::Reached | Exit::Halted) {
            continue;
        }
        states.push(state_of(&mut vcpu, &mut ram));
        if exit == Exit::Halted {
            return states;
        }
    }
    states
}

/// What a guest can see at an execution point, and a hash of its RAM.
fn state_of(vcpu: &mut Vcpu, ram: &mut Ram) -> (u64, Vec<u64>, u128) {
    let mut state = vcpu.regs.gpr.to_vec();
    state.push(vcpu.regs.rflags());
    state.extend(vcpu.regs.ymm.iter().flatten());
    state.push(u64::from(vcpu.regs.fx.mxcsr()));
    state.push(vcpu.cr2);
    state.extend([u64::from(vcpu.cpl), u64::from(vcpu.mode.side)]);
    state.extend([u64::from(vcpu.mode.walk_side), vcpu.msrs.kernel_gs_base]);
    for segment in vcpu.segments {
        state.extend([u64::from(segment.selector), segment.base, u64::from(segment.limit)]);
        state.push(u64::from(segment.attributes));
    }
    let image = vcpu.regs.fx.0.chunks_exact(8);
    state.extend(image.map(|word| u64::from_le_bytes(word.try_into().unwrap())));
    let hash = ram.hash();
    vcpu.tlb.flush();
    (vcpu.branches, state, hash)
}

fn settings() -> Vec<Options> {
    let normal = Options::default();
    vec![
        normal,
        Options { traces: false, ..normal },
        Options { groups: false, ..normal },
        Options { shadow: Shadowing::Always, ..normal },
        Options { shadow: Shadowing::Always, margin: 0, ..normal },
        Options { shadow: Shadowing::Always, margin: 0, traces: false, links: false, ..normal },
        Options { shadow: Shadowing::Fickle, margin: 0, ..normal },
        Options { links: false, ..normal },
        Options { block_insns_max: 1, ..normal },
        Options { flush_every: 3, ..normal },
        Options { always_slow: true, ..normal },
        Options { cache_size: 0, count_instructions: true, ..normal },
    ]
}

/// Every setting gives the interpreter's states, at every branch and at the end.
fn check(name: &str, code: &[u8]) {
    for stride in [1, 7, 1000] {
        let interp = || Box::new(Interp::new().unwrap());
        let (usual, shadowed) =
            (trace(interp(), code, stride), trace_shadowed(interp(), code, stride));
        assert!(usual.len() > 1 || stride > 1, "{name}: the guest does something");
        for options in settings() {
            let engine = Box::new(Translator::new(interp(), options).unwrap());
            let (got, expected) = match options.shadow {
                Shadowing::Always | Shadowing::Fickle => {
                    (trace_shadowed(engine, code, stride), &shadowed)
                }
                _ => (trace(engine, code, stride), &usual),
            };
            for (got, expected) in got.iter().zip(expected) {
                assert_eq!(got, expected, "{name}, stride {stride}, {options:x?}");
            }
            assert_eq!(got.len(), expected.len(), "{name}, stride {stride}, {options:?}");
        }
    }
}

#[test]
fn loop_with_memory_and_live_flags() {
    check(
        "loop",
        &[
            0xb9, 0x32, 0, 0, 0, // mov ecx, 50
            0x48, 0x01, 0xc8, // 1: add rax, rcx
            0x48, 0x89, 0x44, 0xcb, 0x10, // mov [rbx + rcx * 8 + 16], rax
            0x4c, 0x13, 0x34, 0xcb, // adc r14, [rbx + rcx * 8]
            0x4d, 0x89, 0xf2, // mov r10, r14
            0x49, 0x0f, 0xaf, 0xc2, // imul rax, r10
            0xff, 0xc9, // dec ecx
            0x75, 0xe9, // jnz 1b
            0x0f, 0x94, 0xc4, // setz ah
            0xf4, // hlt
        ],
    );
}

#[test]
fn selectors_are_read_and_flags_stay() {
    check(
        "selectors",
        &[
            0xb9, 4, 0, 0, 0, // mov ecx, 4
            0x83, 0xf9, 2, // 1: cmp ecx, 2
            0x8c, 0xd0, // mov eax, ss
            0x4c, 0x8c, 0xca, // mov rdx, cs
            0x41, 0x8c, 0xd9, // mov r9d, ds
            0x14, 3, // adc al, 3
            0x48, 0x89, 0x44, 0xcb, 0x10, // mov [rbx + rcx * 8 + 16], rax
            0x8e, 0xd8, // mov ds, eax: raises, at last
            0xff, 0xc9, // dec ecx
            0x75, 0xe8, // jnz 1b
            0xf4,
        ],
    );
}

#[test]
fn calls_and_returns_across_pages() {
    let mut code = vec![0x90; 0x2100];
    let main = [
        0xbd, 0x14, 0, 0, 0, // mov ebp, 20
        0xe8, 0xf6, 0x1f, 0, 0, // 1: call +0x2000
        0x48, 0x8d, 0x05, 0xf4, 0x1f, 0, 0, // lea rax, [function]
        0xff, 0xd0, // call rax
        0xff, 0xcd, // dec ebp
        0x75, 0xee, // jnz 1b
        0xf4,
    ];
    code[..main.len()].copy_from_slice(&main);
    // function: push rbx; add r15, 3; pop r15 ...; ret
    let function = [0x53, 0x49, 0x83, 0xc7, 3, 0x41, 0x5c, 0x4d, 0x01, 0xe7, 0xc3];
    code[0x2000..0x2000 + function.len()].copy_from_slice(&function);
    check("calls", &code);
}

#[test]
fn code_that_writes_itself() {
    check(
        "self-modifying",
        &[
            0xb9, 20, 0, 0, 0, // mov ecx, 20
            0x83, 0xc0, 1, // 1: add eax, imm8, whose immediate changes
            0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, // inc byte [rip - 7]
            0xff, 0xc9, // dec ecx
            0x75, 0xf3, // jnz 1b
            0xf4,
        ],
    );
}

#[test]
fn accesses_and_instructions_on_two_pages() {
    let mut code = vec![0x90; 0x1100];
    let main = [
        0xb9, 10, 0, 0, 0, // mov ecx, 10
        0x48, 0x01, 0x8b, 0xfc, 0x0f, 0, 0, // 1: add [rbx + 0xffc], rcx
        0x48, 0x8b, 0x83, 0xfd, 0x0f, 0, 0, // mov rax, [rbx + 0xffd]
        0xff, 0xc9, // dec ecx
        0x75, 0xee, // jnz 1b
        0xe9, 0xe1, 0x0f, 0, 0, // jmp to 0xffe
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0xffe..0x1006].copy_from_slice(&[0x48, 0xb8, 1, 2, 3, 4, 5, 6]); // mov rax, imm64
    code[0x1006..0x1009].copy_from_slice(&[7, 8, 0xf4]);
    check("two pages", &code);
}

#[test]
fn divide_error_is_exact() {
    check(
        "divide",
        &[
            0xbe, 5, 0, 0, 0, // mov esi, 5
            0x31, 0xd2, // 1: xor edx, edx
            0xb8, 100, 0, 0, 0, // mov eax, 100
            0xff, 0xce, // dec esi
            0xf7, 0xf6, // div esi: the fifth time by 0
            0x89, 0x03, // mov [rbx], eax
            0xeb, 0xf1, // jmp 1b
        ],
    );
}

#[test]
fn vector_registers_survive_misses_and_faults() {
    check(
        "vectors",
        &[
            0xb9, 40, 0, 0, 0, // mov ecx, 40
            0xf3, 0x48, 0x0f, 0x2a, 0xc1, // 1: cvtsi2ss xmm0, rcx
            0xf3, 0x0f, 0x58, 0xc8, // addss xmm1, xmm0
            0xf3, 0x0f, 0x5e, 0xd1, // divss xmm2, xmm1
            0x69, 0xf1, 0, 0x10, 0, 0, // imul esi, ecx, 4096
            0x0f, 0x11, 0x0c, 0x33, // movups [rbx + rsi], xmm1
            0xc5, 0xfc, 0x58, 0xd9, // vaddps ymm3, ymm0, ymm1
            0xff, 0xc9, // dec ecx
            0x75, 0xe1, // jnz 1b
            0x0f, 0x28, 0x43, 0x04, // movaps xmm0, [rbx + 4]: misaligned
            0xf4,
        ],
    );
}

#[test]
fn pages_of_one_index_do_not_block_each_other() {
    let top = (DATA + ALIAS + 0x1000).to_le_bytes();
    let mut code = vec![0x48, 0xbc]; // mov rsp, top
    code.extend(top);
    code.extend([
        0xb9, 30, 0, 0, 0, // mov ecx, 30
        0xff, 0x33, // 1: push qword [rbx]
        0x58, // pop rax
        0x48, 0x01, 0x0b, // add [rbx], rcx
        0xff, 0xc9, // dec ecx
        0x75, 0xf6, // jnz 1b
        0xf4,
    ]);
    check("conflict", &code);
}

/// What it reads is looked up with its neighbours; where it goes misses, a new page each time.
#[test]
fn push_from_memory_reads_again_after_a_miss() {
    check(
        "push from memory",
        &[
            0xb9, 30, 0, 0, 0, // mov ecx, 30
            0x48, 0x89, 0xcc, // 1: mov rsp, rcx
            0x48, 0xc1, 0xe4, 0x0c, // shl rsp, 12
            0x48, 0x01, 0xdc, // add rsp, rbx
            0xff, 0x73, 0x08, // push qword [rbx + 8]
            0x48, 0x03, 0x43, 0x10, // add rax, [rbx + 16]
            0x48, 0x83, 0x43, 0x08, 0x07, // add qword [rbx + 8], 7
            0xff, 0xc9, // dec ecx
            0x75, 0xe6, // jnz 1b
            0xf4,
        ],
    );
}

#[test]
fn bit_strings_flags_and_system_instructions() {
    check(
        "system",
        &[
            0xb9, 60, 0, 0, 0, // mov ecx, 60
            0x48, 0x69, 0xd1, 0x41, 1, 0, 0, // 1: imul rdx, rcx, 321
            0x48, 0x0f, 0xab, 0x13, // bts [rbx], rdx
            0x0f, 0xb3, 0x0b, // btr [rbx], ecx
            0x9c, // pushfq
            0xfb, // sti
            0x0f, 0x01, 0xf8, // swapgs
            0xfa, // cli
            0x8f, 0xc0, // pop rax
            0xf0, 0x48, 0x0f, 0xc1, 0x03, // lock xadd [rbx], rax
            0xf0, 0x48, 0x0f, 0xb1, 0x53, 8, // lock cmpxchg [rbx + 8], rdx
            0xff, 0xc9, // dec ecx
            0x75, 0xdc, // jnz 1b
            0xf4,
        ],
    );
}

#[test]
fn string_instructions() {
    check(
        "strings",
        &[
            0x48, 0x89, 0xdf, // mov rdi, rbx
            0xb8, 0x5a, 0, 0, 0, // mov eax, 5ah
            0xb9, 0x10, 0x27, 0, 0,    // mov ecx, 10000
            0xfc, // cld
            0xf3, 0xaa, // rep stosb
            0x48, 0x89, 0xde, // mov rsi, rbx
            0xb9, 0xd0, 7, 0, 0, // mov ecx, 2000
            0xf3, 0xa4, // rep movsb
            0xeb, 0, // jmp +0
            0xf4,
        ],
    );
}
