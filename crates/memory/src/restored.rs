//! RAM whose contents come from checkpoint files: mapped, so that a page arrives when it is
//! touched and restores of one checkpoint share what they only read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use types::{PAGE_MASK, PAGE_SIZE};

use crate::mapping::{Mapping, RamError};
use crate::present::Present;
use crate::ram::{Ram, RamOffset};

/// Holes of a file up to this many pages are mapped with what is around them.
const HOLE_PAGES_MAX: usize = 512;
/// Most pieces that are mapped; the kernel allows a process 65,530 mappings by default. The
/// shortest ones beyond it are read.
const PIECES_MAX: usize = 16_000;

/// Neighbouring pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRun {
    /// First page.
    pub first: usize,
    /// Number of pages, 1 or more.
    pub count: usize,
    /// All zeroes, whatever lies below; nothing is in the file.
    pub zero: bool,
}

/// One file of contents, each page at its RAM offset, over those before it.
pub struct RamLayer {
    /// The file; what is not in `runs` is not looked at.
    pub file: File,
    /// What it has, in order.
    pub runs: Vec<PageRun>,
}

/// RAM whose contents are put together, layer by layer, the lowest first.
pub struct RestoredRam {
    mapping: Mapping,
    present: Present,
    /// Pieces of a file that are mapped at most.
    share: usize,
    /// Nothing was put in yet.
    is_empty: bool,
}

impl RestoredRam {
    /// RAM of `size` bytes, all zeroes, to which at most `files` files come.
    ///
    /// # Errors
    /// [`RamError::Size`] as [`Ram::new`]; [`RamError::Map`] if the host refuses.
    pub fn new(size: u64, files: usize) -> Result<RestoredRam, RamError> {
        if size & PAGE_MASK != 0 || !(Ram::SIZE_MIN..=Ram::SIZE_MAX).contains(&size) {
            return Err(RamError::Size { size, min: Ram::SIZE_MIN, max: Ram::SIZE_MAX });
        }
        let (mapping, present) = (Mapping::private(size)?, Present::default());
        Ok(RestoredRam { mapping, present, share: PIECES_MAX / files.max(1), is_empty: true })
    }

    /// Puts a file on top. Nothing is read unless the layers are in very many pieces.
    ///
    /// # Errors
    /// [`RamError::Map`] if the host refuses.
    ///
    /// # Panics
    /// If a run reaches past the end of RAM.
    pub fn map(&mut self, layer: &RamLayer) -> Result<(), RamError> {
        for run in &layer.runs {
            self.present.insert(run.first, run.count, !run.zero);
        }
        let lowest = std::mem::replace(&mut self.is_empty, false);
        let pieces = if lowest { joined(&layer.runs) } else { layer.runs.clone() };
        put(&mut self.mapping, &layer.file, pieces, self.share, lowest)
    }

    /// Puts a page on top.
    ///
    /// # Panics
    /// If it lies past the end of RAM.
    pub fn put(&mut self, page: usize, bytes: &[u8; 4096]) {
        let zero = bytes.iter().fold(0, |sum, byte| sum | byte) == 0;
        // Zeroes take no memory where there are zeroes.
        if !zero || self.present.contains(page) {
            self.mapping.write(page as u64 * PAGE_SIZE, bytes);
        }
        self.present.insert(page, 1, !zero);
        self.is_empty = false;
    }

    /// The RAM.
    pub fn finish(self) -> Ram {
        let mut ram = Ram::over(self.mapping);
        ram.traps.set_present(self.present);
        ram
    }
}

impl Ram {
    /// Puts restored contents into a page that was not written yet; panics outside RAM.
    pub fn restore_page(&mut self, page: usize, bytes: &[u8; 4096]) {
        self.write_in_page(RamOffset(page as u64 * PAGE_SIZE), bytes);
    }
}

/// Runs with small holes between them made one, in which the file's holes read as zeroes.
fn joined(runs: &[PageRun]) -> Vec<PageRun> {
    let mut joined: Vec<PageRun> = Vec::new();
    for run in runs.iter().filter(|run| !run.zero) {
        match joined.last_mut() {
            Some(last) if run.first - (last.first + last.count) <= HOLE_PAGES_MAX => {
                last.count = run.first + run.count - last.first;
            }
            _ => joined.push(*run),
        }
    }
    joined
}

