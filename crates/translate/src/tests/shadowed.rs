//! Accesses by the host's page tables: that they are used, and that they follow the guest's.

use super::*;

/// Reads and writes beside RBX and in the table at RBX + RCX * 8, and calls.
const WORK: &[u8] = &[
    0xb9, 200, 0, 0, 0, // mov ecx, 200
    0x48, 0x8b, 0x03, // 1: mov rax, [rbx]
    0x48, 0x01, 0x4b, 0x40, // add [rbx + 64], rcx
    0x4c, 0x89, 0x7c, 0xcb, 0x10, // mov [rbx + rcx * 8 + 16], r15
    0x4d, 0x8d, 0x4c, 0x24, 0x08, // lea r9, [r12 + 8]
    0x49, 0x89, 0xd9, // mov r9, rbx
    0x4d, 0x03, 0x79, 0x08, // add r15, [r9 + 8]
    0x50, // push rax
    0xe8, 0x06, 0, 0, 0,    // call function
    0x58, // pop rax
    0xff, 0xc9, // dec ecx
    0x75, 0xda, // jnz 1b
    0xf4, // hlt
    0x48, 0xff, 0x03, // function: inc qword [rbx]
    0xc3, // ret
];

#[test]
fn pages_come_into_the_shadow_once() {
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let Guest { mut vcpu, mut ram } = shadowed_guest(WORK);
    loop {
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        if engine.run(&mut cpu, u64::MAX) == Exit::Halted {
            break;
        }
    }
    // The chunk, a page of data, once more to write it, and the stack's.
    let counters = engine.counters();
    assert_eq!(count(&counters, "faults served by the shadow"), 4, "{counters:?}");
    assert!(count(&counters, "TLB fills") < 8, "{counters:?}");
    drop(engine); // a process has one shadow
    check("shadowed work", WORK);
}

/// A handler of #PF that provides pages: the faulting instruction has RF set when it comes back.
#[test]
fn pages_that_a_handler_provides_are_in_the_shadow_when_it_returns() {
    let mut code = vec![0x90; 0x200];
    let main = [
        0xbe, 0, 0x40, 0x40, 0, // mov esi, SMALL + 4000h
        0xb9, 64, 0, 0, 0, // mov ecx, 64
        0x48, 0x01, 0x0e, // 1: add [rsi], rcx
        0x48, 0x01, 0x4e, 0x08, // add [rsi + 8], rcx
        0x48, 0x8d, 0xb6, 0, 0x10, 0, 0, // lea rsi, [rsi + 1000h]
        0xff, 0xc9, // dec ecx
        0x75, 0xee, // jnz 1b
        0xf4, // hlt
    ];
    let handler = [
        0x0f, 0x20, 0xd2, // mov rdx, cr2
        0xc1, 0xea, 0x0c, // shr edx, 12
        0x81, 0xe2, 0xff, 1, 0, 0, // and edx, 1ffh
        0x89, 0xd0, // mov eax, edx
        0xc1, 0xe0, 0x0c, // shl eax, 12
        0x05, 0, 0, 0x20, 0, // add eax, 200000h
        0x48, 0x89, 0x10, // mov [rax], rdx: the page is cleared, say
        0x83, 0xc8, 0x63, // or eax, P, W, A and D
        0x48, 0x89, 0x04, 0xd5, 0, 0x50, 0, 0, // mov [SMALL_TABLE + rdx * 8], rax
        0x48, 0x83, 0xc4, 0x08, // add rsp, 8
        0x48, 0xcf, // iretq
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0x100..0x100 + handler.len()].copy_from_slice(&handler);
    let provided = || {
        let mut guest = shadowed_guest(&code);
        let gate = (CODE + 0x100) & 0xffff | 0x8 << 16 | 0x8e00 << 32 | CODE >> 16 << 48;
        for page in 4..68 {
            guest.ram.write(Gpa(0x20_0000 + (page << 12)), &[0; 8]).unwrap(); // written before
        }
        guest.vcpu.segments[Seg::Ss as usize].selector = 0; // one that IRETQ can load
        guest.ram.write(Gpa(0x8000 + 16 * 14), &gate.to_le_bytes()).unwrap();
        guest
    };
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let Guest { mut vcpu, mut ram } = provided();
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    while engine.run(&mut cpu, u64::MAX) != Exit::Halted {}
    let served = count(&engine.counters(), "faults served by the shadow");
    assert!(served < 10, "they come with the 64 faults that raise #PF: {served}");
    drop(engine);
    for stride in [1, 7, 1000] {
        let interp = || Box::new(Interp::new().unwrap());
        let expected = trace_guest(interp(), provided(), stride);
        assert_eq!(expected.last().unwrap().0, 3 * 64, "#PF, IRETQ and JNZ");
        for options in settings() {
            let engine = Translator::new(interp(), options).unwrap();
            let got = trace_guest(Box::new(engine), provided(), stride);
            assert_eq!(got, expected, "stride {stride}, {options:?}");
        }
    }
}

