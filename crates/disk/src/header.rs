//! The header of a qcow2 file, read and bounded before anything else looks at the file.
//!
//! Source: the qcow2 specification, `docs/interop/qcow2.txt` of QEMU (sections "Header" and
//! "Header extensions"); limits are QEMU's own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{DiskError, SECTOR_SIZE};

/// The first bytes of every qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

const V2_SIZE: usize = 72;
const V3_SIZE: usize = 104;
const L1_SIZE_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_SIZE_MAX: u64 = 8 << 20;
const BACKING_NAME_MAX: u32 = 1023;
const EXTENSIONS_MAX: usize = 64;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

const FEATURE_DIRTY: u64 = 1 << 0;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;

/// A backing file as its overlay names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Path as written, relative to the overlay's folder.
    pub name: String,
    /// Format as written, if any.
    pub format: Option<String>,
}

/// The checked fields of a header. Offsets are bytes in the file, sizes bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_size: u64,
    pub l1_entries: u64,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_size: u64,
    /// log2 of the bits of a refcount.
    pub refcount_order: u32,
    pub snapshots: u32,
    pub backing: Option<Backing>,
}

/// A reader of big-endian fields that knows whose header it reads.
struct Fields<'a> {
    path: &'a Path,
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let mut field = [0; 4];
        field.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_be_bytes(field)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    fn corrupt(&self, what: String) -> DiskError {
        DiskError::Corrupt { path: self.path.into(), what }
    }

    fn ensure(&self, holds: bool, what: impl FnOnce() -> String) -> Result<(), DiskError> {
        if holds { Ok(()) } else { Err(self.corrupt(what())) }
    }
}

impl Header {
    /// Reads the header of `file`, `len` bytes long.
    ///
    /// Fails with [`DiskError::Corrupt`], [`DiskError::Unsupported`] or [`DiskError::Size`].
    pub fn read(path: &Path, file: &File, len: u64) -> Result<Header, DiskError> {
        let mut bytes = [0; V3_SIZE];
        let available = usize::try_from(len).unwrap_or(usize::MAX).min(V3_SIZE);
        read_exact(path, file, 0, &mut bytes[..available])?;
        let fields = Fields { path, bytes: &bytes };
        let version = fields.u32(4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(
                path,
                format!("qcow2 version {version}"),
                "convert it with `qemu-img convert -O qcow2`",
            ));
        }
        let size = if version == 2 { V2_SIZE } else { V3_SIZE };
        fields.ensure(available >= size, || format!("it ends inside its header, after {len}"))?;
        let cluster_bits = fields.u32(20);
        fields.ensure((9..=21).contains(&cluster_bits), || {
            format!("cluster size 2^{cluster_bits} is not between 2^9 and 2^21")
        })?;
        if version == 3 {
            check_features(path, fields.u64(72), fields.u32(100), cluster_bits)?;
        }
        check_encryption(path, fields.u32(32))?;
        let refcount_order = if version == 2 { 4 } else { fields.u32(96) };
        fields.ensure(refcount_order <= 6, || format!("refcounts of 2^{refcount_order} bits"))?;
        let cluster_size = 1 << cluster_bits;
        let header = Header {
            version,
            cluster_size,
            l1_entries: fields.u32(36).into(),
            l1_offset: fields.u64(40),
            refcount_table_offset: fields.u64(48),
            refcount_table_size: u64::from(fields.u32(56)) * cluster_size,
            refcount_order,
            snapshots: fields.u32(60),
            backing: read_backing(&fields, file, cluster_size, len)?,
        };
        header.check_tables(&fields, fields.u64(24), len)?;
        Ok(header)
    }

    fn check_tables(&self, fields: &Fields, size: u64, len: u64) -> Result<(), DiskError> {
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(DiskError::Size {
                path: fields.path.into(),
                size,
                problem: "but a disk has a positive multiple of 512; change it with `qemu-img \
                          resize`",
            });
        }
        let covered_by_entry = self.cluster_size * (self.cluster_size / 8);
        let needed = size.div_ceil(covered_by_entry);
        fields.ensure(self.l1_entries >= needed, || {
            format!("its L1 table has {} entries, its size needs {needed}", self.l1_entries)
        })?;
        self.check_table(fields, "L1", self.l1_offset, self.l1_entries * 8, L1_SIZE_MAX, len)?;
        self.check_table(
            fields,
            "refcount",
            self.refcount_table_offset,
            self.refcount_table_size,
            REFCOUNT_TABLE_SIZE_MAX,
            len,
        )
    }

    fn check_table(
        &self,
        fields: &Fields,
        name: &str,
        offset: u64,
        size: u64,
        size_max: u64,
        len: u64,
    ) -> Result<(), DiskError> {
        fields.ensure(size > 0 && size <= size_max, || {
            format!(
                "its {name} table has {size} bytes, more than 0 and at most {size_max} expected"
            )
        })?;
        fields.ensure(offset > 0 && offset.is_multiple_of(self.cluster_size), || {
            format!("its {name} table is at offset {offset}, where no cluster begins")
        })?;
        let end = offset.checked_add(size);
        fields.ensure(end.is_some_and(|end| end <= len), || {
            format!(
                "its {name} table of {size} bytes at offset {offset} reaches past the end of the \
                 file, which has {len} bytes"
            )
        })
    }
}

