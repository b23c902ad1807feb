//! The sum of exponentials of a row, optionally without one class, in one pass over the row.
//!
//! For few classes, sixteen rows are summed at a time, one per lane, so that no lanes are reduced.
//!
//! For many classes, it is the online softmax (Milakov & Gimelshein, "Online normalizer calculation for softmax",
//! 2018) in each of the sixteen lanes: a lane has its own sum, relative to approximately its maximum, and rescaled on
//! the rare occasions that the maximum grows. A row is read from memory once. Blocks of eight vectors are summed in
//! the type of the scores and then added to sums in `f64`, so that the error does not grow with the number of
//! classes.

use crate::simd::lanes::{self, any_greater, exp_biased_sub, fold, widen};
use crate::simd::{Element, LANES, Lanes, Real};

const VECTORS: usize = 8;
const BLOCK: usize = VECTORS * LANES;

/// The maximum, and the sum of e^(z_k - max), over a set of classes k.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SumExp<F> {
    pub max: F,
    pub sum: f64,
}

/// Over all classes except `left_out`; over all, if `left_out` is not below C.
#[inline(always)]
pub(crate) fn sum_exp<E: Element>(row: &[E], left_out: usize) -> SumExp<E::Wide> {
    let mut lanes = Online::new();
    let (blocks, tail) = row.as_chunks::<BLOCK>();
    for (i, block) in blocks.iter().enumerate() {
        let (vectors, _) = block.as_chunks();
        if left_out / BLOCK == i {
            lanes.add_without(vectors, left_out % BLOCK);
        } else {
            let mut x = [[E::Wide::ZERO; LANES]; VECTORS];
            for (x, vector) in x.iter_mut().zip(vectors) {
                *x = widen(vector);
            }
            lanes.add(&x);
        }
    }
    let (vectors, rest) = tail.as_chunks();
    lanes.add_without(vectors, left_out.wrapping_sub(blocks.len() * BLOCK));
    if !rest.is_empty() {
        // The last sixteen elements, except those that have been added.
        let mut padded = [E::ZERO; LANES];
        let last = row.last_chunk().unwrap_or_else(|| {
            padded[LANES - rest.len()..].copy_from_slice(rest);
            &padded
        });
        let added = (1 << (LANES - rest.len())) - 1;
        let left_out = left_out.wrapping_add(LANES).wrapping_sub(row.len());
        lanes.add(&[without(&widen(last), added | bit(left_out))]);
    }
    lanes.finish()
}

/// The mask of a lane; empty if there is no such lane.
#[inline(always)]
fn bit(lane: usize) -> u32 {
    if lane < LANES { 1 << lane } else { 0 }
}

/// Sets the lanes of a mask to minus infinity, whose exponential is 0.
#[inline(always)]
fn without<F: Real>(x: &Lanes<F>, mask: u32) -> Lanes<F> {
    let mut out = *x;
    for lane in 0..LANES {
        out[lane] = if mask & (1 << lane) != 0 { F::from_f64(f64::NEG_INFINITY) } else { x[lane] };
    }
    out
}

struct Online<F> {
    /// The maximum of each lane.
    max: Lanes<F>,
    /// The reference of each lane's sum: the maximum of its first elements, raised when a later one exceeds it by
    /// more than `SLACK`, which is rare.
    shift: Lanes<F>,
    sum: Lanes<f64>,
}

/// e^16 is far from overflow, and the digits lost to e^-16 are below the last place of any sum.
const SLACK: f64 = 16.0;

impl<F: Real> Online<F> {
    #[inline(always)]
    fn new() -> Self {
        Online { max: [F::LOWEST; LANES], shift: [F::LOWEST; LANES], sum: [0.0; LANES] }
    }

    #[inline(always)]
    fn add(&mut self, block: &[Lanes<F>]) {
        for x in block {
            self.max = lanes::max(&self.max, x);
        }
        // NaN does not reach the maximum; it reaches the sum through its own exponential.
        if any_greater(&self.max, &lanes::add(&self.shift, &[F::from_f64(SLACK); LANES])) {
            self.raise(&{ self.max });
        }
        let mut sum = exp_biased_sub(&block[0], &self.shift);
        for x in &block[1..] {
            sum = lanes::add(&sum, &exp_biased_sub(x, &self.shift));
        }
        self.sum = lanes::add_to(&self.sum, &sum);
    }

    /// Adds vectors one by one, except their element `left_out`.
    #[inline(always)]
    fn add_without<E: Element<Wide = F>>(&mut self, vectors: &[Lanes<E>], left_out: usize) {
        for (v, vector) in vectors.iter().enumerate() {
            let mut x = widen(vector);
            if left_out / LANES == v {
                x = without(&x, 1 << (left_out % LANES));
            }
            self.add(&[x]);
        }
    }

    #[inline(always)]
    fn raise(&mut self, shift: &Lanes<F>) {
        let factor = exp_biased_sub(&self.shift, shift);
        for i in 0..LANES {
            self.sum[i] *= factor[i].to_f64() * (1.0 / F::BIAS);
        }
        self.shift = *shift;
    }

    #[inline(always)]
    fn finish(mut self) -> SumExp<F> {
        let max = fold(self.max, |a, b| if b > a { b } else { a });
        self.raise(&[max; LANES]);
        SumExp { max, sum: fold(self.sum, |a, b| a + b) * (1.0 / F::BIAS) }
    }
}

