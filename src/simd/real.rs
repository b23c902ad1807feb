//! The types that kernels compute in, `f32` and `f64`, with their exponential and logarithm.
//!
//! Method of the exponential: Cody-Waite reduction x = n ln 2 + r with |r| <= ln(2)/2, a polynomial for e^r, and
//! 2^n from its bits. There are no tables and no branches, so that loops over lanes vectorize. Multiplications and
//! additions are fused, which saves a third of the operations. Processors without this instruction (x86-64 before
//! 2013) compute the same bits with libm, slowly.
//!
//! The exponential is scaled by [`Real::BIAS`]. The caller divides by it in the last step, so that results underflow
//! gradually and are rounded only once.

use super::log;

/// A floating-point type that kernels compute in.
pub trait Real: Copy + PartialOrd + Send + Sync + std::fmt::Debug + 'static {
    /// Zero.
    const ZERO: Self;
    /// The smallest finite value. A maximum that starts from it, and not from -inf, cannot lead to inf - inf.
    const LOWEST: Self;
    /// The smallest positive normal number.
    const MIN_POSITIVE: f64;
    /// The factor of [`Real::exp_biased`], so large that e^x is a normal number before it is divided by the factor,
    /// even if the quotient is subnormal.
    const BIAS: f64;

    /// e^x times [`Real::BIAS`], for x <= 32 or NaN; unspecified for larger x.
    ///
    /// The error is at most 1.2 + |x| / 40 units in the last place for `f32` and 1.2 for `f64`. The result is exactly
    /// 0 for -inf and NaN for NaN.
    fn exp_biased(self) -> Self;

    /// ln(x) for positive normal x, with an error of at most two units in the last place; unspecified for other x.
    fn ln_normal(self) -> Self;

    /// Converts from double precision; rounds to nearest, ties to even.
    fn from_f64(x: f64) -> Self;
    /// Converts to double precision, exactly.
    fn to_f64(self) -> f64;
    /// self + other
    fn add(self, other: Self) -> Self;
    /// self - other
    fn sub(self, other: Self) -> Self;
    /// self * other
    fn mul(self, other: Self) -> Self;
    /// self / other
    fn div(self, other: Self) -> Self;
    /// c_0 + c_1 x + c_2 x^2 + ..., by Horner's rule with fused multiply-add.
    fn polynomial<const N: usize>(self, c: [Self; N]) -> Self;
}