/// A page-table entry leads elsewhere, to what may only be read, and nowhere.
#[test]
fn the_shadow_follows_page_tables() {
    let mut code = vec![
        0xbe, 0, 0, 0x40, 0, // mov esi, SMALL
        0xbf, 0, 0x50, 0, 0, // mov edi, SMALL_TABLE
        0xb9, 40, 0, 0, 0, // mov ecx, 40
        0x48, 0x01, 0x0e, // 1: add [rsi], rcx
        0x48, 0x8b, 0x06, // mov rax, [rsi]
        0x48, 0x03, 0x86, 0, 0x10, 0, 0, // add rax, [rsi + 0x1000]
        0x48, 0x8b, 0x17, // mov rdx, [rdi]
        0x4c, 0x8b, 0x57, 0x08, // mov r10, [rdi + 8]
        0x48, 0x89, 0x57, 0x08, // mov [rdi + 8], rdx
        0x4c, 0x89, 0x17, // mov [rdi], r10
        0x0f, 0x01, 0x3e, // invlpg [rsi]
        0x0f, 0x01, 0xbe, 0, 0x10, 0, 0, // invlpg [rsi + 0x1000]
        0x83, 0xf9, 0x03, // cmp ecx, 3
        0x75, 0x06, // jne 2f
        0x80, 0x27, 0xfd, // and byte [rdi], ~2
        0x0f, 0x01, 0x3e, // invlpg [rsi]
        0xff, 0xc9, // 2: dec ecx
    ];
    let back = 15i8 - (code.len() as i8 + 2);
    code.extend([0x75, back as u8, 0xf4]); // jnz 1b; hlt
    check("page tables", &code);
    // Instead of read-only: not there.
    let at = code.windows(3).position(|bytes| bytes == [0x80, 0x27, 0xfd]).unwrap();
    code[at + 2] = 0xfe;
    check("page tables", &code);
}

#[test]
fn addresses_that_nobody_has_fault_as_they_should() {
    for address in [0x8000_0000_0000u64, 0x7fff_ffff_fff8, u64::MAX - 7, 0x1234_5678_9abc_def0] {
        let mut code = vec![0xb9, 2, 0, 0, 0, 0x48, 0xb8]; // mov ecx, 2; mov rax, address
        code.extend(address.to_le_bytes());
        code.extend([
            0x48, 0x01, 0x53, 0x10, // add [rbx + 16], rdx
            0xff, 0xc9, // dec ecx
            0x75, 0xf8, // jnz
            0x48, 0x01, 0x10, // add [rax], rdx
            0xf4,
        ]);
        check("addresses", &code);
        let near = code.len() - 4;
        code.splice(near..near + 3, [0x48, 0x03, 0x50, 0x08, 0x48, 0x03, 0x50, 0x88]);
        check("addresses", &code);
    }
}

