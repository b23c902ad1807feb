//! Sums of rows of probabilities.

use crate::simd::lanes::{self, any_greater, fold, widen};
use crate::simd::{Element, LANES, Lanes, Real};

/// The sum of part of a row; NaN if it holds a negative number.
#[inline(always)]
pub(super) fn mass<E: Element>(part: &[E]) -> f64 {
    let (mut sums, mut least) = ([0.0; LANES], [E::Wide::ZERO; LANES]);
    let (vectors, tail) = part.as_chunks();
    for x in vectors {
        add(x, &mut sums, &mut least);
    }
    add(&lanes::load(tail, E::ZERO), &mut sums, &mut least);
    let negative = any_greater(&[E::Wide::ZERO; LANES], &least);
    if negative { f64::NAN } else { fold(sums, |a, b| a + b) }
}

// Not a closure: one that is not inlined is compiled for the baseline.
#[inline(always)]
fn add<E: Element>(x: &Lanes<E>, sums: &mut Lanes<f64>, least: &mut Lanes<E::Wide>) {
    let x = widen(x);
    *sums = lanes::add_to(sums, &x);
    *least = lanes::min(least, &x);
}

/// `sum` if one can divide by it, else NaN.
#[inline(always)]
pub(super) fn positive(sum: f64) -> f64 {
    if sum > 0.0 && sum < f64::INFINITY { sum } else { f64::NAN }
}
