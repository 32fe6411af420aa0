//! Features, limits and the configuration structure (section 5.2.4), and how long requests take.

use journal::DiskOperation;

use super::BlkSpec;

/// Bytes in a sector, whatever the block size (section 5.2.4).
pub(super) const SECTOR_SIZE: u64 = 512;
/// Elements of the request queue.
pub(super) const QUEUE_SIZE: u16 = 256;
/// Most data segments of a request.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of a segment.
const SEGMENT_SIZE_MAX: u32 = 16384;
/// Most data bytes of a request; what the two limits above allow is less.
pub(super) const REQUEST_SIZE_MAX: u64 = 4 << 20;
/// Most requests in flight, those abandoned by a reset included.
pub(super) const IN_FLIGHT_MAX: usize = QUEUE_SIZE as usize;
/// Most data bytes in flight, a single request excepted.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 16 << 20;
/// Most sectors of a discard or write-zeroes request: 1 GiB.
pub(super) const RANGE_SECTORS_MAX: u32 = (1 << 30) / SECTOR_SIZE as u32;
/// Bytes of the identification string (section 5.2.6.1).
pub(super) const ID_SIZE: usize = 20;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// Reads and writes take this long, nanoseconds, ...
const TRANSFER_NS: u64 = 60_000;
/// ... and this much longer per KiB.
const TRANSFER_NS_PER_KIB: u64 = 250;
/// A flush takes this long.
const FLUSH_NS: u64 = 150_000;
/// A discard or write-zeroes takes this long.
const RANGE_NS: u64 = 80_000;

/// Virtual nanoseconds from the notification of a request to its completion.
pub(super) fn latency_ns(operation: &DiskOperation) -> u64 {
    let transfer = |bytes: u64| TRANSFER_NS + bytes / 1024 * TRANSFER_NS_PER_KIB;
    match operation {
        DiskOperation::Read { len, .. } => transfer(u64::from(*len)),
        DiskOperation::Write { data, .. } => transfer(data.len() as u64),
        DiskOperation::Flush => FLUSH_NS,
        DiskOperation::Discard { .. } | DiskOperation::WriteZeroes { .. } => RANGE_NS,
    }
}

/// Features of a disk.
pub(super) fn features(spec: &BlkSpec) -> u64 {
    let always = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
    always | if spec.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES }
}

/// The configuration structure.
pub(super) fn config(spec: &BlkSpec) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend((spec.size / SECTOR_SIZE).to_le_bytes());
    config.extend(SEGMENT_SIZE_MAX.to_le_bytes());
    config.extend(SEGMENTS_MAX.to_le_bytes());
    config.extend([0; 4]); // geometry: not offered
    config.extend((SECTOR_SIZE as u32).to_le_bytes());
    config.extend([3, 0]); // physical block of 2^3 sectors, aligned
    config.extend(8u16.to_le_bytes()); // suggested least transfer, sectors
    config.extend(0u32.to_le_bytes()); // no preferred transfer
    config.extend([1, 0]); // write-back cache; padding
    config.extend(1u16.to_le_bytes()); // queues
    config.extend(RANGE_SECTORS_MAX.to_le_bytes());
    config.extend(1u32.to_le_bytes()); // discard segments
    config.extend(8u32.to_le_bytes()); // discard alignment, sectors
    config.extend(RANGE_SECTORS_MAX.to_le_bytes());
    config.extend(1u32.to_le_bytes()); // write-zeroes segments
    config.extend([1, 0, 0, 0]); // write-zeroes may unmap; padding
    config
}
