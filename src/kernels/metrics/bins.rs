//! Bins of confidence: their edges, how to find the bin of a confidence, and the sums that a bin holds.
//!
//! The sums are [`Exact`]: they depend neither on the order of the rows, nor on the number of threads, nor on how
//! a stream of rows was split into batches.

use std::ops::AddAssign;
use std::sync::Arc;

use crate::rows::{Error, collected};

use super::exact::Exact;
use super::predictions::zeros;

/// How confidences are assigned to bins.
#[derive(Clone, Debug, PartialEq)]
pub enum Binning {
    /// Bins of equal width, closed on the left, the last one on both sides. The edge k/n is rounded to the element
    /// type of the predictions, so that a confidence that prints as an edge is on that edge for every type.
    Uniform,
    /// The bins of the paper's code, `min(int(conf // (1 / n)), n - 1)` in double precision, with its rounding
    /// (0.5 // 0.1 is 4).
    Paper,
    /// Bins of equal mass, whose edges are quantiles of the confidences.
    Quantile,
    /// Bins with these edges, which increase from 0 to 1; rounded as those of [`Binning::Uniform`].
    Edges(Arc<[f64]>),
}

/// The largest number of bins.
pub const MAX_BINS: usize = 1 << 20;

/// Checks the edges of [`Binning::Edges`].
pub(super) fn check_edges(edges: &[f64], n_bins: usize) -> Result<(), Error> {
    let ends = edges.first() == Some(&0.0) && edges.last() == Some(&1.0);
    if !ends || edges.len() != n_bins + 1 || !edges.is_sorted_by(|a, b| a < b) {
        return Err(Error::value("Expected argument `n_bins` to hold edges that increase from 0 to 1."));
    }
    Ok(())
}

pub(super) fn check_n_bins(n_bins: usize) -> Result<(), Error> {
    if !(1..=MAX_BINS).contains(&n_bins) {
        return Err(Error::value(format!(
            "Expected argument `n_bins` to be an integer in [1, {MAX_BINS}], but got {n_bins}."
        )));
    }
    Ok(())
}

/// Sums over the predictions in each bin. Classwise bins are stored one class after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    /// The edges of the bins, one more than there are bins; one set for each class where the classes differ.
    pub edges: Vec<f64>,
    /// The number of predictions.
    pub counts: Vec<u64>,
    /// The sum of the weights; a prediction without a weight has weight 1.
    pub weight: Vec<Exact>,
    /// The sum of the weights of the correct predictions.
    pub correct: Vec<Exact>,
    /// The weighted sum of the confidences.
    pub confidence: Vec<Exact>,
}

impl Bins {
    /// The expected calibration error over all bins; NaN without predictions.
    ///
    /// ```text
    /// ECE = sum over bins of |correct - confidence| / sum of all weights
    /// ```
    pub fn expected_calibration_error(&self) -> f64 {
        let (mut gap, mut weight) = (Exact::default(), Exact::default());
        for b in 0..self.counts.len() {
            gap += self.correct[b].distance(self.confidence[b]);
            weight += self.weight[b];
        }
        gap.to_f64() / weight.to_f64()
    }
}

impl AddAssign<&Bins> for Bins {
    fn add_assign(&mut self, other: &Bins) {
        for b in 0..self.counts.len() {
            self.counts[b] += other.counts[b];
            self.weight[b] += other.weight[b];
            self.correct[b] += other.correct[b];
            self.confidence[b] += other.confidence[b];
        }
    }
}

/// Collects predictions in bins.
pub(super) trait Accumulator: Sized + Send {
    fn empty(n_bins: usize) -> Result<Self, Error>;
    fn add(&mut self, b: usize, correct: bool, confidence: f64, weight: f64);
    fn merge(&mut self, other: &Self);
    fn finish(self) -> Result<Bins, Error>;
}

/// The accumulator of predictions without weights: integers are enough, and faster.
pub(super) struct Counts {
    bins: Vec<BinCount>,
}

#[derive(Clone, Default)]
struct BinCount {
    all: u64,
    correct: u64,
    /// In units of 2^-80.
    confidence: u128,
}

impl Accumulator for Counts {
    fn empty(n_bins: usize) -> Result<Self, Error> {
        Ok(Counts { bins: zeros(n_bins)? })
    }

    #[inline(always)]
    fn add(&mut self, b: usize, correct: bool, confidence: f64, _weight: f64) {
        let bin = &mut self.bins[b];
        bin.all += 1;
        bin.correct += u64::from(correct);
        bin.confidence += units(confidence);
    }

    fn merge(&mut self, other: &Self) {
        for (bin, other) in self.bins.iter_mut().zip(&other.bins) {
            bin.all += other.all;
            bin.correct += other.correct;
            bin.confidence += other.confidence;
        }
    }

    fn finish(self) -> Result<Bins, Error> {
        let number = |n: u64| Exact::from_units(u128::from(n) << 80);
        Ok(Bins {
            edges: Vec::new(),
            counts: collected(self.bins.iter().map(|bin| bin.all))?,
            weight: collected(self.bins.iter().map(|bin| number(bin.all)))?,
            correct: collected(self.bins.iter().map(|bin| number(bin.correct)))?,
            confidence: collected(self.bins.iter().map(|bin| Exact::from_units(bin.confidence)))?,
        })
    }
}

