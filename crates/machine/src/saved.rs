//! The machine's saved sections, and the hash over them and RAM.

use cpu::VcpuSaved;
use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use crate::board::Id;
use crate::clock::Clock;
use crate::machine::Machine;
use crate::timers::Timers;

/// Most branches that a machine can have retired: more than a century's worth.
const BRANCHES_MAX: u64 = 1 << 62;

/// What the machine itself is, beyond vCPU and devices.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct MachineSaved {
    #[n(0)]
    clock: Clock,
    #[n(1)]
    timers: Timers,
}

impl Saved for MachineSaved {
    const NAME: &'static str = "machine";
    const VERSION: u16 = 1;
}

impl MachineSaved {
    fn check(&self) -> Result<(), RestoreError> {
        if self.clock.is_valid() && self.timers.is_valid() {
            return Ok(());
        }
        Err(malformed(MachineSaved::NAME, "a clock that stands still, or timers out of order"))
    }
}

fn malformed(name: &str, detail: &str) -> RestoreError {
    RestoreError::Malformed { name: name.to_owned(), detail: detail.to_owned() }
}

impl Machine {
    /// Everything but RAM, as sections. The machine must be settled
    /// ([`Machine::settle`]): then nothing else is in flight.
    pub fn save(&self) -> Sections {
        let mut sections = Sections::default();
        let (clock, timers) = (self.board.clock, self.board.timers.clone());
        sections.save(0, &MachineSaved { clock, timers });
        self.vcpu.save(&mut sections);
        self.board.save(&mut sections);
        sections
    }

    /// Takes everything but RAM from sections of a machine of the same specification.
    ///
    /// # Errors
    /// [`RestoreError`] naming the section at fault; the machine is then not to be used.
    pub fn restore(&mut self, mut sections: Sections) -> Result<(), RestoreError> {
        // Between runs nothing is in flight, but a machine that ended may have been left like that.
        self.board.forget_in_flight();
        let state: MachineSaved = sections.restore(0)?;
        state.check()?;
        (self.board.clock, self.board.timers) = (state.clock, state.timers);
        self.vcpu.restore(&mut sections)?;
        if self.vcpu.branches > BRANCHES_MAX {
            return Err(malformed(VcpuSaved::NAME, "more branches than anything can retire"));
        }
        self.board.restore(&mut sections)?;
        sections.finish()
    }

    /// Hash of the whole state: RAM and every section. Costs one pass over the RAM written since
    /// the last call. The guest cannot tell that it was taken.
    pub fn state_hash(&mut self) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for (_, hash) in self.section_hashes() {
            hasher.update(&hash.to_le_bytes());
        }
        hasher.digest128()
    }

    /// Hash of RAM and of each section, by name, to find where two machines differ.
    pub fn section_hashes(&mut self) -> Vec<(String, u128)> {
        self.vcpu.tlb.flush();
        let ram = ("ram".to_owned(), self.ram.hash());
        let sections = self.save();
        let hashed = sections.iter().map(|s| (format!("{}.{}", s.name, s.instance), s.hash()));
        std::iter::once(ram).chain(hashed).collect()
    }
}

impl crate::board::Board {
    fn save(&self, sections: &mut Sections) {
        for id in Id::ALL {
            if let Some(device) = self.device_ref(id) {
                device.save(id.instance(), sections);
            }
        }
        self.ioapic.save(0, sections);
        self.pci.save(sections);
    }

    fn restore(&mut self, sections: &mut Sections) -> Result<(), RestoreError> {
        for id in Id::ALL {
            if let Some(device) = self.device(id) {
                device.restore(id.instance(), sections)?;
            }
        }
        self.ioapic.restore(0, sections)?;
        self.pci.restore(sections)
    }
}
