//! What a translation is found by within its page.

use crate::classify::Mode;
use crate::plan::Variant;

/// Bits of a variant, and of a mode's number.
const VARIANT_BITS: u32 = 1;
const MODE_BITS: u32 = 9;
const _: () = assert!(Mode::COUNT == 1 << MODE_BITS);

/// Offset, mode and variant in one number: there are many comparisons for each translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockKey(u32);

impl BlockKey {
    pub(crate) fn new(offset: u16, mode: Mode, variant: Variant) -> BlockKey {
        let mode = mode.index() as u32;
        let ways = mode << VARIANT_BITS | u32::from(variant == Variant::Careful);
        BlockKey(u32::from(offset) << (MODE_BITS + VARIANT_BITS) | ways)
    }

    /// Offset in the page.
    pub(crate) fn offset(self) -> u16 {
        (self.0 >> (MODE_BITS + VARIANT_BITS)) as u16
    }

    /// The mode's number.
    pub(crate) fn mode_index(self) -> usize {
        (self.0 >> VARIANT_BITS) as usize & (Mode::COUNT - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_keys_differ_where_translations_do() {
        let user = Mode { side: 2, sse: true, direct: true, ..Mode::default() };
        let kernel = Mode { side: 1, kernel: true, ..Mode::default() };
        let mut keys = Vec::new();
        for offset in [0, 1, 0xfff] {
            for mode in [user, kernel] {
                for variant in [Variant::Fast, Variant::Careful] {
                    let key = BlockKey::new(offset, mode, variant);
                    assert_eq!((key.offset(), key.mode_index()), (offset, mode.index()));
                    keys.push(key);
                }
            }
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 12);
    }
}