impl Accumulator for Bins {
    fn empty(n_bins: usize) -> Result<Self, Error> {
        Ok(Bins {
            edges: Vec::new(),
            counts: zeros(n_bins)?,
            weight: zeros(n_bins)?,
            correct: zeros(n_bins)?,
            confidence: zeros(n_bins)?,
        })
    }

    #[inline(always)]
    fn add(&mut self, b: usize, correct: bool, confidence: f64, weight: f64) {
        self.counts[b] += 1;
        self.weight[b].add(weight);
        if correct {
            self.correct[b].add(weight);
        }
        self.confidence[b].add(weight * confidence);
    }

    fn merge(&mut self, other: &Self) {
        *self += other;
    }

    fn finish(self) -> Result<Bins, Error> {
        Ok(self)
    }
}

/// The bin [b, b + 1) that holds `confidence`, of edges that are about uniform; the last bin holds everything above.
#[inline(always)]
pub(super) fn uniform_bin(confidence: f64, edges: &[f64]) -> usize {
    let last = edges.len() - 2;
    // The edges are rounded, so that the quotient may be off, usually by at most one bin.
    let mut b = ((confidence * (last + 1) as f64) as usize).min(last);
    while b > 0 && confidence < edges[b] {
        b -= 1;
    }
    while b < last && confidence >= edges[b + 1] {
        b += 1;
    }
    b
}

/// The same for any sorted edges, by binary search; the first bin holds everything below.
#[inline(always)]
pub(super) fn sorted_bin(confidence: f64, edges: &[f64]) -> usize {
    edges[1..edges.len() - 1].partition_point(|&edge| edge <= confidence)
}

/// The edges of [`Binning::Paper`]. Python's `//` is exact: the k-th edge is the least double that is not below k
/// times the rounded width.
pub(super) fn paper_edges(n_bins: usize) -> Vec<f64> {
    let width = 1.0 / n_bins as f64;
    (0..=n_bins)
        .map(|k| {
            let edge = k as f64 * width;
            let error = (k as f64).mul_add(width, -edge);
            if error > 0.0 { edge.next_up() } else { edge }
        })
        .collect()
}

/// `confidence` in [0, 1] as a multiple of 2^-80, rounded down.
#[inline(always)]
fn units(confidence: f64) -> u128 {
    let bits = confidence.to_bits();
    // The mask drops the sign of -0. Subnormal numbers have exponent 0 and are below one unit.
    let exponent = (bits >> 52 & 0x7FF) as i32;
    let significand = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
    let shift = exponent - 1075 + 80;
    if shift >= 0 { significand << shift } else { significand.checked_shr(-shift as u32).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_exact() {
        assert_eq!(units(1.0), 1 << 80);
        assert_eq!(units(0.75), 3 << 78);
        assert_eq!((units(0.0), units(-0.0)), (0, 0));
        for x in [f64::from(0.1_f32), 0.1] {
            assert_eq!(Exact::from_units(units(x)).to_f64(), x);
        }
    }

    /// Python's `min(int(confidence // (1 / n)), n - 1)`.
    fn python_bin(confidence: f64, n_bins: usize) -> usize {
        let width = 1.0 / n_bins as f64;
        // Python subtracts the exact remainder first, and floors the quotient.
        let quotient = (confidence - confidence % width) / width;
        let floor = quotient.floor();
        let floor = if quotient - floor > 0.5 { floor + 1.0 } else { floor };
        (floor as usize).min(n_bins - 1)
    }

    #[test]
    fn paper_bins_match_python() {
        // Python: [k / 15 // (1 / 15) for k in range(16)] with the last one capped.
        let bins: Vec<usize> = (0..16).map(|k| uniform_bin(f64::from(k) / 15.0, &paper_edges(15))).collect();
        assert_eq!(bins, [0, 1, 2, 3, 4, 4, 6, 7, 8, 8, 9, 10, 12, 13, 14, 14]);
        assert_eq!(uniform_bin(0.5, &paper_edges(10)), 4);
        for n in [1, 2, 3, 7, 10, 15, 28, 30, 49, 100, 1000] {
            let edges = paper_edges(n);
            for k in 0..=n {
                let middle = k as f64 / n as f64;
                let around = [middle.next_down(), middle, middle.next_up(), edges[k].next_down(), edges[k]];
                for c in around.map(|c| c.clamp(0.0, 1.0)) {
                    assert_eq!(uniform_bin(c, &edges), python_bin(c, n), "{c} {n}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn bins_are_a_partition(n_bins in 1..200_usize, confidence in 0.0..=1.0_f64) {
            for edges in [(0..=n_bins).map(|k| k as f64 / n_bins as f64).collect(), paper_edges(n_bins)] {
                let b = uniform_bin(confidence, &edges);
                prop_assert_eq!(b, sorted_bin(confidence, &edges));
                prop_assert!(edges[b] <= confidence);
                prop_assert!(confidence < edges[b + 1] || b + 1 == n_bins);
                for (k, &edge) in edges.iter().enumerate() {
                    prop_assert_eq!(uniform_bin(edge, &edges), k.min(n_bins - 1));
                }
            }
        }
    }
}
