//! Network card (virtio 1.2 section 5.1): one pair of queues, mergeable receive buffers.
//!
//! Offloads and more queues are not offered yet. What they need has its place: the header with the
//! checksum and segmentation fields is read and written in `header`, chains are gathered by
//! pointer before any is handled in `tx`, and queue pairs are numbered as the specification does.

mod device;
mod header;
mod rx;
mod saved;
mod tx;

pub use device::{Net, NetCounts, NetSpec};
pub use saved::NetSaved;
