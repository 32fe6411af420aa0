//! An engine under test: a guest set up as the host process is, stepped once.
//!
//! The guest is at CPL 3 in a kernel's page tables: code and data at the case's addresses for the
//! user, everything else of the kernel in the upper half. An exception is seen by its delivery:
//! the vector by the handler's address, the rest by the frame on the kernel's stack.

use anyhow::{Context, Result};
use cpu::cpuid::Model;
use cpu::{Cpu, EmptyBus, Engine, Segment, Table, Vcpu, attr, cr, gpr};
use memory::Ram;
use types::Gpa;

use crate::{Case, Executor, Fault, Outcome, layout};

const RAM_SIZE: u64 = 2 << 20;
/// The kernel's view of RAM.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const PML4: u64 = 0x1000;
const USER_PDPT: u64 = 0x2000;
const USER_PD: u64 = 0x3000;
const CODE_PT: u64 = 0x4000;
const DATA_PT: u64 = 0x5000;
const KERNEL_PDPT: u64 = 0x6000;
const KERNEL_PD: u64 = 0x7000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const STACK_TOP: u64 = 0xc000;
const HANDLERS: u64 = 0xd000;
const CODE: u64 = 0x10000;
const DATA: u64 = 0x20000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Runs cases on an engine.
pub struct EngineExecutor {
    engine: Box<dyn Engine>,
    vcpu: Vcpu,
    ram: Ram,
    bus: EmptyBus,
}

impl EngineExecutor {
    /// Sets up the guest for `engine`.
    pub fn new(engine: Box<dyn Engine>) -> Result<EngineExecutor> {
        let mut ram = Ram::new(RAM_SIZE).context("no guest RAM")?;
        page_tables(&mut ram);
        descriptors(&mut ram);
        let mut vcpu = Vcpu::new(0, Model::V3);
        vcpu.cr0 = cr::CR0_PE
            | cr::CR0_MP
            | cr::CR0_ET
            | cr::CR0_NE
            | cr::CR0_WP
            | cr::CR0_AM
            | cr::CR0_PG;
        vcpu.cr3 = PML4;
        vcpu.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        vcpu.xcr0 = cr::XCR0_X87 | cr::XCR0_SSE | cr::XCR0_AVX;
        vcpu.msrs.efer = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        vcpu.gdtr = Table { base: KERNEL + GDT, limit: 0xfff };
        vcpu.idtr = Table { base: KERNEL + IDT, limit: 0xfff };
        vcpu.ldtr = Segment::null(0);
        vcpu.tr = Segment { selector: 0x40, base: KERNEL + TSS, limit: 0x67, attributes: 0x8b };
        Ok(EngineExecutor { engine, vcpu, ram, bus: EmptyBus })
    }

    fn load(&mut self, case: &Case) {
        let vcpu = &mut self.vcpu;
        let flat =
            |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        let data = flat(0x2b, 0xc0f3);
        let code = if case.bitness == 64 { flat(0x33, 0xa0fb) } else { flat(0x23, 0xc0fb) };
        let none = Segment { attributes: attr::UNUSABLE, ..Segment::default() };
        vcpu.segments = [data, code, data, data, none, none];
        vcpu.cpl = 3;
        vcpu.cr2 = 0;
        vcpu.regs = case.registers.clone();
        vcpu.iterations = 0;
        vcpu.pending = cpu::Pending::default();
        vcpu.activity = cpu::Activity::Running;
        vcpu.rederive();
        let code = CODE + (case.registers.rip() - layout::CODE);
        write(&mut self.ram, code, &case.bytes);
        write(&mut self.ram, DATA, &case.data());
    }

    /// What was delivered, if the vCPU is in a handler; registers are then those interrupted.
    fn take_fault(&mut self) -> Option<Fault> {
        if self.vcpu.cpl == 3 {
            return None;
        }
        let vector = (self.vcpu.regs.rip().wrapping_sub(KERNEL + HANDLERS) / 16) as u8;
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let mut at = self.vcpu.regs.gpr[gpr::RSP].wrapping_sub(KERNEL);
        let mut pop = || {
            let mut bytes = [0; 8];
            self.ram.read(Gpa(at), &mut bytes).expect("the stack is in RAM");
            at += 8;
            u64::from_le_bytes(bytes)
        };
        let error_code = if has_code { pop() as u32 } else { 0 };
        let (rip, _cs, rflags, rsp) = (pop(), pop(), pop(), pop());
        self.vcpu.regs.gpr[gpr::RIP] = rip;
        self.vcpu.regs.gpr[gpr::RSP] = rsp;
        self.vcpu.regs.set_rflags(rflags);
        let address = if vector == 14 { self.vcpu.cr2 } else { 0 };
        Some(Fault { vector, error_code, address })
    }
}