/// The largest number of classes of [`SumExpColumns`].
pub(crate) const MAX_COLUMNS: usize = 32;

/// Up to sixteen rows of few classes, transposed so that each row is a lane.
pub(crate) struct SumExpColumns<F> {
    /// e^(z_k - max), multiplied by [`Real::BIAS`], for each class k; 0 for the class that is left out.
    pub e: [Lanes<F>; MAX_COLUMNS],
    pub max: Lanes<F>,
    pub sum: Lanes<f64>,
}

impl<F: Real> SumExpColumns<F> {
    /// Lanes that stand for rows of minus infinities.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        SumExpColumns {
            e: [[F::from_f64(f64::NEG_INFINITY); LANES]; MAX_COLUMNS],
            max: [F::LOWEST; LANES],
            sum: [0.0; LANES],
        }
    }

    /// Copies a row into a lane, except the class `left_out`.
    ///
    /// Not inlined, so that it is compiled for the baseline: AVX-512 would use scatter instructions, which are
    /// slower.
    #[inline(never)]
    pub(crate) fn load<E: Element<Wide = F>>(&mut self, lane: usize, row: &[E], left_out: usize) {
        for (column, z) in self.e.iter_mut().zip(row) {
            column[lane] = z.widen();
        }
        if left_out < row.len() {
            self.e[left_out][lane] = F::from_f64(f64::NEG_INFINITY);
        }
    }

    /// Copies a lane into a row.
    #[inline(never)] // as above
    pub(crate) fn store<E: Element<Wide = F>>(&self, lane: usize, row: &mut [E]) {
        for (column, out) in self.e.iter().zip(row) {
            *out = E::narrow(column[lane]);
        }
    }

    /// Replaces the loaded scores by their exponentials, and sums them.
    #[inline(always)]
    pub(crate) fn sum(&mut self, n_classes: usize) {
        let columns = &mut self.e[..n_classes];
        for z in columns.iter() {
            self.max = lanes::max(&self.max, z);
        }
        for z in columns {
            *z = exp_biased_sub(z, &self.max);
            self.sum = lanes::add_to(&self.sum, z);
        }
        for sum in &mut self.sum {
            *sum *= 1.0 / F::BIAS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(row: &[f64], left_out: usize) -> (f64, f64) {
        let others = || row.iter().enumerate().filter(|&(k, _)| k != left_out).map(|(_, &z)| z);
        let max = others().fold(f64::MIN, f64::max);
        (max, others().map(|z| (z - max).exp()).sum())
    }

    proptest! {
        #[test]
        fn matches_naive_sum(row in prop::collection::vec(-1e4..1e4_f64, 1..600), pick in 0..700_usize) {
            let got = sum_exp(&row, pick);
            let (max, sum) = naive(&row, pick);
            prop_assert_eq!(got.max, max);
            // Two exponentials with errors of up to 1.2 units each (relative to the shift, and of the shift to the
            // maximum), half a unit for the naive one, and the rounding of the sums.
            prop_assert!((got.sum - sum).abs() <= 8.0 * f64::EPSILON * sum, "{} {}", got.sum, sum);
        }
    }

    #[test]
    fn leaves_out_any_class() {
        for n in [1, 2, 10, 15, 16, 17, 127, 128, 129, 255, 256, 300] {
            let row: Vec<f32> = (0..n).map(|k| ((k * 7919) % 31) as f32 / 8.0).collect();
            let wide: Vec<f64> = row.iter().map(|&z| f64::from(z)).collect();
            for left_out in 0..=n {
                let (got, (max, sum)) = (sum_exp(&row, left_out), naive(&wide, left_out));
                if n == 1 && left_out == 0 {
                    assert_eq!((got.max, got.sum), (f32::MIN, 0.0));
                } else {
                    assert_eq!(f64::from(got.max), max);
                    assert!((got.sum - sum).abs() <= 1e-6 * sum);
                }
            }
        }
    }

    #[test]
    fn columns_match_rows() {
        for n in [1, 2, 9, 32] {
            let rows: Vec<Vec<f32>> =
                (0..LANES).map(|r| (0..n).map(|k| ((r * 31 + k * 17) % 23) as f32 / 4.0).collect()).collect();
            let mut columns = SumExpColumns::new();
            for (r, row) in rows.iter().enumerate() {
                columns.load(r, row, (5 * r) % (n + 1));
            }
            columns.sum(n);
            for (r, row) in rows.iter().enumerate() {
                let one = sum_exp(row, (5 * r) % (n + 1));
                assert_eq!(columns.max[r], one.max);
                assert!((columns.sum[r] - one.sum).abs() <= 1e-6 * one.sum);
            }
        }
    }

    #[test]
    fn nan_and_infinity_propagate() {
        assert!(sum_exp(&[0.0_f32, f32::NAN, 1.0], 0).sum.is_nan());
        assert!(sum_exp(&[0.0_f32, f32::INFINITY, 1.0], 0).sum.is_nan());
        assert_eq!(sum_exp(&[0.0_f32, f32::NAN, 1.0], 1).max, 1.0);
        // Masked classes add nothing, also where a whole lane or block is masked.
        let mut row = [f32::NEG_INFINITY; 300];
        row[299] = 2.0;
        let got = sum_exp(&row, 0);
        assert_eq!((got.max, got.sum), (2.0, 1.0));
    }
}
