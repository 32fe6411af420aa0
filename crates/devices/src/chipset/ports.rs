//! The one table of fixed ports, addresses and interrupts; ACPI tables are built from it too.

use crate::PortRange;

/// Master 8259: command at this port, data at the next.
pub const PIC_MASTER: u16 = 0x20;
/// Slave 8259: command at this port, data at the next.
pub const PIC_SLAVE: u16 = 0xa0;
/// Edge/level control registers: master at this port, slave at the next.
pub const ELCR: u16 = 0x4d0;
/// 8254 channel 0; channels 1, 2 and the control word follow.
pub const PIT: u16 = 0x40;
/// NMI status and control: channel 2's gate and output, the speaker.
pub const SYSTEM_CONTROL_B: u16 = 0x61;
/// CMOS index; data at the next port.
pub const CMOS: u16 = 0x70;
/// First serial port, 8 bytes.
pub const COM1: u16 = 0x3f8;
/// Second serial port, 8 bytes.
pub const COM2: u16 = 0x2f8;
/// Keyboard controller data.
pub const KEYBOARD_DATA: u16 = 0x60;
/// Keyboard controller command and status.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Fast A20 and reset.
pub const SYSTEM_CONTROL_A: u16 = 0x92;
/// POST code display.
pub const POST: u16 = 0x80;
/// The other port kernels write to when they want a delay.
pub const DELAY: u16 = 0xed;
/// Coprocessor busy and reset latches.
pub const COPROCESSOR: u16 = 0xf0;
/// QEMU's pvpanic.
pub const PVPANIC: u16 = 0x505;
/// Where the debug-exit test device is when it is asked for without a port.
pub const DEBUG_EXIT: u16 = 0xf4;

/// ACPI PM1a event block: status (2 bytes), enable (2 bytes).
pub const PM1A_EVENT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const PM1A_EVENT_LEN: u8 = 4;
/// ACPI PM1a control block.
pub const PM1A_CONTROL: u16 = 0x604;
/// Bytes of the PM1a control block.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// ACPI power-management timer, 32 bits (FADT flag TMR_VAL_EXT is to be set).
pub const PM_TIMER: u16 = 0x608;
/// Bytes of the power-management timer.
pub const PM_TIMER_LEN: u8 = 4;
/// ACPI GPE0 block: 4 bytes of status, 4 bytes of enables.
pub const GPE0: u16 = 0x620;
/// Bytes of the GPE0 block.
pub const GPE0_LEN: u8 = 8;
/// Reset control register (FADT RESET_REG); the value that resets is [`RESET_VALUE`]. It lies
/// inside PCI's 0xcf8..=0xcff and takes precedence there for accesses that start at it.
pub const RESET: u16 = 0xcf9;
/// FADT RESET_VALUE: a hard reset.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5 in PM1a control, for the `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Physical address of the I/O APIC, 4 KiB.
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;
/// Bytes of physical address space the I/O APIC takes.
pub const IOAPIC_SIZE: u64 = 0x1000;

/// Interrupt of PIT channel 0; ACPI needs no override for it.
pub const PIT_IRQ: u8 = 0;
/// Interrupt of the second serial port.
pub const COM2_IRQ: u8 = 3;
/// Interrupt of the first serial port.
pub const COM1_IRQ: u8 = 4;
/// Interrupt of the CMOS clock.
pub const CMOS_IRQ: u8 = 8;
/// ACPI's system control interrupt: level-triggered (MADT override: active high or low as the
/// tables say, polarity is taken out).
pub const SCI_IRQ: u8 = 9;
/// CMOS register that holds the century (FADT CENTURY).
pub const CENTURY_REGISTER: u8 = 0x32;

/// The range of `len` ports from `first`.
pub(crate) const fn range(first: u16, len: u16) -> PortRange {
    PortRange { first, last: first + (len - 1) }
}
