//! The chipset of a PC: one file per device.
