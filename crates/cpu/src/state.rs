//! The state of one vCPU as plain data: segments, tables, control and debug registers, MSRs.

use crate::lapic::Lapic;
use crate::registers::{Registers, flag, gpr};
use crate::tlb::Tlb;

/// Segment registers, in the order of their encoding.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl Seg {
    /// All six.
    pub const ALL: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs];

    /// The segment register with that encoding, 0..6.
    pub const fn from_index(index: u8) -> Option<Seg> {
        if index < 6 { Some(Seg::ALL[index as usize]) } else { None }
    }
}

/// Bits of [`Segment::attributes`]: the second descriptor doubleword's bits 8..24, shifted down
/// (access byte in bits 0..8, flags in bits 12..16), and a bit for null selectors.
pub mod attr {
    #![allow(missing_docs)]
    pub const ACCESSED: u32 = 1 << 0;
    /// Writable for data, readable for code.
    pub const RW: u32 = 1 << 1;
    /// Expand-down for data, conforming for code.
    pub const DC: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    /// Code or data as against system.
    pub const S: u32 = 1 << 4;
    pub const DPL_SHIFT: u32 = 5;
    pub const PRESENT: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base linear address.
    pub base: u64,
    /// Last valid offset in bytes, granularity applied.
    pub limit: u32,
    /// See [`attr`].
    pub attributes: u32,
}

impl Segment {
    /// A segment as real mode and reset have them: base `selector * 16`, 64 KiB.
    pub const fn real(selector: u16, code: bool) -> Segment {
        let attributes = attr::PRESENT | attr::S | attr::RW | attr::ACCESSED;
        Segment {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: if code { attributes | attr::CODE } else { attributes },
        }
    }

    /// A segment register holding a null selector.
    pub const fn null(selector: u16) -> Segment {
        Segment { selector, base: 0, limit: 0, attributes: attr::UNUSABLE }
    }

    /// Descriptor privilege level, 0..4.
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> attr::DPL_SHIFT) & 3) as u8
    }

    /// The four type bits.
    pub const fn kind(&self) -> u32 {
        self.attributes & 0xf
    }

    /// Whether all of `bits` are set in the attributes.
    pub const fn has(&self, bits: u32) -> bool {
        self.attributes & bits == bits
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear address of the table.
    pub base: u64,
    /// Last valid byte offset.
    pub limit: u16,
}

/// Bits of the control registers and EFER.
pub mod cr {
    #![allow(missing_docs)]
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_VME: u64 = 1 << 0;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
    pub const XCR0_X87: u64 = 1 << 0;
    pub const XCR0_SSE: u64 = 1 << 1;
    pub const XCR0_AVX: u64 = 1 << 2;
}

/// MSRs that are plain storage or nearly so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// TSC less virtual time in ns, wrapping.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub debugctl: u64,
    pub spec_ctrl: u64,
}

/// DR6.BS: the trap is a single step.
pub const DR6_BS: u64 = 1 << 14;

/// What holds back interrupts or traps for one instruction (SDM vol. 3, 6.8.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// After STI that set IF.
    Sti,
    /// After MOV SS or POP SS: debug traps are held back too.
    MovSs,
}

/// What the vCPU is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activity {
    /// Executing.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// After a triple fault: nothing but a reset helps.
    Shutdown,
}

/// A pending debug trap or an inhibition, kept between instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// What holds back interrupts now.
    pub shadow: Shadow,
    /// DR6 bits of traps to be delivered at the next boundary.
    pub debug: u64,
    /// An NMI waits.
    pub nmi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
}

