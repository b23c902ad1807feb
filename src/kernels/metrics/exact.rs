//! Sums without rounding, as fixed-point numbers of 256 bits (Kulisch's accumulator, in the range that metrics need).
//!
//! Adding integers is associative. So a sum of doubles depends neither on the order of its terms, nor on the number
//! of threads, nor on how a stream was split into batches; and the digits of several processes are added as plain
//! integers.

use std::ops::AddAssign;

/// A sum of doubles in [0, 2^96]; digits of a term below 2^-128 are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exact {
    whole: u128,
    /// In units of 2^-128.
    fraction: u128,
}

/// The number of 32-bit digits of a sum.
pub const DIGITS: usize = 8;

/// The largest term: 2^31 terms of this size do not overflow.
pub const MAX_TERM: f64 = 79_228_162_514_264_337_593_543_950_336.0; // 2^96

impl Exact {
    /// n units of 2^-80.
    pub(crate) fn from_units(n: u128) -> Exact {
        Exact { whole: n >> 80, fraction: n << 48 }
    }

    /// Adds a number in [0, [`MAX_TERM`]]; with any other number, the sum is unspecified.
    #[inline]
    pub fn add(&mut self, term: f64) {
        let bits = term.to_bits();
        let exponent = (bits >> 52 & 0x7FF) as i32; // 0 for subnormal numbers, which are dropped
        let significand = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
        let shift = exponent - 1075 + 128;
        let term = match shift {
            ..0 => Exact { whole: 0, fraction: significand.checked_shr(shift.unsigned_abs()).unwrap_or(0) },
            0 => Exact { whole: 0, fraction: significand },
            1..128 => Exact { whole: significand >> (128 - shift), fraction: significand << shift },
            _ => Exact { whole: significand.checked_shl(shift as u32 - 128).unwrap_or(0), fraction: 0 },
        };
        *self += term;
    }

    /// The absolute difference of two sums.
    pub fn distance(self, other: Exact) -> Exact {
        let (large, small) = if self >= other { (self, other) } else { (other, self) };
        let (fraction, borrow) = large.fraction.overflowing_sub(small.fraction);
        Exact { whole: large.whole - small.whole - u128::from(borrow), fraction }
    }

    /// n times the sum, which is below 2^96.
    pub(crate) fn times(self, n: u32) -> Exact {
        let n = u128::from(n);
        let low = (self.fraction & u128::from(u64::MAX)) * n;
        let high = (self.fraction >> 64) * n + (low >> 64);
        Exact { whole: self.whole * n + (high >> 64), fraction: high << 64 | low & u128::from(u64::MAX) }
    }

    /// Rounds to the nearest double, ties to even.
    pub fn to_f64(self) -> f64 {
        const UNIT: f64 = 1.0 / (1_u128 << 127) as f64 / 2.0;
        if self.whole == 0 {
            return self.fraction as f64 * UNIT;
        }
        // The highest 128 bits; the last one is sticky: it is set if any lower bit is.
        let shift = self.whole.leading_zeros();
        let (low, rest) = match shift {
            0 => (0, self.fraction),
            _ => (self.fraction >> (128 - shift), self.fraction << shift),
        };
        let high = self.whole << shift | low | u128::from(rest != 0);
        high as f64 / 2.0_f64.powi(shift as i32)
    }

    /// The 32-bit digits, the least significant first.
    pub fn digits(self) -> [i64; DIGITS] {
        std::array::from_fn(|i| {
            let half = if i < 4 { self.fraction } else { self.whole };
            (half >> (32 * (i % 4)) & 0xFFFF_FFFF) as i64
        })
    }

    /// The sum with these digits, which may exceed 32 bits; `None` if it is negative or too large.
    pub fn from_digits(digits: &[i64; DIGITS]) -> Option<Exact> {
        let (mut halves, mut carry) = ([0_u128; 2], 0_i128);
        for (i, &digit) in digits.iter().enumerate() {
            carry += i128::from(digit);
            halves[i / 4] |= ((carry & 0xFFFF_FFFF) as u128) << (32 * (i % 4));
            carry >>= 32;
        }
        (carry == 0).then_some(Exact { whole: halves[1], fraction: halves[0] })
    }
}

impl AddAssign for Exact {
    #[inline]
    fn add_assign(&mut self, other: Exact) {
        let (fraction, carry) = self.fraction.overflowing_add(other.fraction);
        self.fraction = fraction;
        self.whole = self.whole.wrapping_add(other.whole).wrapping_add(u128::from(carry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(terms: &[f64]) -> Exact {
        let mut sum = Exact::default();
        terms.iter().for_each(|&x| sum.add(x));
        sum
    }

    #[test]
    fn single_terms_are_exact() {
        for x in
            [0.0, 1.0, 0.1, 1e-20, 2.0_f64.powi(-76), 123.456e20, MAX_TERM, 1.0 / 3.0, 2.0_f64.powi(-128)]
        {
            assert_eq!(sum(&[x]).to_f64(), x);
        }
        assert_eq!(sum(&[5e-324, 1e-60]), Exact::default());
        assert_eq!(Exact::from_units(3 << 79), sum(&[1.5]));
    }

    #[test]
    fn rounds_half_to_even() {
        let ulp = 2.0_f64.powi(-52);
        assert_eq!(sum(&[1.0, ulp / 2.0]).to_f64(), 1.0);
        assert_eq!(sum(&[1.0, ulp, ulp / 2.0]).to_f64(), 1.0 + 2.0 * ulp);
        assert_eq!(sum(&[1.0, ulp / 2.0, 2.0_f64.powi(-120)]).to_f64(), 1.0 + ulp);
    }

    proptest! {
        #[test]
        fn order_does_not_matter(terms in prop::collection::vec(0.0..1e9_f64, 0..60)) {
            let reversed: Vec<f64> = terms.iter().rev().copied().collect();
            prop_assert_eq!(sum(&terms), sum(&reversed));
            let (a, b) = terms.split_at(terms.len() / 2);
            let mut merged = sum(a);
            merged += sum(b);
            prop_assert_eq!(merged, sum(&terms));
            let naive: f64 = terms.iter().sum();
            prop_assert!((merged.to_f64() - naive).abs() <= 1e-14 * naive);
            let digits: [i64; DIGITS] = std::array::from_fn(|i| sum(a).digits()[i] + sum(b).digits()[i]);
            prop_assert_eq!(Exact::from_digits(&digits), Some(merged));
        }

        #[test]
        fn distances_and_multiples_are_exact(a in 0.0..1e6_f64, b in 0.0..1e6_f64, n in 0..=u32::MAX) {
            let (x, y) = (sum(&[a]), sum(&[b]));
            let mut back = x.distance(y);
            back += if a < b { x } else { y };
            prop_assert_eq!(back, x.max(y));
            let product = sum(&[a]).times(n).to_f64();
            prop_assert!((product - a * f64::from(n)).abs() <= 1e-15 * product);
        }
    }

    #[test]
    fn rejects_invalid_digits() {
        assert_eq!(Exact::from_digits(&[-1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Exact::from_digits(&[0, 0, 0, 0, 0, 0, 0, 1 << 32]), None);
        assert_eq!(Exact::from_digits(&[-1, 1, 0, 0, 0, 0, 0, 0]).unwrap().digits()[0], 0xFFFF_FFFF);
    }
}
