//! The one PCI bus: slots, configuration mechanism #1, BAR windows, interrupt pins and timers.
//!
//! Functions stand at bus 0, device = slot, function 0; slot 0 is the host bridge.

use journal::DiskRequest;
use saved::{RestoreError, Sections};
use types::{Gpa, VirtualTime};

use super::{Bridge, BusSaved, Delivery, PciFunction, command};
use crate::{DeviceContext, Effect, Effects, PortRange};

/// Most functions on the bus.
pub const SLOTS_MAX: usize = 32;
/// First address that BARs are placed at.
pub const HOLE_START: u64 = 0xc000_0000;
/// First address after those that BARs are placed at.
pub const HOLE_END: u64 = 0xe000_0000;
/// Global system interrupt of the first of the four shared lines; they are level-triggered and
/// active high as [`Effect::Line`] sees them.
pub const GSI_FIRST: u8 = 16;

/// Ports of the configuration mechanism.
pub const CONFIG_PORTS: PortRange = PortRange { first: ADDRESS_PORT, last: DATA_PORT + 3 };

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;
const LINES: usize = 4;
const TIMER_BITS: u32 = 16;

/// Why a function could not be plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// All slots are taken.
    #[error("the PCI bus has {SLOTS_MAX} slots and all are taken; use fewer devices")]
    Full,
    /// The device hole is full.
    #[error("no room for {size} bytes of device memory below {HOLE_END:#x}")]
    NoRoom {
        /// Bytes that did not fit.
        size: u64,
    },
}

/// The interrupt that pin `pin` (1..=4) of slot `slot` is wired to; the ACPI `_PRT` says the same.
pub const fn interrupt_gsi(slot: u8, pin: u8) -> u8 {
    GSI_FIRST + slot.wrapping_add(pin.wrapping_sub(1)) % LINES as u8
}

/// The machine's number for timer `timer` of the function in slot `slot`.
pub const fn timer_name(slot: u8, timer: u32) -> u32 {
    (slot as u32) << TIMER_BITS | (timer & ((1 << TIMER_BITS) - 1))
}

/// The slot whose function armed the timer with the machine's number `timer`.
pub const fn timer_slot(timer: u32) -> u8 {
    (timer >> TIMER_BITS) as u8
}

/// Where a BAR is decoded.
struct Window {
    first: u64,
    last: u64,
    slot: u8,
    bar: u8,
}

/// The bus and the functions on it.
pub struct PciBus {
    functions: Vec<Box<dyn PciFunction>>,
    address: u32,
    bar_next: u64,
    windows: Vec<Window>,
    lines: [bool; LINES],
    scratch: Effects,
}

impl Default for PciBus {
    fn default() -> PciBus {
        PciBus::new()
    }
}

impl PciBus {
    /// A bus with a host bridge in slot 0.
    pub fn new() -> PciBus {
        let mut bus = PciBus {
            functions: Vec::new(),
            address: 0,
            bar_next: HOLE_START,
            windows: Vec::new(),
            lines: [false; LINES],
            scratch: Effects::default(),
        };
        bus.plug(Box::new(Bridge::host())).expect("an empty bus has room for a bridge");
        bus
    }

    /// Puts a function into the next slot, places its BARs and returns the slot.
    ///
    /// # Errors
    /// [`BusError`] when slots or address space run out; the function is dropped then.
    pub fn plug(&mut self, mut function: Box<dyn PciFunction>) -> Result<u8, BusError> {
        if self.functions.len() >= SLOTS_MAX {
            return Err(BusError::Full);
        }
        let slot = self.functions.len() as u8;
        self.bar_next = place(function.as_mut(), slot, self.bar_next)?;
        self.functions.push(function);
        self.rederive();
        Ok(slot)
    }

    /// The function in `slot`.
    pub fn function(&self, slot: u8) -> Option<&dyn PciFunction> {
        self.functions.get(usize::from(slot)).map(Box::as_ref)
    }

    /// Slots in use: `0..count`.
    pub fn count(&self) -> u8 {
        self.functions.len() as u8
    }

