//! What was once left to the interpreter: code on two pages, strings, system code, x87.

use super::*;

#[test]
fn instruction_whose_second_page_is_another_one() {
    let mut code = vec![0x90; 0x7000];
    let main = [
        0xb9, 100, 0, 0, 0, // mov ecx, 100
        0xb8, 0xfe, 0x0f, 0x40, 0x00, // 1: mov eax, SMALL + 0xffe
        0xff, 0xd0, // call rax
        0x49, 0x01, 0xc6, // add r14, rax
        0x81, 0x34, 0x25, 8, 0x50, 0, 0, 0, 0x10, 0, 0, // xor dword [SMALL_TABLE + 8], 1000h
        0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0x40, 0, // invlpg [SMALL + 1000h]
        0xff, 0xc9, // dec ecx
        0x75, 0xdf, // jnz 1b
        0xf4,
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0x3ffe..0x4000].copy_from_slice(&[0x48, 0xb8]); // mov rax, imm64; ret
    code[0x4000..0x4009].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0xc3]);
    code[0x5000..0x5009].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 0xc3]);
    const { assert!(SMALL == 0x40_0000 && SMALL_TO == 0x3000 && SMALL_TABLE == 0x5000) };
    check("second page", &code);
}

#[test]
fn instruction_whose_second_page_is_written() {
    let mut code = vec![0x90; 0x1100];
    let main = [
        0xb9, 50, 0, 0, 0, // mov ecx, 50
        0xe8, 0xf4, 0x0f, 0, 0, // 1: call 0xffe
        0x49, 0x01, 0xc6, // add r14, rax
        0xff, 0x05, 0xf0, 0x0f, 0, 0, // inc dword [0x1003]
        0xff, 0xc9, // dec ecx
        0x75, 0xee, // jnz 1b
        0xf4,
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0xffe..0x1009].copy_from_slice(&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3]);
    check("second page written", &code);
}

#[test]
fn branch_on_two_pages() {
    let mut code = vec![0x90; 0x1100];
    let main = [
        0xb9, 20, 0, 0, 0, // mov ecx, 20
        0x48, 0xff, 0xc0, // 1: inc rax
        0xff, 0xc9, // dec ecx
        0xe9, 0xee, 0x0f, 0, 0, // jmp 0xffd
        0xf4,
    ];
    code[..main.len()].copy_from_slice(&main);
    // jnz 1b, over the page's end; hlt
    code[0xffd..0x1003].copy_from_slice(&[0x0f, 0x85, 0x02, 0xf0, 0xff, 0xff]);
    code[0x1003] = 0xf4;
    check("branch on two pages", &code);
}

/// `prefixes opcode` on both sides of page ends, with counts around them; then a fault in it.
fn string_guest(instruction: &[u8], count: u32) -> Vec<u8> {
    let mut code = vec![
        0xfc, // cld
        0xb8, 0x11, 0x11, 0x11, 0x11, // mov eax, 11111111h
        0xbd, 12, 0, 0, 0, // mov ebp, 12
        0x48, 0x8d, 0xb3, 0xf1, 0x0f, 0, 0, // 1: lea rsi, [rbx + 0xff1]
        0x48, 0x8d, 0xbb, 0xe8, 0x2f, 0, 0, // lea rdi, [rbx + 0x2fe8]
        0x48, 0x01, 0xef, // add rdi, rbp
        0xb9, // mov ecx, count
    ];
    code.extend(count.to_le_bytes());
    code.extend(instruction);
    code.extend([
        0x49, 0x89, 0xc8, // mov r8, rcx
        0x9c, // pushfq
        0x41, 0x59, // pop r9
        0x4d, 0x01, 0xc8, // add r8, r9
        0xff, 0x83, 0, 0x10, 0, 0, // inc dword [rbx + 0x1000]
        0xff, 0xcd, // dec ebp
        0x75,
    ]);
    let back = 11i64 - (code.len() as i64 + 1);
    code.push(back as u8);
    // Backwards, and into memory that is not there.
    code.extend([0xfd, 0xb9, 9, 0, 0, 0]); // std; mov ecx, 9
    code.extend(instruction);
    code.extend([0xeb, 0, 0xfc]); // jmp +0; cld
    code.extend([0xbf, 0xf8, 0xff, 0x3f, 0]); // mov edi, 3ffff8h
    code.extend([0xbe, 0xe0, 0xff, 0x3f, 0]); // mov esi, 3fffe0h
    code.extend([0x83, 0x24, 0x25, 0, 0x50, 0, 0, 0xfe]); // and dword [SMALL_TABLE], ~1
    code.extend([0x0f, 0x01, 0x3c, 0x25, 0, 0, 0x40, 0]); // invlpg [SMALL]
    code.extend([0xb9, 100, 0, 0, 0]); // mov ecx, 100
    code.extend(instruction);
    code.push(0xf4);
    code
}