fn check_features(
    path: &Path,
    features: u64,
    header_len: u32,
    cluster_bits: u32,
) -> Result<(), DiskError> {
    let corrupt = |what: &str| Err(DiskError::Corrupt { path: path.into(), what: what.into() });
    if features & FEATURE_CORRUPT != 0 {
        return corrupt("it is marked corrupt");
    }
    if features & FEATURE_DIRTY != 0 {
        return corrupt("it was not closed cleanly (dirty bit, lazy refcounts)");
    }
    let convert = "convert it with `qemu-img convert -O qcow2`";
    let named = [
        (FEATURE_DATA_FILE, "an external data file"),
        (FEATURE_COMPRESSION, "a compression type other than zlib (zstd)"),
        (FEATURE_EXTENDED_L2, "extended L2 entries (subclusters)"),
    ];
    for (bit, name) in named {
        if features & bit != 0 {
            return Err(unsupported(path, format!("the qcow2 feature {name}"), convert));
        }
    }
    if features != 0 {
        let feature = format!("unknown qcow2 feature bits {features:#x}");
        return Err(unsupported(path, feature, convert));
    }
    if (header_len as usize) < V3_SIZE || u64::from(header_len) > 1 << cluster_bits {
        return corrupt("its header length is impossible");
    }
    Ok(())
}

fn check_encryption(path: &Path, method: u32) -> Result<(), DiskError> {
    let name = match method {
        0 => return Ok(()),
        1 => "AES encryption".to_owned(),
        2 => "LUKS encryption".to_owned(),
        other => format!("encryption method {other}"),
    };
    let advice = "decrypt it with `qemu-img convert`, and encrypt in the guest or under the file";
    Err(unsupported(path, name, advice))
}

fn read_backing(
    fields: &Fields,
    file: &File,
    cluster_size: u64,
    len: u64,
) -> Result<Option<Backing>, DiskError> {
    let (offset, size) = (fields.u64(8), fields.u32(16));
    if offset == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(size.into());
    let fits = end.is_some_and(|end| end < cluster_size.min(len));
    fields.ensure((1..=BACKING_NAME_MAX).contains(&size) && fits, || {
        format!("its backing file name of {size} bytes at offset {offset} is out of bounds")
    })?;
    let mut name = vec![0; size as usize];
    read_exact(fields.path, file, offset, &mut name)?;
    let name = String::from_utf8(name)
        .map_err(|_| fields.corrupt("its backing file name is not UTF-8".into()))?;
    fields.ensure(!name.contains('\0'), || "its backing file name contains a zero byte".into())?;
    let format = read_backing_format(fields, file, cluster_size.min(len))?;
    Ok(Some(Backing { name, format }))
}

/// Walks the header extensions, which lie below `end`, for the backing file's format.
fn read_backing_format(
    fields: &Fields,
    file: &File,
    end: u64,
) -> Result<Option<String>, DiskError> {
    let mut offset = if fields.u32(4) == 2 { V2_SIZE as u64 } else { u64::from(fields.u32(100)) };
    for _ in 0..EXTENSIONS_MAX {
        if offset + 8 > end {
            return Ok(None);
        }
        let mut head = [0; 8];
        read_exact(fields.path, file, offset, &mut head)?;
        let head = Fields { path: fields.path, bytes: &head };
        let (kind, size) = (head.u32(0), u64::from(head.u32(4)));
        if kind == 0 {
            return Ok(None);
        }
        fields.ensure(offset + 8 + size <= end, || {
            format!("header extension {kind:#x} at offset {offset} has {size} bytes, too many")
        })?;
        if kind == EXTENSION_BACKING_FORMAT {
            fields.ensure(size <= 15, || format!("a backing format name of {size} bytes"))?;
            let mut name = vec![0; size as usize];
            read_exact(fields.path, file, offset + 8, &mut name)?;
            return String::from_utf8(name)
                .map(Some)
                .map_err(|_| fields.corrupt("its backing format is not UTF-8".into()));
        }
        offset += 8 + size.next_multiple_of(8);
    }
    Err(fields.corrupt(format!("more than {EXTENSIONS_MAX} header extensions")))
}

/// Fills `buffer` from `offset`; the file was long enough when it was measured.
pub(crate) fn read_exact(
    path: &Path,
    file: &File,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), DiskError> {
    let len = buffer.len() as u64;
    file.read_exact_at(buffer, offset).map_err(|source| DiskError::Io {
        path: path.into(),
        operation: "read",
        offset,
        len,
        source,
    })
}

fn unsupported(path: &Path, feature: String, advice: &'static str) -> DiskError {
    DiskError::Unsupported { path: path.into(), feature, advice }
}
