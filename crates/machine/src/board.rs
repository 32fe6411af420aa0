//! The board: every device of the machine, who answers where, and what their effects entail.

use cpu::lapic::ApicMessage;
use devices::chipset::{
    AcpiPm, Cmos, DebugExit, I8042, Ioapic, Pic, Pit, Post, Pvpanic, Serial, ports,
};
use devices::pci::{CONFIG_PORTS, Delivery, PciBus, timer_slot};
use devices::virtio::{VirtioPci, blk, console, net, rng};
use devices::{Device, DeviceContext, Effect, Effects, PowerEvent};
use journal::{DiskCompletion, Output};
use memory::Ram;
use types::{Gpa, VirtualTime};

use crate::clock::Clock;
use crate::spec::{MachineError, MachineSpec, console_port};
use crate::timers::{TimerId, Timers};

/// I/O APIC pin of the PIT, as ACPI's interrupt source override says.
const PIT_PIN: u8 = 2;
/// Timer source number of the PCI bus; port devices come from 0.
const PCI_SOURCE: u32 = 1000;
/// Console bytes that may wait before the machine gives them out.
const CONSOLE_WAITING_MAX: usize = 4096;

/// Index of a port device, in the order of [`Board::device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Id {
    Pic,
    Pit,
    Cmos,
    Com1,
    Com2,
    Keyboard,
    Power,
    Panic,
    Post,
    DebugExit,
}

impl Id {
    pub(crate) const ALL: [Id; 10] = [
        Id::Pic,
        Id::Pit,
        Id::Cmos,
        Id::Com1,
        Id::Com2,
        Id::Keyboard,
        Id::Power,
        Id::Panic,
        Id::Post,
        Id::DebugExit,
    ];

    /// Instance number of its saved section: which of a kind.
    pub(crate) fn instance(self) -> u32 {
        u32::from(self == Id::Com2)
    }
}

/// All devices, and what waits between them and the vCPU or the outside.
pub(crate) struct Board {
    pub(crate) clock: Clock,
    pub(crate) timers: Timers,
    pub(crate) pic: Pic,
    pub(crate) ioapic: Ioapic,
    pit: Pit,
    cmos: Cmos,
    com: [Serial; 2],
    keyboard: I8042,
    power: AcpiPm,
    panic: Pvpanic,
    post: Post,
    debug_exit: Option<DebugExit>,
    pub(crate) pci: PciBus,
    /// PCI slot of each disk, network card, the virtio console, and the entropy device.
    pub(crate) disk_slots: Vec<u8>,
    pub(crate) nic_slots: Vec<u8>,
    pub(crate) console_slot: Option<u8>,
    pub(crate) rng_slot: Option<u8>,
    /// First and last port, and who answers.
    port_map: Vec<(u16, u16, Id)>,
    /// Interrupts on their way to local APICs.
    pub(crate) messages: Vec<ApicMessage>,
    /// What is to leave the machine.
    pub(crate) outputs: Vec<Output>,
    console_waiting: usize,
    /// The first power event since the last look.
    pub(crate) power_event: Option<PowerEvent>,
    /// Something happened that the machine must see at the next instruction boundary.
    pub(crate) attention: bool,
}

impl Board {
    pub(crate) fn new(spec: &MachineSpec, layout: memory::Layout) -> Result<Board, MachineError> {
        let mut board = Board {
            clock: Clock::new(spec.nominal_rate),
            timers: Timers::default(),
            pic: Pic::default(),
            ioapic: Ioapic::default(),
            pit: Pit::default(),
            cmos: Cmos::new(spec.wall_clock, layout),
            com: [Serial::com1(), Serial::com2()],
            keyboard: I8042::default(),
            power: AcpiPm::default(),
            panic: Pvpanic,
            post: Post,
            debug_exit: spec.debug_exit.map(DebugExit::new),
            pci: PciBus::new(),
            disk_slots: Vec::new(),
            nic_slots: Vec::new(),
            console_slot: None,
            rng_slot: None,
            port_map: Vec::new(),
            messages: Vec::new(),
            outputs: Vec::new(),
            console_waiting: 0,
            power_event: None,
            attention: false,
        };
        board.plug(spec)?;
        board.map_ports();
        board.check_debug_exit()?;
        Ok(board)
    }

    /// Drops what is on its way from a device to the vCPU, the outside or the monitor.
    pub(crate) fn forget_in_flight(&mut self) {
        self.messages.clear();
        self.outputs.clear();
        (self.console_waiting, self.power_event, self.attention) = (0, None, false);
    }

