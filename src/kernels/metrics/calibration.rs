//! Bins of confidence: what calibration errors and reliability diagrams are made of.
//!
//! A prediction falls into a bin by the probability of its most probable class, its confidence (Guo et al.,
//! "On Calibration of Modern Neural Networks", ICML 2017, eq. 3); or, classwise, once for each class into one of
//! that class's bins by its probability (Nixon et al., "Measuring Calibration in Deep Learning", 2019). Per bin we
//! count the predictions, and sum their weights, the weights of the correct ones, and the weighted confidences;
//!
//! ```text
//! ECE = sum over bins of |correct - confidence| / sum of all weights.
//! ```
//!
//! The sums are [`Exact`]: the result depends neither on the order of the rows, nor on threads, nor on how a
//! stream of them was cut into batches.

use std::ops::AddAssign;
use std::sync::{Mutex, PoisonError};

use crate::rows::Error;

use super::exact::Exact;
use super::predictions::{Hit, Predictions, zeros};
use super::quantiles;

/// How confidences are assigned to bins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binning {
    /// Bins of equal width, closed on the left, the last one on both sides. The border k/n is rounded to the
    /// type of the predictions, so that a confidence that prints as a border lies on it in every type.
    Uniform,
    /// The paper's code: `min(int(conf // (1 / n)), n - 1)` in double precision, with its rounding (0.5 // 0.1
    /// is 4).
    Paper,
    /// Bins of equal mass; see [`quantile_borders`](super::quantiles::quantile_borders).
    Quantile,
}

/// What falls into bins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The confidence of each row.
    TopLabel,
    /// All probabilities of each row, each into the bins of its class.
    Classwise,
}

/// The largest number of bins.
pub const MAX_BINS: usize = 1 << 20;

/// The largest number of bins of all classes.
const MAX_ALL_BINS: usize = 1 << 22;

/// Of each row the confidence, whether the prediction is right, and the bin.
pub type Assigned = (Vec<f64>, Vec<Hit>, Vec<u32>);

/// Assigns each row to a bin by its confidence; see [`Predictions::top_labels`].
pub fn assign(predictions: &Predictions<'_>, binning: Binning, n_bins: usize) -> Result<Assigned, Error> {
    check_n_bins(n_bins)?;
    let (confidence, hit) = predictions.top_labels()?;
    let borders = match even_borders(predictions, binning, n_bins) {
        Some(borders) => borders,
        None => quantiles::of_confidences(predictions, &confidence, n_bins)?,
    };
    let is_even = binning != Binning::Quantile;
    let find = |&c: &f64| if is_even { even_bin(c, &borders) } else { any_bin(c, &borders) } as u32;
    let bins = confidence.iter().map(find).collect();
    Ok((confidence, hit, bins))
}

/// Borders that do not depend on the confidences.
fn even_borders(predictions: &Predictions<'_>, binning: Binning, n_bins: usize) -> Option<Vec<f64>> {
    match binning {
        Binning::Uniform => Some(predictions.uniform_borders(n_bins)),
        Binning::Paper => Some(paper_borders(n_bins)),
        Binning::Quantile => None,
    }
}

pub(super) fn check_n_bins(n_bins: usize) -> Result<(), Error> {
    if !(1..=MAX_BINS).contains(&n_bins) {
        return Err(Error::value(format!(
            "Expected argument `n_bins` to be an integer in [1, {MAX_BINS}], but got {n_bins}."
        )));
    }
    Ok(())
}

/// What the bins of a set of predictions hold; classwise, those of one class after those of another.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    /// The borders of the bins, one more than there are bins; those of each class in turn, where they differ.
    pub borders: Vec<f64>,
    /// How many predictions.
    pub counts: Vec<u64>,
    /// The sum of their weights, 1 each unless others are given.
    pub weight: Vec<Exact>,
    /// The same of the correct ones.
    pub correct: Vec<Exact>,
    /// The weighted sum of their confidences.
    pub confidence: Vec<Exact>,
}

impl Bins {
    /// The expected calibration error, over all bins; NaN without predictions.
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

/// Bins filled one by one, without weights: these are counts, and confidences have few digits.
pub(super) struct Counts {
    bins: Vec<Count>,
}

#[derive(Clone, Default)]
pub(super) struct Count {
    all: u64,
    correct: u64,
    /// In units of 2^-80.
    confidence: u128,
}

pub(super) trait Tally: Sized + Send {
    fn empty(n_bins: usize) -> Result<Self, Error>;
    fn add(&mut self, b: usize, hit: bool, confidence: f64, weight: f64);
    fn merge(&mut self, other: &Self);
    fn finish(self) -> Bins;
}

impl Tally for Counts {
    fn empty(n_bins: usize) -> Result<Self, Error> {
        Ok(Counts { bins: zeros(n_bins)? })
    }