/// A kernel that turns SMAP on once it has the shadow, and looks at the user's page with AC and
/// without.
#[test]
fn a_kernel_that_turns_smap_on_has_no_shadow() {
    let code = [
        0xbe, 0, 0, 0x40, 0, // mov esi, SMALL
        0xb9, 3, 0, 0, 0, // mov ecx, 3
        0x48, 0x01, 0x0e, // 1: add [rsi], rcx
        0xff, 0xc9, // dec ecx
        0x75, 0xf9, // jnz 1b
        0x0f, 0x20, 0xe0, // mov rax, cr4
        0x0d, 0, 0, 0x20, 0, // or eax, CR4_SMAP
        0x0f, 0x22, 0xe0, // mov cr4, rax
        0x0f, 0x01, 0xcb, // stac
        0xe8, 0, 0, 0, 0, // call 2f
        0x48, 0x8b, 0x06, // 2: mov rax, [rsi]
        0x0f, 0x01, 0xca, // clac
        0x48, 0x8b, 0x16, // mov rdx, [rsi], which faults
        0xf4,
    ];
    check("SMAP", &code);
}

/// As after a reset: the vCPU and its TLB are new, and so is RAM, the engine is not.
#[test]
fn machines_that_begin_anew_begin_without_a_shadow() {
    let run = |engine: &mut dyn Engine| {
        let Guest { mut vcpu, mut ram } = shadowed_guest(WORK);
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        while engine.run(&mut cpu, u64::MAX) != Exit::Halted {}
        (vcpu.regs.gpr, ram.hash())
    };
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let expected = run(&mut Interp::new().unwrap());
    for _ in 0..3 {
        assert_eq!(run(&mut engine), expected);
    }
}

/// An access that goes by the TLB is no check for those near it.
#[test]
fn x87_stores_check_no_address_for_others() {
    let code = [
        0xb9, 20, 0, 0, 0, // mov ecx, 20
        0xd9, 0xe8, // 1: fld1
        0xdd, 0x1b, // fstp qword [rbx]
        0x48, 0x03, 0x43, 0x08, // add rax, [rbx + 8]
        0xff, 0xc9, // dec ecx
        0x75, 0xf4, // jnz 1b
        0xf4, // hlt
    ];
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let Guest { mut vcpu, mut ram } = shadowed_guest(&code);
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    while engine.run(&mut cpu, u64::MAX) != Exit::Halted {}
    let served = count(&engine.counters(), "faults served by the shadow");
    assert!(served >= 2, "the chunk is claimed by the load's check: {served}");
    drop(engine);
    check("x87 stores", &code);
}

/// One run of a new guest.
fn run_once(
    engine: &mut dyn Engine,
    code: &[u8],
    until: u64,
    patience: Option<u32>,
) -> (Exit, Guest) {
    let Guest { mut vcpu, mut ram } = shadowed_guest(code);
    vcpu.patience = patience;
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    cpu.sync_tlb();
    let exit = engine.run(&mut cpu, until);
    (exit, Guest { vcpu, ram })
}

/// A run that is content with fewer branches ends before its last ones, one that is not does not.
#[test]
fn runs_that_need_not_be_exact_end_without_a_fault() {
    let mut code = vec![0x90; 0x1001];
    let main = [
        0xb9, 0, 0x80, 0, 0, // mov ecx, 8000h
        0x90, 0x90, // the return address is one where such a block begins in registers
        0xe8, 0xf4, 0x0f, 0, 0, // 1: call function
        0xff, 0xc9, // dec ecx
        0x75, 0xf7, // jnz 1b
        0xf4, // hlt
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0x1000] = 0xc3; // function: ret
    const UNTIL: u64 = 50_000;
    let run = |engine: &mut dyn Engine, until, patience| {
        let (exit, Guest { vcpu, .. }) = run_once(engine, &code, until, patience);
        (exit, vcpu.branches, vcpu.patience)
    };
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    // A run too short to end early.
    let (exit, branches, patience) = run(&mut engine, 5_000, Some(1000));
    assert_eq!((exit, branches), (Exit::Reached, 5_000));
    assert!(patience < Some(1000), "translating is slow work");
    assert_eq!(run(&mut engine, UNTIL, None), (Exit::Reached, UNTIL, None));
    let (exit, branches, patience) = run(&mut engine, UNTIL, Some(1000));
    assert_eq!((exit, patience), (Exit::Ended, Some(0)));
    assert!((UNTIL - 3_000..UNTIL).contains(&branches), "{branches}");
    drop(engine);
    check("a run with many calls", &code);
}

