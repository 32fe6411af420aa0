//! Virtio 1.x devices over PCI.