    #[inline(always)]
    fn add(&mut self, b: usize, hit: bool, confidence: f64, _weight: f64) {
        let bin = &mut self.bins[b];
        bin.all += 1;
        bin.correct += u64::from(hit);
        bin.confidence += units(confidence);
    }

    fn merge(&mut self, other: &Self) {
        for (bin, other) in self.bins.iter_mut().zip(&other.bins) {
            bin.all += other.all;
            bin.correct += other.correct;
            bin.confidence += other.confidence;
        }
    }

    fn finish(self) -> Bins {
        let number = |n: u64| Exact::from_units(u128::from(n) << 80);
        Bins {
            borders: Vec::new(),
            counts: self.bins.iter().map(|bin| bin.all).collect(),
            weight: self.bins.iter().map(|bin| number(bin.all)).collect(),
            correct: self.bins.iter().map(|bin| number(bin.correct)).collect(),
            confidence: self.bins.iter().map(|bin| Exact::from_units(bin.confidence)).collect(),
        }
    }
}

impl Tally for Bins {
    fn empty(n: usize) -> Result<Self, Error> {
        Ok(Bins {
            borders: Vec::new(),
            counts: zeros(n)?,
            weight: zeros(n)?,
            correct: zeros(n)?,
            confidence: zeros(n)?,
        })
    }

    #[inline(always)]
    fn add(&mut self, b: usize, hit: bool, confidence: f64, weight: f64) {
        self.counts[b] += 1;
        self.weight[b].add(weight);
        if hit {
            self.correct[b].add(weight);
        }
        self.confidence[b].add(weight * confidence);
    }

    fn merge(&mut self, other: &Self) {
        *self += other;
    }

    fn finish(self) -> Bins {
        self
    }
}

/// Bins predictions.
///
/// Every row must be a distribution (or, as logits, have a softmax); the first one that is not is the error.
/// Of several classes with the highest score the first one is predicted. Ignored rows are in no bin.
pub fn bin(
    predictions: &Predictions<'_>,
    kind: Kind,
    binning: Binning,
    n_bins: usize,
) -> Result<Bins, Error> {
    if predictions.weights().is_some() {
        bin_with::<Bins>(predictions, kind, binning, n_bins)
    } else {
        bin_with::<Counts>(predictions, kind, binning, n_bins)
    }
}

fn bin_with<T: Tally>(
    predictions: &Predictions<'_>,
    kind: Kind,
    binning: Binning,
    n_bins: usize,
) -> Result<Bins, Error> {
    let n_groups = if kind == Kind::Classwise { predictions.n_classes() } else { 1 };
    check_n_bins(n_bins)?;
    if n_bins.checked_mul(n_groups).is_none_or(|n| n > MAX_ALL_BINS) {
        return Err(Error::value(format!(
            "Expected argument `n_bins` to make at most {MAX_ALL_BINS} bins for all classes, but got {n_bins} for \
             each of {n_groups}."
        )));
    }
    let borders = match (even_borders(predictions, binning, n_bins), kind) {
        (Some(borders), _) => borders,
        (None, Kind::TopLabel) => {
            quantiles::of_confidences(predictions, &predictions.top_labels()?.0, n_bins)?
        }
        (None, Kind::Classwise) => quantiles::of_classes(predictions, n_bins)?,
    };
    let is_even = binning != Binning::Quantile;
    let find = |k: usize, confidence: f64| {
        let borders =
            if borders.len() == n_bins + 1 { &borders } else { &borders[k * (n_bins + 1)..][..n_bins + 1] };
        if is_even { even_bin(confidence, borders) } else { any_bin(confidence, borders) }
    };
    let (total, failure) = (Mutex::new(T::empty(n_bins * n_groups)?), Mutex::new(None));
    // A thread's own bins should cost little beside what it puts in.
    let least = (n_bins * n_groups / 16_384).max(1);
    predictions.share(least, &|range| {
        let mut own = match T::empty(n_bins * n_groups) {
            Ok(own) => own,
            Err(error) => {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return None;
            }
        };
        let weight = |i: usize| predictions.weights().map_or(1.0, |weights| weights[i]);
        let all = &borders[..n_bins + 1];
        let block = (BLOCK_NUMBERS / n_groups).clamp(1, BLOCK);
        let blocks = range.clone().step_by(block).map(|start| start..(start + block).min(range.end));
        let (mut numbers, mut hits) = (Vec::new(), [0 as Hit; BLOCK]);
        for block in blocks {
            let length = block.len();
            numbers.resize(length * n_groups, 0.0);
            if kind == Kind::TopLabel {
                let hits = &mut hits[..length];
                if let Some(row) = predictions.top_labels_of(block.clone(), &mut numbers, hits) {
                    return Some(row);
                }
                let find = |c| if is_even { even_bin(c, all) } else { any_bin(c, all) };
                match predictions.weights() {
                    None => {
                        for (&confidence, &hit) in numbers.iter().zip(&*hits) {
                            if hit >= 0 {
                                own.add(find(confidence), hit == 1, confidence, 1.0);
                            }
                        }
                    }
                    Some(weights) => {
                        for ((&confidence, &hit), &weight) in numbers.iter().zip(&*hits).zip(&weights[block])
                        {
                            if hit >= 0 {
                                own.add(find(confidence), hit == 1, confidence, weight);
                            }
                        }
                    }
                }
                continue;
            }
            if let Some(row) = predictions.probabilities_of(block.clone(), &mut numbers) {
                return Some(row);
            }
            for (i, p) in block.zip(numbers.chunks_exact(n_groups)) {
                let Some(y) = predictions.targets().class(i) else { continue };
                for (k, &p) in p.iter().enumerate() {
                    own.add(k * n_bins + find(k, p), k == y, p, weight(i));
                }
            }
        }
        total.lock().unwrap_or_else(PoisonError::into_inner).merge(&own);
        None
    })?;
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => {
            let bins = total.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
            Ok(Bins { borders, ..bins })
        }
    }
}

