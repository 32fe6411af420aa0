//! Interrupt messages between processors, I/O APICs and devices (SDM vol. 3, 11.6 and 11.11).

/// How a message is delivered (SDM table 11-2; reserved ones have no name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at all targets.
    Fixed,
    /// The vector, at one target.
    LowestPriority,
    /// System-management interrupt; the model has none, it is ignored.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up; the vector is the page to start at.
    Startup,
    /// The vector comes from the PIC.
    ExtInt,
}

impl DeliveryMode {
    /// The mode of bits 10:8 of ICR, an LVT entry, a redirection entry or MSI data.
    pub fn of(bits: u32) -> Option<DeliveryMode> {
        Some(match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::Startup,
            7 => DeliveryMode::ExtInt,
            _ => return None,
        })
    }
}

/// For whom a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The processor with this APIC ID; all of them for `u32::MAX`.
    Physical(u32),
    /// Those whose logical destination matches.
    Logical(u32),
    /// All, sender included.
    Everyone,
    /// All but the sender.
    Others,
}

impl Target {
    /// The target of an 8-bit destination.
    pub(super) fn of_8_bits(destination: u8, logical: bool) -> Target {
        match (logical, destination) {
            (true, _) => Target::Logical(u32::from(destination)),
            (false, 0xff) => Target::Physical(u32::MAX),
            (false, _) => Target::Physical(u32::from(destination)),
        }
    }
}

/// An interrupt on its way to one or more local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// For whom.
    pub target: Target,
    /// How.
    pub mode: DeliveryMode,
    /// The vector, where the mode has one.
    pub vector: u8,
    /// Level-triggered: the end of the interrupt is broadcast.
    pub level: bool,
}

impl ApicMessage {
    /// The message that a write of `data` to `address` is (SDM 11.11), `None` outside
    /// 0xFEE00000..=0xFEEFFFFF and for reserved delivery modes. I/O APICs speak this form too.
    pub fn from_msi(address: u64, data: u32) -> Option<ApicMessage> {
        if address >> 20 != 0xfee {
            return None;
        }
        Some(ApicMessage {
            target: Target::of_8_bits((address >> 12) as u8, address & 4 != 0),
            mode: DeliveryMode::of(data >> 8)?,
            vector: data as u8,
            level: data & (1 << 15) != 0,
        })
    }
}

/// What a message makes the vCPU do beyond its local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A non-maskable interrupt is pending.
    Nmi,
    /// INIT reset; the local APIC is to be told with [`super::Lapic::init`].
    Init,
    /// Start at this page if waiting for it.
    Startup(u8),
    /// Take an interrupt from the PIC.
    ExtInt,
}
