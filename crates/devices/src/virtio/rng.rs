//! Entropy device (section 5.4): a ChaCha20 stream (RFC 8439 section 2.3) keyed by the machine's
//! seed, so that a run can be repeated. A copy of a machine gets a key of its own by its
//! generation id, or two copies would read the same.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use super::chain::len_of;
use super::{Broken, Kind, VirtioContext, VirtioDevice};
use crate::pci::Delivery;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 64;
/// Most bytes given for one chain; the driver asks again (section 5.4.6.1 allows fewer).
const CHAIN_BYTES_MAX: u64 = 4096;
const BLOCK_SIZE: usize = 64;

/// An entropy device.
pub struct Rng {
    key: [u32; 8],
    /// Number of the next 64-byte block of the stream.
    block: u64,
}

/// Saved form of an entropy device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RngSaved {
    /// Key.
    #[n(0)]
    pub key: [u32; 8],
    /// Number of the next block.
    #[n(1)]
    pub block: u64,
}

impl Saved for RngSaved {
    const NAME: &'static str = "virtio-rng";
    const VERSION: u16 = 1;
}

impl Rng {
    /// A device whose stream is a function of `seed`.
    pub fn new(seed: [u8; 32]) -> Rng {
        let mut key = [0; 8];
        for (word, bytes) in key.iter_mut().zip(seed.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Rng { key, block: 0 }
    }

    /// Another stream, which follows from this one and `id`, and from which neither can be told.
    fn renew(&mut self, id: [u8; 16]) {
        for (word, bytes) in self.key.iter_mut().zip(id.as_chunks::<4>().0) {
            *word ^= u32::from_le_bytes(*bytes);
        }
        let seed = chacha20(&self.key, self.block);
        let (seed, _) = seed.split_first_chunk::<32>().expect("a block has 64 bytes");
        *self = Rng::new(*seed);
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len.next_multiple_of(BLOCK_SIZE));
        while bytes.len() < len {
            bytes.extend(chacha20(&self.key, self.block));
            self.block = self.block.wrapping_add(1);
        }
        bytes.truncate(len);
        bytes
    }
}

/// Block `block` of the stream of `key`, with a 64-bit counter and a nonce of zero.
fn chacha20(key: &[u32; 8], block: u64) -> [u8; BLOCK_SIZE] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    (start[12], start[13]) = (block as u32, (block >> 32) as u32);
    let mut state = start;
    for _ in 0..10 {
        for column in 0..4 {
            quarter(&mut state, [column, column + 4, column + 8, column + 12]);
        }
        for i in 0..4 {
            quarter(&mut state, [i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4]);
        }
    }
    let mut bytes = [0; BLOCK_SIZE];
    for (i, out) in bytes.chunks_exact_mut(4).enumerate() {
        out.copy_from_slice(&state[i].wrapping_add(start[i]).to_le_bytes());
    }
    bytes
}

fn quarter(s: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    for (x, y, z, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        s[x] = s[x].wrapping_add(s[y]);
        s[z] = (s[z] ^ s[x]).rotate_left(turn);
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-rng", id: 4, class: 0x00_ff00, queue_sizes: &[QUEUE_SIZE] }
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn notified(&mut self, cx: &mut VirtioContext<'_>, _queue: usize) -> Result<(), Broken> {
        for _ in 0..cx.available(QUEUE)? {
            let Some(chain) = cx.pop(QUEUE)? else { break };
            let len = len_of(&chain.writable).min(CHAIN_BYTES_MAX);
            let bytes = self.bytes(len as usize);
            let written = cx.write(&chain.writable, &bytes)?;
            cx.push(QUEUE, chain.head, written)?;
        }
        Ok(())
    }

    fn deliver(&mut self, _cx: &mut VirtioContext<'_>, what: Delivery) -> Result<(), Broken> {
        if let Delivery::Generation(id) = what {
            self.renew(id);
        }
        Ok(())
    }

    /// The stream goes on; only the machine's seed starts it.
    fn reset(&mut self) {}

    fn save(&self, instance: u32, sections: &mut Sections) {
        let Rng { key, block } = self;
        sections.save(instance, &RngSaved { key: *key, block: *block });
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let RngSaved { key, block } = sections.restore(instance)?;
        *self = Rng { key, block };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_one_stream_differ_and_are_repeatable() {
        let of = |id: Option<[u8; 16]>| {
            let mut rng = Rng::new([7; 32]);
            rng.bytes(100);
            id.into_iter().for_each(|id| rng.renew(id));
            rng.bytes(64)
        };
        let all = [of(None), of(Some([0; 16])), of(Some([1; 16])), of(Some([2; 16]))];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
        assert_eq!(of(Some([1; 16])), all[2]);
    }

    #[test]
    fn chacha20_of_zero_key_is_the_known_stream() {
        // RFC 8439 appendix A.1, test vectors 1 and 2.
        let first = chacha20(&[0; 8], 0);
        assert_eq!(first[..8], [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
        let second = chacha20(&[0; 8], 1);
        assert_eq!(second[..8], [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]);
    }
}
