//! Predictions with their targets, and what metrics ask of each row: confidence and probabilities.
//!
//! A row is a distribution over classes, or the logits of one; or, for a binary event, the one probability (or
//! logit) of class 1. Rows are checked where they are read: the first that is no distribution is named, and
//! nothing is returned. Rows whose target is ignored are not looked at.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::lanes::{self, fold, widen};
use crate::simd::{self, Element, Isa, Kernel, LANES, Real};
use crate::threads::{self, Disjoint, Tiles};

use super::super::sum_exp::sum_exp;
use crate::rows::Scores;

/// The largest weight of a row.
pub const MAX_WEIGHT: f64 = 4_294_967_296.0; // 2^32

/// Whether a prediction is right: 1, or 0; -1 where the row is ignored.
pub type Hit = i8;

/// Rows of predictions, their targets, and the weights of the rows; checked against each other.
pub struct Predictions<'a> {
    pub(super) rows: AnyRows<'a>,
    pub(super) targets: Targets,
    weights: Option<Vec<f64>>,
    pub(super) scores: Scores,
    pub(super) isa: Isa,
}

/// Calls `$do` with the typed rows.
macro_rules! typed {
    ($rows:expr, $typed:ident => $do:expr) => {
        match $rows {
            AnyRows::F32($typed) => $do,
            AnyRows::F64($typed) => $do,
            AnyRows::F16($typed) => $do,
            AnyRows::Bf16($typed) => $do,
            AnyRows::Bool(_) => unreachable!("refused before"),
        }
    };
}
pub(super) use typed;

