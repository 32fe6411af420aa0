//! Copy on write: the pages of one instant for a saver, while the machine runs on (mechanisms C3,
//! C5, C6).
//!
//! Opening is constant time: a word per page holds the number of the last instant the page was
//! settled for, so that no array is cleared. A page of the present instant is settled once, by
//! whoever comes first:
//!
//! ```text
//!   machine: about to write   -> copies the page aside, word = copied (the copy goes to the saver)
//!   saver: its turn           -> copies the page, then word = saved, if it still was unsettled;
//!                                if not, its copy may be torn and is thrown away
//! ```
//!
//! Nobody waits for anybody: the machine never blocks, whatever the saver does. When `copies_max`
//! copies wait for the saver, the machine hands further originals to the [`PageSink`] itself, so
//! memory is bounded and the write costs what the sink costs. What an instant took is given back by
//! the saver: freeing thousands of pages is nothing for the machine's thread.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::mapping::PageReader;
use crate::present::Present;
use crate::traps::Epoch;
use crate::words::Words;

/// A page's bytes.
pub type Page = [u8; 4096];

/// Takes an original that there was no room to keep.
pub trait PageSink: Send {
    /// Saves the bytes of RAM page `page`. A failure is the sink's to remember.
    fn save(&mut self, page: usize, bytes: &Page);
}

/// RAM's pages as another thread may see them, to prepare a copy-on-write instant before the
/// machine stops for it.
#[derive(Clone)]
pub struct Pages {
    pub(crate) reader: PageReader,
    pub(crate) written: Words,
    pub(crate) settled: Words,
    pub(crate) present: Arc<Present>,
}

/// What both sides share.
struct Shared {
    /// Epoch that the instant opened; 0 until then.
    epoch: AtomicU32,
    cancelled: AtomicBool,
    copied: AtomicU64,
    overflowed: AtomicU64,
    /// Originals on their way to the sink.
    in_sink: AtomicU32,
}

/// The machine's side of an instant.
pub struct CowGuest {
    pages: Pages,
    shared: Arc<Shared>,
    since: u32,
    epoch: u32,
    full: Sender<(usize, Box<Page>)>,
    empty: Spares,
    /// Copies that may yet be made of fresh memory.
    fresh: usize,
    spare: Option<Box<Page>>,
    sink: Box<dyn PageSink>,
}

/// The saver's side of an instant.
pub struct CowSaver {
    pages: Pages,
    shared: Arc<Shared>,
    since: u32,
    full: Receiver<(usize, Box<Page>)>,
    empty: Sender<Box<Page>>,
    /// The other end of it, to empty it at last.
    spares: Spares,
}

/// Memory for copies. The machine never waits for it: it is locked by the saver only at its end.
type Spares = Arc<Mutex<Receiver<Box<Page>>>>;

/// What came of taking a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was not written since the beginning asked for: there is nothing to save.
    Unchanged,
    /// The buffer holds it.
    Saved,
    /// The machine was first; the original is among the copies, now or soon.
    Copied,
    /// The machine was first and gives the original to its [`PageSink`], now or soon: see
    /// [`CowSaver::sink_is_done`].
    Gone,
}

/// Counts of an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CowCounts {
    /// Originals copied aside on a first write.
    pub copied: u64,
    /// Originals given to the sink, because as many copies waited as may.
    pub overflowed: u64,
}

/// The page was not written after the instant, and its bytes were not asked for.
const fn saved(epoch: u32) -> u32 {
    2 * epoch
}

/// The machine copied the original aside.
const fn copied(epoch: u32) -> u32 {
    2 * epoch + 1
}

impl Pages {
    /// Number of pages.
    pub fn count(&self) -> usize {
        self.reader.page_count()
    }

