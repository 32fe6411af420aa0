//! SYSCALL and SYSRET, in translated code and not.

use cpu::{cr, flag};
use interp::Interp;

use super::{CODE, Guest, SMALL, SMALL_TO, count, guest, settings, trace_guest};
use crate::Translator;

const ENTRY: u64 = 0x800;
const USUAL: u64 = flag::IF | flag::TF | flag::AC | flag::DF | flag::STATUS;

/// The kernel at CODE goes to the user at SMALL, who calls it with all kinds of flags.
fn calls(sfmask: u64, more: &[u8], user: &[u8]) -> Guest {
    let mut code = vec![0x90; 0x4000];
    let mut begin = vec![0x48, 0xb9]; // mov rcx, SMALL
    begin.extend(SMALL.to_le_bytes());
    begin.extend([0x41, 0xbb, 0x47, 0x02, 0, 0]); // mov r11d, IF and some
    begin.extend([0x48, 0x0f, 0x07]); // sysretq
    code[..begin.len()].copy_from_slice(&begin);
    let mut entry = vec![
        0x0f, 0x01, 0xf8, // swapgs
        0x49, 0xff, 0xc5, // inc r13
        0x4d, 0x01, 0xdc, // add r12, r11
        0x9c, // pushfq
        0x58, // pop rax
        0x49, 0x01, 0xc4, // add r12, rax
        0x49, 0x81, 0xfd, 40, 0, 0, 0, // cmp r13, 40
        0x72, 1,    // jb 1f
        0xf4, // hlt
    ];
    entry.extend(more);
    entry.extend([
        0x0f, 0x01, 0xf8, // 1: swapgs
        0x48, 0x0f, 0x07, // sysretq
    ]);
    code[ENTRY as usize..ENTRY as usize + entry.len()].copy_from_slice(&entry);
    let at = SMALL_TO as usize;
    code[at..at + user.len()].copy_from_slice(user);
    let Guest { mut vcpu, ram } = guest(&code);
    vcpu.regs.gpr[13] = 0;
    vcpu.msrs.efer |= cr::EFER_SCE;
    vcpu.msrs.star = 0x0013_0008 << 32;
    vcpu.msrs.lstar = CODE + ENTRY;
    vcpu.msrs.sfmask = sfmask;
    vcpu.msrs.kernel_gs_base = 0x1234_5000;
    vcpu.rederive();
    Guest { vcpu, ram }
}

const USER: &[u8] = &[
    0x4c, 0x01, 0xe8, // 1: add rax, r13
    0x0f, 0x05, // syscall
    0x48, 0x69, 0xc0, 0x35, 0x1a, 0x11, 0x71, // imul rax, rax, 71111a35h
    0xfd, // std
    0x0f, 0x05, // syscall
    0xfc, // cld
    0x48, 0x01, 0xc2, // add rdx, rax
    0x73, 0xeb, // jnc 1b
    0x0f, 0x05, // syscall
    0xeb, 0xe7, // jmp 1b
];

fn check(name: &str, sfmask: u64, more: &[u8]) {
    check_user(name, sfmask, more, USER);
}

fn check_user(name: &str, sfmask: u64, more: &[u8], user: &[u8]) {
    for stride in [1, 7, 1000] {
        let interp = || Box::new(Interp::new().unwrap());
        let expected = trace_guest(interp(), calls(sfmask, more, user), stride);
        assert!(expected.last().unwrap().0 > 20, "{name}: it comes some way");
        for options in settings() {
            let engine = Translator::new(interp(), options).unwrap();
            let got = trace_guest(Box::new(engine), calls(sfmask, more, user), stride);
            for (got, expected) in got.iter().zip(&expected) {
                assert_eq!(got, expected, "{name}, stride {stride}, {options:x?}");
            }
            assert_eq!(got.len(), expected.len(), "{name}, stride {stride}, {options:?}");
        }
    }
}

#[test]
fn crossings_give_what_the_interpreter_gives() {
    check("usual", USUAL, &[]);
    check("status flags stay", USUAL & !flag::STATUS, &[]);
    check("interrupts stay on", USUAL & !flag::IF, &[]);
    check("alignment checks stay", USUAL & !flag::AC, &[]);
}