fn write(ram: &mut Ram, at: u64, bytes: &[u8]) {
    ram.write(Gpa(at), bytes).expect("the layout is inside RAM");
}

fn write_u64(ram: &mut Ram, at: u64, value: u64) {
    write(ram, at, &value.to_le_bytes());
}

fn page_tables(ram: &mut Ram) {
    let table = PRESENT | WRITABLE | USER | ACCESSED;
    let index = |address: u64, level: u64| address >> (12 + 9 * level) & 511;
    write_u64(ram, PML4, USER_PDPT | table);
    write_u64(ram, PML4 + 8 * index(KERNEL, 3), KERNEL_PDPT | table);
    write_u64(ram, KERNEL_PDPT, KERNEL_PD | table);
    write_u64(ram, KERNEL_PD, PRESENT | WRITABLE | ACCESSED | DIRTY | LARGE);
    write_u64(ram, USER_PDPT, USER_PD | table);
    write_u64(ram, USER_PD + 8 * index(layout::CODE, 1), CODE_PT | table);
    write_u64(ram, USER_PD + 8 * index(layout::DATA, 1), DATA_PT | table);
    for page in 0..layout::CODE_SIZE >> 12 {
        let entry = (CODE + (page << 12)) | PRESENT | USER | ACCESSED;
        write_u64(ram, CODE_PT + 8 * page, entry);
    }
    for page in 0..layout::DATA_SIZE >> 12 {
        let is_writable = page << 12 < layout::WRITABLE_SIZE;
        let rights = if is_writable { WRITABLE | DIRTY } else { 0 };
        let entry = (DATA + (page << 12)) | PRESENT | USER | ACCESSED | NO_EXECUTE | rights;
        write_u64(ram, DATA_PT + 8 * page, entry);
    }
}

/// Selectors as Linux has them; handlers are addresses only.
fn descriptors(ram: &mut Ram) {
    let gdt: [(u64, u64); 5] = [
        (0x10, 0x00af_9b00_0000_ffff),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x20, 0x00cf_fb00_0000_ffff),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_fb00_0000_ffff),
    ];
    for (selector, descriptor) in gdt {
        write_u64(ram, GDT + selector, descriptor);
    }
    for vector in 0..256 {
        let handler = KERNEL + HANDLERS + vector * 16;
        // INT3 and INTO are open to the user.
        let kind = if matches!(vector, 3 | 4) { 0xee00 } else { 0x8e00 };
        let low = (handler & 0xffff) | 0x10 << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48;
        write_u64(ram, IDT + vector * 16, low);
        write_u64(ram, IDT + vector * 16 + 8, handler >> 32);
    }
    write_u64(ram, TSS + 4, KERNEL + STACK_TOP);
    write(ram, TSS + 0x66, &0x68u16.to_le_bytes());
}

impl Executor for EngineExecutor {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn execute(&mut self, case: &Case) -> Option<Outcome> {
        self.load(case);
        let instruction = case.instruction();
        let repeats = instruction.is_string_instruction()
            && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
        let steps_max = if repeats { 64 } else { 1 };
        for _ in 0..steps_max {
            self.vcpu.attention = false;
            let mut cpu = Cpu { vcpu: &mut self.vcpu, ram: &mut self.ram, bus: &mut self.bus };
            self.engine.step(&mut cpu);
            if self.vcpu.regs.rip() != case.registers.rip() {
                break;
            }
        }
        let fault = self.take_fault();
        let mut data = vec![0; layout::DATA_SIZE as usize];
        self.ram.read(Gpa(DATA), &mut data).expect("the layout is inside RAM");
        Some(Outcome { registers: self.vcpu.regs.clone(), data, fault })
    }
}
