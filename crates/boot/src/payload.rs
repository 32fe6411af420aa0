//! The compressed kernel inside a bzImage, decompressed on the host within a limit.
//!
//! The compressors are those of Linux's `CONFIG_KERNEL_*`. Those rarely used (bzip2, LZMA, LZO)
//! are named but not decompressed: the guest then runs the image's own decompressor.

use std::fmt;
use std::io::Read;

use crate::bytes::{slice, u8_at, u16_at, u32_at};
use crate::error::BootError;

/// How the kernel in a bzImage is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressor {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
    /// xz, with Linux's x86 branch filter.
    Xz,
    /// Any other; left to the guest.
    Other,
}

impl fmt::Display for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compressor::None => "uncompressed",
            Compressor::Gzip => "gzip",
            Compressor::Lz4 => "LZ4",
            Compressor::Zstd => "zstd",
            Compressor::Xz => "xz",
            Compressor::Other => "unknown",
        })
    }
}

/// Largest dictionary an xz stream may ask for, KiB. Linux's build uses 32 MiB at most.
const XZ_MEMORY_MAX_KIB: u32 = 96 << 10;
/// Bytes after the stream that hold the size of the decompressed kernel (Linux, `size_append`);
/// a gzip stream ends in the same number (RFC 1952, ISIZE).
const SIZE_TRAILER: usize = 4;

impl Compressor {
    /// The compressor of a payload, by its first bytes.
    pub(crate) fn of(payload: &[u8]) -> Compressor {
        match payload {
            [0x7f, b'E', b'L', b'F', ..] => Compressor::None,
            [0x1f, 0x8b, ..] => Compressor::Gzip,
            [0x02, 0x21, 0x4c, 0x18, ..] => Compressor::Lz4,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compressor::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compressor::Xz,
            _ => Compressor::Other,
        }
    }
}

/// Decompresses a payload to at most `size_max` bytes. `None` for [`Compressor::Other`].
pub(crate) fn decompress(payload: &[u8], size_max: u64) -> Result<Option<Vec<u8>>, BootError> {
    let compressor = Compressor::of(payload);
    let corrupt = |reason: String| BootError::Payload { compressor, reason };
    match compressor {
        Compressor::Other => return Ok(None),
        Compressor::None if payload.len() as u64 > size_max => {
            return Err(BootError::PayloadTooLarge { max: size_max });
        }
        Compressor::None => return Ok(Some(payload.to_vec())),
        _ => {}
    }
    let body = payload.len().checked_sub(SIZE_TRAILER).ok_or(corrupt("it is too short".into()))?;
    let promised = u64::from(u32_at(payload, body as u64).unwrap_or(0));
    let body = &payload[..body];
    if promised > size_max {
        return Err(BootError::PayloadTooLarge { max: size_max });
    }
    let unpacked = match compressor {
        Compressor::None | Compressor::Other => unreachable!("returned above"),
        Compressor::Gzip => gunzip(payload, promised as usize),
        Compressor::Lz4 => read_all(lz4_flex::frame::FrameDecoder::new(body), promised),
        Compressor::Zstd => ruzstd::decoding::StreamingDecoder::new(body)
            .map_err(|e| e.to_string())
            .and_then(|decoder| read_all(decoder, promised)),
        Compressor::Xz => {
            read_all(lzma_rust2::XzReader::new_mem_limit(body, false, XZ_MEMORY_MAX_KIB), promised)
        }
    }
    .map_err(corrupt)?;
    if unpacked.len() as u64 != promised {
        let reason = format!("it should unpack to {promised} bytes, got {}", unpacked.len());
        return Err(corrupt(reason));
    }
    Ok(Some(unpacked))
}

/// Reads to the end, but no further than one byte past `promised`.
fn read_all(from: impl Read, promised: u64) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    from.take(promised + 1).read_to_end(&mut unpacked).map_err(|e| e.to_string())?;
    Ok(unpacked)
}

fn gunzip(payload: &[u8], promised: usize) -> Result<Vec<u8>, String> {
    let start = gzip_header_size(payload).ok_or("its gzip header is malformed")?;
    let stream = slice(payload, start, payload.len() as u64 - start).ok_or("it is too short")?;
    miniz_oxide::inflate::decompress_to_vec_with_limit(stream, promised).map_err(|e| e.to_string())
}

/// Bytes of the gzip member header (RFC 1952, 2.3).
fn gzip_header_size(payload: &[u8]) -> Option<u64> {
    const DEFLATE: u8 = 8;
    const HEADER_CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    if u8_at(payload, 2)? != DEFLATE {
        return None;
    }
    let flags = u8_at(payload, 3)?;
    let mut at = 10;
    if flags & EXTRA != 0 {
        at += 2 + u64::from(u16_at(payload, at)?);
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let rest = payload.get(at as usize..)?;
            at += rest.iter().position(|&b| b == 0)? as u64 + 1;
        }
    }
    if flags & HEADER_CHECKSUM != 0 {
        at += 2;
    }
    (at <= payload.len() as u64).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "doppel\n" times 100, by `gzip -9n`, `xz --check=crc32 --x86 --lzma2`, `zstd -19`,
    /// `lz4 -l -9`; the last three with the size appended as Linux's build does.
    const PACKED: [(Compressor, &[u8]); 4] = include!("payload_samples.in");

    #[test]
    fn payload_of_each_compressor_unpacks() {
        let expected = b"doppel\n".repeat(100);
        for (compressor, packed) in PACKED {
            assert_eq!(Compressor::of(packed), compressor);
            assert_eq!(decompress(packed, 4096).unwrap().unwrap(), expected, "{compressor}");
        }
    }

    #[test]
    fn payload_larger_than_the_limit_is_refused() {
        for (_, packed) in PACKED {
            assert_eq!(decompress(packed, 699), Err(BootError::PayloadTooLarge { max: 699 }));
        }
    }

    #[test]
    fn payload_that_lies_about_its_size_is_refused() {
        for (compressor, packed) in PACKED {
            for size in [0u32, 1, 699, 701] {
                let mut packed = packed.to_vec();
                let at = packed.len() - 4;
                packed[at..].copy_from_slice(&size.to_le_bytes());
                let error = decompress(&packed, 4096).unwrap_err();
                assert!(
                    matches!(error, BootError::Payload { .. }),
                    "{compressor} {size}: {error:?}"
                );
            }
        }
    }

    #[test]
    fn payload_mutated_never_panics() {
        let mut random = crate::testing::Random(1);
        for (_, packed) in PACKED {
            for _ in 0..3000 {
                let mut packed = packed.to_vec();
                random.mutate(&mut packed);
                let _ = decompress(&packed, 4096);
            }
        }
    }

    #[test]
    fn payload_of_rare_compressor_is_left_to_the_guest() {
        assert_eq!(decompress(b"BZh91AY", 1 << 20), Ok(None));
    }
}
