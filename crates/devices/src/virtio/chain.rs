//! A descriptor chain taken from a queue, checked: pieces of RAM to read, then pieces to write.

use memory::{NoRam, Ram, RamView};
use minicbor::{Decode, Encode};
use types::Gpa;
use virtio_queue::DescriptorChain;

use super::Broken;

/// Most descriptors in a chain, direct or indirect.
pub const CHAIN_LEN_MAX: usize = 1024;

/// Contiguous guest-physical bytes, all of them RAM when the chain was taken. This is the guest
/// address pointer of mechanism N1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Piece {
    /// First address.
    #[n(0)]
    pub gpa: u64,
    /// Bytes, 1 or more.
    #[n(1)]
    pub len: u32,
}

/// What one descriptor chain describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of the first descriptor: the chain's name in the used ring.
    pub head: u16,
    /// For the device to read, in order.
    pub readable: Vec<Piece>,
    /// For the device to write, in order.
    pub writable: Vec<Piece>,
}

impl Chain {
    /// Takes the descriptors of `chain`.
    ///
    /// # Errors
    /// [`Broken::Chain`] for a chain that is empty, too long, cut off by a bad index or table, or
    /// has readable after writable descriptors (section 2.7.4.2).
    pub(super) fn take(chain: DescriptorChain<&RamView<'_>>) -> Result<Chain, Broken> {
        let mut taken =
            Chain { head: chain.head_index(), readable: Vec::new(), writable: Vec::new() };
        let mut whole = false;
        for (count, descriptor) in chain.enumerate() {
            if count == CHAIN_LEN_MAX {
                return Err(Broken::Chain);
            }
            whole = !descriptor.has_next();
            let piece = Piece { gpa: descriptor.addr().0, len: descriptor.len() };
            if descriptor.is_write_only() {
                taken.writable.push(piece);
            } else if taken.writable.is_empty() {
                taken.readable.push(piece);
            } else {
                return Err(Broken::Chain);
            }
        }
        taken.readable.retain(|piece| piece.len != 0);
        taken.writable.retain(|piece| piece.len != 0);
        if whole { Ok(taken) } else { Err(Broken::Chain) }
    }

    /// Checks that every piece is RAM.
    ///
    /// # Errors
    /// [`Broken::Address`] if one is not.
    pub(super) fn check(&self, ram: &Ram) -> Result<(), Broken> {
        for piece in self.readable.iter().chain(&self.writable) {
            ram.check(Gpa(piece.gpa), piece.len.into())?;
        }
        Ok(())
    }
}

/// Bytes in `pieces`.
pub fn len_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

/// The pieces of bytes `skip..skip + len` of `pieces`, as far as there are any.
pub fn part(pieces: &[Piece], skip: u64, len: u64) -> Vec<Piece> {
    let (mut skip, mut left) = (skip, len);
    let mut parts = Vec::new();
    for piece in pieces {
        let skipped = skip.min(piece.len.into());
        let len = (u64::from(piece.len) - skipped).min(left);
        skip -= skipped;
        left -= len;
        if len != 0 {
            parts.push(Piece { gpa: piece.gpa.wrapping_add(skipped), len: len as u32 });
        }
    }
    parts
}

/// Copies the bytes of `pieces` out of RAM, `len_max` at most.
///
/// # Errors
/// [`NoRam`] if a piece is not RAM.
pub fn gather(ram: &Ram, pieces: &[Piece], len_max: u64) -> Result<Vec<u8>, NoRam> {
    let mut bytes = vec![0; len_of(pieces).min(len_max) as usize];
    let mut rest = bytes.as_mut_slice();
    for piece in pieces {
        let len = rest.len().min(piece.len as usize);
        let (now, later) = rest.split_at_mut(len);
        ram.read(Gpa(piece.gpa), now)?;
        rest = later;
    }
    Ok(bytes)
}

/// Copies `bytes` into `pieces` as far as both reach; returns how many were copied.
///
/// # Errors
/// [`NoRam`] if a piece is not RAM.
pub fn scatter(ram: &mut Ram, pieces: &[Piece], bytes: &[u8]) -> Result<u32, NoRam> {
    let mut rest = bytes;
    for piece in pieces {
        let (now, later) = rest.split_at(rest.len().min(piece.len as usize));
        ram.write(Gpa(piece.gpa), now)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Ok((bytes.len() - rest.len()) as u32)
}
