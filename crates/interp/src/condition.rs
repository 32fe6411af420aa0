//! Condition codes of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).

use cpu::{StatusFlags, flag};

/// Whether condition `code` (0 to 15, as encoded) holds.
#[inline(always)]
pub fn holds(status: StatusFlags, code: u8) -> bool {
    let set = |bit: u64| status.low & bit as u8 != 0;
    let less = set(flag::SF) != (status.overflow != 0);
    let base = match code >> 1 {
        0 => status.overflow != 0,
        1 => set(flag::CF),
        2 => set(flag::ZF),
        3 => set(flag::CF) || set(flag::ZF),
        4 => set(flag::SF),
        5 => set(flag::PF),
        6 => less,
        _ => less || set(flag::ZF),
    };
    base != (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_odd_codes_negate_even_ones() {
        for flags in 0..0x1000u64 {
            let status = StatusFlags::from_rflags(flags);
            for code in (0..16).step_by(2) {
                assert_ne!(holds(status, code), holds(status, code + 1));
            }
        }
    }

    #[test]
    fn condition_signed_compare() {
        let after = |a: i8, b: i8| {
            let (result, overflow) = a.overflowing_sub(b);
            let sign = if result < 0 { flag::SF } else { 0 };
            let zero = if result == 0 { flag::ZF } else { 0 };
            let carry = if (a as u8) < (b as u8) { flag::CF } else { 0 };
            let over = if overflow { flag::OF } else { 0 };
            StatusFlags::from_rflags(sign | zero | carry | over)
        };
        for a in i8::MIN..=i8::MAX {
            for b in [-128, -1, 0, 1, 127] {
                let status = after(a, b);
                assert_eq!(holds(status, 0xc), a < b);
                assert_eq!(holds(status, 0xe), a <= b);
                assert_eq!(holds(status, 0x2), (a as u8) < (b as u8));
                assert_eq!(holds(status, 0x6), (a as u8) <= (b as u8));
            }
        }
    }
}