impl<'a> Predictions<'a> {
    /// Checks shapes and weights. Rows of one number with targets of two classes are binary events.
    pub fn new(
        rows: AnyRows<'a>,
        targets: Targets,
        weights: Option<Vec<f64>>,
        scores: Scores,
        isa: Isa,
    ) -> Result<Self, Error> {
        if matches!(rows, AnyRows::Bool(_)) {
            return Err(Error::r#type(
                "Expected argument `preds` to be of a floating-point type, but got bool.",
            ));
        }
        let (n_rows, n_classes) = rows.shape();
        targets.check_shape(n_rows, if n_classes == 1 { targets.n_classes().min(2) } else { n_classes })?;
        if let Some(weights) = &weights {
            if weights.len() != n_rows {
                return Err(Error::value(format!(
                    "Expected argument `sample_weight` to hold {n_rows} numbers, one for each row, but got {}.",
                    weights.len()
                )));
            }
            if let Some(row) = weights.iter().position(|w| !(0.0..=MAX_WEIGHT).contains(w)) {
                let why = "numbers in [0, 2^32]".into();
                return Err(Error::Row { argument: "sample_weight", row, why });
            }
        }
        Ok(Predictions { rows, targets, weights, scores, isa })
    }

    /// N
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// C; 1 for a binary event.
    pub fn n_classes(&self) -> usize {
        self.rows.shape().1
    }

    /// The class of each row.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The weights of the rows, where they have any.
    pub fn weights(&self) -> Option<&[f64]> {
        self.weights.as_deref()
    }

    /// k/n for k in 0..=n, each rounded to the type of the predictions: a confidence that prints as a border lies on
    /// it in every type.
    pub(crate) fn uniform_borders(&self, n: usize) -> Vec<f64> {
        fn borders<E: Element>(_: &Rows<'_, E>, n: usize) -> Vec<f64> {
            let border = |k| E::narrow(E::Wide::from_f64(k as f64 / n as f64)).widen().to_f64();
            (0..=n).map(border).collect()
        }
        typed!(&self.rows, rows => borders(rows, n))
    }

    /// The confidence of each row, and whether the prediction is right.
    ///
    /// The confidence is the probability of the most probable class, of several the first; of a binary event, it
    /// is the probability of class 1, which is right where the class is 1.
    pub fn top_labels(&self) -> Result<(Vec<f64>, Vec<Hit>), Error> {
        let (mut confidence, mut hit) = (zeros(self.len())?, zeros(self.len())?);
        let (confidences, hits) = (Disjoint::new(&mut confidence), Disjoint::new(&mut hit));
        self.share(1, &|range| {
            // SAFETY: `share` gives every row to one call only.
            let (confidence, hit) = unsafe { (confidences.part(range.clone()), hits.part(range.clone())) };
            self.top_labels_of(range, confidence, hit)
        })?;
        Ok((confidence, hit))
    }

    /// The probabilities of all classes, row by row; 0 where the row is ignored.
    pub fn probabilities(&self) -> Result<Vec<f64>, Error> {
        let n_classes = self.n_classes();
        let mut out = zeros(self.len().saturating_mul(n_classes))?;
        let parts = Disjoint::new(&mut out);
        self.share(1, &|range| {
            // SAFETY: `share` gives every row to one call only.
            let out = unsafe { parts.part(range.start * n_classes..range.end * n_classes) };
            self.probabilities_of(range, out)
        })?;
        Ok(out)
    }

    /// [`Predictions::top_labels`] of a range; returns the first row that is no distribution.
    pub(crate) fn top_labels_of(
        &self,
        range: Range<usize>,
        confidence: &mut [f64],
        hit: &mut [Hit],
    ) -> Option<usize> {
        assert!(confidence.len() == range.len() && hit.len() == range.len());
        let (targets, scores) = (&self.targets, self.scores);
        typed!(&self.rows, rows => simd::run(self.isa, TopLabels { rows, targets, scores, range, confidence, hit }))
    }

    /// [`Predictions::probabilities`] of a range; returns the first row that is no distribution.
    pub(crate) fn probabilities_of(&self, range: Range<usize>, out: &mut [f64]) -> Option<usize> {
        assert!(out.len() == range.len() * self.n_classes());
        let (targets, scores) = (&self.targets, self.scores);
        typed!(&self.rows, rows => simd::run(self.isa, Probabilities { rows, targets, scores, range, out }))
    }

    /// Shares the rows out in tiles, of which a thread gets at least `least`; `work` returns the first row that is
    /// no distribution, and the first of all is the error.
    pub(crate) fn share(
        &self,
        least: usize,
        work: &(dyn Fn(Range<usize>) -> Option<usize> + Sync),
    ) -> Result<(), Error> {
        let tiles = Tiles::new(self.len(), self.n_classes());
        let bad = AtomicUsize::new(usize::MAX);
        threads::share(tiles.len().div_ceil(least), &|groups| {
            let tiles_of_groups = groups.start * least..(groups.end * least).min(tiles.len());
            if let Some(row) = work(tiles.rows(tiles_of_groups)) {
                bad.fetch_min(row, Ordering::Relaxed);
            }
        });
        match bad.into_inner() {
            usize::MAX => Ok(()),
            row => Err(self.no_distribution(row)),
        }
    }

    fn no_distribution(&self, row: usize) -> Error {
        let why = match (self.scores, self.n_classes()) {
            (Scores::Logits, 1) => "logits that are not NaN",
            (Scores::Logits, _) => "logits that have a softmax (no NaN, no +inf, not all -inf)",
            (Scores::Probabilities, 1) => "probabilities in [0, 1] (pass `from_logits=True` for logits)",
            (Scores::Probabilities, _) => {
                "probabilities that are not negative and sum to 1 (pass `from_logits=True` for logits)"
            }
        };
        Error::Row { argument: "preds", row, why: why.into() }
    }
}

/// n zeros; an expanded array may have more rows than there is memory.
pub(crate) fn zeros<T: Clone + Default>(n: usize) -> Result<Vec<T>, Error> {
    let mut out = Vec::new();
    out.try_reserve_exact(n).map_err(|_| Error::Memory { bytes: n.saturating_mul(size_of::<T>()) })?;
    out.resize(n, T::default());
    Ok(out)
}

struct TopLabels<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    scores: Scores,
    range: Range<usize>,
    confidence: &'a mut [f64],
    hit: &'a mut [Hit],
}

impl<E: Element> Kernel for TopLabels<'_, E> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut scratch = Vec::new();
        let first = self.range.start;
        for i in self.range {
            let Some(y) = self.targets.class(i) else {
                self.hit[i - first] = -1;
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let (confidence, hit) = if row.len() == 1 && self.targets.n_classes() == 2 {
                (binary(row[0], self.scores), y == 1)
            } else {
                let Top { score, confidence } = match self.scores {
                    Scores::Logits => top_of_logits(row),
                    Scores::Probabilities => top_of_probabilities(row),
                };
                // The first of the classes with the highest score is the prediction.
                (confidence, row[y].widen() == score && !row[..y].iter().any(|z| z.widen() == score))
            };
            if confidence.is_nan() {
                return Some(i);
            }
            (self.confidence[i - first], self.hit[i - first]) = (confidence, Hit::from(hit));
        }
        None
    }
}

