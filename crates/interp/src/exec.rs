//! The loop: fetch a block, execute its instructions, deliver what they raise, stop where asked.

use cpu::{
    Access, Cpu, DR6_BS, Engine, Exception, Exit, Place, Result, Seg, Shadow, Vcpu, flag, gpr,
};
use memory::RamOffset;
use native::{NativeError, Operand, Stubs};
use types::{PAGE_MASK, PAGE_SIZE};

use crate::cache::BlockCache;
use crate::decode::{Decoded, INSTRUCTION_SIZE_MAX, InsnDecoder};
use crate::insn::{Exec, Insn};

/// Blocks after which control goes back even if nothing happened.
const BLOCKS_MAX: u32 = 1 << 16;
/// Longest block, instructions.
const BLOCK_INSNS_MAX: usize = 64;

/// The reference engine.
pub struct Interp {
    stubs: Stubs,
    stubs_generation: u32,
    operand: Operand,
    decoder: InsnDecoder,
    cache: BlockCache,
    instructions: u64,
    /// Linear addresses at which to stop.
    breakpoints: Vec<u64>,
}

/// Where the instructions to execute next are.
enum Fetched {
    /// In the cache.
    Block(usize),
    /// One instruction that lies on two pages or outside RAM; not cached.
    Single(Box<Insn>),
}

impl Interp {
    /// An engine for vCPUs of any model.
    ///
    /// # Errors
    /// When the host CPU lacks instructions of the model, or code memory cannot be mapped.
    pub fn new() -> std::result::Result<Interp, NativeError> {
        let stubs = Stubs::new()?;
        Ok(Interp {
            stubs_generation: stubs.generation(),
            stubs,
            operand: Operand::new(),
            decoder: InsnDecoder::new(cpu::cpuid::Model::V3),
            cache: BlockCache::new(),
            instructions: 0,
            breakpoints: Vec::new(),
        })
    }

    fn check_model(&mut self, vcpu: &Vcpu) {
        if self.decoder.model() != vcpu.model {
            self.decoder = InsnDecoder::new(vcpu.model);
            self.cache.clear();
        }
    }

    /// Finds or decodes what is at CS:RIP.
    fn fetch(&mut self, cpu: &mut Cpu<'_>) -> Result<Fetched> {
        let rip = cpu.vcpu.regs.rip();
        let gva = cpu.linear(Seg::Cs, rip, 1, Access::Exec)?;
        let side = cpu.vcpu.mode.walk_side;
        let at = match cpu.vcpu.tlb.lookup_exec(side, gva) {
            Some(at) => RamOffset(at),
            None => match fetch_place(cpu, side, gva)? {
                Place::Ram(at) => at,
                Place::Device(_) => return self.decode_single(cpu, rip),
            },
        };
        let bits = cpu.vcpu.mode.bits;
        if let Some(id) = self.cache.find(cpu.ram, at, bits) {
            return Ok(Fetched::Block(id));
        }
        self.decode_block(cpu, rip, at)
    }

    fn decode_block(&mut self, cpu: &mut Cpu<'_>, rip: u64, at: RamOffset) -> Result<Fetched> {
        let bits = cpu.vcpu.mode.bits;
        let in_page = (PAGE_SIZE - (at.0 & PAGE_MASK)).min(bytes_in_segment(cpu.vcpu, rip));
        let mut bytes = [0; PAGE_SIZE as usize];
        let bytes = &mut bytes[..in_page as usize];
        cpu.ram.load_bytes(at, bytes);
        let mut insns = Vec::new();
        let mut used = 0;
        while insns.len() < BLOCK_INSNS_MAX && used < bytes.len() {
            let window = &bytes[used..bytes.len().min(used + INSTRUCTION_SIZE_MAX)];
            let Decoded::Insn(insn) = self.decoder.decode(&mut self.stubs, window, bits) else {
                break;
            };
            used += usize::from(insn.len);
            let ends = insn.ends_block;
            insns.push(insn);
            if ends {
                break;
            }
        }
        if self.drop_stale_stubs() {
            // Code memory was full and began anew: so does the block, with room for its stubs.
            return self.decode_block(cpu, rip, at);
        }
        if insns.is_empty() {
            return self.decode_single(cpu, rip);
        }
        if cpu.ram.mark_code(at, used.max(1) as u64) {
            cpu.vcpu.tlb.revoke_write(at.page());
        }
        Ok(Fetched::Block(self.cache.insert(cpu.ram, at, bits, insns)))
    }

    /// When code memory was flushed, blocks decoded before hold stale stubs; true if so.
    fn drop_stale_stubs(&mut self) -> bool {
        let stale = self.stubs.generation() != self.stubs_generation;
        if stale {
            self.stubs_generation = self.stubs.generation();
            self.cache.clear();
        }
        stale
    }

    /// Fetches byte by byte: an instruction that may lie on two pages.
    fn decode_single(&mut self, cpu: &mut Cpu<'_>, rip: u64) -> Result<Fetched> {
        let mut bytes = [0; INSTRUCTION_SIZE_MAX];
        for len in 1..=INSTRUCTION_SIZE_MAX {
            let offset = rip.wrapping_add(len as u64 - 1);
            let gva = cpu.linear(Seg::Cs, offset, 1, Access::Exec)?;
            bytes[len - 1] = fetch_byte(cpu, gva)?;
            let bits = cpu.vcpu.mode.bits;
            if let Decoded::Insn(insn) = self.decoder.decode(&mut self.stubs, &bytes[..len], bits) {
                self.drop_stale_stubs();
                return Ok(Fetched::Single(Box::new(insn)));
            }
        }
        Err(Exception::GP0)
    }