/// What such a run leaves behind a branch is what an exact run to the same branch count leaves. It
/// may come to the blocks here by a branch, or by falling off a page's end.
#[test]
fn runs_that_end_early_leave_the_state_of_exact_ones() {
    check_early_ends(Shadowing::Always);
    check_early_ends(Shadowing::Never);
}

fn check_early_ends(shadow: Shadowing) {
    let mut code = vec![0x90; 0x2006];
    let main = [
        0xb9, 0, 0, 4, 0, // mov ecx, 40000h
        0x90, 0x90, // as above
        0xe8, 0xe4, 0x1f, 0, 0, // 1: call function
        0xff, 0xc9, // dec ecx
        0x75, 0xf7, // jnz 1b
        0xf4, // hlt
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0x1ff0..0x1ff5].copy_from_slice(&[0x48, 0xff, 0x03, 0x75, 0]); // inc qword [rbx] · jnz
    code[0x1ffc..0x2000].copy_from_slice(&[0x48, 0xff, 0x43, 0x08]); // inc qword [rbx + 8]
    // inc qword [rbx] · jnz · ret
    code[0x2000..].copy_from_slice(&[0x48, 0xff, 0x03, 0x75, 0, 0xc3]);
    let options = Options { shadow, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let (Guest { mut vcpu, mut ram }, mut exact) = (shadowed_guest(&code), shadowed_guest(&code));
    let mut interp = Interp::new().unwrap();
    let (mut ended, mut others) = (0, 0);
    for length in 7_000..7_040 {
        vcpu.patience = Some(1000);
        let until = vcpu.branches + length;
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        match engine.run(&mut cpu, until) {
            Exit::Ended => ended += 1,
            Exit::Attention if vcpu.patience == Some(0) => {
                others += 1;
                continue;
            }
            exit => assert_eq!(exit, Exit::Reached),
        }
        let Guest { vcpu: other, ram: its } = &mut exact;
        let mut cpu = Cpu { vcpu: other, ram: its, bus: &mut EmptyBus };
        cpu.sync_tlb();
        assert_eq!(interp.run(&mut cpu, vcpu.branches), Exit::Reached);
        assert_eq!(state_of(&mut vcpu, &mut ram), state_of(other, its));
    }
    assert!(ended > 5 && others > 5, "{ended} {others}");
}

/// Nor does such a run end behind a branch whose target was fetched just for that: an exact run
/// would not have set the accessed bit of its page.
#[test]
fn runs_do_not_end_early_behind_a_fetch() {
    let mut code = vec![0xc3; SMALL_TO as usize + 0x2000]; // ret
    let main = [
        0xbf, 0, 0, 0x40, 0, // mov edi, SMALL
        0xb9, 0x88, 0x13, 0, 0, // 1: mov ecx, 5000
        0xff, 0xc9, // 2: dec ecx
        0x75, 0xfc, // jnz 2b
        0xff, 0xd7, // call rdi
        0x81, 0xc7, 0, 0x10, 0, 0, // add edi, 1000h
        0xeb, 0xed, // jmp 1b
    ];
    code[..main.len()].copy_from_slice(&main);
    const SECOND_CALL: u64 = 5_003 + 5_001;
    let run = |engine: &mut dyn Engine, until, patience| {
        let (exit, Guest { mut vcpu, mut ram }) = run_once(engine, &code, until, patience);
        (exit, state_of(&mut vcpu, &mut ram))
    };
    let options = Options { shadow: Shadowing::Always, ..Options::default() };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), options).unwrap();
    let (exit, early) = run(&mut engine, SECOND_CALL + 1_500, Some(1000));
    assert_eq!((exit, early.0), (Exit::Attention, SECOND_CALL), "at the call's target");
    let (exit, exact) = run(&mut Interp::new().unwrap(), SECOND_CALL, None);
    assert_eq!(exit, Exit::Reached);
    assert!(early.1 == exact.1 && early.2 != exact.2, "the accessed bit alone differs");
}

