//! Bins of confidence, and the expected calibration error.
//!
//! A prediction falls into a bin by the probability of its most probable class, its confidence (Guo et al.,
//! "On Calibration of Modern Neural Networks", ICML 2017, eq. 3). Per bin we count the predictions, count
//! the correct ones, and sum the confidences,
//!
//! ```text
//! ECE = sum over bins of |correct - confidence| / N.
//! ```
//!
//! The confidences are summed as integers, in units of 2^-80: exact, so that the result depends neither on
//! the order of the rows, nor on threads, nor on how a stream of them was cut into batches.

use std::sync::Mutex;

use crate::rows::{Error, Rows, Targets};
use crate::simd::lanes::{self, fold, widen};
use crate::simd::{self, Element, Isa, Kernel, LANES, Real};
use crate::threads::{self, Tiles};

use super::coin::Scores;
use super::sum_exp::sum_exp;

/// How confidences are assigned to bins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binning {
    /// Bins of equal width, closed on the left, the last one on both sides. The border k/n is rounded to the
    /// type of the predictions, so that a confidence that prints as a border lies on it in every type.
    Uniform,
    /// The paper's code: `min(int(conf // (1 / n)), n - 1)` in double precision, with its rounding (0.5 // 0.1
    /// is 4).
    Paper,
}

/// Units of a summed confidence in 1.
const ONE: f64 = (1_u128 << 80) as f64;

/// The largest number of bins.
pub const MAX_BINS: usize = 1 << 20;

/// What the bins of a set of predictions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bins {
    /// How many predictions.
    pub counts: Vec<u64>,
    /// How many of them are correct.
    pub correct: Vec<u64>,
    /// The sum of their confidences, in units of 2^-80.
    confidence: Vec<u128>,
}

impl Bins {
    fn new(n_bins: usize) -> Bins {
        Bins { counts: vec![0; n_bins], correct: vec![0; n_bins], confidence: vec![0; n_bins] }
    }

    fn merge(&mut self, other: &Bins) {
        for b in 0..self.counts.len() {
            self.counts[b] += other.counts[b];
            self.correct[b] += other.correct[b];
            self.confidence[b] += other.confidence[b];
        }
    }

    /// The sum of the confidences of each bin.
    pub fn confidence(&self) -> Vec<f64> {
        self.confidence.iter().map(|&c| c as f64 / ONE).collect()
    }

    /// The expected calibration error; NaN without predictions.
    pub fn expected_calibration_error(&self) -> f64 {
        let gap: u128 =
            self.confidence.iter().zip(&self.correct).map(|(&c, &k)| c.abs_diff(u128::from(k) << 80)).sum();
        gap as f64 / ONE / self.counts.iter().sum::<u64>() as f64
    }
}

/// Bins the top-label confidences of `rows`.
///
/// Every row must be a distribution (or, as logits, have a softmax); the first one that is not is the error.
/// Of several classes with the highest score the first one is predicted.
pub fn bin_top_label<E: Element>(
    rows: &Rows<'_, E>,
    targets: &Targets,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
    isa: Isa,
) -> Result<Bins, Error> {
    if !(1..=MAX_BINS).contains(&n_bins) {
        return Err(Error::value(format!(
            "Expected argument `n_bins` to be an integer in [1, {MAX_BINS}], but got {n_bins}."
        )));
    }
    targets.check_shape(rows.len(), rows.n_classes())?;
    if rows.is_empty() {
        return Err(Error::value("Expected argument `preds` to hold at least one row, but got none."));
    }
    let borders: Vec<f64> = (0..=n_bins)
        .map(|k| E::narrow(E::Wide::from_f64(k as f64 / n_bins as f64)).widen().to_f64())
        .collect();
    let tiles = Tiles::new(rows.len(), rows.n_classes());
    let total = Mutex::new((Bins::new(n_bins), None::<usize>));
    threads::share(tiles.len(), &|range| {
        let rows_of_range = tiles.rows(range);
        let kernel = Count { rows, targets, scores, binning, borders: &borders, range: rows_of_range };
        let (bins, bad) = simd::run(isa, kernel);
        let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        total.0.merge(&bins);
        total.1 = [total.1, bad].into_iter().flatten().min();
    });
    match total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        (bins, None) => Ok(bins),
        (_, Some(row)) => Err(Error::Row {
            argument: "preds",
            row,
            why: match scores {
                Scores::Logits => "logits that have a softmax (no NaN, no +inf, not all -inf)".into(),
                Scores::Probabilities => {
                    "probabilities that are not negative and sum to 1 (pass `from_logits=True` for logits)"
                        .into()
                }
            },
        }),
    }
}