    /// Prepares an instant. Pages count that were written in epoch `since` or after, or ever if
    /// there is none. `copies_max` originals are kept in memory for the saver, `ready` of them in
    /// memory that is there already.
    pub fn prepare(
        &self,
        since: Option<Epoch>,
        copies_max: usize,
        ready: usize,
        sink: Box<dyn PageSink>,
    ) -> (CowGuest, CowSaver) {
        let (full, full_end) = channel();
        let (empty, empty_end) = channel();
        let ready = ready.min(copies_max);
        for _ in 0..ready {
            // Touched, so that no page fault is left for the guest's first write.
            let _ = empty.send(Box::new([1; 4096]));
        }
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            cancelled: AtomicBool::new(false),
            copied: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            in_sink: AtomicU32::new(0),
        });
        let since = since.map_or(0, |epoch| epoch.0);
        let spares = Arc::new(Mutex::new(empty_end));
        let guest = CowGuest {
            pages: self.clone(),
            shared: Arc::clone(&shared),
            since,
            epoch: 0,
            full,
            empty: Arc::clone(&spares),
            fresh: copies_max - ready,
            spare: None,
            sink,
        };
        (guest, CowSaver { pages: self.clone(), shared, since, full: full_end, empty, spares })
    }

    /// Whether the page counts, given the epoch of its last write before the instant.
    #[inline]
    fn counts(&self, page: usize, written: u32, since: u32) -> bool {
        if since == 0 { written != 0 || self.present.contains(page) } else { written >= since }
    }
}

impl CowGuest {
    pub(crate) fn open(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.shared.epoch.store(epoch, Ordering::Release);
    }

    /// Whether nobody needs originals any more.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    /// Runs before the first write to `page` in an epoch, `written` being that of the last.
    #[inline(never)]
    pub(crate) fn before_write(&mut self, page: usize, written: u32) {
        let word = self.pages.settled.at(page);
        let before = word.load(Ordering::Acquire);
        if before >= saved(self.epoch) {
            return;
        }
        if !self.pages.counts(page, written, self.since) {
            return word.store(saved(self.epoch), Ordering::Release);
        }
        let Some(mut copy) = self.room() else {
            let mut bytes = [0; 4096];
            self.pages.reader.read_page(page, &mut bytes);
            // Before the page is settled: who sees that it is sees this too.
            self.shared.in_sink.fetch_add(1, Ordering::Relaxed);
            if settle(self.pages.settled.at(page), before, saved(self.epoch)) {
                self.sink.save(page, &bytes);
                self.shared.overflowed.fetch_add(1, Ordering::Relaxed);
            }
            self.shared.in_sink.fetch_sub(1, Ordering::Release);
            return;
        };
        self.pages.reader.read_page(page, &mut copy);
        if settle(self.pages.settled.at(page), before, copied(self.epoch)) {
            self.shared.copied.fetch_add(1, Ordering::Relaxed);
            // A saver that is gone needs no originals.
            let _ = self.full.send((page, copy));
        } else {
            self.spare = Some(copy);
        }
    }

    /// Memory for one copy, if there may be one more.
    fn room(&mut self) -> Option<Box<Page>> {
        if let Some(spare) = self.spare.take() {
            return Some(spare);
        }
        let recycled = self.empty.try_lock().ok().and_then(|empty| empty.try_recv().ok());
        if recycled.is_none() && self.fresh > 0 {
            self.fresh -= 1;
            return Some(Box::new([0; 4096]));
        }
        recycled
    }
}

