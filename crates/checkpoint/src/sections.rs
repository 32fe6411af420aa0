//! The file of sections: the machine's saved state but for RAM, and the results of disk reads that
//! were in flight.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use saved::{Saved, Section, Sections};
use xxhash_rust::xxh3::xxh3_64;

use crate::manifest::Id;

const MAGIC: &[u8; 8] = b"DOPPLSEC";
const VERSION: u32 = 1;
const HEADER_SIZE: usize = 32;
/// Most sections of a checkpoint.
const SECTIONS_MAX: u32 = 4096;

/// Results of reads of a disk that were in flight: a restored machine gets them as the captured one
/// did, whatever is written to the disk meanwhile (mechanism C7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct DiskReads {
    /// Id of the request, and the bytes read, or nothing if the host failed.
    #[n(0)]
    pub reads: Vec<(u64, Option<ByteVec>)>,
}

impl Saved for DiskReads {
    const NAME: &'static str = "disk-reads";
    const VERSION: u16 = 1;
}

/// The file's bytes.
pub(crate) fn encode(id: Id, sections: &Sections, reads: &[DiskReads]) -> Vec<u8> {
    let reads = (0..).zip(reads).filter(|(_, reads)| !reads.reads.is_empty());
    let reads: Vec<_> = reads.map(|(disk, reads)| Section::encode(disk, reads)).collect();
    let all: Vec<_> = sections.iter().chain(&reads).collect();
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((all.len() as u32).to_le_bytes());
    bytes.extend(id.0);
    for section in all {
        let body = minicbor::to_vec(section).expect("encoding into memory cannot fail");
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(xxh3_64(&body).to_le_bytes());
        bytes.extend(body);
    }
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    bytes
}

/// Whose a file is, the machine's sections, and the reads of each disk.
pub(crate) type Decoded = (Id, Sections, Vec<(u32, DiskReads)>);

/// Reads a file's bytes, or says in words what is wrong with them.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let Some((body, sum)) = bytes.split_last_chunk::<8>() else {
        return Err("it is shorter than its header".into());
    };
    if body.len() < HEADER_SIZE || body[..8] != *MAGIC {
        return Err("it does not begin like a file of sections".into());
    }
    let version = u32::from_le_bytes(array(body, 8));
    if version > VERSION {
        return Err(format!("it has version {version}, this release reads up to {VERSION}"));
    }
    if xxh3_64(body) != u64::from_le_bytes(*sum) {
        return Err("its checksum is not that of its contents".into());
    }
    let count = u32::from_le_bytes(array(body, 12));
    if count > SECTIONS_MAX {
        return Err(format!("{count} sections are more than the {SECTIONS_MAX} there can be"));
    }
    let id = Id(array(body, 16));
    let (mut sections, mut reads, mut rest) =
        (Sections::default(), Vec::new(), &body[HEADER_SIZE..]);
    for _ in 0..count {
        let section;
        (section, rest) = take(rest)?;
        if section.name == DiskReads::NAME {
            reads.push((section.instance, section.decode().map_err(|error| error.to_string())?));
        } else {
            sections.put(section);
        }
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes are left after its sections", rest.len()));
    }
    Ok((id, sections, reads))
}

fn take(bytes: &[u8]) -> Result<(Section, &[u8]), String> {
    let short = || "it ends inside a section".to_owned();
    if bytes.len() < 16 {
        return Err(short());
    }
    let len = usize::try_from(u64::from_le_bytes(array(bytes, 0))).map_err(|_| short())?;
    let (body, rest) = bytes[16..].split_at_checked(len).ok_or_else(short)?;
    if xxh3_64(body) != u64::from_le_bytes(array(bytes, 8)) {
        return Err("the checksum of a section is not that of its contents".into());
    }
    let mut decoder = minicbor::Decoder::new(body);
    let section: Section = decoder.decode().map_err(|error| format!("a section: {error}"))?;
    if decoder.position() != body.len() {
        return Err(format!("section '{}' goes on after its end", section.name));
    }
    Ok((section, rest))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_decode_to_what_was_encoded_and_nothing_else() {
        let reads = DiskReads { reads: vec![(7, Some(vec![1, 2].into())), (8, None)] };
        let mut sections = Sections::default();
        for instance in 0..3 {
            let body = vec![instance as u8; 5];
            sections.put(Section { name: "a".into(), instance, version: 1, body });
        }
        let bytes = encode(Id([1; 16]), &sections, &[DiskReads::default(), reads.clone()]);
        let (id, back, back_reads) = decode(&bytes).unwrap();
        assert_eq!((id, back, back_reads), (Id([1; 16]), sections, vec![(1, reads)]));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(decode(&changed).is_err(), "{at}");
        }
    }
}
