//! Tests that drive the devices from the guest side.
