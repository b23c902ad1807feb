//! Bins predictions by their confidence, for calibration errors and reliability diagrams.
//!
//! A prediction falls into a bin by its confidence, the probability of its most probable class (Guo et al., "On
//! Calibration of Modern Neural Networks", ICML 2017, eq. 3). Classwise, it falls into one bin of each class, by the
//! probability of that class (Nixon et al., "Measuring Calibration in Deep Learning", 2019).

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::rows::{Error, collected, filled};

use super::bins::{
    Accumulator, Binning, Bins, Counts, check_edges, check_n_bins, paper_edges, sorted_bin, uniform_bin,
};
use super::predictions::{Outcome, Predictions};
use super::quantiles;

/// Which probabilities are binned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The confidence of each row.
    TopLabel,
    /// All probabilities of each row, each in the bins of its class.
    Classwise,
}

/// The largest number of bins of all classes together.
const MAX_ALL_BINS: usize = 1 << 22;

/// Rows whose confidences are computed before they are binned; for many classes, as few as stay in cache.
const BLOCK: usize = 256;
const BLOCK_NUMBERS: usize = 16_384;

/// The confidence, the outcome and the bin of each row.
pub type BinnedLabels = (Vec<f64>, Vec<Outcome>, Vec<u32>);

/// Assigns each row to a bin by its confidence; see [`Predictions::top_labels`].
pub fn bin_labels(
    predictions: &Predictions<'_>,
    binning: &Binning,
    n_bins: usize,
) -> Result<BinnedLabels, Error> {
    check_n_bins(n_bins)?;
    let (confidence, outcome) = predictions.top_labels()?;
    let edges = match fixed_edges(predictions, binning, n_bins)? {
        Some(edges) => edges,
        None => quantiles::of_confidences(predictions, &confidence, n_bins)?,
    };
    let bins = collected(confidence.iter().map(|&c| find_bin(c, &edges, binning) as u32))?;
    Ok((confidence, outcome, bins))
}

/// Edges that do not depend on the confidences.
fn fixed_edges(
    predictions: &Predictions<'_>,
    binning: &Binning,
    n_bins: usize,
) -> Result<Option<Vec<f64>>, Error> {
    Ok(match binning {
        Binning::Uniform => Some(predictions.rounded((0..=n_bins).map(|k| k as f64 / n_bins as f64))),
        Binning::Paper => Some(paper_edges(n_bins)),
        Binning::Quantile => None,
        Binning::Edges(edges) => {
            check_edges(edges, n_bins)?;
            Some(predictions.rounded(edges.iter().copied()))
        }
    })
}

#[inline(always)]
fn find_bin(confidence: f64, edges: &[f64], binning: &Binning) -> usize {
    match binning {
        Binning::Uniform | Binning::Paper => uniform_bin(confidence, edges),
        Binning::Quantile | Binning::Edges(_) => sorted_bin(confidence, edges),
    }
}

/// Bins predictions.
///
/// Every row must be a distribution or logits that have a softmax; otherwise the error names the first row that is
/// not. The predicted class is the first of those with the highest score. Ignored rows are in no bin.
pub fn bin(
    predictions: &Predictions<'_>,
    kind: Kind,
    binning: &Binning,
    n_bins: usize,
) -> Result<Bins, Error> {
    if predictions.weights().is_some() {
        bin_with::<Bins>(predictions, kind, binning, n_bins)
    } else {
        bin_with::<Counts>(predictions, kind, binning, n_bins)
    }
}

fn bin_with<A: Accumulator>(
    predictions: &Predictions<'_>,
    kind: Kind,
    binning: &Binning,
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
    let edges = match (fixed_edges(predictions, binning, n_bins)?, kind) {
        (Some(edges), _) => edges,
        (None, Kind::TopLabel) => {
            quantiles::of_confidences(predictions, &predictions.top_labels()?.0, n_bins)?
        }
        (None, Kind::Classwise) => quantiles::of_classes(predictions, n_bins)?,
    };
    let total = Mutex::new(A::empty(n_bins * n_groups)?);
    // Each thread has an accumulator of its own, which must be small beside the rows that go into it.
    let least = (n_bins * n_groups / 16_384).max(1);
    predictions.share(least, &|range| {
        let mut bins = A::empty(n_bins * n_groups)?;
        let invalid = match kind {
            Kind::TopLabel => add_top_labels(&mut bins, predictions, range, &edges, binning)?,
            Kind::Classwise => add_classwise(&mut bins, predictions, range, &edges, binning, n_bins)?,
        };
        if invalid.is_none() {
            total.lock().unwrap_or_else(PoisonError::into_inner).merge(&bins);
        }
        Ok(invalid)
    })?;
    let bins = total.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?;
    Ok(Bins { edges, ..bins })
}

fn blocks(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(length).map(move |start| start..(start + length).min(range.end))
}