    /// Executes what is at CS:RIP: a block, or with `single` one instruction.
    fn execute(&mut self, cpu: &mut Cpu<'_>, single: bool) {
        let fetched = match self.fetch(cpu) {
            Ok(fetched) => fetched,
            Err(exception) => return cpu.raise(exception),
        };
        let insns = match &fetched {
            Fetched::Block(id) => self.cache.insns(*id),
            Fetched::Single(insn) => std::slice::from_ref(&**insn),
        };
        let insns = if single { &insns[..1] } else { insns };
        if let Fetched::Block(id) = fetched
            && cpu.ram.visit_marks().is_some()
        {
            let len = insns.iter().map(|insn| u64::from(insn.len)).sum();
            cpu.ram.note_visit(self.cache.place(id), len);
        }
        let mut exec = Exec { cpu, stubs: &self.stubs, operand: &mut self.operand, single };
        self.instructions += run_insns(&mut exec, insns);
    }

    /// Whether the next instruction is at a breakpoint, and not in the middle of its iterations.
    fn is_at_breakpoint(&self, vcpu: &Vcpu) -> bool {
        let base = vcpu.mode.bases[Seg::Cs as usize];
        let gva = base.wrapping_add(vcpu.regs.rip());
        vcpu.iterations == 0 && self.breakpoints.contains(&gva)
    }

    /// One instruction with everything that surrounds it: breakpoints, single-step, inhibitions.
    fn execute_step(&mut self, cpu: &mut Cpu<'_>) {
        let vcpu = &mut *cpu.vcpu;
        let resumes = vcpu.regs.rflags_other & flag::RF != 0;
        if !resumes && vcpu.dr7 & 0xff != 0 {
            let base = vcpu.mode.bases[Seg::Cs as usize];
            let gva = base.wrapping_add(vcpu.regs.rip());
            let hit = vcpu.breakpoints_hit(gva, 1, false, true);
            if hit != 0 {
                return cpu.raise(Exception::db(hit));
            }
        }
        vcpu.regs.rflags_other &= !flag::RF;
        let shadow = std::mem::replace(&mut vcpu.pending.shadow, Shadow::None);
        if vcpu.regs.rflags_other & flag::TF != 0 {
            vcpu.pending.debug |= DR6_BS;
        }
        self.execute(cpu, true);
        // What the shadow held off comes now.
        if shadow != Shadow::None || cpu.vcpu.pending.debug != 0 {
            cpu.vcpu.attention = true;
        }
    }
}

/// Bytes from `rip` to the end of CS where that has one, at least 1.
fn bytes_in_segment(vcpu: &Vcpu, rip: u64) -> u64 {
    if vcpu.mode.bits == 64 {
        return PAGE_SIZE;
    }
    u64::from(vcpu.seg(Seg::Cs).limit).saturating_sub(rip) + 1
}

fn fetch_place(cpu: &mut Cpu<'_>, side: u8, gva: u64) -> Result<Place> {
    if !cpu.is_valid_linear(gva) {
        return Err(Exception::GP0);
    }
    cpu.translate(side, gva, Access::Exec)
}

fn fetch_byte(cpu: &mut Cpu<'_>, gva: u64) -> Result<u8> {
    let side = cpu.vcpu.mode.walk_side;
    match fetch_place(cpu, side, gva)? {
        Place::Ram(at) => Ok(cpu.ram.load_u8(at)),
        Place::Device(gpa) => {
            let mut byte = [0];
            cpu.bus.mmio_read(cpu.ram, cpu.vcpu.branches, gpa, &mut byte);
            Ok(byte[0])
        }
    }
}

/// Executes instructions in order until one raises, or asks for attention; says how many it began.
#[inline]
fn run_insns(exec: &mut Exec<'_, '_>, insns: &[Insn]) -> u64 {
    for (index, insn) in insns.iter().enumerate() {
        if let Err(exception) = (insn.run)(exec, insn) {
            exec.cpu.vcpu.pending.debug = 0;
            exec.cpu.raise(exception);
            return index as u64 + 1;
        }
        if insn.sets_rip {
            exec.cpu.vcpu.branches += u64::from(insn.counts);
        } else {
            let next = exec.next_rip(insn);
            exec.cpu.vcpu.regs.gpr[gpr::RIP] = next;
        }
        if exec.cpu.vcpu.attention {
            return index as u64 + 1;
        }
    }
    insns.len() as u64
}

impl Engine for Interp {
    fn run(&mut self, cpu: &mut Cpu<'_>, until: u64) -> Exit {
        self.check_model(cpu.vcpu);
        cpu.vcpu.attention = false;
        for _ in 0..BLOCKS_MAX {
            if let Some(exit) = cpu.vcpu.boundary(until) {
                return exit;
            }
            if !self.breakpoints.is_empty() {
                if self.is_at_breakpoint(cpu.vcpu) {
                    return Exit::Breakpoint;
                }
                self.execute_step(cpu);
            } else if cpu.vcpu.needs_step() {
                self.execute_step(cpu);
            } else {
                self.execute(cpu, false);
            }
        }
        Exit::Yielded
    }

    fn step(&mut self, cpu: &mut Cpu<'_>) -> Exit {
        self.check_model(cpu.vcpu);
        cpu.vcpu.attention = false;
        self.execute_step(cpu);
        cpu.vcpu.boundary(u64::MAX).unwrap_or(Exit::Reached)
    }

    fn set_breakpoints(&mut self, addresses: &[u64]) {
        self.breakpoints = addresses.to_vec();
    }

    fn instructions(&self) -> u64 {
        self.instructions
    }

    fn name(&self) -> &'static str {
        "interp"
    }
}