/// One vCPU.
pub struct Vcpu {
    /// Its index, also its APIC id.
    pub index: u32,
    /// GPRs, flags, vector and x87 state.
    pub regs: Registers,
    /// Segment registers by [`Seg`].
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// Current privilege level.
    pub cpl: u8,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// PAE page-directory pointers as loaded with CR3 outside long mode.
    pub pdptrs: [u64; 4],
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Local APIC.
    pub lapic: Lapic,
    /// Retired branches (mechanism L1); see [`crate::branch`].
    pub branches: u64,
    /// Completed iterations of the repeated string instruction at RIP (mechanism L2).
    pub iterations: u64,
    /// Running or halted.
    pub activity: Activity,
    /// Traps and inhibitions between instructions.
    pub pending: Pending,
    /// Features that CPUID shows; see [`crate::cpuid`].
    pub model: crate::cpuid::Model,
    /// Derived: cached page walks.
    pub tlb: Tlb,
    /// Derived from CS, EFER and CR0 by [`Vcpu::rederive`].
    pub mode: Mode,
    /// Derived: an engine leaves its fast path at the next instruction boundary when set.
    pub attention: bool,
    /// Slow pieces of work that may yet be done before the machine looks at the host's clock, or
    /// `None` if the run goes on to its last branch whatever it takes: no state of the guest. See
    /// [`Vcpu::toil`].
    pub patience: Option<u32>,
}

/// What the current code segment and control registers make of the machine; derived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mode {
    /// Operand and address size by default: 16, 32 or 64.
    pub bits: u8,
    /// EFER.LMA: IA-32e mode, 64-bit or compatibility.
    pub long: bool,
    /// CR0.PE.
    pub protected: bool,
    /// Virtual-8086.
    pub v86: bool,
    /// Which of the TLB's sides data accesses look in; see [`crate::tlb`].
    pub side: u8,
    /// The side whose rights a data access has.
    pub walk_side: u8,
    /// Alignment is checked (SDM vol. 3, 6.15, #AC).
    pub checks_alignment: bool,
    /// Some data breakpoint is enabled in DR7.
    pub watches_data: bool,
    /// Segment bases added in address computation: zero in 64-bit mode but for FS and GS.
    pub bases: [u64; 6],
    /// RSP is used whole (64), or SS.B says 32 or 16.
    pub stack_bits: u8,
}

impl Vcpu {
    /// Notes a slow piece of work, of microseconds: an original copied before a first write, a
    /// block translated. After too many the engine leaves, so that the machine can end its run at
    /// the next branch. The guest cannot tell.
    pub fn toil(&mut self) {
        let Some(patience) = &mut self.patience else { return };
        *patience = patience.saturating_sub(1);
        self.attention |= *patience == 0;
    }

    /// Makes a run that is content with fewer branches end here.
    pub fn tire(&mut self) {
        self.patience = Some(0);
        self.attention = true;
    }

    /// A vCPU after power-up reset (SDM vol. 3, table 10-1).
    pub fn new(index: u32, model: crate::cpuid::Model) -> Vcpu {
        let mut vcpu = Vcpu {
            index,
            regs: Registers::reset(),
            segments: [Segment::real(0, false); 6],
            ldtr: Segment { limit: 0xffff, attributes: 0x82, ..Segment::default() },
            tr: Segment { limit: 0xffff, attributes: 0x8b, ..Segment::default() },
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cpl: 0,
            cr0: cr::CR0_ET | cr::CR0_CD | cr::CR0_NW,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: cr::XCR0_X87,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            pdptrs: [0; 4],
            msrs: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            lapic: Lapic::new(index),
            branches: 0,
            iterations: 0,
            activity: Activity::Running,
            pending: Pending::default(),
            model,
            tlb: Tlb::new(),
            mode: Mode::default(),
            attention: false,
            patience: None,
        };
        vcpu.segments[Seg::Cs as usize] =
            Segment { base: 0xffff_0000, ..Segment::real(0xf000, true) };
        vcpu.regs.gpr[gpr::RIP] = 0xfff0;
        vcpu.regs.gpr[gpr::RDX] = u64::from(model.signature());
        vcpu.rederive();
        vcpu
    }

    /// A segment register.
    #[inline]
    pub fn seg(&self, seg: Seg) -> &Segment {
        &self.segments[seg as usize]
    }

