//! What the engine's mechanisms cost, in nanoseconds of CPU time:
//! `costs [interp|translate] [MIB]`.
//!
//! The end of a quantum, a flush of the TLB, the translation of an instruction, and an access in
//! working sets up to MIB, beside the same chase of pointers by the host: in kernel code, whose
//! accesses are looked up in the TLB, and in user code, whose accesses go by the host's page
//! tables.

#![forbid(unsafe_code)]

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use cpu::cpuid::Model;
use cpu::{Cpu, EmptyBus, Engine, Exit, Seg, Segment, Vcpu, cr, gpr};
use interp::Interp;
use memory::Ram;
use rustix::time::{ClockId, clock_gettime};
use translate::{Options, Translator};
use types::Gpa;

/// RAM, mapped at its own addresses by pages of 1 GiB.
const RAM: u64 = 4 << 30;
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x4000_0000;
/// Accesses of one measurement.
const ACCESSES: u64 = 4_000_000;
const LINE: u64 = 64;

/// A machine of nothing but a vCPU in 64-bit mode and RAM.
struct Bare {
    vcpu: Vcpu,
    ram: Ram,
    engine: Box<dyn Engine>,
}

impl Bare {
    fn new(engine: Box<dyn Engine>, privilege: u8) -> Result<Bare> {
        let mut ram = Ram::new(RAM)?;
        let mut put = |at: u64, value: u64| ram.write(Gpa(at), &value.to_le_bytes());
        put(TABLES, (TABLES + 0x1000) | 7)?;
        for gib in 0..RAM >> 30 {
            put(TABLES + 0x1000 + 8 * gib, gib << 30 | 0x87)?;
        }
        let mut vcpu = Vcpu::new(0, Model::V3);
        let (selector, level) = (8 | u16::from(privilege), u32::from(privilege) << 5);
        let flat = |kind| Segment { selector, base: 0, limit: u32::MAX, attributes: kind | level };
        vcpu.segments = [flat(0xc093); 6];
        vcpu.segments[Seg::Cs as usize] = flat(0xa09b);
        vcpu.cpl = privilege;
        vcpu.cr0 = cr::CR0_PE | cr::CR0_ET | cr::CR0_NE | cr::CR0_WP | cr::CR0_PG;
        vcpu.cr3 = TABLES;
        vcpu.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR;
        vcpu.msrs.efer = cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        vcpu.rederive();
        Ok(Bare { vcpu, ram, engine })
    }

    fn load(&mut self, code: &[u8]) -> Result<()> {
        self.ram.write(Gpa(CODE), code)?;
        self.vcpu.regs.gpr[gpr::RIP] = CODE;
        Ok(())
    }

    fn run(&mut self, until: u64) -> Exit {
        let mut cpu = Cpu { vcpu: &mut self.vcpu, ram: &mut self.ram, bus: &mut EmptyBus };
        cpu.sync_tlb();
        self.engine.run(&mut cpu, until)
    }

    /// Runs so many branches further.
    fn go_on(&mut self, branches: u64) -> Result<()> {
        let until = self.vcpu.branches + branches;
        while self.vcpu.branches < until {
            let exit = self.run(until);
            ensure!(matches!(exit, Exit::Reached | Exit::Yielded), "left by {exit:?}");
        }
        Ok(())
    }
}

/// CPU time of this thread, in nanoseconds: other load does not count.
fn now() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Nanoseconds for one of `count`.
fn time(count: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = now();
    work()?;
    Ok((now() - start) / count as f64)
}

/// `1: inc eax; jmp 1b`.
const SPIN: [u8; 4] = [0xff, 0xc0, 0xeb, 0xfc];
/// `1: mov rax, [rax]; dec rcx; jnz 1b; jmp 1b`.
const CHASE: [u8; 10] = [0x48, 0x8b, 0x00, 0x48, 0xff, 0xc9, 0x75, 0xf8, 0xeb, 0xf6];

fn quantum_end(bare: &mut Bare) -> Result<()> {
    bare.load(&SPIN)?;
    bare.go_on(1000)?;
    for branches in [1, 100, 10_000] {
        let count = 10_000_000 / (branches + 20);
        let split = time(count, || (0..count).try_for_each(|_| bare.go_on(branches)))?;
        let whole = time(count, || bare.go_on(branches * count))?;
        println!("end of a quantum of {branches} branches: {:.0} ns", split - whole);
    }
    Ok(())
}

/// Touches `pages` pages between flushes.
fn tlb_flush(bare: &mut Bare) -> Result<()> {
    for pages in [1, 64, 1024] {
        link(bare, (0..pages).map(|page| DATA + page * (4096 + LINE)))?;
        bare.load(&CHASE)?;
        bare.vcpu.regs.gpr[gpr::RAX] = DATA;
        bare.vcpu.regs.gpr[gpr::RCX] = u64::MAX;
        bare.go_on(2 * pages)?;
        let count = 200_000 / (pages + 10);
        let flushed = time(count, || {
            (0..count).try_for_each(|_| {
                bare.vcpu.tlb.flush();
                bare.go_on(pages)
            })
        })?;
        let kept = time(count, || (0..count).try_for_each(|_| bare.go_on(pages)))?;
        println!("flush of the TLB with {pages} pages in use: {:.0} ns", flushed - kept);
    }
    Ok(())
}

