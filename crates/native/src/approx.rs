//! The approximations RCPPS/RCPSS and RSQRTPS/RSQRTSS, defined once for all hosts.
//!
//! CPU vendors differ in them, so a guest gets ours: the exact value rounded to twelve fraction
//! bits, ties to even. The relative error is at most 2^-13, within the 1.5 * 2^-12 that
//! SDM vol. 2B promises. Special cases are the manual's: denormals count as zero of their sign,
//! tiny results are zero of their sign. No exception flags, no dependence on MXCSR.

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;
const QUIET: u32 = 0x0040_0000;
const INDEFINITE: u32 = 0xffc0_0000;

/// Rounds a positive value to twelve fraction bits and gives the bits of an `f32`.
fn round(value: f64) -> u32 {
    // An f64 has 52 fraction bits: 40 go. Adding may carry into the exponent, which is right.
    let bits = value.to_bits();
    let half = (1u64 << 39) - 1 + ((bits >> 40) & 1);
    let rounded = f64::from_bits(((bits + half) >> 40) << 40);
    if rounded < f64::from(f32::MIN_POSITIVE) {
        return 0;
    }
    (rounded as f32).to_bits()
}

/// The reciprocal of an `f32`, bits to bits.
pub fn rcp(bits: u32) -> u32 {
    let (sign, magnitude) = (bits & SIGN, bits & !SIGN);
    match magnitude {
        0..0x0080_0000 => sign | INFINITY,
        INFINITY => sign,
        0x0080_0000..INFINITY => sign | round(1.0 / f64::from(f32::from_bits(magnitude))),
        _ => bits | QUIET,
    }
}

/// The reciprocal of the square root of an `f32`, bits to bits.
pub fn rsqrt(bits: u32) -> u32 {
    let (sign, magnitude) = (bits & SIGN, bits & !SIGN);
    match magnitude {
        0..0x0080_0000 => sign | INFINITY,
        _ if magnitude > INFINITY => bits | QUIET,
        _ if sign != 0 => INDEFINITE,
        INFINITY => 0,
        _ => round(1.0 / f64::from(f32::from_bits(magnitude)).sqrt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR_MAX: f64 = 1.5 / 4096.0;

    #[test]
    fn special_cases_are_the_manuals() {
        let cases = [
            (0, INFINITY, INFINITY),
            (SIGN, SIGN | INFINITY, SIGN | INFINITY),
            (0x0000_0001, INFINITY, INFINITY),
            (INFINITY, 0, 0),
            (SIGN | INFINITY, SIGN, INDEFINITE),
            (0x7f80_0001, 0x7fc0_0001, 0x7fc0_0001),
            (0x3f80_0000, 0x3f80_0000, 0x3f80_0000),
            (0xbf80_0000, 0xbf80_0000, INDEFINITE),
            (0x4080_0000, 0x3e80_0000, 0x3f00_0000),
            (0x7f7f_ffff, 0, 0x1f80_0000),
        ];
        for (bits, reciprocal, root) in cases {
            assert_eq!((rcp(bits), rsqrt(bits)), (reciprocal, root), "of {bits:#x}");
        }
    }

    #[test]
    fn relative_error_is_within_the_manuals_bound() {
        for bits in (0x0080_0000..0x7e00_0000).step_by(10_007) {
            let exact = f64::from(f32::from_bits(bits));
            let reciprocal = f64::from(f32::from_bits(rcp(bits))) * exact - 1.0;
            let root = f64::from(f32::from_bits(rsqrt(bits))) * exact.sqrt() - 1.0;
            assert!(reciprocal.abs() <= ERROR_MAX && root.abs() <= ERROR_MAX, "of {bits:#x}");
        }
    }
}
