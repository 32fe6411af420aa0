//! A set of vectors as the eight 32-bit registers of ISR, IRR and TMR.

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(pub [u32; 8]);

impl Bits {
    fn place(vector: u8) -> (usize, u32) {
        (usize::from(vector >> 5), 1 << (vector & 31))
    }

    pub fn get(&self, vector: u8) -> bool {
        let (word, bit) = Bits::place(vector);
        self.0[word] & bit != 0
    }

    pub fn set(&mut self, vector: u8) {
        self.assign(vector, true);
    }

    pub fn clear(&mut self, vector: u8) {
        self.assign(vector, false);
    }

    pub fn assign(&mut self, vector: u8, value: bool) {
        let (word, bit) = Bits::place(vector);
        if value {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    /// The highest vector in the set.
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|&word| word != 0)?;
        Some((32 * word as u32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}
