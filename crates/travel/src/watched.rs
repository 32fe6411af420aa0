//! Watched bytes: where they are in RAM, and what happened to them.

use machine::{Machine, WatchKind};
use memory::RamOffset;
use types::PAGE_SIZE;

use crate::look;
use crate::search::Stops;
use crate::travel::Halt;

/// A piece of watched bytes in one page, and how it is watched.
pub type Piece = (RamOffset, u64, WatchKind);

/// Watched bytes, found in RAM.
#[derive(Clone)]
pub struct Watched {
    pieces: Vec<Piece>,
    /// What a piece belongs to.
    owners: Vec<Halt>,
    values: Vec<Vec<u8>>,
}

impl Watched {
    /// Finds what `stops` watches, by the page tables in use.
    pub fn find(machine: &Machine, stops: &Stops) -> Watched {
        let (mut pieces, mut owners) = (Vec::new(), Vec::new());
        let cr3 = machine.vcpu().cr3;
        let changes = stops.watches.iter().map(|&(gva, len)| (gva, len, WatchKind::Changes));
        let changes = changes.enumerate().map(|(index, watch)| (Halt::Touched(index), watch));
        let accesses = stops.accesses.iter().copied().enumerate();
        let accesses = accesses.map(|(index, watch)| (Halt::Accessed(index), watch));
        for (owner, (gva, len, kind)) in changes.chain(accesses) {
            let mut done = 0;
            while done < len {
                let at = gva.wrapping_add(done);
                let step = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
                if let Ok(place) = look::place(machine, cr3, at) {
                    pieces.push((place, step, kind));
                    owners.push(owner);
                }
                done += step;
            }
        }
        let mut watched = Watched { pieces, owners, values: Vec::new() };
        watched.values = watched.read(machine);
        watched
    }

    fn read(&self, machine: &Machine) -> Vec<Vec<u8>> {
        let read = |&(at, len, _): &Piece| {
            let mut bytes = vec![0; len as usize];
            machine.ram().load_bytes(at, &mut bytes);
            bytes
        };
        self.pieces.iter().map(read).collect()
    }

    /// The pieces of RAM, as [`Machine::set_watches`] takes them.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Looks at the bytes as they are now: changes count from here.
    pub(crate) fn look(&mut self, machine: &Machine) {
        self.values = self.read(machine);
    }

    /// What happened since the last look: an access (to piece `accessed`, if it is one of those
    /// that are watched so), or bytes that are not what they were.
    pub fn met(&mut self, machine: &Machine, accessed: Option<usize>) -> Option<Halt> {
        let now = self.read(machine);
        let changes = |index: &usize| self.pieces[*index].2 == WatchKind::Changes;
        let changed = |index: &usize| changes(index) && now[*index] != self.values[*index];
        let index = accessed.filter(|index| !changes(index));
        let index = index.or_else(|| (0..now.len()).find(changed));
        self.values = now;
        index.map(|index| self.owners[index])
    }

    /// RAM pages in which only what writes can be of interest; `None` if loads are.
    pub(crate) fn written(&self) -> Option<Vec<u32>> {
        let page =
            |(at, _, kind): &Piece| (*kind == WatchKind::Changes).then_some(at.page() as u32);
        self.pieces.iter().map(page).collect()
    }
}
