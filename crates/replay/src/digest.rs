//! A digest of everything that left a machine, for the replay to compare (mechanism L5).

use journal::{DiskOperation, DiskRequest, Output};
use machine::Outside;

/// Multiplier of the digests: odd, with well mixed bits.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where outputs go, when they are to be compared.
pub trait Watched: Outside {
    /// The digest of everything so far.
    fn digest(&self) -> u64;
}

/// A digest of outputs. In which pieces a console's bytes came makes no difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputDigest {
    consoles: [u64; 3],
    frames: u64,
    disks: u64,
}

impl OutputDigest {
    /// Takes an output in.
    pub fn add(&mut self, output: &Output) {
        match output {
            Output::Console { port, bytes } => {
                if let Some(digest) = self.consoles.get_mut(*port as usize) {
                    for byte in bytes {
                        *digest = (*digest ^ u64::from(*byte)).wrapping_add(1).wrapping_mul(MIX);
                    }
                }
            }
            Output::NetTransmit { nic, frame } => {
                self.frames = mix(self.frames, &[u64::from(*nic), hash(frame)]);
            }
            Output::Disk { disk, request } => {
                self.disks = mix(self.disks, &[u64::from(*disk), hash_request(request)]);
            }
        }
    }

    /// It as numbers, to be kept.
    pub fn to_words(&self) -> [u64; 5] {
        let [a, b, c] = self.consoles;
        [a, b, c, self.frames, self.disks]
    }

    /// The one that was kept so.
    pub fn from_words([a, b, c, frames, disks]: [u64; 5]) -> OutputDigest {
        OutputDigest { consoles: [a, b, c], frames, disks }
    }

    /// The digest.
    pub fn value(&self) -> u64 {
        let [a, b, c] = self.consoles;
        mix(0, &[a, b, c, self.frames, self.disks])
    }
}

fn mix(start: u64, values: &[u64]) -> u64 {
    values.iter().fold(start, |sum, value| (sum.rotate_left(29) ^ value).wrapping_mul(MIX))
}

fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

fn hash_request(DiskRequest { id, operation }: &DiskRequest) -> u64 {
    let parts = match operation {
        DiskOperation::Read { offset, len } => [0, *offset, u64::from(*len)],
        DiskOperation::Write { offset, data } => [1, *offset, hash(data)],
        DiskOperation::Flush => [2, 0, 0],
        DiskOperation::Discard { offset, len } => [3, *offset, *len],
        DiskOperation::WriteZeroes { offset, len } => [4, *offset, *len],
    };
    mix(*id, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(outputs: &[Output]) -> u64 {
        let mut digest = OutputDigest::default();
        outputs.iter().for_each(|output| digest.add(output));
        digest.value()
    }

    fn console(port: u32, bytes: &[u8]) -> Output {
        Output::Console { port, bytes: bytes.to_vec() }
    }

    #[test]
    fn pieces_make_no_difference_and_bytes_do() {
        let whole = digest(&[console(0, b"hello")]);
        assert_eq!(whole, digest(&[console(0, b"he"), console(0, b"llo")]));
        for other in
            [&[console(0, b"hellp")][..], &[console(1, b"hello")], &[console(0, b"hello\0")]]
        {
            assert_ne!(whole, digest(other));
        }
        let frame = |byte| Output::NetTransmit { nic: 0, frame: vec![byte; 60] };
        assert_ne!(digest(&[frame(1), frame(2)]), digest(&[frame(2), frame(1)]));
    }

    #[test]
    fn digest_goes_on_from_what_was_kept() {
        let mut digest = OutputDigest::default();
        let frame = Output::NetTransmit { nic: 0, frame: vec![1; 60] };
        [console(0, b"a"), console(1, b"b"), console(2, b"c"), frame.clone()]
            .iter()
            .for_each(|output| digest.add(output));
        let mut kept = OutputDigest::from_words(digest.to_words());
        assert_eq!(kept, digest);
        kept.add(&frame);
        digest.add(&frame);
        assert_eq!(kept.value(), digest.value());
    }

    #[test]
    fn disk_requests_differ_in_everything() {
        let ask = |id, operation| Output::Disk { disk: 0, request: DiskRequest { id, operation } };
        let read = |offset, len| DiskOperation::Read { offset, len };
        let all = [
            ask(0, read(0, 512)),
            ask(1, read(0, 512)),
            ask(0, read(512, 512)),
            ask(0, read(0, 1024)),
            ask(0, DiskOperation::Write { offset: 0, data: vec![0; 512] }),
            ask(0, DiskOperation::Write { offset: 0, data: vec![1; 512] }),
            ask(0, DiskOperation::Flush),
            ask(0, DiskOperation::Discard { offset: 0, len: 512 }),
            ask(0, DiskOperation::WriteZeroes { offset: 0, len: 512 }),
        ];
        let digests: std::collections::BTreeSet<u64> =
            all.iter().map(|output| digest(std::slice::from_ref(output))).collect();
        assert_eq!(digests.len(), all.len());
    }
}
