//! What debuggers ask of an engine: to stop at breakpoints, and to tell which code it executed.

use cpu::{Cpu, EmptyBus, Engine, Exit, gpr};
use interp::Interp;
use memory::Visited;

use super::{ALIAS, CODE, Guest, settings, shadowed_guest};
use crate::{Options, Translator};

/// Offset in the code of a function on a page of its own.
const FUNCTION: u64 = 0x1f30;

/// Forty calls of the function, every second one at its other address, the first one there last.
fn calls() -> Vec<u8> {
    let mut code = vec![0x90; 0x3000];
    let mut main = vec![0xbd, 40, 0, 0, 0]; // mov ebp, 40
    main.extend([0x48, 0xbe]); // mov rsi, the function
    main.extend((CODE + FUNCTION).to_le_bytes());
    main.extend([0x48, 0xbf]); // mov rdi, the same elsewhere
    main.extend((CODE + FUNCTION + ALIAS).to_le_bytes());
    main.extend([
        0xff, 0xd6, // 1: call rsi
        0x83, 0xfd, 30, // cmp ebp, 30
        0x77, 2, // ja 2f
        0xff, 0xd7, // call rdi
        0xff, 0xcd, // 2: dec ebp
        0x75, 0xf3, // jnz 1b
        0xf4,
    ]);
    code[..main.len()].copy_from_slice(&main);
    let function = [
        0x31, 0xc9, // xor ecx, ecx
        0xff, 0xc1, // 1: inc ecx
        0x83, 0xf9, 3, // cmp ecx, 3
        0x74, 4, // je 2f
        0x01, 0xc8, // add eax, ecx
        0xeb, 0xf5, // jmp 1b
        0x50, // 2: push rax
        0x58, // pop rax
        0xc3,
    ];
    let at = FUNCTION as usize;
    code[at..at + function.len()].copy_from_slice(&function);
    code
}

/// Where the guest stops, and RAX at its end. Half of the breakpoints are set once the code is
/// translated.
fn stops(mut engine: Box<dyn Engine>, code: &[u8], breakpoints: &[u64]) -> Vec<(u64, u64, u64)> {
    let Guest { mut vcpu, mut ram } = shadowed_guest(code);
    let mut stops = Vec::new();
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    cpu.sync_tlb();
    engine.set_breakpoints(&breakpoints[..breakpoints.len() / 2]);
    assert!(matches!(run(engine.as_mut(), &mut cpu, 60, &mut stops), Exit::Reached));
    engine.set_breakpoints(breakpoints);
    assert_eq!(run(engine.as_mut(), &mut cpu, u64::MAX, &mut stops), Exit::Halted);
    stops
}

fn run(
    engine: &mut dyn Engine,
    cpu: &mut Cpu<'_>,
    until: u64,
    stops: &mut Vec<(u64, u64, u64)>,
) -> Exit {
    loop {
        let exit = engine.run(cpu, until);
        stops.push((cpu.vcpu.branches, cpu.vcpu.regs.rip(), cpu.vcpu.regs.gpr[gpr::RAX]));
        if exit != Exit::Breakpoint {
            return exit;
        }
        engine.step(cpu);
    }
}

fn translator(options: Options) -> Box<dyn Engine> {
    Box::new(Translator::new(Box::new(Interp::new().unwrap()), options).unwrap())
}

#[test]
fn breakpoints_are_met_at_their_address_alone() {
    let code = calls();
    let function = CODE + FUNCTION;
    let everywhere: Vec<u64> = [0, 2, 7, 9, 11, 13, 14, 15].map(|at| function + at).to_vec();
    for breakpoints in [
        vec![],
        vec![function + ALIAS],
        vec![CODE, function + ALIAS, function + ALIAS + 9, function + 2],
        // In the middle of an instruction.
        vec![function + 3, function + ALIAS + 1, CODE + 1, function + 13],
        everywhere,
    ] {
        let expected = stops(Box::new(Interp::new().unwrap()), &code, &breakpoints);
        for options in settings() {
            let got = stops(translator(options), &code, &breakpoints);
            assert_eq!(got, expected, "{breakpoints:x?}, {options:?}");
        }
    }
}

/// Marks of the code's first two pages, and of the second's at its other address.
fn visited(mut engine: Box<dyn Engine>, code: &[u8], stride: u64) -> Vec<Visited> {
    let Guest { mut vcpu, mut ram } = shadowed_guest(code);
    ram.mark_visits().unwrap();
    loop {
        let until = vcpu.branches + stride;
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        if engine.run(&mut cpu, until) == Exit::Halted {
            break;
        }
    }
    let visited = ram.take_visited();
    [0, 1, 1 + (ALIAS >> 12)].map(|page| visited[&((CODE >> 12) + page)]).to_vec()
}

#[test]
fn what_is_executed_is_marked_and_little_else() {
    let code = calls();
    let expected = visited(Box::new(Interp::new().unwrap()), &code, 7);
    let function = Visited::at(FUNCTION);
    assert!(expected[1].meets(&function) && !expected[1].meets(&Visited::at(FUNCTION - 1)));
    for options in settings() {
        for stride in [1, 7, 1000] {
            let got = visited(translator(options), &code, stride);
            assert_eq!(got, expected, "stride {stride}, {options:?}");
        }
    }
}

#[test]
fn marks_are_made_by_translations_made_before_they_were_taken() {
    let Guest { mut vcpu, mut ram } = shadowed_guest(&calls());
    let mut engine = translator(Options::default());
    for marks in [false, true, true] {
        if marks {
            ram.mark_visits().unwrap();
        }
        let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        let until = cpu.vcpu.branches + 40;
        assert_eq!(engine.run(&mut cpu, until), Exit::Reached);
        let visited = ram.take_visited();
        vcpu.tlb.flush();
        let expected = marks.then(|| Visited::at(FUNCTION));
        assert_eq!(visited.get(&((CODE + FUNCTION) >> 12)).copied(), expected);
    }
}
