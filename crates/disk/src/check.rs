//! The tables of a qcow2 file, walked once at opening: what they name lies within the file, no two
//! tables share a cluster, no guest data lies in a table, and (when the image will be written) what
//! is used is also counted as used, so that nothing in use is handed out again.
//!
//! It finds truncated and visibly damaged images before a guest meets them, and keeps damage from
//! growing. What a writer that was killed leaves is put right: the library (0.2.6) names a new L2
//! table in the L1 table before the count of its cluster is written, and such a table is counted
//! here, as `qemu-img check -r all` would.
//!
//! Memory and time are bounded: an image with more than [`WALK_SIZE_MAX`] of L2 tables
//! (512 GiB of data at 64 KiB clusters) or of refcount blocks has those left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::DiskError;
use crate::header::{Header, read_exact};

/// Most bytes of L2 tables, and of refcount blocks, that are looked at.
const WALK_SIZE_MAX: u64 = 64 << 20;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const FLAG_COPIED: u64 = 1 << 63;
const FLAG_COMPRESSED: u64 = 1 << 62;
const FLAG_ZERO: u64 = 1;
const L1_RESERVED: u64 = !(OFFSET_MASK | FLAG_COPIED);
/// What an L2 table is called.
const L2_TABLE: &str = "L2 table";

/// Checks the tables of `file`, `len` bytes long; if it is `writable`, counts L2 tables that a kill
/// left uncounted.
///
/// Fails with [`DiskError::Corrupt`], which names the table entry, and with [`DiskError::Io`].
pub(crate) fn verify(
    path: &Path,
    file: &File,
    len: u64,
    header: &Header,
    writable: bool,
) -> Result<(), DiskError> {
    let mut walk = Walk { path, file, len, header, tables: BTreeMap::new(), used: Vec::new() };
    walk.claim("the header", 0, 1)?;
    walk.claim("the L1 table", header.l1_offset, header.l1_entries * 8)?;
    walk.claim("the refcount table", header.refcount_table_offset, header.refcount_table_size)?;
    let blocks = walk.refcount_blocks()?;
    let tables = walk.l2_tables()?;
    if tables.len() as u64 * header.cluster_size > WALK_SIZE_MAX {
        return Ok(());
    }
    for table in tables {
        walk.l2_entries(table)?;
    }
    if writable && blocks.len() as u64 * header.cluster_size <= WALK_SIZE_MAX {
        walk.refcounts(&blocks)?;
    }
    Ok(())
}

struct Walk<'a> {
    path: &'a Path,
    file: &'a File,
    len: u64,
    header: &'a Header,
    /// Cluster number of each table, and whose it is.
    tables: BTreeMap<u64, &'static str>,
    /// Cluster numbers of guest data, with whether they may be overwritten in place.
    used: Vec<(u64, bool)>,
}