/// Rows whose confidences are computed before they are binned; of many classes, so many that they stay in cache.
const BLOCK: usize = 256;
const BLOCK_NUMBERS: usize = 16_384;

/// The bin [b, b + 1) of about even borders that holds `confidence`; the last one holds all that follows.
#[inline(always)]
pub(super) fn even_bin(confidence: f64, borders: &[f64]) -> usize {
    let last = borders.len() - 2;
    // Right but for the rounding of the borders: rarely, and then the next one is.
    let mut b = ((confidence * (last + 1) as f64) as usize).min(last);
    while b > 0 && confidence < borders[b] {
        b -= 1;
    }
    while b < last && confidence >= borders[b + 1] {
        b += 1;
    }
    b
}

/// The same of any borders; what is before the first one is in the first bin.
#[inline(always)]
fn any_bin(confidence: f64, borders: &[f64]) -> usize {
    borders[1..borders.len() - 1].partition_point(|&border| border <= confidence)
}

/// Borders that make `min(int(confidence // (1 / n)), n - 1)`, whose `//` is exact: k times the rounded width, no
/// border below that.
pub(super) fn paper_borders(n_bins: usize) -> Vec<f64> {
    let width = 1.0 / n_bins as f64;
    (0..=n_bins)
        .map(|k| {
            let border = k as f64 * width;
            let error = (k as f64).mul_add(width, -border);
            if error > 0.0 { border.next_up() } else { border }
        })
        .collect()
}

