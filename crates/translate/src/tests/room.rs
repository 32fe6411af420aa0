//! The cache when it is full.

use std::io::Write;
use std::sync::{Arc, Mutex};

use cpu::{Cpu, EmptyBus, Engine, Exit};
use interp::Interp;

use super::{Guest, count, guest};
use crate::{Options, Translator};

/// What was written, for the test to read.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn translations_are_listed_for_perf() {
    // mov eax, CODE + 8; jmp rax; nop; inc eax; hlt
    let code = [0xb8, 8, 0, 0x10, 0, 0xff, 0xe0, 0x90, 0xff, 0xc0, 0xf4];
    let Guest { mut vcpu, mut ram } = guest(&code);
    let fallback = Box::new(Interp::new().unwrap());
    let mut engine = Translator::new(fallback, Options::default()).unwrap();
    let written = Written::default();
    engine.list_translations(Box::new(written.clone()));
    let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
    cpu.sync_tlb();
    assert_eq!(engine.run(&mut cpu, 100), Exit::Halted);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let mut end = 0;
    let mut names = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        let number = |word: &str| u64::from_str_radix(word, 16).unwrap();
        let (at, size) = (number(words[0]), number(words[1]));
        assert!(at >= end && size > 0, "they do not overlap: {text}");
        end = at + size;
        names.push(words[2]);
    }
    assert_eq!(names, ["guest 100000", "guest 100008"]);
}

#[test]
fn more_code_than_the_cache_holds() {
    // Three times through 75,000 blocks of two instructions, which no block runs past.
    let mut code = vec![0xb9, 3, 0, 0, 0, 0xe9, 4, 0, 0, 0]; // mov ecx, 3; jmp 2f
    code.extend([0xff, 0xc9, 0x74, 0xfe]); // 1: dec ecx; jz: to be filled in
    for _ in 0..75_000 {
        code.extend([0xff, 0xc0, 0xeb, 0]); // 2: inc eax; jmp +0
    }
    let back = 10 - (code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    let end = code.len() as i32 - 1;
    code.splice(12..14, [0x0f, 0x84]);
    code.splice(14..14, (end + 4 - 18).to_le_bytes());
    let shifted = 18 - 10i32; // the jump over it, and the one back past what was put in
    code[6..10].copy_from_slice(&shifted.to_le_bytes());
    let at = code.len() - 5;
    let back = 10 - (at as i32 + 4);
    code[at..at + 4].copy_from_slice(&back.to_le_bytes());
    let run = |engine: Box<dyn Engine>| {
        let mut engine = engine;
        let Guest { mut vcpu, mut ram } = guest(&code);
        let mut until = 0;
        let mut states = Vec::new();
        loop {
            until += 30_000;
            loop {
                let mut cpu = Cpu { vcpu: &mut vcpu, ram: &mut ram, bus: &mut EmptyBus };
                cpu.sync_tlb();
                match engine.run(&mut cpu, until) {
                    Exit::Reached => break,
                    Exit::Halted => return (states, engine.counters()),
                    exit => assert_eq!(exit, Exit::Yielded),
                }
            }
            states.push((vcpu.branches, vcpu.regs.gpr, ram.hash()));
            vcpu.tlb.flush();
        }
    };
    let interp = || Box::new(Interp::new().unwrap());
    let expected = run(interp()).0;
    assert!(expected.len() > 6);
    let normal = Options { traces: false, ..Options::default() };
    for options in [normal, Options { cache_size: 0, ..normal }] {
        let (states, counters) = run(Box::new(Translator::new(interp(), options).unwrap()));
        assert_eq!(states, expected, "{options:?}");
        let evictions = count(&counters, "regions evicted");
        assert_eq!(evictions > 16, options.cache_size == 0, "{counters:?}");
    }
}
