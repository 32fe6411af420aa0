//! The index of a checkpoint's memory: which pages it has, in runs, each with a checksum, and where
//! they are if memory is packed.
//!
//! A run's checksum is that of the checksums of its pages, so that pages may be saved in any
//! order and a run be checked on its own.

use memory::PageRun;
use xxhash_rust::xxh3::xxh3_64;

use crate::manifest::Id;

const MAGIC: &[u8; 8] = b"DOPPLIDX";
/// Version where each page is at its RAM offset.
const VERSION_PLAIN: u32 = 1;
/// Version where runs say where they are.
const VERSION_PACKED: u32 = 2;
const HEADER_SIZE: usize = 48;
const RUN_SIZE: usize = 24;
const PACKED_RUN_SIZE: usize = 40;
/// Most pages of a run.
pub(crate) const RUN_PAGES_MAX: usize = 256;
const FLAG_ZERO: u32 = 1;

/// A run, its checksum, 0 for zeroes, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexedRun {
    pub run: PageRun,
    pub checksum: u64,
    pub place: Place,
}

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At their RAM offset, or nowhere if they are zeroes.
    Own,
    /// In a packed file as they are.
    Raw { offset: u64 },
    /// In a packed file, a zstd frame.
    Zstd { offset: u64, size: u32 },
}

impl Place {
    /// Offset, size, and number of the encoding in the file.
    fn fields(self, pages: usize) -> (u64, u32, u32) {
        match self {
            Place::Own => (0, 0, 0),
            Place::Raw { offset } => (offset, pages as u32 * 4096, 1),
            Place::Zstd { offset, size } => (offset, size, 2),
        }
    }

    /// Of such fields, if they make sense for a run.
    fn of(run: PageRun, offset: u64, size: u32, encoding: u32) -> Option<Place> {
        let whole = run.count as u32 * 4096;
        offset.checked_add(size.into())?;
        match (run.zero, encoding) {
            (true, 0) if (offset, size) == (0, 0) => Some(Place::Own),
            (false, 1) if size == whole => Some(Place::Raw { offset }),
            (false, 2) if (1..whole).contains(&size) => Some(Place::Zstd { offset, size }),
            _ => None,
        }
    }

    /// Where it ends in a packed file.
    pub fn end(self, pages: usize) -> u64 {
        let (offset, size, _) = self.fields(pages);
        offset + u64::from(size)
    }
}

/// The pages that a checkpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index {
    pub id: Id,
    pub memory_size: u64,
    /// Whether runs say where they are.
    pub packed: bool,
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
                let run = PageRun { first, count: end - first, zero };
                runs.push(IndexedRun { run, checksum, place: Place::Own });
            }
            first = end;
        }
        runs
    }

    /// The runs of a packed file that has `places`: first page, number of pages, and where. Runs
    /// of zeroes only if `zeroes`.
    pub fn packed_runs(&self, places: &[(usize, usize, Place)], zeroes: bool) -> Vec<IndexedRun> {
        let mut runs = if zeroes { self.runs(true) } else { Vec::new() };
        runs.retain(|run| run.run.zero);
        runs.extend(places.iter().map(|&(first, count, place)| IndexedRun {
            run: PageRun { first, count, zero: false },
            checksum: run_sum(&self.0[first..first + count]),
            place,
        }));
        runs.sort_unstable_by_key(|run| run.run.first);
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
        let (version, run_size) = match self.packed {
            false => (VERSION_PLAIN, RUN_SIZE),
            true => (VERSION_PACKED, PACKED_RUN_SIZE),
        };
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.runs.len() * run_size + 8);
        bytes.extend(MAGIC);
        bytes.extend(version.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(self.id.0);
        bytes.extend(self.memory_size.to_le_bytes());
        bytes.extend((self.runs.len() as u64).to_le_bytes());
        for IndexedRun { run, checksum, place } in &self.runs {
            bytes.extend((run.first as u64).to_le_bytes());
            bytes.extend((run.count as u32).to_le_bytes());
            bytes.extend((if run.zero { FLAG_ZERO } else { 0 }).to_le_bytes());
            bytes.extend(checksum.to_le_bytes());
            if self.packed {
                let (offset, size, encoding) = place.fields(run.count);
                bytes.extend(offset.to_le_bytes());
                bytes.extend(size.to_le_bytes());
                bytes.extend(encoding.to_le_bytes());
            }
        }
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    /// Largest file for RAM of `memory_size` bytes.
    pub fn len_max(memory_size: u64) -> u64 {
        HEADER_SIZE as u64 + 8 + memory_size / 4096 * PACKED_RUN_SIZE as u64
    }

    /// Reads a file's bytes; in words what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Index, String> {
        let Some((body, sum)) = bytes.split_last_chunk::<8>() else {
            return Err("it is shorter than its header".into());
        };
        if body.len() < HEADER_SIZE || body[..8] != *MAGIC {
            return Err("it does not begin like an index of pages".into());
        }
        let version = u32::from_le_bytes(reader(body)(8));
        if version > VERSION_PACKED {
            let known = VERSION_PACKED;
            return Err(format!("it has version {version}, this release reads up to {known}"));
        }
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return Err("its checksum is not that of its contents".into());
        }
        let packed = version == VERSION_PACKED;
        let run_size = if packed { PACKED_RUN_SIZE } else { RUN_SIZE };
        let number = |at| u64::from_le_bytes(reader(body)(at));
        let (memory_size, count) = (number(32), number(40));
        let expected = count.checked_mul(run_size as u64);
        if expected != Some((body.len() - HEADER_SIZE) as u64) {
            return Err(format!("it says it has {count} runs, which its length is not that of"));
        }
        let mut runs = Vec::with_capacity(count as usize);
        let mut end = 0;
        for bytes in body[HEADER_SIZE..].chunks_exact(run_size) {
            let run = decode_run(bytes, end, memory_size / 4096)?;
            end = (run.run.first + run.run.count) as u64;
            runs.push(run);
        }
        let id = Id(reader::<16>(body)(16));
        Ok(Index { id, memory_size, packed, runs })
    }
}

