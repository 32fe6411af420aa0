//! The local APIC.
