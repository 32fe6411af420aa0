//! The index of a checkpoint's memory: which pages it has, in runs, each with a checksum.
//!
//! A run's checksum is that of the checksums of its pages, so that pages may be saved in any
//! order and a run be checked on its own.

use memory::PageRun;
use xxhash_rust::xxh3::xxh3_64;

use crate::manifest::Id;

const MAGIC: &[u8; 8] = b"DOPPLIDX";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 48;
const RUN_SIZE: usize = 24;
/// Most pages of a run.
pub(crate) const RUN_PAGES_MAX: usize = 256;
const FLAG_ZERO: u32 = 1;

/// A run and its checksum, 0 for zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexedRun {
    pub run: PageRun,
    pub checksum: u64,
}

/// The pages that a checkpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub id: Id,
    pub memory_size: u64,
    /// In order, apart from each other or of different kinds where they touch, or full.
    pub runs: Vec<IndexedRun>,
}

/// Checksum of a page that is not all zeroes; above [`PageSums::ZERO`].
pub(crate) fn page_sum(bytes: &[u8; 4096]) -> u64 {
    xxh3_64(bytes).max(PageSums::ZERO + 1)
}

/// Whether all bytes of a page are zero.
pub(crate) fn is_zero(bytes: &[u8; 4096]) -> bool {
    bytes.iter().fold(0, |sum, byte| sum | byte) == 0
}

/// Checksums of single pages as they are saved. Memory is taken only where there are some.
pub(crate) struct PageSums(Vec<u64>);

impl PageSums {
    const ABSENT: u64 = 0;
    const ZERO: u64 = 1;

    pub fn new(pages: usize) -> PageSums {
        PageSums(vec![PageSums::ABSENT; pages])
    }

    /// Notes a page by its checksum, or as zeroes.
    pub fn note(&mut self, page: usize, sum: Option<u64>) {
        self.0[page] = sum.unwrap_or(PageSums::ZERO);
    }

    /// Whether a page was noted.
    pub fn is_noted(&self, page: usize) -> bool {
        self.0[page] != PageSums::ABSENT
    }

    /// Pages that have bytes in the memory file.
    pub fn data_pages(&self) -> u64 {
        self.0.iter().filter(|sum| **sum > PageSums::ZERO).count() as u64
    }

    /// All runs, those of zeroes only if `zeroes`.
    pub fn runs(&self, zeroes: bool) -> Vec<IndexedRun> {
        let (mut runs, mut first) = (Vec::new(), 0);
        while first < self.0.len() {
            let kind = self.kind(first);
            let same = |page: &usize| self.kind(*page) == kind;
            let end = match kind {
                Some(_) => (first..self.0.len().min(first + RUN_PAGES_MAX)).take_while(same),
                None => (first..self.0.len()).take_while(same),
            }
            .last()
            .map_or(first, |last| last + 1);
            if let Some(zero) = kind.filter(|zero| zeroes || !zero) {
                let checksum = if zero { 0 } else { run_sum(&self.0[first..end]) };
                runs.push(IndexedRun {
                    run: PageRun { first, count: end - first, zero },
                    checksum,
                });
            }
            first = end;
        }
        runs
    }

    /// `None` where there is nothing, else whether it is zeroes.
    fn kind(&self, page: usize) -> Option<bool> {
        match self.0[page] {
            PageSums::ABSENT => None,
            PageSums::ZERO => Some(true),
            _ => Some(false),
        }
    }
}

/// Checksum of a run from those of its pages.
pub(crate) fn run_sum(pages: &[u64]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for sum in pages {
        hasher.update(&sum.to_le_bytes());
    }
    hasher.digest()
}

