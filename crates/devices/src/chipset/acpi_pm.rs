//! ACPI fixed hardware: PM1a event and control blocks, PM timer, GPE0, reset register (ACPI 6.5,
//! 4.8.3 and 4.8.4).
//!
//! SCI_EN is hard-wired to 1: the machine is in ACPI mode from reset, there is no SMI command
//! port. All registers are read and written by bytes, whatever the size of the access.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};
use types::VirtualTime;

use super::ports;
use super::rate::{ticks_at, time_of_tick};
use crate::{Device, DeviceContext, Effect, PortRange, PowerEvent};

/// Frequency of the PM timer, Hz (ACPI 6.5, 4.8.2.1).
pub const PM_TIMER_HZ: u64 = 3_579_545;

const TIMER: u16 = 1 << 0;
const POWER_BUTTON: u16 = 1 << 8;
/// Status and enable bits that exist: timer, bus master (status only), global lock, buttons, RTC.
const STATUS_BITS: u16 = 0x8731;
const ENABLE_BITS: u16 = 0x0721;

const SCI_ENABLED: u16 = 1 << 0;
/// Sleep type and SCI_EN are what reads back; SLP_EN and GBL_RLS are write-only.
const CONTROL_WRITABLE: u16 = 0x1c02;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The PM timer's status bit is set each time bit 31 changes.
const OVERFLOW_SHIFT: u32 = 31;

/// The fixed hardware.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u32,
    gpe_enable: u32,
    reset_control: u8,
    /// Changes of the timer's top bit that `status` knows of.
    overflows_seen: u64,
    sci_high: bool,
}

impl AcpiPm {
    /// Somebody pressed the power button: the guest's ACPI driver is told.
    pub fn press_power_button(&mut self, cx: &mut DeviceContext<'_>) {
        self.status |= POWER_BUTTON;
        self.update(cx);
    }

    /// Sets general-purpose event `event`, 0 to 31; others are ignored.
    pub fn raise_gpe(&mut self, cx: &mut DeviceContext<'_>, event: u8) {
        self.gpe_status |= 1u32.checked_shl(u32::from(event)).unwrap_or(0);
        self.update(cx);
    }

    /// Takes note of timer overflows up to now.
    fn settle(&mut self, now: VirtualTime) {
        let overflows = ticks_at(now, PM_TIMER_HZ) >> OVERFLOW_SHIFT;
        if overflows != self.overflows_seen {
            self.overflows_seen = overflows;
            self.status |= TIMER;
        }
    }

    /// Drives the SCI, and arms the overflow timer if an overflow would change it.
    fn update(&mut self, cx: &mut DeviceContext<'_>) {
        self.settle(cx.now);
        let high = self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0;
        if high != self.sci_high {
            self.sci_high = high;
            cx.effects.line(ports::SCI_IRQ, high);
        }
    }

    fn arm(&self, cx: &mut DeviceContext<'_>) {
        let next = (self.overflows_seen + 1) << OVERFLOW_SHIFT;
        let wanted = self.enable & TIMER != 0;
        let at = wanted.then(|| time_of_tick(next, PM_TIMER_HZ)).flatten();
        cx.effects.timer(0, at);
    }

    fn read_byte(&self, now: VirtualTime, port: u16) -> u8 {
        let byte = |value: u32, base: u16| value.to_le_bytes()[usize::from((port - base) & 3)];
        match port {
            0x600..0x604 => {
                byte(u32::from(self.status) | (u32::from(self.enable) << 16), ports::PM1A_EVENT)
            }
            0x604..0x606 => byte(u32::from(self.control | SCI_ENABLED), ports::PM1A_CONTROL),
            0x608..0x60c => byte(ticks_at(now, PM_TIMER_HZ) as u32, ports::PM_TIMER),
            0x620..0x624 => byte(self.gpe_status, ports::GPE0),
            0x624..0x628 => byte(self.gpe_enable, ports::GPE0),
            ports::RESET => self.reset_control,
            _ => 0,
        }
    }

