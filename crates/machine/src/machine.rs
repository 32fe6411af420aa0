//! The machine: one vCPU, RAM and a board.

use boot::{BootError, BootSpec, BootState, Entry, KernelKind, PlatformTables};
use cpu::{Seg, Vcpu, gpr};
use memory::{CowGuest, Epoch, Ram};
use types::{ExecutionPoint, VirtualTime};

use crate::board::Board;
use crate::spec::{MachineError, MachineSpec};

/// A VM generation id that nobody has set yet.
const UNSET: [u8; 16] = [0; 16];

/// A whole computer.
pub struct Machine {
    pub(crate) spec: MachineSpec,
    pub(crate) vcpu: Vcpu,
    pub(crate) ram: Ram,
    pub(crate) board: Board,
    pub(crate) observer: Option<crate::input::Observer>,
    pub(crate) watches: Vec<crate::debug::Watch>,
}

impl Machine {
    /// A machine at power-on, with nothing loaded.
    ///
    /// # Errors
    /// [`MachineError`] when RAM cannot be had or there are too many devices.
    pub fn new(spec: MachineSpec) -> Result<Machine, MachineError> {
        let ram = Ram::new(spec.memory_size)?;
        Machine::with_ram(spec, ram)
    }

    /// A machine at power-on around `ram`, which has as many bytes as `spec` says.
    ///
    /// # Errors
    /// [`MachineError`] when there are too many devices.
    ///
    /// # Panics
    /// If the sizes differ.
    pub fn with_ram(spec: MachineSpec, ram: Ram) -> Result<Machine, MachineError> {
        assert_eq!(ram.size(), spec.memory_size);
        let board = Board::new(&spec, ram.layout())?;
        let vcpu = Vcpu::new(0, spec.model);
        Ok(Machine { spec, vcpu, ram, board, observer: None, watches: Vec::new() })
    }

    /// Loads a kernel and sets the vCPU to its entry.
    ///
    /// # Errors
    /// [`BootError`] saying what is wrong with the files.
    pub fn boot(&mut self, spec: &BootSpec<'_>) -> Result<KernelKind, BootError> {
        // A reset leaves the id; a machine that is new has one of its seed.
        let generation = match self.generation() {
            UNSET => crate::board::expand_seed(!self.spec.seed).first_chunk().copied(),
            id => Some(id),
        };
        let generation = generation.unwrap_or_default();
        let tables = PlatformTables { generation, ..spec.tables.clone() };
        let spec = &BootSpec { tables: &tables, ..*spec };
        let BootState { kind, entry } = boot::load(&mut self.ram, spec)?;
        self.enter(&entry);
        Ok(kind)
    }

    fn enter(&mut self, entry: &Entry) {
        let vcpu = &mut self.vcpu;
        vcpu.regs.gpr[..16].copy_from_slice(&entry.gpr);
        vcpu.regs.gpr[gpr::RIP] = entry.rip;
        vcpu.regs.set_rflags(entry.rflags);
        vcpu.segments = [entry.data; 6];
        vcpu.segments[Seg::Cs as usize] = entry.cs;
        vcpu.tr = entry.tr;
        vcpu.ldtr = entry.ldtr;
        vcpu.gdtr = entry.gdt;
        vcpu.idtr = entry.idt;
        (vcpu.cr0, vcpu.cr3, vcpu.cr4) = (entry.cr0, entry.cr3, entry.cr4);
        vcpu.msrs.efer = entry.efer;
        // Firmware leaves memory write-back and LINT0 wired to the PIC.
        vcpu.msrs.mtrr_def_type = 0xc06;
        vcpu.lapic.set_up_virtual_wire();
        vcpu.tlb.flush();
        vcpu.rederive();
    }

    /// Resets vCPU and devices. RAM, the branch count and virtual time go on; the reset itself
    /// counts as a branch, so that no point is passed twice.
    pub fn reset(&mut self) {
        let branches = self.vcpu.branches + 1;
        self.vcpu = Vcpu::new(0, self.spec.model);
        self.vcpu.branches = branches;
        self.board.reset();
    }

    /// Where the machine is (mechanism L1).
    pub fn point(&self) -> ExecutionPoint {
        self.vcpu.point()
    }

    /// Retired branches.
    pub fn branches(&self) -> u64 {
        self.vcpu.branches
    }

    /// Virtual time.
    pub fn now(&self) -> VirtualTime {
        self.board.clock.now(self.vcpu.branches)
    }

    /// The first branch count at which virtual time is `at` or later, as the clock goes now.
    pub fn branches_at(&self, at: VirtualTime) -> u64 {
        self.board.clock.branches_at(at)
    }

    /// The virtual clock's rate, thousandths of a nanosecond per branch.
    pub fn rate_millins(&self) -> u64 {
        self.board.clock.rate_millins()
    }

    /// What it was built from.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// The vCPU, to look at.
    pub fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Opens an epoch that preserves RAM as it is now for the saver that `guest` belongs to: takes
    /// as long for any amount of RAM, and the guest cannot tell (mechanism C3).
    pub fn begin_copy_on_write(&mut self, guest: CowGuest) -> Epoch {
        self.vcpu.tlb.flush();
        self.ram.begin_copy_on_write(guest)
    }

    /// RAM, to look at.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
}