fn settle(word: &AtomicU32, before: u32, after: u32) -> bool {
    word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

impl CowSaver {
    /// Number of pages of RAM.
    pub fn page_count(&self) -> usize {
        self.pages.count()
    }

    /// The epoch that the instant opened.
    ///
    /// # Panics
    /// Before it was opened.
    pub fn epoch(&self) -> Epoch {
        let epoch = self.shared.epoch.load(Ordering::Acquire);
        assert!(epoch != 0, "an instant that was not opened");
        Epoch(epoch)
    }

    /// Takes page `page` as of the instant. To be called once a page, after the opening.
    pub fn take(&self, page: usize, into: &mut Page) -> Taken {
        let epoch = self.epoch().0;
        let word = self.pages.settled.at(page);
        let before = word.load(Ordering::Acquire);
        if before < saved(epoch) {
            // The machine settles a page before it notes a write, so this is the number as of the
            // instant, or the page is settled by now.
            let written = self.pages.written.at(page).load(Ordering::Acquire);
            if !self.pages.counts(page, written, self.since) {
                return Taken::Unchanged;
            }
            self.pages.reader.read_page(page, into);
            if settle(word, before, saved(epoch)) {
                return Taken::Saved;
            }
        }
        if word.load(Ordering::Acquire) == copied(epoch) { Taken::Copied } else { Taken::Gone }
    }

    /// Whether the [`PageSink`] has all originals that are its own, once every page was taken.
    pub fn sink_is_done(&self) -> bool {
        self.shared.in_sink.load(Ordering::Acquire) == 0
    }

    /// An original that the machine copied aside, if one waits.
    pub fn try_copy(&self) -> Option<(usize, Box<Page>)> {
        self.full.try_recv().ok()
    }

    /// Gives a copy's memory back.
    pub fn recycle(&self, page: Box<Page>) {
        // A machine that is gone needs none.
        let _ = self.empty.send(page);
    }

    /// Counts so far.
    pub fn counts(&self) -> CowCounts {
        CowCounts {
            copied: self.shared.copied.load(Ordering::Relaxed),
            overflowed: self.shared.overflowed.load(Ordering::Relaxed),
        }
    }
}

impl Drop for CowSaver {
    /// Ends the instant: from here no original is copied, and memory for copies is not needed.
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        let spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
        while spares.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use types::Gpa;

    use super::*;
    use crate::Ram;

    /// Keeps what overflowed.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(usize, u8)>>>);

    impl PageSink for Kept {
        fn save(&mut self, page: usize, bytes: &Page) {
            self.0.lock().unwrap().push((page, bytes[0]));
        }
    }

    fn page_at(page: usize) -> Gpa {
        Gpa(page as u64 * 4096)
    }

    #[test]
    fn memory_for_copies_is_freed_by_the_saver() {
        let ram = Ram::new(1 << 20).unwrap();
        let (guest, saver) = ram.pages().prepare(None, 8, 8, Box::new(Kept::default()));
        drop(saver);
        assert!(guest.empty.lock().unwrap().try_recv().is_err());
    }

    /// The first byte of every page of the instant that counts.
    fn collect(saver: &CowSaver, kept: &Kept, turn: impl Fn(usize)) -> Vec<(usize, u8)> {
        let (mut pages, mut copies) = (Vec::new(), 0);
        for page in 0..saver.page_count() {
            turn(page);
            let mut bytes = [0; 4096];
            match saver.take(page, &mut bytes) {
                Taken::Saved => pages.push((page, bytes[0])),
                Taken::Copied => copies += 1,
                Taken::Unchanged | Taken::Gone => {}
            }
        }
        while copies > 0 {
            let Some((page, bytes)) = saver.try_copy() else { continue };
            pages.push((page, bytes[0]));
            saver.recycle(bytes);
            copies -= 1;
        }
        pages.extend(kept.0.lock().unwrap().drain(..));
        pages.sort_unstable();
        pages
    }

    #[test]
    fn instant_is_kept_whatever_is_written_after_it() {
        let mut ram = Ram::new(1 << 20).unwrap();
        for page in 0..100 {
            ram.write(page_at(page), &[page as u8 + 1]).unwrap();
        }
        let kept = Kept::default();
        let (guest, saver) = ram.pages().prepare(None, 8, 4, Box::new(kept.clone()));
        ram.begin_copy_on_write(guest);
        for page in (0..200).step_by(3) {
            ram.write(page_at(page), &[0xff]).unwrap();
            ram.write(page_at(page), &[0xfe]).unwrap();
        }
        let pages = collect(&saver, &kept, |_| {});
        let expected: Vec<_> = (0..100).map(|page| (page, page as u8 + 1)).collect();
        assert_eq!(pages, expected);
        assert_eq!(saver.counts(), CowCounts { copied: 8, overflowed: 26 });
    }

    #[test]
    fn instant_of_changes_has_the_changed_pages_alone() {
        let mut ram = Ram::new(1 << 20).unwrap();
        ram.write(page_at(3), &[1]).unwrap();
        let since = ram.begin_epoch();
        ram.write(page_at(5), &[2]).unwrap();
        ram.begin_epoch();
        ram.write(page_at(7), &[3]).unwrap();
        let kept = Kept::default();
        let (guest, saver) = ram.pages().prepare(Some(since), 99, 0, Box::new(kept.clone()));
        let epoch = ram.begin_copy_on_write(guest);
        for page in [3, 7, 9] {
            ram.write(page_at(page), &[0xff]).unwrap();
        }
        assert_eq!(collect(&saver, &kept, |_| {}), [(5, 2), (7, 3)]);
        assert_eq!(saver.epoch(), epoch);
        drop(saver);
        ram.begin_epoch();
        ram.write(page_at(5), &[9]).unwrap();
        assert_eq!(ram.written_since(epoch).collect::<Vec<_>>(), [3, 5, 7, 9]);
    }

    #[test]
    fn instants_follow_each_other_without_clearing() {
        let mut ram = Ram::new(1 << 20).unwrap();
        for round in 0..20u8 {
            ram.write(page_at(round.into()), &[round + 1]).unwrap();
            let kept = Kept::default();
            let (guest, saver) = ram.pages().prepare(None, 2, 2, Box::new(kept.clone()));
            ram.begin_copy_on_write(guest);
            ram.write(page_at(0), &[1]).unwrap();
            let pages = collect(&saver, &kept, |_| {});
            assert_eq!(pages.len(), usize::from(round) + 1);
            assert!(pages.iter().all(|&(page, byte)| usize::from(byte) == page + 1), "{pages:?}");
        }
    }

    /// Saves once it may: a machine that lost its CPU on the way (C5).
    struct Slow {
        begun: Sender<()>,
        may: Receiver<()>,
        kept: Kept,
    }

    impl PageSink for Slow {
        fn save(&mut self, page: usize, bytes: &Page) {
            self.begun.send(()).unwrap();
            self.may.recv().unwrap();
            self.kept.save(page, bytes);
        }
    }

    #[test]
    fn original_on_its_way_to_the_sink_is_waited_for() {
        let mut ram = Ram::new(1 << 20).unwrap();
        ram.write(page_at(3), &[7]).unwrap();
        let (begun, has_begun) = channel();
        let (go, may) = channel();
        let kept = Kept::default();
        let sink = Box::new(Slow { begun, may, kept: kept.clone() });
        let (guest, saver) = ram.pages().prepare(None, 0, 0, sink);
        ram.begin_copy_on_write(guest);
        assert!(saver.sink_is_done());
        let machine = std::thread::spawn(move || ram.write(page_at(3), &[8]).unwrap());
        has_begun.recv().unwrap();
        assert_eq!(saver.take(3, &mut [0; 4096]), Taken::Gone);
        assert!(!saver.sink_is_done(), "it has not got it yet");
        go.send(()).unwrap();
        machine.join().unwrap();
        assert!(saver.sink_is_done());
        assert_eq!(*kept.0.lock().unwrap(), [(3, 7)]);
    }

    #[test]
    fn saver_and_machine_race_for_every_page() {
        const PAGES: usize = 4096;
        let mut ram = Ram::new((PAGES as u64) << 12).unwrap();
        for round in 1..=20u8 {
            for page in 0..PAGES {
                ram.write(page_at(page), &[round; 4096]).unwrap();
            }
            let kept = Kept::default();
            let sink = Box::new(kept.clone());
            let (guest, saver) = ram.pages().prepare(None, 64 * usize::from(round), 64, sink);
            ram.begin_copy_on_write(guest);
            let thread = std::thread::spawn(move || {
                let whole = |bytes: &Page| bytes.iter().all(|byte| *byte == bytes[0]);
                let (mut seen, mut copies) = (0, 0);
                for page in 0..PAGES {
                    let mut bytes = [0; 4096];
                    match saver.take(page, &mut bytes) {
                        Taken::Saved => {
                            assert!(whole(&bytes) && bytes[0] == round, "page {page} torn");
                            seen += 1;
                        }
                        Taken::Copied => copies += 1,
                        Taken::Gone => {}
                        Taken::Unchanged => panic!("page {page} was written"),
                    }
                }
                while copies > 0 {
                    let Some((_, bytes)) = saver.try_copy() else { continue };
                    assert!(whole(&bytes) && bytes[0] == round);
                    (copies, seen) = (copies - 1, seen + 1);
                }
                seen
            });
            for page in (0..PAGES).rev() {
                ram.write(page_at(page), &[0; 4096]).unwrap();
            }
            let seen = thread.join().unwrap();
            assert_eq!(seen + kept.0.lock().unwrap().len(), PAGES);
        }
    }
}
