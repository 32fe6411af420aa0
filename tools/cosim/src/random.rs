//! A small deterministic generator, and values worth trying.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// Generator of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A value that computations find interesting.
    pub fn value(&mut self) -> u64 {
        match self.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => self.choose(&[1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000]),
            3 => self.choose(&[1 << 63, (1 << 63) - 1, u64::MAX << 31, u64::MAX << 7, 0xffff_ffff]),
            4 => 1 << self.below(64),
            5 => self.below(256),
            6 => self.below(256).wrapping_neg(),
            7 => self.float(),
            _ => self.bits() >> self.below(64),
        }
    }

    /// Two `f32` or one `f64` of an interesting kind.
    pub fn float(&mut self) -> u64 {
        if self.one_in(2) {
            self.double()
        } else {
            u64::from(self.single()) << 32 | u64::from(self.single())
        }
    }

    fn single(&mut self) -> u32 {
        let sign = (self.bits() as u32) & 0x8000_0000;
        let magnitude = match self.below(8) {
            0 => self.choose(&[0, 1, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff, 0x7f80_0000]),
            1 => self.choose(&[0x7fc0_0000, 0x7f80_0001, 0x7fff_ffff, 0x3f80_0000, 0x4b00_0001]),
            2 => self.bits() as u32 & 0x007f_ffff,
            3 => (self.below(1000) as f32).to_bits(),
            4 => 0x3f80_0000 ^ (self.bits() as u32 & 0x00ff_ffff),
            _ => self.bits() as u32 & 0x7fff_ffff,
        };
        sign | magnitude
    }

    fn double(&mut self) -> u64 {
        let sign = self.bits() & (1 << 63);
        let magnitude = match self.below(8) {
            0 => self.choose(&[0, 1, (1 << 52) - 1, 1 << 52, 0x7fef_ffff_ffff_ffff, 0x7ff << 52]),
            1 => self.choose(&[0x7ff8 << 48, (0x7ff << 52) + 1, (1 << 63) - 1, 0x3ff << 52]),
            2 => self.bits() & ((1 << 52) - 1),
            3 => (self.below(100_000) as f64).to_bits(),
            4 => f64::from(f32::from_bits(self.single() & 0x7fff_ffff)).to_bits() & (u64::MAX >> 1),
            5 => (0x3ff << 52) ^ (self.bits() & ((1 << 54) - 1)),
            _ => self.bits() & (u64::MAX >> 1),
        };
        sign | magnitude
    }

    /// Significand, sign and exponent of an 80-bit number.
    pub fn extended(&mut self) -> (u64, u16) {
        let sign = (self.bits() as u16) & 0x8000;
        let significand = match self.below(4) {
            0 => 1 << 63,
            1 => self.choose(&[0, 3 << 62, u64::MAX, (1 << 63) + 1, 1, (1 << 63) - 1]),
            _ => self.bits() | 1 << 63,
        };
        let exponent = match self.below(8) {
            0 => self.choose(&[0, 1, 0x7fff, 0x7ffe, 0x3fff]),
            1 => self.bits() as u16 & 0x7fff,
            _ => 0x3fff - 70 + self.below(140) as u16,
        };
        (significand, sign | exponent)
    }
}