macro_rules! arithmetic {
    () => {
        #[inline(always)]
        fn from_f64(x: f64) -> Self {
            x as Self
        }
        #[inline(always)]
        fn to_f64(self) -> f64 {
            f64::from(self)
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            self + other
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            self - other
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            self * other
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            self / other
        }
        #[inline(always)]
        fn polynomial<const N: usize>(self, c: [Self; N]) -> Self {
            let mut sum = c[N - 1];
            for k in (0..N - 1).rev() {
                sum = sum.mul_add(self, c[k]);
            }
            sum
        }
    };
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const LOWEST: f32 = f32::MIN;
    const MIN_POSITIVE: f64 = f32::MIN_POSITIVE as f64;
    const BIAS: f64 = 16_777_216.0; // 2^24: the width of the significand

    #[inline(always)]
    fn exp_biased(self) -> f32 {
        // Adding 1.5 * 2^23 rounds to the nearest integer n and leaves n in the low bits. The other terms turn these
        // bits into the exponent bits of 2^n times the bias.
        const ROUND: f32 = 12_582_912.0 + 127.0 + 24.0;
        // e^-104 is less than half of the smallest subnormal number.
        const LEAST: f32 = -104.0;

        let shifted = self.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        // ln 2 in one part is precise enough: the argument is a difference, whose rounding error is larger.
        let r = n.mul_add(-std::f32::consts::LN_2, self);
        // e^r = 1 + r + r^2 q(r), where q is the Chebyshev fit of degree 4, with an error of 7.9e-9 (1/8 ulp).
        let q = r.polynomial([0.5, 1.666_657_7e-1, 4.166_655_4e-2, 8.363_233e-3, 1.392_625_1e-3]);
        let power = f32::from_bits(shifted.to_bits() << 23);
        let e = q.mul_add(r * r, r).mul_add(power, power);
        if self < LEAST { 0.0 } else { e }
    }

    #[inline(always)]
    fn ln_normal(self) -> f32 {
        // As in `log::ln`, x = 2^k m with m in [sqrt(1/2), sqrt(2)).
        const SQRT_HALF: u32 = 0x3F35_04F3;
        const ONE: u32 = 0x3F80_0000;
        let shifted = self.to_bits().wrapping_add(ONE - SQRT_HALF);
        let k = (shifted >> 23) as i32 - 127;
        let f = f32::from_bits((shifted & 0x007F_FFFF) + SQRT_HALF) - 1.0;
        // ln(1 + f) = f + f^2 q(f), where q is the minimax fit, with an error of 1/10 ulp of the logarithm.
        let q = f.polynomial([
            -0.5,
            3.333_333e-1,
            -2.500_082e-1,
            2.000_122_7e-1,
            -1.662_335_7e-1,
            1.420_175_7e-1,
            -1.316_018_3e-1,
            1.276_157_8e-1,
            -7.634_497e-2,
        ]);
        (k as f32).mul_add(std::f32::consts::LN_2, q.mul_add(f * f, f))
    }

    arithmetic!();
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const LOWEST: f64 = f64::MIN;
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
    const BIAS: f64 = 18_014_398_509_481_984.0; // 2^54

    #[inline(always)]
    fn exp_biased(self) -> f64 {
        const ROUND: f64 = 6_755_399_441_055_744.0 + 1023.0 + 54.0; // 1.5 * 2^52, as for f32
        const LN2_HIGH: f64 = std::f64::consts::LN_2;
        const LN2_LOW: f64 = 2.319_046_813_846_299_6e-17;
        const LEAST: f64 = -746.0;

        let shifted = self.mul_add(std::f64::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, self));
        // The Taylor series up to r^13, with a truncation error of 4.2e-18.
        let q = r.polynomial([
            0.5,
            1.0 / 6.0,
            1.0 / 24.0,
            1.0 / 120.0,
            1.0 / 720.0,
            1.0 / 5_040.0,
            1.0 / 40_320.0,
            1.0 / 362_880.0,
            1.0 / 3_628_800.0,
            1.0 / 39_916_800.0,
            1.0 / 479_001_600.0,
            1.0 / 6_227_020_800.0,
        ]);
        let power = f64::from_bits(shifted.to_bits() << 52);
        let e = q.mul_add(r * r, r).mul_add(power, power);
        if self < LEAST { 0.0 } else { e }
    }

    #[inline(always)]
    fn ln_normal(self) -> f64 {
        log::ln(self)
    }

    arithmetic!();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error in units in the last place of the exact value, which must be a normal number.
    fn ulps(got: f64, exact: f64, unit: f64) -> f64 {
        (got - exact).abs() / (exact.abs() * unit)
    }

    #[test]
    fn f32_exponential_error_is_within_bounds() {
        let mut worst = 0.0_f64;
        for i in 0..=2_000_000 {
            let x = -87.0 * (i as f32) / 2_000_000.0;
            let got = f64::from(x.exp_biased()) / f32::BIAS;
            // The reference is the exponential of f64.
            let ulps = ulps(got, f64::from(x).exp(), f64::from(f32::EPSILON));
            worst = worst.max(ulps - f64::from(-x) / 40.0);
        }
        assert!(worst <= 1.2, "{worst}");
    }

    #[test]
    fn f64_exponential_error_is_within_bounds() {
        let mut worst = 0.0_f64;
        for i in 0..=1_000_000 {
            let x = -700.0 * f64::from(i) / 1_000_000.0;
            worst = worst.max(ulps(x.exp_biased() / f64::BIAS, x.exp(), f64::EPSILON));
        }
        assert!(worst <= 1.2, "{worst}"); // of which the reference, libm, may account for 0.5
    }

    #[test]
    fn f32_logarithm_error_is_within_bounds() {
        let mut worst = 0.0_f64;
        for i in 0..2_000_000 {
            let t = f64::from(i) / 2_000_000.0;
            for x in [(170.0 * (t - 0.5)).exp() as f32, (0.5 + t) as f32, (1.0 + 1e-3 * (t - 0.5)) as f32] {
                let exact = f64::from(x).ln();
                if exact != 0.0 {
                    worst = worst.max(ulps(f64::from(x.ln_normal()), exact, f64::from(f32::EPSILON)));
                }
            }
        }
        assert!(worst <= 2.0, "{worst}");
        assert_eq!(1.0_f32.ln_normal(), 0.0);
    }

    #[test]
    fn special_values_are_exact() {
        assert_eq!(0.0_f32.exp_biased(), f32::BIAS as f32);
        assert_eq!(0.0_f64.exp_biased(), f64::BIAS);
        assert_eq!(f32::NEG_INFINITY.exp_biased(), 0.0);
        assert_eq!(f64::NEG_INFINITY.exp_biased(), 0.0);
        assert_eq!(f32::MIN.exp_biased(), 0.0);
        assert_eq!(f64::MIN.exp_biased(), 0.0);
        assert!(f32::NAN.exp_biased().is_nan());
        assert!(f64::NAN.exp_biased().is_nan());
    }

    #[test]
    fn underflow_is_gradual() {
        for x in [-88.0_f32, -95.5, -103.0] {
            let got = f64::from(x.exp_biased() * (1.0 / f32::BIAS) as f32);
            let exact = f64::from((f64::from(x)).exp() as f32);
            let last_place = f64::from(f32::from_bits(1));
            assert!((got - exact).abs() <= last_place + 4e-7 * exact, "{x}: {got} {exact}");
        }
    }
}