/// Code that has the shadow relies on the stack pointer, wherever it is and however it got there.
#[test]
fn stack_pointers_may_be_anything() {
    let far = [0x8000_0000_0000u64, 0x7fff_ffff_fff8, 0x1234_5678_9abc_def0, 0, STACK];
    let moves: [&[u8]; 6] = [
        &[0x48, 0x8d, 0xa4, 0x24, 0, 0, 2, 0], // lea rsp, [rsp + 0x20000]
        &[0x48, 0x81, 0xec, 0, 0, 2, 0],       // sub rsp, 0x20000
        &[0x48, 0x63, 0xe0],                   // movsxd rsp, eax
        &[0x48, 0x87, 0xd4],                   // xchg rsp, rdx
        &[0x48, 0xff, 0xc4],                   // inc rsp
        &[0x4c, 0x0f, 0xb1, 0xfc],             // cmpxchg rsp, r15
    ];
    for (from, moved) in far.into_iter().flat_map(|from| moves.map(|moved| (from, moved))) {
        let mut code = vec![0xb9, 9, 0, 0, 0, 0x48, 0xbc]; // mov ecx, 9; mov rsp, from
        code.extend(from.to_le_bytes());
        let top = code.len();
        code.extend(moved);
        code.extend([
            0x48, 0x01, 0x53, 0x10, // add [rbx + 16], rdx
            0xa8, 0x01, // test al, 1
            0x74, 0x03, // jz 1f
            0x49, 0xff, 0xc1, // inc r9
            0x4d, 0x01, 0xcf, // 1: add r15, r9
            0xff, 0xc9, // dec ecx
        ]);
        let back = top as i8 - (code.len() as i8 + 2);
        code.extend([0x75, back as u8]); // jnz
        code.extend([0x48, 0xbc]); // mov rsp, STACK
        code.extend(STACK.to_le_bytes());
        code.extend([0x58, 0xf4]); // pop rax; hlt
        check("stack pointers", &code);
    }
}

/// The register of the stack pointer is behind while several things are pushed or popped: on pages
/// that come into the shadow in the middle of that, and on one that is not there.
#[test]
fn stack_pointers_are_right_where_pushes_and_pops_fault() {
    let user = |code: &[u8]| {
        let mut guest = user_guest(code);
        guest.ram.write(Gpa(SMALL_TABLE + 8), &[0; 8]).unwrap();
        guest
    };
    let moves = [
        0x50, // push rax
        0x41, 0x51, // push r9
        0x4c, 0x89, 0xca, // mov rdx, r9
        0x6a, 0x05, // push 5
        0x4c, 0x03, 0x7b, 0x08, // add r15, [rbx + 8]
        0x53, // push rbx
        0x5e, // pop rsi
        0x41, 0x5a, // pop r10
        0x4d, 0x8d, 0x4a, 0x03, // lea r9, [r10 + 3]
        0x41, 0x5c, // pop r12
        0x58, // pop rax
        0x41, 0x5f, // pop r15
        0x5f, // pop rdi
        0x41, 0x59, // pop r9
    ];
    for (page, slot) in [1, 2, 3].into_iter().flat_map(|page| (0..8).map(move |slot| (page, slot)))
    {
        for at in [SMALL + (page << 12) + 8 * slot, SMALL + (page << 12) - 8 * slot] {
            let mut code = vec![0xb9, 3, 0, 0, 0, 0x48, 0xbc]; // mov ecx, 3; 1: mov rsp, at
            code.extend(at.to_le_bytes());
            code.extend(moves);
            code.extend([0xff, 0xc9]); // dec ecx
            let back = 5 - (code.len() as i8 + 2);
            code.extend([0x75, back as u8, 0x0f, 0x0b]); // jnz 1b; ud2
            let interp = || Box::new(Interp::new().unwrap());
            let expected = trace_guest(interp(), user(&code), 1);
            for options in settings() {
                let engine = Box::new(Translator::new(interp(), options).unwrap());
                let got = trace_guest(engine, user(&code), 1);
                assert!(got == expected, "{at:#x}, {options:?}\n{got:x?}\n{expected:x?}");
            }
        }
    }
}