struct Probabilities<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    scores: Scores,
    range: Range<usize>,
    out: &'a mut [f64],
}

impl<E: Element> Kernel for Probabilities<'_, E> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut scratch, mut p) = (Vec::new(), Vec::new());
        let rows = self.range.zip(self.out.chunks_exact_mut(self.rows.n_classes()));
        for (i, out) in rows {
            if self.targets.class(i).is_none() {
                continue;
            }
            if !probabilities(self.rows.row(i, &mut scratch), self.scores, &mut p) {
                return Some(i);
            }
            for (out, p) in out.iter_mut().zip(&p) {
                *out = p.to_f64().min(1.0);
            }
        }
        None
    }
}

/// The most probable class of a row; the confidence is NaN where the row is no distribution.
pub(super) struct Top<F> {
    pub(super) score: F,
    pub(super) confidence: f64,
}

/// The probability of class 1 of a binary event, in the type that sigmoid would give; NaN where it is none.
#[inline(always)]
pub(super) fn binary<E: Element>(x: E, scores: Scores) -> f64 {
    let x = x.widen().to_f64();
    match scores {
        Scores::Logits => {
            let e = (-x.abs()).exp_biased() * (1.0 / f64::BIAS);
            let p = if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
            E::Wide::from_f64(p).to_f64()
        }
        Scores::Probabilities => {
            if (0.0..=1.0).contains(&x) {
                x
            } else {
                f64::NAN
            }
        }
    }
}

#[inline(always)]
fn top_of_logits<E: Element>(row: &[E]) -> Top<E::Wide> {
    let all = sum_exp(row, usize::MAX);
    // In the type that softmax would give.
    let confidence = E::Wide::from_f64(1.0 / all.sum).to_f64();
    let valid = confidence > 0.0 && confidence <= 1.0;
    Top { score: all.max, confidence: if valid { confidence } else { f64::NAN } }
}

#[inline(always)]
pub(super) fn top_of_probabilities<E: Element>(row: &[E]) -> Top<E::Wide> {
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
    top::<E>(score, sum, negative)
}

/// The same where folding lanes would take longer than the row.
#[inline(always)]
fn top_of_few<E: Element>(row: &[E]) -> Top<E::Wide> {
    let (mut score, mut sum, mut negative) = (E::Wide::ZERO, 0.0, false);
    for p in row {
        let p = p.widen();
        score = if p > score { p } else { score };
        negative |= p < E::Wide::ZERO;
        sum += p.to_f64();
    }
    top::<E>(score, sum, negative)
}

#[inline(always)]
fn top<E: Element>(score: E::Wide, sum: f64, negative: bool) -> Top<E::Wide> {
    let valid = (sum - 1.0).abs() <= E::SUM_TOLERANCE && !negative;
    Top { score, confidence: if valid { score.to_f64().min(1.0) } else { f64::NAN } }
}