struct Count<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    scores: Scores,
    binning: Binning,
    borders: &'a [f64],
    range: std::ops::Range<usize>,
}

impl<E: Element> Kernel for Count<'_, E> {
    /// The bins, and the first row that cannot be counted.
    type Output = (Bins, Option<usize>);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut bins = Bins::new(self.borders.len() - 1);
        let mut scratch = Vec::new();
        for i in self.range {
            let Some(y) = self.targets.class(i) else {
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let top = match self.scores {
                Scores::Logits => top_of_logits(row),
                Scores::Probabilities => top_of_probabilities(row),
            };
            let Some(Top { score, confidence }) = top else {
                return (bins, Some(i));
            };
            // The first of the classes with the highest score is the prediction.
            let correct = row[y].widen() == score && !row[..y].iter().any(|z| z.widen() == score);
            let b = match self.binning {
                Binning::Uniform => uniform_bin(confidence, self.borders),
                Binning::Paper => paper_bin(confidence, self.borders.len() - 1),
            };
            bins.counts[b] += 1;
            bins.correct[b] += u64::from(correct);
            bins.confidence[b] += units(confidence);
        }
        (bins, None)
    }
}

/// The most probable class of a row.
struct Top<F> {
    score: F,
    confidence: f64,
}

#[inline(always)]
fn top_of_logits<E: Element>(row: &[E]) -> Option<Top<E::Wide>> {
    let all = sum_exp(row, usize::MAX);
    // In the type that softmax would give.
    let confidence = E::Wide::from_f64(1.0 / all.sum).to_f64();
    (confidence > 0.0 && confidence <= 1.0).then_some(Top { score: all.max, confidence })
}

#[inline(always)]
fn top_of_probabilities<E: Element>(row: &[E]) -> Option<Top<E::Wide>> {
    if row.len() < LANES {
        return top_of_few(row);
    }
    let (mut max, mut sum) = ([E::Wide::ZERO; LANES], [0.0_f64; LANES]);
    let mut least = [E::Wide::ZERO; LANES];
    let mut take = |p: &[E; LANES]| {
        let p = widen(p);
        max = lanes::max(&max, &p);
        least = lanes::min(&least, &p);
        sum = lanes::add_to(&sum, &p);
    };
    let (vectors, tail) = row.as_chunks();
    for vector in vectors {
        take(vector);
    }
    if !tail.is_empty() {
        let mut padded = [E::ZERO; LANES];
        padded[..tail.len()].copy_from_slice(tail);
        take(&padded);
    }
    // NaN and infinities show in the sum.
    let sum = fold(sum, |a, b| a + b);
    let negative = lanes::any_greater(&[E::Wide::ZERO; LANES], &least);
    let score = fold(max, |a, b| if b > a { b } else { a });
    let valid = (sum - 1.0).abs() <= E::SUM_TOLERANCE && !negative;
    valid.then(|| Top { score, confidence: score.to_f64().min(1.0) })
}

/// The same where folding lanes would take longer than the row.
#[inline(always)]
fn top_of_few<E: Element>(row: &[E]) -> Option<Top<E::Wide>> {
    let (mut score, mut sum, mut negative) = (E::Wide::ZERO, 0.0, false);
    for p in row {
        let p = p.widen();
        score = if p > score { p } else { score };
        negative |= p < E::Wide::ZERO;
        sum += p.to_f64();
    }
    let valid = (sum - 1.0).abs() <= E::SUM_TOLERANCE && !negative;
    valid.then(|| Top { score, confidence: score.to_f64().min(1.0) })
}

/// The bin [b/n, (b + 1)/n) that holds `confidence`; 1 is in the last one.
#[inline(always)]
fn uniform_bin(confidence: f64, borders: &[f64]) -> usize {
    let last = borders.len() - 2;
    // Right but for the rounding of the borders.
    let mut b = ((confidence * (last + 1) as f64) as usize).min(last);
    while confidence < borders[b] {
        b -= 1;
    }
    while b < last && confidence >= borders[b + 1] {
        b += 1;
    }
    b
}