impl Index {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.runs.len() * RUN_SIZE + 8);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.id.0);
        bytes.extend(self.memory_size.to_le_bytes());
        bytes.extend((self.runs.len() as u64).to_le_bytes());
        for IndexedRun { run, checksum } in &self.runs {
            bytes.extend((run.first as u64).to_le_bytes());
            bytes.extend((run.count as u32).to_le_bytes());
            bytes.extend((if run.zero { FLAG_ZERO } else { 0 }).to_le_bytes());
            bytes.extend(checksum.to_le_bytes());
        }
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// Largest file for RAM of `memory_size` bytes.
    pub fn len_max(memory_size: u64) -> u64 {
        HEADER_SIZE as u64 + 8 + memory_size / 4096 * RUN_SIZE as u64
    }

    /// Reads a file's bytes; in words what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Index, String> {
        let Some((body, sum)) = bytes.split_last_chunk::<8>() else {
            return Err("it is shorter than its header".into());
        };
        if body.len() < HEADER_SIZE || body[..8] != *MAGIC {
            return Err("it does not begin like an index of pages".into());
        }
        let (u32_at, u64_at) = (reader::<4>(body), reader::<8>(body));
        let version = u32::from_le_bytes(u32_at(8));
        if version > VERSION {
            return Err(format!("it has version {version}, this release reads up to {VERSION}"));
        }
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return Err("its checksum is not that of its contents".into());
        }
        let number = |at| u64::from_le_bytes(u64_at(at));
        let (memory_size, count) = (number(32), number(40));
        let expected = count.checked_mul(RUN_SIZE as u64);
        if expected != Some((body.len() - HEADER_SIZE) as u64) {
            return Err(format!("it says it has {count} runs, which its length is not that of"));
        }
        let mut runs = Vec::with_capacity(count as usize);
        let mut end = 0;
        for at in (HEADER_SIZE..body.len()).step_by(RUN_SIZE) {
            let (first, count) = (number(at), u64::from(u32::from_le_bytes(u32_at(at + 8))));
            let flags = u32::from_le_bytes(u32_at(at + 12));
            let fits = first >= end && (1..=RUN_PAGES_MAX as u64).contains(&count);
            end = first.saturating_add(count);
            if !fits || end > memory_size / 4096 || flags > FLAG_ZERO {
                return Err(format!("the run of {count} pages at page {first} is impossible"));
            }
            let run = PageRun { first: first as usize, count: count as usize, zero: flags != 0 };
            runs.push(IndexedRun { run, checksum: number(at + 16) });
        }
        let id = Id(reader::<16>(body)(16));
        Ok(Index { id, memory_size, runs })
    }
}

/// Reads arrays of bytes inside `bytes`.
fn reader<const N: usize>(bytes: &[u8]) -> impl Fn(usize) -> [u8; N] + '_ {
    move |at| {
        let mut array = [0; N];
        array.copy_from_slice(&bytes[at..at + N]);
        array
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums() -> PageSums {
        let mut sums = PageSums::new(1024);
        for page in (0..300).chain([400, 402]) {
            sums.note(page, Some(page as u64 + 5));
        }
        sums.note(401, None);
        sums
    }

    #[test]
    fn runs_are_split_where_kinds_change_and_at_their_limit() {
        let runs: Vec<_> = sums().runs(true).iter().map(|r| (r.run.first, r.run.count)).collect();
        assert_eq!(runs, [(0, 256), (256, 44), (400, 1), (401, 1), (402, 1)]);
        assert_eq!(sums().runs(false).len(), 4);
        assert_eq!(sums().data_pages(), 302);
    }

    #[test]
    fn index_decodes_to_what_was_encoded_and_nothing_else() {
        let index = Index { id: Id([7; 16]), memory_size: 4 << 20, runs: sums().runs(true) };
        let bytes = index.encode();
        assert_eq!(Index::decode(&bytes).unwrap(), index);
        for len in 0..bytes.len() {
            assert!(Index::decode(&bytes[..len]).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(Index::decode(&changed).is_err(), "{at}");
        }
    }

    #[test]
    fn index_of_impossible_runs_is_refused() {
        let run =
            |first, count| IndexedRun { run: PageRun { first, count, zero: false }, checksum: 1 };
        for runs in [
            vec![run(0, 0)],
            vec![run(0, 257)],
            vec![run(1023, 2)],
            vec![run(5, 1), run(5, 1)],
            vec![run(usize::MAX, 1)],
        ] {
            let index = Index { id: Id([7; 16]), memory_size: 4 << 20, runs };
            assert!(Index::decode(&index.encode()).unwrap_err().contains("impossible"));
        }
    }
}