/// The probabilities of a row, in the type that softmax would give; whether it is a distribution.
#[inline(always)]
pub(super) fn probabilities<E: Element>(row: &[E], scores: Scores, out: &mut Vec<E::Wide>) -> bool {
    out.resize(row.len(), E::Wide::ZERO);
    match scores {
        Scores::Probabilities => {
            for (out, p) in out.iter_mut().zip(row) {
                *out = p.widen();
            }
            !top_of_probabilities(row).confidence.is_nan()
        }
        Scores::Logits => {
            let all = sum_exp(row, usize::MAX);
            let shift = [all.max; LANES];
            let share = E::Wide::from_f64(1.0 / (all.sum * E::Wide::BIAS));
            let (vectors, tail) = row.as_chunks();
            let (out_vectors, out_tail) = out.as_chunks_mut();
            for (out, vector) in out_vectors.iter_mut().zip(vectors) {
                *out = lanes::map(&lanes::exp_biased_sub(&widen(vector), &shift), |e| e.mul(share));
            }
            let mut padded = [E::ZERO; LANES];
            padded[..tail.len()].copy_from_slice(tail);
            let last = lanes::map(&lanes::exp_biased_sub(&widen(&padded), &shift), |e| e.mul(share));
            out_tail.copy_from_slice(&last[..tail.len()]);
            let confidence = 1.0 / all.sum;
            confidence > 0.0 && confidence <= 1.0
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::scores::Score;
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn of<'a>(p: &'a [f64], n_classes: usize, y: &[i64], scores: Scores) -> Predictions<'a> {
        let rows = AnyRows::F64(Rows::from_slice(p, n_classes).unwrap());
        let targets = Targets::new(y, n_classes.max(2), -100).unwrap();
        Predictions::new(rows, targets, None, scores, Isa::best()).unwrap()
    }

    proptest! {
        #[test]
        fn logits_are_what_their_softmax_is(
            z in prop::collection::vec(-30.0..30.0_f64, 1..20),
            n_classes in prop::sample::select(vec![1, 2, 5, 16, 37, 300]),
        ) {
            let z: Vec<f64> = (0..3 * n_classes).map(|k| z[k % z.len()] + (k % 7) as f64 / 8.0).collect();
            let y: Vec<i64> = (0..3).map(|i| i % n_classes.max(2) as i64).collect();
            let logits = of(&z, n_classes, &y, Scores::Logits);
            let p: Vec<f64> = match n_classes {
                1 => z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
                _ => logits.probabilities().unwrap(),
            };
            let direct = of(&p, n_classes, &y, Scores::Probabilities);
            for (row, z) in p.chunks(n_classes).zip(z.chunks(n_classes)).filter(|_| n_classes > 1) {
                let max = z.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
                for (p, z) in row.iter().zip(z) {
                    let exact = (z - max).exp() / sum;
                    prop_assert!((p - exact).abs() <= 1e-14 * exact + 1e-300);
                }
            }
            let ((c, hit), (d, hit_too)) = (logits.top_labels().unwrap(), direct.top_labels().unwrap());
            prop_assert_eq!(hit, hit_too);
            prop_assert!(c.iter().zip(&d).all(|(c, d)| (c - d).abs() <= 1e-14));
            for score in [Score::Brier, Score::LogLikelihood] {
                let (a, b) = (logits.score(score).unwrap(), direct.score(score).unwrap());
                // A probability next to 1 has lost its distance to 1.
                let budget = |a: f64| 1e-13 * a + 1e-15 * if n_classes == 1 { a.exp() } else { 1.0 };
                prop_assert!(a.iter().zip(&b).all(|(&a, b)| (a - b).abs() <= budget(a)), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn what_is_no_distribution_is_named_by_all() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for (bad, n_classes, scores) in [
            (vec![0.5, nan], 2, Scores::Logits),
            (vec![nan, 0.5], 2, Scores::Logits),
            (vec![inf, 0.5], 2, Scores::Logits),
            (vec![0.5, inf], 2, Scores::Logits),
            (vec![-inf, -inf], 2, Scores::Logits),
            (vec![nan], 1, Scores::Logits),
            (vec![0.5, nan], 2, Scores::Probabilities),
            (vec![1.5, -0.5], 2, Scores::Probabilities),
            (vec![0.5, 0.4], 2, Scores::Probabilities),
            (vec![1.5], 1, Scores::Probabilities),
            (vec![-0.1], 1, Scores::Probabilities),
        ] {
            let mut p = vec![1.0 / n_classes as f64; 3 * n_classes];
            p[n_classes..2 * n_classes].copy_from_slice(&bad);
            for y in [[0, 0, 1], [1, 1, 1]] {
                let predictions = of(&p, n_classes, &y, scores);
                let names = |error: Error| matches!(error, Error::Row { argument: "preds", row: 1, .. });
                assert!(names(predictions.top_labels().unwrap_err()), "{bad:?}");
                assert!(n_classes == 1 || names(predictions.probabilities().unwrap_err()), "{bad:?}");
                assert!(names(predictions.score(Score::Brier).unwrap_err()), "{bad:?}");
                assert!(names(predictions.score(Score::LogLikelihood).unwrap_err()), "{bad:?} {y:?}");
            }
            let ignored = of(&p, n_classes, &[0, -100, 1], scores);
            assert_eq!(ignored.top_labels().unwrap().1[1], -1);
            assert_eq!(ignored.score(Score::Brier).unwrap()[1], 0.0);
        }
    }
}