/// A return that drops much moves the stack pointer far from what it read, and nothing checks it
/// where it arrives; the flags that it arrives with are replaced there, or read.
#[test]
fn stack_pointers_are_right_behind_returns_that_drop_something() {
    const FUNCTION: usize = 0x40;
    let flags: [&[u8]; 2] = [
        &[0x48, 0x85, 0xd2],       // test rdx, rdx
        &[0x48, 0x83, 0xd2, 0x03], // adc rdx, 3
    ];
    for dropped in [0u16, 8, 0xff8, 0x1000, 0x1008, 0xfff8] {
        for flags in flags {
            let mut code = vec![0xb9, 9, 0, 0, 0, 0x48, 0xbc]; // mov ecx, 9; 1: mov rsp, ..
            code.extend((DATA + 0x7ff8).to_le_bytes());
            code.extend([0x83, 0xf9, 0x05]); // cmp ecx, 5
            let call = FUNCTION - (code.len() + 5);
            code.extend([0xe8, call as u8, 0, 0, 0]); // call function
            code.extend(flags);
            code.extend([
                0x48, 0x11, 0xda, // adc rdx, rbx
                0x4c, 0x8d, 0x44, 0x24, 0x10, // lea r8, [rsp + 16]
                0x4c, 0x03, 0x4c, 0x24, 0xf8, // add r9, [rsp - 8]
                0xff, 0xc9, // dec ecx
            ]);
            let back = 5 - (code.len() as i8 + 2);
            code.extend([0x75, back as u8, 0xf4]); // jnz 1b; hlt
            code.resize(FUNCTION, 0x90);
            code.push(0xc2); // function: ret dropped
            code.extend(dropped.to_le_bytes());
            check("returns", &code);
        }
    }
}

/// Registers that are kept in words, more than scratch registers can hold, between accesses, with
/// flags that are read later, and stops at every branch.
#[test]
fn words_and_flags_stay_right_in_loops() {
    let mut code = vec![
        0xb9, 30, 0, 0, 0, // mov ecx, 30
        0x4d, 0x11, 0xca, // 1: adc r10, r9
        0x4d, 0x13, 0x5c, 0xcb, 0x08, // adc r11, [r11 + rcx * 8 + 8]
        0x4d, 0x8d, 0x5e, 0x08, // lea r11, [r14 + 8]
        0x49, 0x89, 0xdb, // mov r11, rbx
        0x4f, 0x8b, 0x3c, 0x0b, // mov r15, [r11 + r9]
        0x41, 0xb9, 8, 0, 0, 0, // mov r9d, 8
        0x70, 0x05, // jo 2f
        0x49, 0xf7, 0xe1, // mul r9
        0x72, 0x03, // jc 2f + 1
        0x4d, 0x01, 0xfa, // 2: add r10, r15
        0x4f, 0x89, 0x54, 0x0b, 0x10, // mov [r11 + r9 + 16], r10
        0x50, // push rax
        0x41, 0x57, // push r15
        0x41, 0x5a, // pop r10
        0x58, // pop rax
    ];
    let back = 5 - (code.len() as i8 + 2);
    code.extend([0xe2, back as u8, 0xf4]); // loop 1b; hlt
    check("words", &code);
}

/// As [`shadowed_guest`], at CPL 3; ALIAS is the user's as well.
fn user_guest(code: &[u8]) -> Guest {
    let Guest { mut vcpu, mut ram } = shadowed_guest(code);
    for at in [0x3000, 0x3008, 0x3000 + (ALIAS >> 21) * 8] {
        let mut entry = [0; 8];
        ram.read(Gpa(at), &mut entry).unwrap();
        entry[0] |= 4;
        ram.write(Gpa(at), &entry).unwrap();
    }
    let flat = |attributes| Segment { selector: 0xb, base: 0, limit: u32::MAX, attributes };
    vcpu.segments = [flat(0xc0f3); 6];
    vcpu.segments[Seg::Cs as usize] = flat(0xa0fb);
    vcpu.cpl = 3;
    vcpu.regs.gpr[gpr::RSP] = DATA + 0x1000;
    vcpu.rederive();
    Guest { vcpu, ram }
}

