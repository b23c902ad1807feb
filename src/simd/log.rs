//! The natural logarithm in double precision, without branches, so that loops over lanes vectorize.
//!
//! Method: x = 2^k m with m in [sqrt(1/2), sqrt(2)). With f = m - 1 and s = f / (2 + f), the series is
//! ln(1 + f) = 2 (s + s^3/3 + s^5/5 + ...), computed as f - s (f - 2 (s^2/3 + s^4/5 + ...)), in which the leading
//! term is exact.

/// ln(x) for x >= 0 or NaN, with an error of at most one unit in the last place.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    const SQRT_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    const ONE: u64 = 0x3FF0_0000_0000_0000;

    // Scale subnormal numbers to normal ones.
    let subnormal = x < f64::MIN_POSITIVE;
    let (zero, scale) = (x == 0.0, if subnormal { 18_014_398_509_481_984.0 } else { 1.0 }); // 2^54
    let x = x * scale;
    // Shift the bits so that the exponent changes at sqrt(1/2), which gives m in [sqrt(1/2), sqrt(2)).
    let shifted = x.to_bits().wrapping_add(ONE - SQRT_HALF);
    let k = integer(shifted >> 52) - if subnormal { 1077.0 } else { 1023.0 };
    let m = f64::from_bits((shifted & 0x000F_FFFF_FFFF_FFFF).wrapping_add(SQRT_HALF));
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let s2 = s * s;
    let r = 2.0 * s2 * atanh_tail(s2); // s^2 is below 0.0295
    let log = k.mul_add(LN2_HIGH, f - s.mul_add(f - r, -k * LN2_LOW));
    let log = if zero { f64::NEG_INFINITY } else { log };
    if x < f64::INFINITY { log } else { x }
}

/// 1/3 + s^2 / 5 + s^4 / 7 + ..., equal to (atanh(s) / s - 1) / s^2, as a function of s^2.
///
/// For s^2 <= 0.03 the relative truncation error is less than 1e-17.
#[inline(always)]
pub(crate) fn atanh_tail(s2: f64) -> f64 {
    const COEFFICIENTS: [f64; 10] = [
        1.0 / 3.0,
        1.0 / 5.0,
        1.0 / 7.0,
        1.0 / 9.0,
        1.0 / 11.0,
        1.0 / 13.0,
        1.0 / 15.0,
        1.0 / 17.0,
        1.0 / 19.0,
        1.0 / 21.0,
    ];
    let mut sum = COEFFICIENTS[9];
    for k in (0..9).rev() {
        sum = sum.mul_add(s2, COEFFICIENTS[k]);
    }
    sum
}

/// ln(1 + x) for x in [0, 1] or NaN, with an error of at most two units in the last place.
#[inline(always)]
pub(crate) fn ln_1p(x: f64) -> f64 {
    let u = 1.0 + x;
    // The second term corrects the rounding error of u, to first order.
    ln(u) + (x - (u - 1.0)) / u
}

/// Converts an integer less than 2^52 by its bits, because not every instruction set can convert 64-bit integers.
#[inline(always)]
fn integer(n: u64) -> f64 {
    const EXPONENT: u64 = 0x4330_0000_0000_0000; // 2^52, whose unit in the last place is 1
    f64::from_bits(EXPONENT | n) - f64::from_bits(EXPONENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f64, exact: f64) -> f64 {
        (got - exact).abs() / (exact.abs() * f64::EPSILON)
    }

    #[test]
    fn errors_are_within_bounds() {
        let mut worst = (0.0_f64, 0.0_f64);
        for i in 1..500_000 {
            let t = f64::from(i) / 500_000.0;
            // All magnitudes, and values close to 1.
            for x in [(1400.0 * (t - 0.5)).exp(), 0.5 + t, 1.0 + 1e-6 * (t - 0.5)] {
                if x != 1.0 {
                    worst.0 = worst.0.max(ulps(ln(x), x.ln()));
                }
            }
            for x in [t, 1e-9 * t, t * t * t * 1e-300] {
                worst.1 = worst.1.max(ulps(ln_1p(x), x.ln_1p()));
            }
        }
        assert!(worst.0 <= 1.0 && worst.1 <= 2.0, "{worst:?}");
    }

    #[test]
    fn special_values_are_exact() {
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        for x in [5e-324, 1e-310, f64::MIN_POSITIVE] {
            assert!(ulps(ln(x), x.ln()) <= 1.0);
        }
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(f64::NAN).is_nan() && ln_1p(f64::NAN).is_nan());
        assert_eq!((ln_1p(0.0), ln_1p(1.0)), (0.0, std::f64::consts::LN_2));
    }
}
