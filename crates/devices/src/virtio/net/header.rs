//! The header before each frame, `virtio_net_hdr` (section 5.1.6).

/// Bytes of the header with `num_buffers`, as every modern device has it.
pub(super) const HEADER_SIZE: u64 = 12;

/// A header to the driver: no checksum to do, no segmentation, `buffers` merged.
///
/// Fields: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
pub(super) fn received(buffers: u16) -> [u8; HEADER_SIZE as usize] {
    let mut header = [0; HEADER_SIZE as usize];
    header[10..12].copy_from_slice(&buffers.to_le_bytes());
    header
}
