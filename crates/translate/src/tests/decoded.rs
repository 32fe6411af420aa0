//! Random bytes as instructions: all that there are, not only what programs are made of.

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Numbers without end, always the same ones (xorshift64).
pub(crate) fn xorshift(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Random bytes behind one of `first`, and the instruction that they are.
pub(crate) fn decoded(random: &mut impl FnMut() -> u64, first: &[&[u8]]) -> (Vec<u8>, Instruction) {
    let mut bytes = first[random() as usize % first.len()].to_vec();
    bytes.extend(random().to_le_bytes());
    bytes.extend(random().to_le_bytes());
    let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    (bytes, instruction)
}