#[test]
fn crossings_out_of_the_ordinary_give_what_the_interpreter_gives() {
    // or r11, AC; TF; NT, VIF and ID; bits that there are not
    for bits in [0x4_0000u32, 0x100, 0x28_4000, 0x8000_8028] {
        let mut more = vec![0x49, 0x81, 0xcb];
        more.extend(bits.to_le_bytes());
        check("flags", USUAL, &more);
    }
    // Another IA32_STAR each time: mov r8, rcx; rdmsr; xor edx, 80000h; wrmsr
    let star = [
        0x49, 0x89, 0xc8, // mov r8, rcx
        0xb9, 0x81, 0, 0, 0xc0, // mov ecx, IA32_STAR
        0x0f, 0x32, // rdmsr
        0x81, 0xf2, 0, 0, 8, 0, // xor edx, 80000h
        0x0f, 0x30, // wrmsr
        0x4c, 0x89, 0xc1, // mov rcx, r8
    ];
    check("another IA32_STAR", USUAL, &star);
    let nowhere = [
        0x49, 0x83, 0xfd, 30, // cmp r13, 30
        0x72, 5, // jb 1f
        0x48, 0x0f, 0xba, 0xe9, 60, // bts rcx, 60: SYSRET raises #GP
    ];
    check("not canonical", USUAL, &nowhere);
}

/// A kernel that has pages change places, and takes one away, before it goes back to the user, who
/// may have had them in the shadow, and may lose it there: the code he comes back to leaves by the
/// side.
#[test]
fn what_the_kernel_does_to_pages_is_seen_by_the_user() {
    let swap = [
        0x4c, 0x8b, 0x04, 0x25, 0x08, 0x50, 0, 0, // mov r8, [SMALL_TABLE + 8]
        0x4c, 0x8b, 0x0c, 0x25, 0x10, 0x50, 0, 0, // mov r9, [SMALL_TABLE + 16]
        0x4c, 0x89, 0x0c, 0x25, 0x08, 0x50, 0, 0, // mov [SMALL_TABLE + 8], r9
        0x4c, 0x89, 0x04, 0x25, 0x10, 0x50, 0, 0, // mov [SMALL_TABLE + 16], r8
        0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0x40, 0, // invlpg [SMALL + 1000h]
        0x0f, 0x01, 0x3c, 0x25, 0, 0x20, 0x40, 0, // invlpg [SMALL + 2000h]
    ];
    let user = [
        0xbe, 0, 0x10, 0x40, 0, // mov esi, SMALL + 1000h
        0x48, 0x01, 0x16, // 1: add [rsi], rdx
        0x4c, 0x03, 0xb6, 0, 0x10, 0, 0, // add r14, [rsi + 1000h]
        0x48, 0x03, 0x16, // add rdx, [rsi]
        0x0f, 0x05, // syscall
        0xf7, 0xc2, 0, 1, 0, 0, // test edx, 100h
        0x74, 0x05, // jz 2f
        0xff, 0xc5, // inc ebp
        0x78, 0x01, // js 2f
        0x90, // nop
        0xeb, 0xe2, // 2: jmp 1b
    ];
    check_user("pages change places", USUAL, &swap, &user);
    let takes = [
        0x49, 0x83, 0xfd, 30, // cmp r13, 30
        0x72, 16, // jb 1f
        0x80, 0x24, 0x25, 0x08, 0x50, 0, 0, 0xfe, // and byte [SMALL_TABLE + 8], ~1
        0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0x40, 0, // invlpg [SMALL + 1000h]
    ];
    check_user("a page is taken", USUAL, &takes, &user);
}

#[test]
fn crossings_do_not_leave_translated_code() {
    let Guest { mut vcpu, mut ram } = calls(USUAL, &[], USER);
    let options = crate::Options::default();
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let mut cpu = cpu::Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut cpu::EmptyBus };
    cpu.sync_tlb();
    let entries = |engine: &Translator| count(&cpu::Engine::counters(engine), "entries");
    assert_eq!(cpu::Engine::run(&mut engine, &mut cpu, 40), cpu::Exit::Reached);
    let before = entries(&engine);
    assert_eq!(cpu::Engine::run(&mut engine, &mut cpu, 60), cpu::Exit::Reached);
    assert!(entries(&engine) - before <= 3, "entered once, and to its last branches");
}
