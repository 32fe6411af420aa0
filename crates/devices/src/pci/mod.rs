//! PCI: configuration space, BARs, the bus.