    /// `IN` of `size` bytes at a port of 0xcf8..=0xcff; `None` if it is not the bus's (as byte
    /// access to 0xcf9, the reset register, is not).
    pub fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, size: u8) -> Option<u32> {
        if port == ADDRESS_PORT && size == 4 {
            return Some(self.address);
        }
        let (slot, offset) = self.data_target(port, size)?;
        let mut bytes = [0xff; 4];
        if let Some(slot) = slot {
            self.config_read(cx, slot, offset, &mut bytes[..usize::from(size)]);
        }
        let mask = if size == 4 { u32::MAX } else { (1 << (8 * u32::from(size))) - 1 };
        Some(u32::from_le_bytes(bytes) & mask)
    }

    /// `OUT` of `size` bytes at a port of 0xcf8..=0xcff; false if it is not the bus's.
    pub fn port_write(
        &mut self,
        cx: &mut DeviceContext<'_>,
        port: u16,
        size: u8,
        value: u32,
    ) -> bool {
        if port == ADDRESS_PORT && size == 4 {
            self.address = value & ADDRESS_WRITABLE;
            return true;
        }
        let Some((slot, offset)) = self.data_target(port, size) else { return false };
        if let Some(slot) = slot {
            self.config_write(cx, slot, offset, &value.to_le_bytes()[..usize::from(size)]);
        }
        true
    }

    /// Which function (none if absent) and offset a data-port access names, if it is one.
    fn data_target(&self, port: u16, size: u8) -> Option<(Option<u8>, usize)> {
        let lane = port.checked_sub(DATA_PORT).filter(|&lane| lane < 4)?;
        if !matches!(size, 1 | 2 | 4) || lane + u16::from(size) > 4 {
            return None;
        }
        let address = self.address;
        let slot = (address >> 11 & 0x1f) as u8;
        let here = address & ADDRESS_ENABLE != 0 && address & 0x00ff_0700 == 0;
        let present = here && slot < self.count();
        Some((present.then_some(slot), (address & 0xfc) as usize + usize::from(lane)))
    }

    /// Reads configuration bytes of slot `slot`; all ones where there is no function.
    pub fn config_read(
        &mut self,
        cx: &mut DeviceContext<'_>,
        slot: u8,
        offset: usize,
        into: &mut [u8],
    ) {
        into.fill(0xff);
        self.call(cx, slot, |function, cx| function.config_read(cx, offset, into));
    }

    /// Writes configuration bytes of slot `slot`.
    pub fn config_write(
        &mut self,
        cx: &mut DeviceContext<'_>,
        slot: u8,
        offset: usize,
        from: &[u8],
    ) {
        self.call(cx, slot, |function, cx| function.config_write(cx, offset, from));
        self.find_windows();
    }

    /// Slot and offset that an address of the memory-mapped configuration space names (PCI Express
    /// 7.2.2); the slot is `None` off bus 0 and for functions that are not there.
    fn ecam_target(&self, offset: u64) -> (Option<u8>, usize) {
        let slot = (offset >> 15) as u8 & 31;
        let here = offset >> 20 == 0 && offset & 0x7000 == 0 && slot < self.count();
        (here.then_some(slot), (offset & 0xfff) as usize)
    }

    /// Reads the memory-mapped configuration space at `offset` from its start. There are no
    /// extended registers: all ones from 256 on.
    pub fn ecam_read(&mut self, cx: &mut DeviceContext<'_>, offset: u64, into: &mut [u8]) {
        into.fill(0xff);
        if let (Some(slot), register) = self.ecam_target(offset)
            && register + into.len() <= 256
        {
            self.config_read(cx, slot, register, into);
        }
    }

    /// Writes the memory-mapped configuration space at `offset` from its start.
    pub fn ecam_write(&mut self, cx: &mut DeviceContext<'_>, offset: u64, from: &[u8]) {
        if let (Some(slot), register) = self.ecam_target(offset)
            && register + from.len() <= 256
        {
            self.config_write(cx, slot, register, from);
        }
    }

    /// Whether a BAR is decoded at `gpa`.
    pub fn claims(&self, gpa: Gpa) -> bool {
        self.window(gpa).is_some()
    }

    /// Reads device memory; true if a BAR is decoded at `gpa`. Bytes past its end are ones.
    pub fn mmio_read(&mut self, cx: &mut DeviceContext<'_>, gpa: Gpa, into: &mut [u8]) -> bool {
        let Some((slot, bar, offset, inside)) = self.window(gpa) else { return false };
        into.fill(0xff);
        let len = into.len().min(inside);
        self.call(cx, slot, |function, cx| function.bar_read(cx, bar, offset, &mut into[..len]));
        true
    }

    /// Writes device memory; true if a BAR is decoded at `gpa`. Bytes past its end are dropped.
    pub fn mmio_write(&mut self, cx: &mut DeviceContext<'_>, gpa: Gpa, from: &[u8]) -> bool {
        let Some((slot, bar, offset, inside)) = self.window(gpa) else { return false };
        let len = from.len().min(inside);
        self.call(cx, slot, |function, cx| function.bar_write(cx, bar, offset, &from[..len]));
        true
    }

    /// Slot, BAR, offset in it and bytes left in it, of the window that holds `gpa`.
    fn window(&self, gpa: Gpa) -> Option<(u8, u8, u64, usize)> {
        let window = self.windows.iter().find(|w| (w.first..=w.last).contains(&gpa.0))?;
        let inside = usize::try_from(window.last - gpa.0).unwrap_or(usize::MAX).saturating_add(1);
        Some((window.slot, window.bar, gpa.0 - window.first, inside))
    }

    /// The timer with the machine's number `timer` fired. Then ask [`PciBus::due`] of its slot.
    pub fn timer_fired(&mut self, cx: &mut DeviceContext<'_>, timer: u32) {
        let own = timer & ((1 << TIMER_BITS) - 1);
        self.call(cx, timer_slot(timer), |function, cx| function.timer_fired(cx, own));
    }

    /// Hands something from outside to the function in `slot`.
    pub fn deliver(&mut self, cx: &mut DeviceContext<'_>, slot: u8, what: Delivery) {
        self.call(cx, slot, |function, cx| function.deliver(cx, what));
    }

    /// Frames that can be delivered to `slot` now and will not be dropped for want of room.
    pub fn frame_room(&self, slot: u8) -> usize {
        self.function(slot).map_or(0, |function| function.frame_room())
    }

    /// Ids of disk requests of `slot` to complete at `now`, in order, each by a
    /// [`Delivery::Disk`].
    pub fn due(&self, slot: u8, now: VirtualTime) -> Vec<u64> {
        self.function(slot).map_or_else(Vec::new, |function| function.due(now))
    }

    /// Disk requests of `slot` without a completion yet, oldest first, to be issued again after a
    /// restore.
    pub fn outstanding(&self, slot: u8) -> Vec<DiskRequest> {
        self.function(slot).map_or_else(Vec::new, PciFunction::outstanding)
    }

    /// Power-up state with BARs placed anew. The caller disarms timers and drives lines low.
    pub fn reset(&mut self) {
        self.address = 0;
        self.bar_next = HOLE_START;
        for (slot, function) in self.functions.iter_mut().enumerate() {
            function.reset();
            self.bar_next = place(function.as_mut(), slot as u8, self.bar_next)
                .expect("what fitted when it was plugged in fits again");
        }
        self.rederive();
    }

    /// Adds the bus's section and those of its functions.
    pub fn save(&self, sections: &mut Sections) {
        let PciBus { functions, address, bar_next: _, windows: _, lines: _, scratch: _ } = self;
        sections.save(0, &BusSaved { address: *address });
        for (slot, function) in functions.iter().enumerate() {
            function.save(slot as u32, sections);
        }
    }

    /// Takes the bus's section and those of its functions, which must be the same as when saved.
    ///
    /// # Errors
    /// [`RestoreError`] when a section is missing or not valid.
    pub fn restore(&mut self, sections: &mut Sections) -> Result<(), RestoreError> {
        let BusSaved { address } = sections.restore(0)?;
        self.address = address & ADDRESS_WRITABLE;
        for (slot, function) in self.functions.iter_mut().enumerate() {
            function.restore(slot as u32, sections)?;
        }
        self.rederive();
        Ok(())
    }

    /// Runs `f` on a function, makes its timers the machine's, and follows its pin.
    fn call(
        &mut self,
        cx: &mut DeviceContext<'_>,
        slot: u8,
        f: impl FnOnce(&mut dyn PciFunction, &mut DeviceContext<'_>),
    ) {
        let Some(function) = self.functions.get_mut(usize::from(slot)) else { return };
        let effects = &mut self.scratch;
        f(function.as_mut(), &mut DeviceContext { now: cx.now, ram: cx.ram, effects });
        for effect in self.scratch.drain() {
            cx.effects.push(match effect {
                Effect::Timer { timer, at } => Effect::Timer { timer: timer_name(slot, timer), at },
                other => other,
            });
        }
        self.drive_lines(cx.effects);
    }

    fn drive_lines(&mut self, effects: &mut Effects) {
        let lines = self.line_levels();
        for (index, (&now, before)) in lines.iter().zip(self.lines).enumerate() {
            if now != before {
                effects.line(GSI_FIRST + index as u8, now);
            }
        }
        self.lines = lines;
    }

    fn line_levels(&self) -> [bool; LINES] {
        let mut lines = [false; LINES];
        for (slot, function) in self.functions.iter().enumerate() {
            let pin = function.config().interrupt_pin();
            if pin != 0 && function.intx() {
                lines[usize::from(interrupt_gsi(slot as u8, pin) - GSI_FIRST)] = true;
            }
        }
        lines
    }

    fn rederive(&mut self) {
        self.find_windows();
        self.lines = self.line_levels();
    }

    fn find_windows(&mut self) {
        self.windows.clear();
        for (slot, function) in self.functions.iter().enumerate() {
            for bar in 0..6u8 {
                if let Some((first, last)) = function.config().window(usize::from(bar)) {
                    self.windows.push(Window { first, last, slot: slot as u8, bar });
                }
            }
        }
    }
}

/// Places a function's BARs from `next` up as firmware would; returns the next free address.
fn place(function: &mut dyn PciFunction, slot: u8, mut next: u64) -> Result<u64, BusError> {
    let config = function.config_mut();
    for index in 0..6 {
        let Some(bar) = config.bar(index) else { continue };
        let full = BusError::NoRoom { size: bar.size };
        let address = next.checked_next_multiple_of(bar.size).ok_or(full)?;
        next = address.checked_add(bar.size).filter(|&end| end <= HOLE_END).ok_or(full)?;
        config.place_bar(index, address);
    }
    config.enable(command::MEMORY);
    let pin = config.interrupt_pin();
    if pin != 0 {
        config.set_interrupt_line(interrupt_gsi(slot, pin));
    }
    Ok(next)
}
