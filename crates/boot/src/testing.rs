//! Synthetic kernels and seeded mutation, for the tests of this crate.

/// A small deterministic generator (xorshift64*); the state is never 0.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Changes one to four bytes, towards values that hurt.
    pub(crate) fn mutate(&mut self, bytes: &mut [u8]) {
        for _ in 0..=self.next() % 4 {
            let at = self.next() as usize % bytes.len();
            bytes[at] = match self.next() % 4 {
                0 => 0,
                1 => 0xff,
                2 => 0x80,
                _ => self.next() as u8,
            };
        }
    }
}

/// An ELF with one segment of 4096 bytes at 1 MiB that takes 0x3000 bytes of RAM.
#[derive(Clone)]
pub(crate) struct ElfImage {
    pub(crate) is_64: bool,
    pub(crate) machine: u16,
    pub(crate) gpa: u64,
    pub(crate) vaddr: u64,
    pub(crate) size: u64,
    pub(crate) entry: u64,
    /// Entry for a PVH note.
    pub(crate) pvh: Option<u32>,
    /// What the segment starts with.
    pub(crate) contents: Vec<u8>,
}

impl Default for ElfImage {
    fn default() -> ElfImage {
        ElfImage {
            is_64: true,
            machine: 62,
            gpa: 0x10_0000,
            vaddr: 0x10_0000,
            size: 0x3000,
            entry: 0x10_0000,
            pvh: None,
            contents: Vec::new(),
        }
    }
}

const CONTENTS_AT: u64 = 0x200;
const NOTE_AT: u64 = CONTENTS_AT + 4096;

impl ElfImage {
    pub(crate) fn build(&self) -> Vec<u8> {
        self.build_with(|_| {})
    }

    pub(crate) fn build_with(&self, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut image = self.header();
        let note_size = if self.pvh.is_some() { 20 } else { 0 };
        image.extend(self.program_header(1, CONTENTS_AT, 4096, self.size));
        image.extend(self.program_header(4, NOTE_AT, note_size, note_size));
        image.resize(CONTENTS_AT as usize, 0);
        image.extend(&self.contents);
        image.resize(NOTE_AT as usize, 0x90);
        if let Some(entry) = self.pvh {
            for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry] {
                image.extend(word.to_le_bytes());
            }
        }
        change(&mut image);
        image
    }

    fn header(&self) -> Vec<u8> {
        let mut header = b"\x7fELF".to_vec();
        header.extend([if self.is_64 { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        header.extend(2u16.to_le_bytes());
        header.extend(self.machine.to_le_bytes());
        header.extend(1u32.to_le_bytes());
        let (size, step) = if self.is_64 { (64u16, 56u16) } else { (52, 32) };
        for word in [self.entry, u64::from(size), 0] {
            let bytes = if self.is_64 { 8 } else { 4 };
            header.extend(&word.to_le_bytes()[..bytes]);
        }
        header.extend(0u32.to_le_bytes());
        for half in [size, step, 2, 0, 0, 0] {
            header.extend(half.to_le_bytes());
        }
        header
    }

    fn program_header(&self, kind: u32, offset: u64, file_size: u64, size: u64) -> Vec<u8> {
        let mut header = kind.to_le_bytes().to_vec();
        if self.is_64 {
            header.extend(7u32.to_le_bytes());
            for word in [offset, self.vaddr, self.gpa, file_size, size, 4] {
                header.extend(word.to_le_bytes());
            }
        } else {
            for word in [offset, self.vaddr, self.gpa, file_size, size, 7, 4] {
                header.extend((word as u32).to_le_bytes());
            }
        }
        header
    }
}

/// A bzImage (protocol 2.15) around `payload`, with room for a decompressor of 4 KiB.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &0x7fu16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &0x1000u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    image.resize(0x1400, 0xcc);
    image.extend(payload);
    let blocks = (image.len() as u32 - 0x400).div_ceil(16);
    image.resize(0x400 + blocks as usize * 16, 0);
    image[0x1f4..0x1f8].copy_from_slice(&blocks.to_le_bytes());
    image
}