    /// Recomputes everything derived from the rest; after any change of CS, SS, segment bases,
    /// CPL, EFER, CR0, CR4 or RFLAGS.{VM,AC}.
    pub fn rederive(&mut self) {
        let protected = self.cr0 & cr::CR0_PE != 0;
        let v86 = protected && self.regs.rflags_other & flag::VM != 0;
        let long = self.msrs.efer & cr::EFER_LMA != 0;
        let cs = self.seg(Seg::Cs);
        let bits = match () {
            () if long && cs.has(attr::L) => 64,
            () if protected && !v86 && cs.has(attr::DB) => 32,
            () if !protected && cs.has(attr::DB) => 32,
            () => 16,
        };
        let stack_bits = match () {
            () if bits == 64 => 64,
            () if self.seg(Seg::Ss).has(attr::DB) => 32,
            () => 16,
        };
        let mut bases = std::array::from_fn(|i| self.segments[i].base);
        if bits == 64 {
            bases[..4].fill(0);
        }
        let ac = self.regs.rflags_other & flag::AC != 0;
        let checks_alignment = self.cpl == 3 && ac && self.cr0 & cr::CR0_AM != 0;
        let watches_data = self.watches_data();
        let walk_side = match () {
            () if self.cpl == 3 => crate::tlb::SIDE_USER,
            () if ac || self.cr4 & cr::CR4_SMAP == 0 => crate::tlb::SIDE_SUPERVISOR_ANY,
            () => crate::tlb::SIDE_SUPERVISOR,
        };
        let side = if checks_alignment || watches_data { crate::tlb::SIDE_NONE } else { walk_side };
        self.mode = Mode {
            bits,
            long,
            protected,
            v86,
            side,
            walk_side,
            checks_alignment,
            watches_data,
            bases,
            stack_bits,
        };
    }

    /// Whether DR7 enables a breakpoint on data (R/W other than 00).
    fn watches_data(&self) -> bool {
        (0..4).any(|n| self.dr7 >> (2 * n) & 3 != 0 && self.dr7 >> (16 + 4 * n) & 3 != 0)
    }

    /// Whether the next instruction must be executed by itself, with everything that happens
    /// between instructions: single-step, breakpoints, inhibitions.
    pub fn needs_step(&self) -> bool {
        self.regs.rflags_other & (flag::TF | flag::RF) != 0
            || self.pending.shadow != Shadow::None
            || self.dr7 & 0xff != 0
    }

    /// DR6 bits of the breakpoints of kind `kind` (R/W field) that the access hits; `kind` 0 is
    /// execution, 1 writes, 3 reads and writes.
    pub fn breakpoints_hit(&self, gva: u64, size: u64, write: bool, execute: bool) -> u64 {
        let mut hit = 0;
        for n in 0..4u32 {
            let enabled = self.dr7 >> (2 * n) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * n) & 3;
            let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize];
            let wanted = match kind {
                0 => execute,
                1 => write && !execute,
                3 => !execute,
                _ => false,
            };
            let start = self.dr[n as usize] & !(len - 1);
            let overlaps = gva < start.wrapping_add(len) && start < gva.wrapping_add(size);
            if enabled && wanted && overlaps {
                hit |= 1 << n;
            }
        }
        hit
    }

    /// Sets RFLAGS whole and what is derived from it.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.regs.set_rflags(rflags);
        self.rederive();
    }

    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        ((self.regs.rflags_other & flag::IOPL) >> 12) as u8
    }

    /// Whether a maskable interrupt can be delivered at this boundary.
    pub fn accepts_interrupts(&self) -> bool {
        self.regs.rflags_other & flag::IF != 0 && self.pending.shadow == Shadow::None
    }

    /// Where the vCPU is (mechanism L1).
    pub fn point(&self) -> types::ExecutionPoint {
        types::ExecutionPoint {
            vcpu: self.index,
            branches: self.branches,
            rip: self.regs.rip(),
            iterations: self.iterations,
        }
    }
}