    fn plug(&mut self, spec: &MachineSpec) -> Result<(), MachineError> {
        for (index, disk) in spec.disks.iter().enumerate() {
            let blk = blk::Blk::new(blk::BlkSpec {
                disk: index as u32,
                size: disk.size,
                read_only: disk.read_only,
                id: format!("doppel-disk{index}"),
            });
            self.disk_slots.push(self.pci.plug(Box::new(VirtioPci::new(blk)))?);
        }
        for (index, nic) in spec.nics.iter().enumerate() {
            let nic = net::NetSpec { nic: index as u32, mac: nic.mac, mtu: MachineSpec::MTU };
            self.nic_slots.push(self.pci.plug(Box::new(VirtioPci::new(net::Net::new(nic))))?);
        }
        let rng = rng::Rng::new(expand_seed(spec.seed));
        self.rng_slot = Some(self.pci.plug(Box::new(VirtioPci::new(rng)))?);
        if spec.console {
            let console = console::Console::new(console_port::VIRTIO);
            self.console_slot = Some(self.pci.plug(Box::new(VirtioPci::new(console)))?);
        }
        Ok(())
    }

    fn map_ports(&mut self) {
        for id in Id::ALL {
            let Some(device) = self.device(id) else { continue };
            let ranges: Vec<_> = device.ports().iter().map(|r| (r.first, r.last, id)).collect();
            self.port_map.extend(ranges);
        }
        self.port_map.sort_by_key(|&(first, ..)| first);
    }

    /// The one device whose place is chosen from outside lies on nobody else's ports.
    fn check_debug_exit(&self) -> Result<(), MachineError> {
        let Some(range) = self.debug_exit.as_ref().and_then(|device| device.ports().first()) else {
            return Ok(());
        };
        let others = self.port_map.iter().filter(|(.., id)| *id != Id::DebugExit);
        let others = others
            .filter_map(|&(first, last, id)| Some((first, last, self.device_ref(id)?.name())));
        let pci = (CONFIG_PORTS.first, CONFIG_PORTS.last, "the PCI bus");
        for (first, last, name) in others.chain([pci]) {
            if first <= range.last && range.first <= last {
                return Err(MachineError::DebugExit(range.first.max(first), name));
            }
        }
        Ok(())
    }

    pub(crate) fn device(&mut self, id: Id) -> Option<&mut dyn Device> {
        Some(match id {
            Id::Pic => &mut self.pic,
            Id::Pit => &mut self.pit,
            Id::Cmos => &mut self.cmos,
            Id::Com1 => &mut self.com[0],
            Id::Com2 => &mut self.com[1],
            Id::Keyboard => &mut self.keyboard,
            Id::Power => &mut self.power,
            Id::Panic => &mut self.panic,
            Id::Post => &mut self.post,
            Id::DebugExit => self.debug_exit.as_mut()?,
        })
    }

    pub(crate) fn device_ref(&self, id: Id) -> Option<&dyn Device> {
        Some(match id {
            Id::Pic => &self.pic,
            Id::Pit => &self.pit,
            Id::Cmos => &self.cmos,
            Id::Com1 => &self.com[0],
            Id::Com2 => &self.com[1],
            Id::Keyboard => &self.keyboard,
            Id::Power => &self.power,
            Id::Panic => &self.panic,
            Id::Post => &self.post,
            Id::DebugExit => self.debug_exit.as_ref()?,
        })
    }

    fn at_port(&self, port: u16) -> Option<Id> {
        let after = self.port_map.partition_point(|&(first, ..)| first <= port);
        let (_, last, id) = *self.port_map.get(after.checked_sub(1)?)?;
        (port <= last).then_some(id)
    }