    fn write_byte(&mut self, cx: &mut DeviceContext<'_>, port: u16, value: u8) {
        let shift = 8 * u32::from(port & 3);
        let (place, mask) = (u32::from(value) << shift, 0xff << shift);
        match port {
            0x600..0x602 => self.status &= !(place as u16),
            0x602..0x604 => {
                let (place, mask) = ((place >> 16) as u16, (mask >> 16) as u16);
                self.enable = (self.enable & !mask) | (place & ENABLE_BITS);
                self.arm(cx);
            }
            0x604..0x606 => {
                let mask = mask as u16 & CONTROL_WRITABLE;
                self.control = (self.control & !mask) | (place as u16 & mask);
                if port & 1 == 1 && value & SLEEP_ENABLE != 0 {
                    self.sleep(cx, (value >> 2) & 7);
                }
            }
            0x620..0x624 => self.gpe_status &= !place,
            0x624..0x628 => self.gpe_enable = (self.gpe_enable & !mask) | place,
            ports::RESET => self.write_reset(cx, value),
            _ => {}
        }
    }

    fn sleep(&self, cx: &mut DeviceContext<'_>, sleep_type: u8) {
        if sleep_type == ports::SLEEP_TYPE_S5 {
            cx.effects.push(Effect::Power(PowerEvent::PowerOff));
        }
    }

    /// Reset control (ICH data sheet, RST_CNT): a 0 to 1 change of bit 2 resets.
    fn write_reset(&mut self, cx: &mut DeviceContext<'_>, value: u8) {
        if value & !self.reset_control & 0x04 != 0 {
            cx.effects.push(Effect::Power(PowerEvent::Reset));
        }
        self.reset_control = value & 0x0e;
    }
}

impl Device for AcpiPm {
    fn name(&self) -> &'static str {
        "acpi-pm"
    }

    fn reset(&mut self) {
        *self = AcpiPm { overflows_seen: self.overflows_seen, ..AcpiPm::default() };
    }

    fn ports(&self) -> &[PortRange] {
        const {
            &[
                ports::range(ports::PM1A_EVENT, ports::PM1A_EVENT_LEN as u16),
                ports::range(ports::PM1A_CONTROL, ports::PM1A_CONTROL_LEN as u16),
                ports::range(ports::PM_TIMER, ports::PM_TIMER_LEN as u16),
                ports::range(ports::GPE0, ports::GPE0_LEN as u16),
                ports::range(ports::RESET, 1),
            ]
        }
    }

    fn port_read(&mut self, cx: &mut DeviceContext<'_>, port: u16, size: u8) -> u32 {
        self.settle(cx.now);
        let bytes = (0..u16::from(size.min(4))).rev();
        bytes.fold(0, |value, i| {
            value << 8 | u32::from(self.read_byte(cx.now, port.wrapping_add(i)))
        })
    }

    fn port_write(&mut self, cx: &mut DeviceContext<'_>, port: u16, size: u8, value: u32) {
        self.settle(cx.now);
        // A wide access to the reset register is PCI's business.
        let size = if port == ports::RESET { 1 } else { size.min(4) };
        for i in 0..u16::from(size) {
            self.write_byte(cx, port.wrapping_add(i), (value >> (8 * i)) as u8);
        }
        self.update(cx);
    }

    fn timer_fired(&mut self, cx: &mut DeviceContext<'_>, _timer: u32) {
        self.update(cx);
        self.arm(cx);
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        let &AcpiPm {
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            reset_control,
            overflows_seen,
            sci_high,
        } = self;
        let saved = AcpiPmSaved {
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            reset_control,
            overflows_seen,
            sci_high,
        };
        sections.save(instance, &saved);
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let AcpiPmSaved {
            status,
            enable,
            control,
            gpe_status,
            gpe_enable,
            reset_control,
            overflows_seen,
            sci_high,
        } = sections.restore(instance)?;
        *self = AcpiPm {
            status: status & STATUS_BITS,
            enable: enable & ENABLE_BITS,
            control: control & CONTROL_WRITABLE,
            gpe_status,
            gpe_enable,
            reset_control,
            // As much as the end of time allows, so that one more does not overflow.
            overflows_seen: overflows_seen.min(u64::MAX >> (OVERFLOW_SHIFT + 1)),
            sci_high,
        };
        Ok(())
    }
}