/// Each place leads to the next, the last to the first.
fn link(bare: &mut Bare, places: impl Iterator<Item = u64> + Clone) -> Result<()> {
    let first = places.clone().next().context("no place")?;
    let next = places.clone().skip(1).chain([first]);
    for (at, to) in places.zip(next) {
        bare.ram.write(Gpa(at), &to.to_le_bytes())?;
    }
    Ok(())
}

/// Instructions as compilers mix them; each time with a branch at the end that is not taken.
const MIX: [&[u8]; 12] = [
    &[0x48, 0x89, 0xd8],                   // mov rax, rbx
    &[0x48, 0x8b, 0x55, 0x08],             // mov rdx, [rbp + 8]
    &[0x48, 0x01, 0xd0],                   // add rax, rdx
    &[0x48, 0x8d, 0x48, 0x10],             // lea rcx, [rax + 16]
    &[0x48, 0x89, 0x4d, 0x10],             // mov [rbp + 16], rcx
    &[0x0f, 0xb6, 0x75, 0x20],             // movzx esi, byte [rbp + 32]
    &[0x83, 0xe6, 0x0f],                   // and esi, 15
    &[0x49, 0x89, 0xf1],                   // mov r9, rsi
    &[0x41, 0xff, 0xc1],                   // inc r9d
    &[0x4c, 0x89, 0x4d, 0x28],             // mov [rbp + 40], r9
    &[0x48, 0x39, 0xc0],                   // cmp rax, rax
    &[0x0f, 0x85, 0x00, 0x00, 0x00, 0x00], // jne +0
];

fn translation(bare: &mut Bare) -> Result<()> {
    const TIMES: u64 = 20_000;
    let mut code: Vec<u8> = (0..TIMES).flat_map(|_| MIX.concat()).collect();
    let back = -(code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    bare.load(&code)?;
    bare.vcpu.regs.gpr[gpr::RBP] = DATA;
    let insns = TIMES * MIX.len() as u64;
    let counter = |bare: &Bare, name: &str| {
        let counters = bare.engine.counters();
        counters.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
    };
    let (in_use, tables) = ("bytes of code memory in use", "bytes of its tables");
    let before = (counter(bare, in_use), counter(bare, tables));
    let first = time(insns, || bare.go_on(TIMES + 1))?;
    let again = time(insns, || bare.go_on(TIMES + 1))?;
    println!("an instruction, the first time: {first:.0} ns; again: {again:.2} ns");
    let of = |bytes: u64| bytes as f64 / code.len() as f64;
    println!(
        "for a byte of guest code: {:.1} bytes of host code, {:.1} bytes of tables",
        of(counter(bare, in_use) - before.0),
        of(counter(bare, tables) - before.1)
    );
    Ok(())
}

/// Lines of a working set in an order that no prefetcher sees: steps by a constant prime to their
/// number.
fn order(lines: u64) -> impl Iterator<Item = u64> + Clone {
    (0..lines).map(move |index| index.wrapping_mul(0x9e37_79b1) % lines)
}

fn working_sets(bare: &mut Bare, largest: u64) -> Result<()> {
    for mib in [1, 16, 128, 512, 2048].into_iter().filter(|mib| *mib <= largest) {
        let lines = (mib << 20) / LINE;
        link(bare, order(lines).map(|line| DATA + line * LINE))?;
        bare.load(&CHASE)?;
        bare.vcpu.regs.gpr[gpr::RAX] = DATA;
        bare.vcpu.regs.gpr[gpr::RCX] = u64::MAX;
        bare.go_on(ACCESSES / 4)?;
        let guest = time(ACCESSES, || bare.go_on(ACCESSES))?;
        let mut next = vec![0u32; (mib << 20) as usize / 4];
        let words = LINE as usize / 4;
        let places = order(lines);
        for (at, to) in places.clone().zip(places.skip(1).chain([0])) {
            next[at as usize * words] = to as u32 * words as u32;
        }
        let mut at = 0;
        let mut chase = |count| (0..count).for_each(|_| at = next[at as usize]);
        chase(ACCESSES / 4);
        let host = time(ACCESSES, || {
            chase(ACCESSES);
            Ok(())
        })?;
        black_box(at);
        println!(
            "access in {mib} MiB: {guest:.1} ns, the host's own {host:.1} ns, {:.2} times",
            guest / host
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let engine = args.next().unwrap_or_else(|| "translate".to_owned());
    let largest = args.next().map_or(Ok(2048), |text| text.parse())?;
    for (name, privilege) in [("kernel", 0), ("user", 3)] {
        println!("{name} code");
        let interp = Box::new(Interp::new()?);
        let engine: Box<dyn Engine> = match engine.as_str() {
            "interp" => interp,
            _ => Box::new(Translator::new(interp, Options::default())?),
        };
        let mut bare = Bare::new(engine, privilege)?;
        quantum_end(&mut bare)?;
        tlb_flush(&mut bare)?;
        translation(&mut bare)?;
        working_sets(&mut bare, largest)?;
    }
    Ok(())
}