#[test]
fn string_instructions_of_every_kind() {
    for opcode in [0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf] {
        for prefixes in [&[][..], &[0xf3], &[0xf2], &[0xf3, 0x48], &[0x66], &[0xf3, 0x66]] {
            let mut instruction = prefixes.to_vec();
            instruction.push(opcode);
            for count in [0, 1, 40, 5000] {
                let name = format!("{instruction:02x?} {count} times");
                check(&name, &string_guest(&instruction, count));
            }
        }
    }
}

#[test]
fn blocks_go_on_after_stepped_instructions() {
    check(
        "stepped",
        &[
            0xb9, 30, 0, 0, 0,    // mov ecx, 30
            0x51, // 1: push rcx
            0x66, 0x0f, 0x6e, 0xc1, // movd xmm0, ecx
            0x31, 0xc0, // xor eax, eax
            0x0f, 0xa2, // cpuid
            0x0f, 0x31, // rdtsc
            0x0f, 0x5c, 0xc8, // subps xmm1, xmm0
            0x48, 0x01, 0x43, 0x08, // add [rbx + 8], rax
            0x0f, 0x20, 0xd8, // mov rax, cr3
            0x0f, 0x22, 0xd8, // mov cr3, rax
            0x9c, // pushfq
            0x80, 0x74, 0x24, 0x02, 0x04, // xor byte [rsp + 2], 4
            0x9d, // popfq: changes AC
            0x48, 0x8d, 0x1d, 0, 0, 8, 0,    // lea rbx, [rip + 80000h]
            0x59, // pop rcx
            0xff, 0xc9, // dec ecx
            0x75, 0xd3, // jnz 1b
            0x0f, 0x0b, // ud2
        ],
    );
}

#[test]
fn stac_and_clac_change_the_side_within_a_block() {
    let mut code = vec![0x90; 0x4000];
    let main = [
        0xb9, 30, 0, 0, 0, // mov ecx, 30
        0x41, 0xb8, 0, 1, 0x40, 0, // mov r8d, SMALL + 0x100
        0x0f, 0x01, 0xcb, // 1: stac
        0x49, 0x01, 0x08, // add [r8], rcx
        0xe8, 0xea, 0x0f, 0, 0, // call 0x1000
        0x49, 0x89, 0x40, 8, // mov [r8 + 8], rax
        0x48, 0xff, 0x33, // push qword [rbx]
        0x58, // pop rax
        0x74, 3, // jz +3
        0x49, 0xff, 0x00, // inc qword [r8]
        0x0f, 0x01, 0xca, // clac
        0x48, 0x83, 0x43, 8, 3, // add qword [rbx + 8], 3
        0x48, 0x8d, 0x05, 0xce, 0x0f, 0, 0, // lea rax, [0x1000]
        0x0f, 0x01, 0xcb, // stac
        0xff, 0xd0, // call rax
        0x0f, 0x01, 0xca, // clac
        0xff, 0xc9, // dec ecx
        0x75, 0xcd, // jnz 1b
        0x49, 0xff, 0x00, // inc qword [r8]: a page fault
        0xf4,
    ];
    code[..main.len()].copy_from_slice(&main);
    // function: inc qword [r8 + 16]; ret
    code[0x1000..0x1005].copy_from_slice(&[0x49, 0xff, 0x40, 16, 0xc3]);
    check("stac", &code);
}

#[test]
fn system_calls_and_returns() {
    // STAR: system calls at CS 8, and SYSRET to 1bh; the guest's user code is in SMALL's pages.
    let mut code = vec![0x90; 0x4000];
    let mut main = vec![0xb9];
    main.extend(0xc000_0081u32.to_le_bytes()); // mov ecx, STAR
    main.extend([0x31, 0xc0]); // xor eax, eax
    main.extend([0xba, 8, 0, 0x0b, 0]); // mov edx, 000b0008h
    main.extend([0x0f, 0x30, 0xff, 0xc1]); // wrmsr; inc ecx (LSTAR)
    main.extend([0x31, 0xd2, 0xb8, 0, 1, 0x10, 0]); // xor edx, edx; mov eax, CODE + 0x100
    main.extend([0x0f, 0x30]); // wrmsr
    main.extend([0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32]); // mov ecx, EFER; rdmsr
    main.extend([0x83, 0xc8, 1, 0x0f, 0x30]); // or eax, SCE; wrmsr
    main.extend([0xb9, 0, 0, 0x40, 0]); // mov ecx, SMALL
    main.extend([0x41, 0xbb, 0x02, 0, 0, 0]); // mov r11d, 2
    main.extend([0xbd, 25, 0, 0, 0]); // mov ebp, 25
    main.extend([0x48, 0x0f, 0x07]); // sysretq
    code[..main.len()].copy_from_slice(&main);
    let entry = [
        0xbc, 0, 0, 0x1f, 0, // mov esp, STACK
        0x0f, 0x31, // rdtsc
        0x49, 0x01, 0xc6, // add r14, rax
        0x6a, 0x23, // push 23h
        0x68, 0, 2, 0x40, 0, // push SMALL + 0x200
        0x41, 0x53, // push r11
        0x6a, 0x1b, // push 1bh
        0x51, // push rcx
        0x41, 0xf6, 0xc6, 1, // test r14b, 1
        0x75, 2, // jnz 1f
        0x48, 0xcf, // iretq
        0x48, 0x83, 0xc4, 40, // 1: add rsp, 40
        0x48, 0x0f, 0x07, // sysretq
    ];
    code[0x100..0x100 + entry.len()].copy_from_slice(&entry);
    let user = [
        0x66, 0x0f, 0xfe, 0xc1, // 1: paddd xmm0, xmm1
        0x0f, 0x05, // syscall
        0x49, 0xff, 0xc6, // inc r14
        0xff, 0xcd, // dec ebp
        0x75, 0xf3, // jnz 1b
        0xf4, // hlt: a general protection
    ];
    code[0x3000..0x3000 + user.len()].copy_from_slice(&user);
    check("system calls", &code);
}