impl Walk<'_> {
    fn corrupt<T>(&self, what: String) -> Result<T, DiskError> {
        Err(DiskError::Corrupt { path: self.path.into(), what })
    }

    /// Notes that a table takes `size` bytes at `offset`, which no other table may.
    fn claim(&mut self, name: &'static str, offset: u64, size: u64) -> Result<(), DiskError> {
        let cluster_size = self.header.cluster_size;
        for cluster in offset / cluster_size..(offset + size).div_ceil(cluster_size) {
            if let Some(owner) = self.tables.insert(cluster, name) {
                let at = cluster * cluster_size;
                return self.corrupt(format!("{name} and {owner} both lie at offset {at}"));
            }
        }
        Ok(())
    }

    fn read_entries(&self, offset: u64, count: u64) -> Result<Vec<u64>, DiskError> {
        let mut bytes = vec![0; count as usize * 8];
        read_exact(self.path, self.file, offset, &mut bytes)?;
        let (entries, _) = bytes.as_chunks::<8>();
        Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Checks and claims the clusters a table points to; `entries` are offsets, 0 for none.
    fn claim_all(&mut self, name: &'static str, entries: &[u64]) -> Result<(), DiskError> {
        let cluster_size = self.header.cluster_size;
        for (index, &offset) in entries.iter().enumerate().filter(|(_, offset)| **offset != 0) {
            let end = offset.checked_add(cluster_size);
            let inside = end.is_some_and(|end| end <= self.len);
            if !offset.is_multiple_of(cluster_size) || !inside {
                return self.corrupt(format!(
                    "{name} number {index} is at offset {offset}, but the file has {} bytes and \
                     clusters of {cluster_size}",
                    self.len
                ));
            }
            self.claim(name, offset, cluster_size)?;
        }
        Ok(())
    }

    /// Offsets of the refcount blocks by index, 0 for none.
    fn refcount_blocks(&mut self) -> Result<Vec<u64>, DiskError> {
        let count = self.header.refcount_table_size / 8;
        let mut blocks = self.read_entries(self.header.refcount_table_offset, count)?;
        self.claim_all("refcount block", &blocks)?;
        let used = blocks.iter().rposition(|block| *block != 0).map_or(0, |last| last + 1);
        blocks.truncate(used);
        Ok(blocks)
    }

    /// Offsets of the L2 tables that exist.
    fn l2_tables(&mut self) -> Result<Vec<u64>, DiskError> {
        let mut entries = self.read_entries(self.header.l1_offset, self.header.l1_entries)?;
        if let Some(index) = entries.iter().position(|entry| entry & L1_RESERVED != 0) {
            let entry = entries[index];
            return self.corrupt(format!("L1 entry {index} is {entry:#x}: reserved bits are set"));
        }
        for entry in &mut entries {
            *entry &= OFFSET_MASK;
        }
        self.claim_all(L2_TABLE, &entries)?;
        entries.retain(|entry| *entry != 0);
        Ok(entries)
    }

    fn l2_entries(&mut self, table: u64) -> Result<(), DiskError> {
        let entries = self.read_entries(table, self.header.cluster_size / 8)?;
        for (index, &entry) in entries.iter().enumerate() {
            let problem = if entry & FLAG_COMPRESSED != 0 {
                self.compressed_entry(entry)
            } else {
                self.plain_entry(entry)
            };
            if let Err(problem) = problem {
                return self.corrupt(format!(
                    "entry {index} of the L2 table at offset {table} is {entry:#x}: {problem}"
                ));
            }
        }
        Ok(())
    }

    fn plain_entry(&mut self, entry: u64) -> Result<(), &'static str> {
        let flags = if self.header.version == 2 { FLAG_COPIED } else { FLAG_COPIED | FLAG_ZERO };
        if entry & !(OFFSET_MASK | flags) != 0 {
            return Err("reserved bits are set");
        }
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            return Ok(());
        }
        let cluster_size = self.header.cluster_size;
        if !offset.is_multiple_of(cluster_size) {
            return Err("no cluster begins there");
        }
        // The last cluster of a file may be written only in part.
        if offset >= self.len && entry & FLAG_ZERO == 0 {
            return Err("it points past the end of the file");
        }
        if self.tables.contains_key(&(offset / cluster_size)) {
            return Err("it points into a table of the image itself");
        }
        self.used.push((offset / cluster_size, entry & FLAG_COPIED != 0));
        Ok(())
    }

    fn compressed_entry(&mut self, entry: u64) -> Result<(), &'static str> {
        // Specification, "Compressed Clusters Descriptor": the offset has 62 - (bits - 8) bits,
        // above it is the number of further 512-byte sectors.
        if entry & FLAG_COPIED != 0 {
            return Err("it is compressed and yet marked for writing in place");
        }
        let cluster_size = self.header.cluster_size;
        let offset_bits = 62 - (cluster_size.trailing_zeros() - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & (FLAG_COMPRESSED - 1)) >> offset_bits) + 1;
        if offset >= self.len {
            return Err("its compressed data lies past the end of the file");
        }
        let last = ((offset & !511) + sectors * 512 - 1).min(self.len - 1);
        for cluster in offset / cluster_size..=last / cluster_size {
            if self.tables.contains_key(&cluster) {
                return Err("its compressed data overlaps a table of the image itself");
            }
            self.used.push((cluster, false));
        }
        Ok(())
    }

    /// Checks that every used cluster is counted, and those written in place exactly once.
    fn refcounts(&mut self, blocks: &[u64]) -> Result<(), DiskError> {
        let mut counts = Refcounts::new(self.header);
        let mut uncounted = Vec::new();
        let mut used = std::mem::take(&mut self.used);
        used.extend(self.tables.keys().map(|cluster| (*cluster, true)));
        used.sort_unstable();
        for (position, &(cluster, in_place)) in used.iter().enumerate() {
            let count = counts.of(self, blocks, cluster)?;
            let at = cluster * self.header.cluster_size;
            if count == 0 {
                let repairable = self.tables.get(&cluster) == Some(&L2_TABLE);
                match counts.place(blocks, cluster).filter(|_| repairable) {
                    Some(place) => uncounted.push(place),
                    None => {
                        let what = format!("the cluster at offset {at} is used but counted free");
                        return self.corrupt(what);
                    }
                }
            }
            let shared = position > 0 && used[position - 1].0 == cluster;
            if in_place && (count > 1 || shared) && !self.tables.contains_key(&cluster) {
                return self.corrupt(format!(
                    "the cluster at offset {at} is marked for writing in place but is used twice"
                ));
            }
        }
        uncounted.into_iter().try_for_each(|place| self.count_one(counts.order, place))
    }

    /// Writes the count 1 for a cluster that is counted free.
    fn count_one(&self, order: u32, (block, index): (u64, u64)) -> Result<(), DiskError> {
        let bit = index << order;
        let (at, size) = (block + bit / 8, (1usize << order).div_ceil(8));
        let mut bytes = vec![0; size];
        read_exact(self.path, self.file, at, &mut bytes)?;
        // Counts of less than a byte lie from the low bit up, longer ones are big-endian.
        bytes[size - 1] |= 1 << (bit % 8);
        tracing::warn!("{:?} was not closed: a table at {at} counts one cluster more", self.path);
        self.file.write_all_at(&bytes, at).map_err(|source| DiskError::Io {
            path: self.path.into(),
            operation: "repair",
            offset: at,
            len: size as u64,
            source,
        })
    }
}