/// Adds the confidences of a range of rows; returns the first row that is not a distribution.
fn add_top_labels<A: Accumulator>(
    bins: &mut A,
    predictions: &Predictions<'_>,
    range: Range<usize>,
    edges: &[f64],
    binning: &Binning,
) -> Result<Option<usize>, Error> {
    let (mut confidences, mut outcomes) = ([0.0; BLOCK], [0 as Outcome; BLOCK]);
    for block in blocks(range, BLOCK) {
        let (confidences, outcomes) = (&mut confidences[..block.len()], &mut outcomes[..block.len()]);
        if let Some(row) = predictions.top_labels_of(block.clone(), confidences, outcomes)? {
            return Ok(Some(row));
        }
        let mut add = |confidence: f64, outcome: Outcome, weight: f64| {
            if outcome >= 0 {
                bins.add(find_bin(confidence, edges, binning), outcome == 1, confidence, weight);
            }
        };
        let rows = confidences.iter().zip(&*outcomes);
        match predictions.weights() {
            None => rows.for_each(|(&confidence, &outcome)| add(confidence, outcome, 1.0)),
            Some(weights) => rows
                .zip(&weights[block])
                .for_each(|((&confidence, &outcome), &weight)| add(confidence, outcome, weight)),
        }
    }
    Ok(None)
}

/// Adds all probabilities of a range of rows; returns the first row that is not a distribution.
fn add_classwise<A: Accumulator>(
    bins: &mut A,
    predictions: &Predictions<'_>,
    range: Range<usize>,
    edges: &[f64],
    binning: &Binning,
    n_bins: usize,
) -> Result<Option<usize>, Error> {
    let n_classes = predictions.n_classes();
    let of_class = |k: usize| {
        let is_shared = edges.len() == n_bins + 1;
        if is_shared { edges } else { &edges[k * (n_bins + 1)..][..n_bins + 1] }
    };
    let length = (BLOCK_NUMBERS / n_classes).clamp(1, BLOCK);
    let mut probabilities = filled(0.0, length * n_classes)?;
    for block in blocks(range, length) {
        let probabilities = &mut probabilities[..block.len() * n_classes];
        if let Some(row) = predictions.probabilities_of(block.clone(), probabilities)? {
            return Ok(Some(row));
        }
        for (i, p) in block.zip(probabilities.chunks_exact(n_classes)) {
            let Some(y) = predictions.targets().class(i) else { continue };
            let weight = predictions.weights().map_or(1.0, |weights| weights[i]);
            for (k, &p) in p.iter().enumerate() {
                bins.add(k * n_bins + find_bin(p, of_class(k), binning), k == y, p, weight);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{AnyRows, Rows, Scores, Targets};
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
    fn names_first_invalid_row() {
        let mut p = vec![0.5; 2 * 100_000];
        (p[2 * 70_001], p[2 * 70_000 + 1]) = (f64::NAN, -0.5);
        let predictions = predictions(&p, 2, &vec![0; 100_000], None, Isa::best());
        for kind in [Kind::TopLabel, Kind::Classwise] {
            let got = bin(&predictions, kind, &Binning::Uniform, 15);
            assert!(matches!(got, Err(Error::Row { row: 70_000, .. })), "{got:?}");
        }
    }

    proptest! {
        #[test]
        fn order_batches_and_isa_do_not_matter(
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
                bin(&predictions, kind, &Binning::Uniform, 15).unwrap()
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
            let mut merged = <Bins as Accumulator>::empty(all.counts.len()).unwrap();
            for ((p, y), w) in p.chunks(14).zip(y.chunks(7)).zip(w.chunks(7)) {
                merged += &of(p, y, w, Isa::best());
            }
            merged.edges.clone_from(&all.edges);
            prop_assert_eq!(&merged, &all);
        }

        #[test]
        fn uniform_edges_make_uniform_bins(p in prop::collection::vec(0.0..=1.0_f64, 1..50), n_bins in 1..30_usize) {
            let y: Vec<i64> = p.iter().map(|&p| i64::from(p > 0.4)).collect();
            let predictions = predictions(&p, 1, &y, None, Isa::best());
            let edges: Vec<f64> = (0..=n_bins).map(|k| k as f64 / n_bins as f64).collect();
            let of = |binning| bin(&predictions, Kind::TopLabel, &binning, n_bins);
            prop_assert_eq!(of(Binning::Edges(edges.clone().into())).unwrap(), of(Binning::Uniform).unwrap());
            prop_assert!(of(Binning::Edges(edges[..n_bins].into())).is_err());
        }

        #[test]
        fn integer_weights_repeat_rows(rows in prop::collection::vec((0.0..=1.0_f64, 0..5_u8), 1..50)) {
            let y: Vec<i64> = rows.iter().map(|r| i64::from(r.1 % 2)).collect();
            let p: Vec<f64> = rows.iter().map(|r| r.0).collect();
            let w: Vec<f64> = rows.iter().map(|r| f64::from(r.1)).collect();
            let repeat = |x: usize| vec![x; rows[x].1.into()];
            let rows: Vec<usize> = (0..rows.len()).flat_map(repeat).collect();
            let p_many: Vec<f64> = rows.iter().map(|&i| p[i]).collect();
            let y_many: Vec<i64> = rows.iter().map(|&i| y[i]).collect();
            let a = bin(&predictions(&p, 1, &y, Some(&w), Isa::best()), Kind::TopLabel, &Binning::Paper, 7).unwrap();
            let b = bin(&predictions(&p_many, 1, &y_many, None, Isa::best()), Kind::TopLabel, &Binning::Paper, 7).unwrap();
            prop_assert_eq!((&a.weight, &a.correct), (&b.weight, &b.correct));
            for (a, b) in a.confidence.iter().zip(&b.confidence) {
                prop_assert!((a.to_f64() - b.to_f64()).abs() <= 1e-13);
            }
        }
    }
}