/// `confidence` in [0, 1] in units of 2^-80; only what is below one unit is dropped.
#[inline(always)]
fn units(confidence: f64) -> u128 {
    let bits = confidence.to_bits();
    // Biased; 0 for subnormal numbers, which are below one unit. The sign is that of -0.
    let exponent = (bits >> 52 & 0x7FF) as i32;
    let significand = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
    let shift = exponent - 1075 + 80;
    if shift >= 0 { significand << shift } else { significand.checked_shr(-shift as u32).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Scores;
    use crate::rows::{AnyRows, Rows, Targets};
    use crate::simd::Isa;
    use proptest::prelude::*;

    fn predictions<'a>(
        p: &'a [f64],
        n_classes: usize,
        y: &[i64],
        w: Option<&[f64]>,
        isa: Isa,
    ) -> Predictions<'a> {
        let rows = AnyRows::F64(Rows::from_slice(p, n_classes).unwrap());
        let targets = Targets::new(y, n_classes.max(2), -1).unwrap();
        Predictions::new(rows, targets, w.map(<[f64]>::to_vec), Scores::Probabilities, isa).unwrap()
    }

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
        // Python floors the quotient of what is left after the exact remainder is taken off.
        let quotient = (confidence - confidence % width) / width;
        let floor = quotient.floor();
        let floor = if quotient - floor > 0.5 { floor + 1.0 } else { floor };
        (floor as usize).min(n_bins - 1)
    }

    #[test]
    fn the_paper_bins_as_python_does() {
        // Python: [k / 15 // (1 / 15) for k in range(16)] with the last one capped.
        let bins: Vec<usize> = (0..16).map(|k| even_bin(f64::from(k) / 15.0, &paper_borders(15))).collect();
        assert_eq!(bins, [0, 1, 2, 3, 4, 4, 6, 7, 8, 8, 9, 10, 12, 13, 14, 14]);
        assert_eq!(even_bin(0.5, &paper_borders(10)), 4);
        for n in [1, 2, 3, 7, 10, 15, 28, 30, 49, 100, 1000] {
            let borders = paper_borders(n);
            for k in 0..=n {
                let middle = k as f64 / n as f64;
                let around =
                    [middle.next_down(), middle, middle.next_up(), borders[k].next_down(), borders[k]];
                for c in around.map(|c| c.clamp(0.0, 1.0)) {
                    assert_eq!(even_bin(c, &borders), python_bin(c, n), "{c} {n}");
                }
            }
        }
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let mut p = vec![0.5; 2 * 100_000];
        (p[2 * 70_001], p[2 * 70_000 + 1]) = (f64::NAN, -0.5);
        let predictions = predictions(&p, 2, &vec![0; 100_000], None, Isa::best());
        for kind in [Kind::TopLabel, Kind::Classwise] {
            let got = bin(&predictions, kind, Binning::Uniform, 15);
            assert!(matches!(got, Err(Error::Row { row: 70_000, .. })), "{got:?}");
        }
    }

    proptest! {
        #[test]
        fn bins_are_a_partition(n_bins in 1..200_usize, confidence in 0.0..=1.0_f64) {
            for borders in [(0..=n_bins).map(|k| k as f64 / n_bins as f64).collect(), paper_borders(n_bins)] {
                let b = even_bin(confidence, &borders);
                prop_assert_eq!(b, any_bin(confidence, &borders));
                prop_assert!(borders[b] <= confidence);
                prop_assert!(confidence < borders[b + 1] || b + 1 == n_bins);
                for (k, &border) in borders.iter().enumerate() {
                    prop_assert_eq!(even_bin(border, &borders), k.min(n_bins - 1));
                }
            }
        }

        #[test]
        fn order_batches_and_sets_do_not_matter(
            seed in prop::collection::vec((0.0..=1.0_f64, 0.0..9.0_f64), 1..400),
            weighted: bool,
            classwise: bool,
        ) {
            let kind = if classwise { Kind::Classwise } else { Kind::TopLabel };
            let p: Vec<f64> = seed.iter().flat_map(|&(c, _)| [c, 1.0 - c]).collect();
            let y: Vec<i64> = seed.iter().map(|&(c, _)| i64::from(c < 0.3)).collect();
            let w: Vec<f64> = seed.iter().map(|s| s.1).collect();
            let of = |p: &[f64], y: &[i64], w: &[f64], isa| {
                let predictions = predictions(p, 2, y, weighted.then_some(w), isa);
                bin(&predictions, kind, Binning::Uniform, 15).unwrap()
            };
            let all = of(&p, &y, &w, Isa::Portable);
            prop_assert_eq!(all.counts.iter().sum::<u64>(), (seed.len() * if classwise { 2 } else { 1 }) as u64);
            for isa in Isa::available() {
                prop_assert_eq!(&of(&p, &y, &w, isa), &all);
            }
            let reversed: Vec<f64> = p.chunks(2).rev().flatten().copied().collect();
            let back = |x: &[f64]| x.iter().rev().copied().collect::<Vec<_>>();
            let y_reversed: Vec<i64> = y.iter().rev().copied().collect();
            prop_assert_eq!(&of(&reversed, &y_reversed, &back(&w), Isa::best()), &all);
            let mut merged = <Bins as Tally>::empty(all.counts.len()).unwrap();
            for ((p, y), w) in p.chunks(14).zip(y.chunks(7)).zip(w.chunks(7)) {
                merged += &of(p, y, w, Isa::best());
            }
            merged.borders.clone_from(&all.borders);
            prop_assert_eq!(&merged, &all);
        }

        #[test]
        fn a_weight_is_so_many_rows(rows in prop::collection::vec((0.0..=1.0_f64, 0..5_u8), 1..50)) {
            let y: Vec<i64> = rows.iter().map(|r| i64::from(r.1 % 2)).collect();
            let p: Vec<f64> = rows.iter().map(|r| r.0).collect();
            let w: Vec<f64> = rows.iter().map(|r| f64::from(r.1)).collect();
            let repeat = |x: usize| vec![x; rows[x].1.into()];
            let rows: Vec<usize> = (0..rows.len()).flat_map(repeat).collect();
            let p_many: Vec<f64> = rows.iter().map(|&i| p[i]).collect();
            let y_many: Vec<i64> = rows.iter().map(|&i| y[i]).collect();
            let a = bin(&predictions(&p, 1, &y, Some(&w), Isa::best()), Kind::TopLabel, Binning::Paper, 7).unwrap();
            let b = bin(&predictions(&p_many, 1, &y_many, None, Isa::best()), Kind::TopLabel, Binning::Paper, 7).unwrap();
            prop_assert_eq!((&a.weight, &a.correct), (&b.weight, &b.correct));
            for (a, b) in a.confidence.iter().zip(&b.confidence) {
                prop_assert!((a.to_f64() - b.to_f64()).abs() <= 1e-13);
            }
        }
    }
}