/// Python's `min(int(confidence // (1 / n)), n - 1)`.
#[inline(always)]
fn paper_bin(confidence: f64, n_bins: usize) -> usize {
    let width = 1.0 / n_bins as f64;
    // Python floors the quotient of what is left after the exact remainder is taken off.
    let quotient = (confidence - confidence % width) / width;
    let floor = quotient.floor();
    let floor = if quotient - floor > 0.5 { floor + 1.0 } else { floor };
    (floor as usize).min(n_bins - 1)
}

/// `confidence` in [0, 1] in units of 2^-80; only what is below one unit is dropped.
#[inline(always)]
fn units(confidence: f64) -> u128 {
    let bits = confidence.to_bits();
    let exponent = (bits >> 52) as i32; // biased; 0 for subnormal numbers, which are below one unit
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
        assert_eq!(units(0.0), 0);
        assert_eq!(units(f64::from(0.1_f32)) as f64 / ONE, f64::from(0.1_f32));
        assert_eq!(units(0.1) as f64 / ONE, 0.1);
    }

    #[test]
    fn the_paper_bins_as_python_does() {
        // Python: [k / 15 // (1 / 15) for k in range(16)] with the last one capped.
        let bins: Vec<usize> = (0..16).map(|k| paper_bin(f64::from(k) / 15.0, 15)).collect();
        assert_eq!(bins, [0, 1, 2, 3, 4, 4, 6, 7, 8, 8, 9, 10, 12, 13, 14, 14]);
        assert_eq!(paper_bin(0.5, 10), 4);
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let mut p = vec![0.5_f32; 2 * 100_000];
        (p[2 * 70_001], p[2 * 70_000 + 1]) = (f32::NAN, -0.5);
        let rows = Rows::from_slice(&p, 2).unwrap();
        let targets = Targets::new(&vec![0_i64; 100_000], 2, -1).unwrap();
        let got = bin_top_label(&rows, &targets, Scores::Probabilities, 15, Binning::Uniform, Isa::best());
        assert!(matches!(got, Err(Error::Row { row: 70_000, .. })), "{got:?}");
    }

    proptest! {
        #[test]
        fn bins_are_a_partition(n_bins in 1..200_usize, confidence in 0.0..=1.0_f64) {
            let borders: Vec<f64> = (0..=n_bins).map(|k| k as f64 / n_bins as f64).collect();
            let b = uniform_bin(confidence, &borders);
            prop_assert!(borders[b] <= confidence);
            prop_assert!(confidence < borders[b + 1] || b + 1 == n_bins);
            for (k, &border) in borders.iter().enumerate() {
                prop_assert_eq!(uniform_bin(border, &borders), k.min(n_bins - 1));
            }
        }

        #[test]
        fn order_and_sets_do_not_matter(seed in prop::collection::vec(0.0..=1.0_f64, 1..400)) {
            let p: Vec<f64> = seed.iter().flat_map(|&c| [c, 1.0 - c]).collect();
            let y: Vec<i64> = seed.iter().map(|&c| i64::from(c < 0.3)).collect();
            let bin = |p: &[f64], y: &[i64], isa| {
                let (rows, targets) = (Rows::from_slice(p, 2).unwrap(), Targets::new(y, 2, -1).unwrap());
                bin_top_label(&rows, &targets, Scores::Probabilities, 15, Binning::Uniform, isa).unwrap()
            };
            let all = bin(&p, &y, Isa::Portable);
            for isa in Isa::available() {
                prop_assert_eq!(&bin(&p, &y, isa), &all);
            }
            let reversed: Vec<f64> = p.chunks(2).rev().flatten().copied().collect();
            let y_reversed: Vec<i64> = y.iter().rev().copied().collect();
            prop_assert_eq!(&bin(&reversed, &y_reversed, Isa::best()), &all);
            let mut merged = Bins::new(15);
            for (p, y) in p.chunks(14).zip(y.chunks(7)) {
                merged.merge(&bin(p, y, Isa::best()));
            }
            prop_assert_eq!(&merged, &all);
        }
    }
}
