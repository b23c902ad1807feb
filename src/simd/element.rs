//! The element types of arrays: `f32`, `f64`, and the half-precision types, which are computed in `f32`.
//!
//! The conversions are branch-free bit operations, so that they vectorize on every instruction set (Giesen,
//! "Float-to-half conversions", 2012: scaling by a power of two lets the floating-point unit round and handle
//! subnormal numbers).

use half::{bf16, f16};

use super::real::Real;

/// A floating-point element type.
pub trait Element: Copy + Send + Sync + PartialOrd + std::fmt::Debug + 'static {
    /// The type that kernels compute in and return losses in.
    type Wide: Real;

    /// Zero.
    const ZERO: Self;

    /// The largest difference between the sum of a row of probabilities and 1 that is due to the rounding of each
    /// probability to this type and to the error of a softmax in `f32`.
    const SUM_ROUNDING: f64;

    /// The largest accepted difference: the probabilities may have been rounded to `bf16` before.
    const SUM_TOLERANCE: f64;

    /// How far a probability may lie outside of [0, 1] by rounding.
    const SLACK: f64;

    /// Converts to the wider type, exactly.
    fn widen(self) -> Self::Wide;

    /// Converts from the wider type; rounds to nearest, ties to even.
    fn narrow(value: Self::Wide) -> Self;
}

macro_rules! wide_element {
    ($t:ty) => {
        impl Element for $t {
            type Wide = $t;
            const ZERO: $t = 0.0;
            const SUM_ROUNDING: f64 = 1e-3;
            const SUM_TOLERANCE: f64 = 5e-3;
            const SLACK: f64 = 1e-6;

            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(value: $t) -> $t {
                value
            }
        }
    };
}

wide_element!(f32);
wide_element!(f64);

impl Element for bf16 {
    type Wide = f32;
    const ZERO: bf16 = bf16::ZERO;
    const SUM_ROUNDING: f64 = 1e-2;
    const SUM_TOLERANCE: f64 = 1e-2;
    const SLACK: f64 = 8e-3;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> bf16 {
        let bits = value.to_bits();
        // Add half a unit in the last place of the result, less one bit if the result is even.
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
        let bits = if value.is_nan() { 0x7FC0 } else { rounded };
        bf16::from_bits(bits as u16)
    }
}

impl Element for f16 {
    type Wide = f32;
    const ZERO: f16 = f16::ZERO;
    const SUM_ROUNDING: f64 = 1e-2;
    const SUM_TOLERANCE: f64 = 1e-2;
    const SLACK: f64 = 1e-3;

    #[inline(always)]
    fn widen(self) -> f32 {
        // 112 is the difference of the exponent biases; the product is exact, also for subnormal numbers.
        const SCALE: f32 = f32::from_bits((127 + 112) << 23);
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7FFF) << 13;
        let scaled = (f32::from_bits(magnitude) * SCALE).to_bits();
        // Infinities and NaN keep an exponent of all ones.
        let special = magnitude | 0x7F80_0000;
        let magnitude = if magnitude >= 0x0F80_0000 { special } else { scaled };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> f16 {
        const SUBNORMAL: f32 = 0.5; // adding it aligns a subnormal result with the last bit
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7FFF_FFFF;
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xFFF + odd) >> 13;
        let subnormal = (f32::from_bits(magnitude) + SUBNORMAL).to_bits().wrapping_sub(SUBNORMAL.to_bits());
        let finite = if magnitude < (113 << 23) { subnormal } else { normal };
        // 65520 and above round to infinity.
        let finite = if magnitude >= 0x477F_F000 { 0x7C00 } else { finite };
        let all = if value.is_nan() { 0x7E00 } else { finite };
        f16::from_bits((all | sign) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widen_equals_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (f, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            assert!(f.widen() == f.to_f32() || f.is_nan() && f.widen().is_nan(), "{bits:#x}");
            assert!(b.widen() == b.to_f32() || b.is_nan() && b.widen().is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn narrow_equals_the_half_crate() {
        // Every 251st bit pattern, and the values around every half-precision value.
        let sweep = (0..u32::MAX / 251).map(|i| i * 251);
        let near = (0..=u16::MAX).flat_map(|h| {
            let bits = f16::from_bits(h).to_f32().to_bits();
            [bits.wrapping_sub(1), bits, bits.wrapping_add(1), bits ^ 0x1000, bits.wrapping_add(0xFFF)]
        });
        for bits in sweep.chain(near) {
            let x = f32::from_bits(bits);
            let (f, b) = (f16::narrow(x), bf16::narrow(x));
            if x.is_nan() {
                assert!(f.is_nan() && b.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(f.to_bits(), f16::from_f32_const(x).to_bits(), "{bits:#x}");
                assert_eq!(b.to_bits(), bf16::from_f32(x).to_bits(), "{bits:#x}");
            }
        }
    }
}
