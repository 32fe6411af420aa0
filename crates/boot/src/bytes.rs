//! Little-endian reads from a file that may be hostile: out of range is `None`, never a panic.

/// `len` bytes at `offset`.
pub(crate) fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = offset.checked_add(len)?;
    bytes.get(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
}

fn array<const N: usize>(bytes: &[u8], offset: u64) -> Option<[u8; N]> {
    slice(bytes, offset, N as u64)?.try_into().ok()
}

/// One byte at `offset`.
pub(crate) fn u8_at(bytes: &[u8], offset: u64) -> Option<u8> {
    array::<1>(bytes, offset).map(|b| b[0])
}

/// Two bytes at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: u64) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// Four bytes at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: u64) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Eight bytes at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: u64) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Writes a value into a structure under construction; panics outside it (a bug of the caller).
pub(crate) fn put<const N: usize>(into: &mut [u8], offset: usize, value: [u8; N]) {
    into[offset..offset + N].copy_from_slice(&value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_out_of_range_is_none() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(u64_at(&bytes, 0), Some(0x0807_0605_0403_0201));
        assert_eq!(u32_at(&bytes, 4), Some(0x0807_0605));
        assert_eq!(u32_at(&bytes, 5), None);
        assert_eq!(u16_at(&bytes, u64::MAX), None);
        assert_eq!(u8_at(&bytes, 8), None);
    }
}