/// Looks refcounts up; keeps the block it read last, as lookups come in order.
struct Refcounts {
    order: u32,
    entries_per_block: u64,
    loaded: Option<(u64, Vec<u8>)>,
}

impl Refcounts {
    fn new(header: &Header) -> Refcounts {
        let order = header.refcount_order;
        Refcounts { order, entries_per_block: (header.cluster_size * 8) >> order, loaded: None }
    }

    /// The offset of the block that has the count of a cluster, and its index there.
    fn place(&self, blocks: &[u64], cluster: u64) -> Option<(u64, u64)> {
        let block = *blocks.get((cluster / self.entries_per_block) as usize)?;
        (block != 0).then_some((block, cluster % self.entries_per_block))
    }

    fn of(&mut self, walk: &Walk, blocks: &[u64], cluster: u64) -> Result<u64, DiskError> {
        let block = cluster / self.entries_per_block;
        let Some((offset, _)) = self.place(blocks, cluster) else { return Ok(0) };
        if self.loaded.as_ref().is_none_or(|(number, _)| *number != block) {
            let mut bytes = vec![0; walk.header.cluster_size as usize];
            read_exact(walk.path, walk.file, offset, &mut bytes)?;
            self.loaded = Some((block, bytes));
        }
        let Some((_, bytes)) = &self.loaded else { return Ok(0) };
        Ok(refcount(bytes, self.order, (cluster % self.entries_per_block) as usize))
    }
}

/// Refcount `index` of a block; entries under 8 bits are packed from the low bit up.
fn refcount(block: &[u8], order: u32, index: usize) -> u64 {
    let bits = 1 << order;
    if bits < 8 {
        let per_byte = 8 / bits;
        let byte = block[index / per_byte];
        return u64::from(byte >> (index % per_byte * bits)) & ((1 << bits) - 1);
    }
    let bytes = bits / 8;
    block[index * bytes..][..bytes].iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::refcount;

    #[test]
    fn refcount_unpacks_every_width() {
        let block = [0b1001_0110, 0xff, 0, 1, 0, 0, 0, 2];
        for (order, index, expected) in [
            (0, 0, 0),
            (0, 1, 1),
            (0, 7, 1),
            (1, 0, 2),
            (1, 3, 2),
            (2, 0, 6),
            (2, 1, 9),
            (3, 1, 255),
            (4, 1, 1),
            (5, 1, 2),
            (6, 0, 0x96ff_0001_0000_0002),
        ] {
            assert_eq!(refcount(&block, order, index), expected, "order {order} index {index}");
        }
    }
}