/// Saved form of [`AcpiPm`].
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub struct AcpiPmSaved {
    /// PM1 status.
    #[n(0)]
    pub status: u16,
    /// PM1 enable.
    #[n(1)]
    pub enable: u16,
    /// PM1 control.
    #[n(2)]
    pub control: u16,
    /// GPE0 status.
    #[n(3)]
    pub gpe_status: u32,
    /// GPE0 enable.
    #[n(4)]
    pub gpe_enable: u32,
    /// Reset control.
    #[n(5)]
    pub reset_control: u8,
    /// Changes of the PM timer's top bit taken note of.
    #[n(6)]
    pub overflows_seen: u64,
    /// Level of the SCI as last driven.
    #[n(7)]
    pub sci_high: bool,
}

impl Saved for AcpiPmSaved {
    const NAME: &'static str = "acpi-pm";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, fuzz};
    use super::*;

    fn write16(bench: &mut Bench, pm: &mut AcpiPm, port: u16, value: u16) {
        bench.with(|cx| pm.port_write(cx, port, 2, u32::from(value)));
    }

    fn read(bench: &mut Bench, pm: &mut AcpiPm, port: u16, size: u8) -> u32 {
        bench.with(|cx| pm.port_read(cx, port, size))
    }

    #[test]
    fn power_button_raises_sci_until_cleared() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
        write16(&mut bench, &mut pm, 0x602, POWER_BUTTON);
        bench.with(|cx| pm.press_power_button(cx));
        assert_eq!(bench.line(9), Some(true));
        assert_eq!(read(&mut bench, &mut pm, 0x600, 4), 0x0100_0100);
        write16(&mut bench, &mut pm, 0x600, POWER_BUTTON);
        assert_eq!(bench.line(9), Some(false));
    }

    #[test]
    fn sleep_s5_powers_off_and_other_sleeps_do_not() {
        for (control, expected) in [(0x3400, true), (0x2000, false), (0x1400, false)] {
            let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
            write16(&mut bench, &mut pm, 0x604, control);
            let off = bench.effects().contains(&Effect::Power(PowerEvent::PowerOff));
            assert_eq!(off, expected, "{control:#x}");
        }
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
        assert_eq!(read(&mut bench, &mut pm, 0x604, 2), 1, "SCI_EN");
    }

    #[test]
    fn timer_counts_and_overflow_interrupts() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
        bench.now = VirtualTime(1_000_000_000);
        assert_eq!(read(&mut bench, &mut pm, 0x608, 4), 3_579_545);
        write16(&mut bench, &mut pm, 0x602, TIMER);
        let at = bench.armed(0).unwrap();
        assert_eq!(at, time_of_tick(1 << 31, PM_TIMER_HZ).unwrap());
        bench.now = at;
        bench.with(|cx| pm.timer_fired(cx, 0));
        assert_eq!(bench.line(9), Some(true));
        write16(&mut bench, &mut pm, 0x600, TIMER);
        assert_eq!(bench.line(9), Some(false));
    }

    #[test]
    fn gpe_needs_its_enable() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
        bench.with(|cx| pm.raise_gpe(cx, 9));
        assert_eq!(bench.line(9), None);
        bench.write(&mut pm, ports::GPE0 + 5, 0x02);
        assert_eq!(bench.line(9), Some(true));
        bench.write(&mut pm, ports::GPE0 + 1, 0x02);
        assert_eq!(bench.line(9), Some(false));
    }

    #[test]
    fn reset_register_resets_on_rising_bit_2() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::default());
        bench.write(&mut pm, ports::RESET, 0x02);
        assert_eq!(bench.effects(), []);
        bench.write(&mut pm, ports::RESET, 0x06);
        assert_eq!(bench.effects(), [Effect::Power(PowerEvent::Reset)]);
    }

    #[test]
    fn hostile_guest_is_survived() {
        fuzz(AcpiPm::default, 7, 50_000);
    }
}