#[test]
fn x87_state_survives_misses_steps_and_faults() {
    check(
        "x87",
        &[
            0xdb, 0xe3, // fninit
            0xb9, 40, 0, 0, 0, // mov ecx, 40
            0xd9, 0xe8, // fld1
            0x89, 0x0b, // 1: mov [rbx], ecx
            0xdb, 0x03, // fild dword [rbx]
            0xde, 0xc1, // faddp
            0xd9, 0xc0, // fld st(0)
            0x69, 0xf1, 0, 0x10, 0, 0, // imul esi, ecx, 4096
            0xdb, 0x3c, 0x33, // fstp tbyte [rbx + rsi]
            0xd9, 0x3c, 0x33, // fnstcw [rbx + rsi]
            0x0f, 0x20, 0xd8, // mov rax, cr3: stepped
            0xf3, 0x0f, 0x2a, 0xc9, // cvtsi2ss xmm1, ecx
            0xd8, 0x3c, 0x33, // fdivr dword [rbx + rsi]
            0xdf, 0xe0, // fnstsw ax
            0x49, 0x01, 0xc6, // add r14, rax
            0xdb, 0xf0, // fcomi st(0), st(0)
            0x9c, // pushfq
            0x8f, 0xc2, // pop rdx
            0xdc, 0x13, // fcom qword [rbx]
            0xff, 0xc9, // dec ecx
            0x75, 0xd0, // jnz 1b
            0x0f, 0xef, 0xc1, // pxor mm0, mm1
            0x0f, 0xfc, 0xd0, // paddb mm2, mm0
            0x0f, 0x77, // emms
            0xc7, 0x03, 0x7b, 3, 0, 0, // mov dword [rbx], 37bh: divide by zero unmasked
            0xd9, 0x2b, // fldcw [rbx]
            0xd9, 0xe8, // fld1
            0xd9, 0xee, // fldz
            0xde, 0xf9, // fdivp: leaves the exception
            0x90, // nop
            0xb8, 0, 0, 0, 0x40, // mov eax, 40000000h
            0xd8, 0x00, // fadd dword [rax]: #MF, before the page fault
            0xf4,
        ],
    );
}

/// A loop and a string instruction that come to one new page after the other: each is a fill, and
/// none of the accesses is stepped.
#[test]
fn new_pages_are_filled_and_nothing_is_stepped() {
    const PAGES: u64 = 256;
    let code = [
        0xbf, 0, 0, 0x20, 0, // mov edi, 200000h
        0xb9, 0, 1, 0, 0, // mov ecx, 100h
        0x48, 0x89, 0x0f, // 1: mov [rdi], rcx
        0x48, 0x81, 0xc7, 0, 0x10, 0, 0, // add rdi, 1000h
        0xff, 0xc9, // dec ecx
        0x75, 0xf2, // jnz 1b
        0xb9, 0, 0, 0x10, 0, // mov ecx, 100000h
        0xf3, 0xaa, // rep stosb
        0xf4, // hlt
    ];
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), Options::default()).unwrap();
    let Guest { mut vcpu, mut ram } = guest(&code);
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    cpu.sync_tlb();
    while engine.run(&mut cpu, u64::MAX) != Exit::Halted {}
    let counters = engine.counters();
    assert!(count(&counters, "TLB fills") >= 2 * PAGES, "{counters:?}");
    let stepped = counters.iter().any(|(name, _)| name.starts_with("fall-back (access"));
    assert!(!stepped, "{counters:?}");
    check("new pages", &code);
}