    /// Calls a port device and takes up its effects.
    pub(crate) fn call<R>(
        &mut self,
        id: Id,
        ram: &mut Ram,
        now: VirtualTime,
        f: impl FnOnce(&mut dyn Device, &mut DeviceContext<'_>) -> R,
    ) -> Option<R> {
        let mut effects = Effects::default();
        let device = self.device(id)?;
        let result = f(device, &mut DeviceContext { now, ram, effects: &mut effects });
        self.take_effects(id as u32, effects);
        Some(result)
    }

    /// Calls the PCI bus and takes up its effects.
    pub(crate) fn call_pci<R>(
        &mut self,
        ram: &mut Ram,
        now: VirtualTime,
        f: impl FnOnce(&mut PciBus, &mut DeviceContext<'_>) -> R,
    ) -> R {
        let mut effects = Effects::default();
        let result = f(&mut self.pci, &mut DeviceContext { now, ram, effects: &mut effects });
        self.take_effects(PCI_SOURCE, effects);
        result
    }

    /// Calls the I/O APIC and takes up its effects.
    pub(crate) fn call_ioapic<R>(&mut self, f: impl FnOnce(&mut Ioapic, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let result = f(&mut self.ioapic, &mut effects);
        self.take_effects(PCI_SOURCE, effects);
        result
    }

    fn take_effects(&mut self, source: u32, mut effects: Effects) {
        if effects.is_empty() {
            return;
        }
        for effect in effects.drain() {
            self.take_effect(source, effect);
        }
    }

    fn take_effect(&mut self, source: u32, effect: Effect) {
        match effect {
            Effect::Line { gsi, high } => {
                if gsi < 16 {
                    self.pic.set_line(gsi, high);
                }
                let pin = if gsi == ports::PIT_IRQ { PIT_PIN } else { gsi };
                self.call_ioapic(|ioapic, effects| ioapic.set_line(effects, pin, high));
                self.attention = true;
            }
            Effect::Msi { address, data } => {
                self.messages.extend(ApicMessage::from_msi(address, data));
                self.attention = true;
            }
            Effect::Timer { timer, at } => {
                self.timers.set(TimerId { source, timer }, at);
                self.attention = true;
            }
            Effect::Output(output) => self.take_output(output),
            Effect::Power(event) => {
                self.power_event.get_or_insert(event);
                self.attention = true;
            }
        }
    }

    /// Queues an output, joining neighbouring console bytes.
    fn take_output(&mut self, output: Output) {
        if let Output::Console { port, bytes } = &output {
            self.console_waiting += bytes.len();
            self.attention |= self.console_waiting >= CONSOLE_WAITING_MAX;
            if let Some(Output::Console { port: last, bytes: waiting }) = self.outputs.last_mut()
                && last == port
            {
                waiting.extend_from_slice(bytes);
                return;
            }
        } else {
            self.attention = true;
        }
        self.outputs.push(output);
    }

    /// Removes and returns what is to leave the machine.
    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        self.console_waiting = 0;
        std::mem::take(&mut self.outputs)
    }

    /// Fires the next timer that is due; false if none is. `wait` fetches disk completions.
    pub(crate) fn fire_due(
        &mut self,
        ram: &mut Ram,
        now: VirtualTime,
        wait: &mut dyn FnMut(&mut Board, u32, u64) -> DiskCompletion,
    ) -> bool {
        let Some(TimerId { source, timer }) = self.timers.pop_due(now) else { return false };
        if source != PCI_SOURCE {
            let id = Id::ALL[source as usize % Id::ALL.len()];
            self.call(id, ram, now, |device, cx| device.timer_fired(cx, timer));
            return true;
        }
        self.call_pci(ram, now, |pci, cx| pci.timer_fired(cx, timer));
        let slot = timer_slot(timer);
        let Some(disk) = self.disk_slots.iter().position(|&s| s == slot) else { return true };
        for request in self.pci.due(slot, now) {
            let completion = wait(self, disk as u32, request);
            self.call_pci(ram, now, |pci, cx| pci.deliver(cx, slot, Delivery::Disk(completion)));
        }
        true
    }

    /// Power-up state of every device; the clock goes on.
    pub(crate) fn reset(&mut self) {
        for id in Id::ALL {
            if let Some(device) = self.device(id) {
                device.reset();
            }
        }
        self.ioapic.reset();
        self.pci.reset();
        self.timers.clear();
        self.messages.clear();
        self.power_event = None;
    }

    pub(crate) fn read_port(
        &mut self,
        ram: &mut Ram,
        now: VirtualTime,
        port: u16,
        size: u8,
    ) -> u32 {
        let all_ones = u32::MAX >> (32 - 8 * u32::from(size));
        if let Some(id) = self.at_port(port) {
            return self
                .call(id, ram, now, |d, cx| d.port_read(cx, port, size))
                .unwrap_or(all_ones);
        }
        self.call_pci(ram, now, |pci, cx| pci.port_read(cx, port, size)).unwrap_or(all_ones)
    }

    pub(crate) fn write_port(
        &mut self,
        ram: &mut Ram,
        now: VirtualTime,
        port: u16,
        size: u8,
        value: u32,
    ) {
        if let Some(id) = self.at_port(port) {
            self.call(id, ram, now, |d, cx| d.port_write(cx, port, size, value));
            return;
        }
        self.call_pci(ram, now, |pci, cx| pci.port_write(cx, port, size, value));
    }

    /// The offset in the I/O APIC's registers, if the address is there.
    pub(crate) fn ioapic_offset(gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.wrapping_sub(ports::IOAPIC_ADDRESS);
        (offset < ports::IOAPIC_SIZE).then_some(offset & 0xff)
    }

    /// The offset in PCI's memory-mapped configuration space, if the address is there.
    pub(crate) fn ecam_offset(gpa: Gpa) -> Option<u64> {
        let offset = gpa.0.wrapping_sub(boot::ECAM);
        (offset < boot::ECAM_SIZE).then_some(offset)
    }

    /// Bytes that serial port `index` can still take in.
    pub(crate) fn receive_room(&self, index: usize) -> usize {
        self.com.get(index).map_or(0, Serial::receive_room)
    }

    pub(crate) fn raise_gpe(&mut self, ram: &mut Ram, now: VirtualTime, event: u8) {
        let mut effects = Effects::default();
        self.power.raise_gpe(&mut DeviceContext { now, ram, effects: &mut effects }, event);
        self.take_effects(Id::Power as u32, effects);
    }

    pub(crate) fn press_power_button(&mut self, ram: &mut Ram, now: VirtualTime) {
        let mut effects = Effects::default();
        self.power.press_power_button(&mut DeviceContext { now, ram, effects: &mut effects });
        self.take_effects(Id::Power as u32, effects);
    }
}

pub(crate) fn expand_seed(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        let word = xxhash_rust::xxh3::xxh3_64_with_seed(&[index as u8], seed);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}
