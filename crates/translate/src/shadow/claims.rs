//! Address space of this process at the guest's own addresses, claimed piece by piece where nothing
//! else is: what is not claimed is never accessed by translated code.
//!
//! A chunk is used once all of it is claimed, and [`MARGIN`] bytes on either side of it; so an
//! access that begins no further than that from an address in it stays in what is claimed. What
//! was claimed stays so, with nothing in it, until all claims are dropped.

use std::collections::BTreeSet;
use std::ptr;

use cpu::tlb::layout::SCRATCH_COUNT;
use types::{PAGE_SHIFT, PAGE_SIZE};

/// A chunk is what one page of the TLB's `PASS` is for.
pub(crate) const CHUNK_SHIFT: u32 = SCRATCH_COUNT as u32 + PAGE_SHIFT;
const CHUNK: u64 = 1 << CHUNK_SHIFT;
/// How far from an address that was checked an access may begin and end.
pub(crate) const MARGIN: u64 = 64 << 10;
/// The lower half of linear addresses, and the page at its end that no process has.
const HALF: u64 = 1 << 47;

/// Chunks claimed at once: each takes some of the mappings that the host allows.
const CHUNKS_MAX: usize = 512;

/// See the module.
#[derive(Default)]
pub(crate) struct Claims {
    /// First addresses of what is claimed: margins and what lies between the two of a chunk.
    pieces: BTreeSet<u64>,
    chunks: BTreeSet<u64>,
    /// Chunks where something else is.
    refused: BTreeSet<u64>,
}

/// The three pieces of a chunk: first address and size.
fn pieces(chunk: u64) -> [(u64, u64); 3] {
    let start = chunk << CHUNK_SHIFT;
    let end = start + CHUNK;
    let last = if end == HALF { MARGIN - PAGE_SIZE } else { MARGIN };
    [(start, MARGIN), (start + MARGIN, CHUNK - 2 * MARGIN), (end - MARGIN, last)]
}

impl Claims {
    /// Claims chunk `chunk`, if nothing else is there; whether it is ours.
    pub(crate) fn claim(&mut self, chunk: u64) -> bool {
        if self.chunks.contains(&chunk) {
            return true;
        }
        let full = self.chunks.len() >= CHUNKS_MAX || self.refused.len() >= CHUNKS_MAX;
        if full || chunk >= HALF >> CHUNK_SHIFT || self.refused.contains(&chunk) {
            return false;
        }
        let [_, _, before] = pieces(chunk.wrapping_sub(1) & ((HALF >> CHUNK_SHIFT) - 1));
        let [after, ..] = pieces(chunk + 1);
        let own = pieces(chunk).into_iter();
        let around = [(chunk != 0).then_some(before), (after.0 != HALF).then_some(after)];
        let claimed = own.chain(around.into_iter().flatten()).all(|piece| self.claim_piece(piece));
        let set = if claimed { &mut self.chunks } else { &mut self.refused };
        set.insert(chunk);
        claimed
    }

    fn claim_piece(&mut self, (start, size): (u64, u64)) -> bool {
        // The first 64 KiB belong to nobody: hosts do not map there (vm.mmap_min_addr), and this
        // process does not ask for it.
        if start == 0 || self.pieces.contains(&start) {
            return true;
        }
        let claimed = reserve(start, size);
        if claimed {
            self.pieces.insert(start);
        }
        claimed
    }

    /// Whether there is not much room for others.
    pub(crate) fn are_many(&self) -> bool {
        self.chunks.len().max(self.refused.len()) > CHUNKS_MAX / 2
    }

    /// Whether all of the page may be mapped.
    pub(crate) fn has(&self, page: u64) -> bool {
        page >= MARGIN && self.chunks.contains(&(page >> CHUNK_SHIFT))
    }

    /// Takes everything out of what is claimed.
    pub(crate) fn clear(&self) {
        for &start in &self.pieces {
            let chunk = start >> CHUNK_SHIFT;
            let size = pieces(chunk).into_iter().find(|piece| piece.0 == start);
            let (_, size) = size.expect("a piece of its chunk");
            super::host::empty(start, size);
        }
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        for &start in &self.pieces {
            let sizes = pieces(start >> CHUNK_SHIFT);
            for (_, size) in sizes.into_iter().filter(|piece| piece.0 == start) {
                // SAFETY: the piece is a mapping of ours, and no translated code runs any more.
                unsafe { libc::munmap(ptr::without_provenance_mut(start as usize), size as usize) };
            }
        }
    }
}

/// Reserves address space if nothing is there.
fn reserve(start: u64, size: u64) -> bool {
    let wanted = ptr::without_provenance_mut(start as usize);
    let flags = super::host::EMPTY | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a mapping that replaces nothing.
    let got = unsafe { libc::mmap(wanted, size as usize, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got == wanted {
        return true;
    }
    // A kernel before 4.17 takes the address for a hint.
    // SAFETY: it was mapped just now.
    unsafe { libc::munmap(got, size as usize) };
    false
}

#[cfg(test)]
mod tests {
    use super::super::ShadowMap;
    use super::*;
    use crate::options::{Options, Shadowing};

    #[test]
    fn chunks_are_claimed_with_their_margins_where_nothing_is() {
        let options = Options { shadow: Shadowing::Always, ..Options::default() };
        let mut shadow = ShadowMap::new(options);
        assert!(shadow.take(), "other tests claim none meanwhile");
        let claims = &mut shadow.claims;
        let chunk = 0x3000_0000_0000 >> CHUNK_SHIFT;
        let (page, behind) = (chunk << CHUNK_SHIFT, (chunk + 1) << CHUNK_SHIFT);
        assert!(!claims.has(page));
        assert!(claims.claim(chunk) && claims.claim(chunk) && claims.has(page));
        assert!(!claims.has(behind));
        assert!(!reserve(behind, PAGE_SIZE) && !reserve(page - PAGE_SIZE, PAGE_SIZE));
        assert!(reserve(behind + MARGIN, PAGE_SIZE));
        assert!(!claims.claim(chunk + 1), "something else is there");
        crate::shadow::host::release(behind + MARGIN, PAGE_SIZE);
        assert!(!claims.claim(chunk + 1), "it is not tried again");
        assert!(claims.claim(chunk + 2) && claims.claim(chunk - 1));
        assert!(claims.claim(0) && !claims.has(0) && claims.has(MARGIN));
        assert!(!claims.claim(HALF >> CHUNK_SHIFT));
        let here = (&raw const claims) as u64;
        assert!(!claims.claim(here >> CHUNK_SHIFT), "the stack is there");
        shadow.claims = Claims::default();
        assert!(reserve(page, PAGE_SIZE));
        crate::shadow::host::release(page, PAGE_SIZE);
    }
}