fn put(
    mapping: &mut Mapping,
    file: &File,
    pieces: Vec<PageRun>,
    pieces_max: usize,
    lowest: bool,
) -> Result<(), RamError> {
    let mut by_size = pieces;
    by_size.sort_unstable_by_key(|run| std::cmp::Reverse(run.count));
    let read = by_size.split_off(by_size.len().min(pieces_max));
    for run in by_size {
        let (offset, size) = (run.first as u64 * PAGE_SIZE, run.count as u64 * PAGE_SIZE);
        mapping.map_private((!run.zero).then_some(file), offset, size)?;
    }
    for run in read.into_iter().filter(|run| !(lowest && run.zero)) {
        copy(mapping, file, run)
            .map_err(|source| RamError::Map { size: mapping.size(), source })?;
    }
    Ok(())
}

fn copy(mapping: &mut Mapping, file: &File, run: PageRun) -> io::Result<()> {
    let mut bytes = [0; 4096];
    for page in run.first..run.first + run.count {
        let offset = page as u64 * PAGE_SIZE;
        if run.zero {
            bytes.fill(0);
        } else {
            file.read_exact_at(&mut bytes, offset)?;
        }
        mapping.write(offset, &bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use types::Gpa;

    use super::*;

    fn file(pages: &[(usize, u8)]) -> File {
        let path = std::env::temp_dir().join(format!("doppel-ram-{}", std::process::id()));
        let path = path.with_extension(format!("{:?}", std::thread::current().id()));

        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        for &(page, byte) in pages {
            file.write_all_at(&[byte; 4096], page as u64 * 4096).unwrap();
        }
        file
    }

    fn run(first: usize, count: usize, zero: bool) -> PageRun {
        PageRun { first, count, zero }
    }

    fn first_bytes(ram: &Ram) -> Vec<u8> {
        let byte = |page: u64| {
            let mut byte = [0];
            ram.read(Gpa(page * 4096), &mut byte).unwrap();
            byte[0]
        };
        (0..8).map(byte).collect()
    }

    #[test]
    fn layers_cover_each_other_and_what_they_do_not_name_is_zero() {
        let base = RamLayer {
            file: file(&[(0, 1), (1, 1), (2, 1), (5, 1)]),
            runs: vec![run(0, 3, false), run(5, 1, false)],
        };
        let change = RamLayer {
            file: file(&[(1, 2), (4, 2), (7, 9)]),
            runs: vec![run(1, 1, false), run(2, 1, true), run(4, 1, false)],
        };
        let layers = [base, change];
        let mut ram = RestoredRam::new(1 << 20, 2).unwrap();
        layers.iter().for_each(|layer| ram.map(layer).unwrap());
        let mut ram = ram.finish();
        assert_eq!(first_bytes(&ram), [1, 2, 0, 0, 2, 1, 0, 0]);
        let mut same = Ram::new(1 << 20).unwrap();
        for (page, byte) in [(0, 1), (1, 2), (4, 2), (5, 1)] {
            same.write(Gpa(page * 4096), &[byte; 4096]).unwrap();
        }
        assert_eq!(ram.hash(), same.hash());
        ram.write(Gpa(0), &[7]).unwrap();
        same.write(Gpa(0), &[7]).unwrap();
        assert_eq!(ram.hash(), same.hash());
        let mut byte = [0];
        layers[0].file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [1], "the file is never written");
    }

    #[test]
    fn pages_that_are_put_in_cover_files_and_are_covered_by_them() {
        let base = RamLayer { file: file(&[(0, 1), (1, 1), (2, 1)]), runs: vec![run(0, 3, false)] };
        let change = RamLayer { file: file(&[(4, 3)]), runs: vec![run(4, 1, false)] };
        let mut ram = RestoredRam::new(1 << 20, 2).unwrap();
        ram.put(5, &[9; 4096]);
        ram.map(&base).unwrap();
        for (page, byte) in [(1, 2), (2, 0), (3, 2), (4, 2), (6, 0)] {
            ram.put(page, &[byte; 4096]);
        }
        ram.map(&change).unwrap();
        let mut ram = ram.finish();
        assert_eq!(first_bytes(&ram), [1, 2, 0, 2, 3, 9, 0, 0]);
        let mut same = Ram::new(1 << 20).unwrap();
        for (page, byte) in [(0, 1), (1, 2), (3, 2), (4, 3), (5, 9)] {
            same.write(Gpa(page * 4096), &[byte; 4096]).unwrap();
        }
        assert_eq!(ram.hash(), same.hash());
    }

    #[test]
    fn more_pieces_than_may_be_mapped_are_read() {
        let file = file(&[(0, 1), (2, 2), (4, 3), (5, 3)]);
        let runs = vec![run(0, 1, false), run(2, 1, false), run(4, 2, false), run(6, 1, true)];
        let mut mapping = Mapping::private(1 << 20).unwrap();
        put(&mut mapping, &file, runs, 1, false).unwrap();
        let ram = Ram::over(mapping);
        assert_eq!(first_bytes(&ram), [1, 0, 2, 0, 3, 3, 0, 0]);
    }
}