/// Reads a run that begins at page `least` or after, in memory of so many pages.
fn decode_run(bytes: &[u8], least: u64, pages: u64) -> Result<IndexedRun, String> {
    let (short, long) = (reader::<4>(bytes), reader::<8>(bytes));
    let number = |at| u64::from_le_bytes(long(at));
    let small = |at| u32::from_le_bytes(short(at));
    let (first, count, flags) = (number(0), u64::from(small(8)), small(12));
    let impossible = || format!("the run of {count} pages at page {first} is impossible");
    let fits = first >= least && (1..=RUN_PAGES_MAX as u64).contains(&count);
    if !fits || first.saturating_add(count) > pages || flags > FLAG_ZERO {
        return Err(impossible());
    }
    let run = PageRun { first: first as usize, count: count as usize, zero: flags != 0 };
    let place = match bytes.len() {
        RUN_SIZE => Some(Place::Own),
        _ => Place::of(run, number(24), small(32), small(36)),
    };
    Ok(IndexedRun { run, checksum: number(16), place: place.ok_or_else(impossible)? })
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
        let (id, memory_size) = (Id([7; 16]), 4 << 20);
        round_trip(Index { id, memory_size, packed: false, runs: sums().runs(true) });
        let places = [
            (200, 100, Place::Zstd { offset: 9, size: 409_599 }),
            (0, 200, Place::Raw { offset: 1 << 40 }),
        ];
        let runs = sums().packed_runs(&places, true);
        assert_eq!(runs.iter().map(|r| r.run.first).collect::<Vec<_>>(), [0, 200, 401]);
        round_trip(Index { id, memory_size, packed: true, runs });
    }

    fn round_trip(index: Index) {
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
        let run = |first, count| {
            let run = PageRun { first, count, zero: false };
            IndexedRun { run, checksum: 1, place: Place::Own }
        };
        for runs in [
            vec![run(0, 0)],
            vec![run(0, 257)],
            vec![run(1023, 2)],
            vec![run(5, 1), run(5, 1)],
            vec![run(usize::MAX, 1)],
        ] {
            let index = Index { id: Id([7; 16]), memory_size: 4 << 20, packed: false, runs };
            assert!(Index::decode(&index.encode()).unwrap_err().contains("impossible"));
        }
        for (zero, place) in [
            (false, Place::Own),
            (true, Place::Raw { offset: 0 }),
            (false, Place::Raw { offset: u64::MAX - 4095 }),
            (false, Place::Zstd { offset: 0, size: 0 }),
            (false, Place::Zstd { offset: 0, size: 4096 }),
            (false, Place::Zstd { offset: u64::MAX, size: 4095 }),
        ] {
            let runs =
                vec![IndexedRun { run: PageRun { first: 1, count: 1, zero }, checksum: 1, place }];
            let index = Index { id: Id([7; 16]), memory_size: 4 << 20, packed: true, runs };
            assert!(
                Index::decode(&index.encode()).unwrap_err().contains("impossible"),
                "{place:?}"
            );
        }
    }
}