/// Few branches, and pages that displace each other in the TLB: the shadow is what helps there.
#[test]
fn fills_of_the_tlb_earn_the_shadow() {
    let mut code = vec![
        0xb9, 0x20, 0x4e, 0, 0, // mov ecx, 20000
        0x48, 0x8b, 0x03, // 1: mov rax, [rbx]
        0x48, 0x8b, 0x93, // mov rdx, [rbx + ALIAS]
    ];
    code.extend((ALIAS as u32).to_le_bytes());
    code.extend([
        0xff, 0xc9, // dec ecx
        0x75, 0xf2, // jnz 1b
        0xf4, // hlt
    ]);
    let Guest { mut vcpu, mut ram } = user_guest(&code);
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), Options::default()).unwrap();
    while vcpu.branches < 19_000 {
        let until = vcpu.branches + 1_003;
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        engine.run(&mut cpu, until);
    }
    let counters = engine.counters();
    assert_eq!(count(&counters, "address spaces shadowed"), 1, "{counters:?}");
    assert!(count(&counters, "TLB fills") < 20_000, "{counters:?}");
}

/// Code that writes itself all the time spends more on its shadow than it may, loses it, earns it
/// once more, and spends it again; nothing of the one time leads into the other.
#[test]
fn a_shadow_that_costs_too_much_is_lost_and_earned_again() {
    let mut code = vec![0x90; 0x1023];
    let main = [
        0x41, 0xbc, 2, 0, 0, 0, // mov r12d, 2
        0xb9, 0x80, 0xa8, 0x12, 0x01, // 1: mov ecx, 18000000
        0xff, 0xc9, // 2: dec ecx
        0x75, 0xfc, // jnz 2b
        0xb9, 0x88, 0x13, 0, 0, // mov ecx, 5000
        0x88, 0x0d, 0xe8, 0x0f, 0, 0, // 3: mov [function + 2], cl
        0xe8, 0xe1, 0x0f, 0, 0, // call function
        0xff, 0xc9, // dec ecx
        0x75, 0xf1, // jnz 3b
        0x41, 0xff, 0xcc, // dec r12d
        0x75, 0xde, // jnz 1b
        0xf4, // hlt
    ];
    let function = [
        0x83, 0xc0, 0x11, // add eax, imm8, whose immediate changes
        0xa8, 1, // test al, 1
        0x74, 0x03, // jz 4f
        0x49, 0x01, 0xc1, // add r9, rax
        0x48, 0x8d, 0x64, 0x24, 0xc0, // 4: lea rsp, [rsp - 64]
        0x48, 0x89, 0x44, 0x24, 0x08, // mov [rsp + 8], rax
        0xa8, 2, // test al, 2
        0x74, 0x05, // jz 5f
        0x4c, 0x03, 0x54, 0x24, 0x08, // add r10, [rsp + 8]
        0x48, 0x8d, 0x64, 0x24, 0x40, // 5: lea rsp, [rsp + 64]
        0xc3, // ret
    ];
    code[..main.len()].copy_from_slice(&main);
    code[0x1000..].copy_from_slice(&function);
    let run = |engine: &mut dyn Engine| {
        let Guest { mut vcpu, mut ram } = user_guest(&code);
        let mut states = Vec::new();
        loop {
            let until = vcpu.branches + 1_000_003;
            let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
            cpu.sync_tlb();
            let exit = loop {
                match engine.run(&mut cpu, until) {
                    Exit::Yielded | Exit::Attention => {}
                    exit => break exit,
                }
            };
            states.push((vcpu.branches, vcpu.regs.gpr, vcpu.regs.rflags(), ram.hash()));
            if exit != Exit::Reached {
                assert_eq!(exit, Exit::Halted, "by the handler of #GP");
                return states;
            }
        }
    };
    let mut engine = Translator::new(Box::new(Interp::new().unwrap()), Options::default()).unwrap();
    let expected = run(&mut Interp::new().unwrap());
    for (got, expected) in run(&mut engine).iter().zip(&expected) {
        assert_eq!(got, expected);
    }
    let begun = count(&engine.counters(), "address spaces shadowed");
    assert!(begun >= 2, "{begun}");
}
