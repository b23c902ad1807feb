//! Predictions with their targets, and the confidence and the probabilities of each row.
//!
//! A row holds probabilities or logits of all classes; or, for a binary event, the one probability or logit of
//! class 1. Rows are checked while they are read: the error names the first row that is not a distribution.
//! Rows whose target is ignored are not read.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::rows::{AnyRows, Error, Rows, Scores, Targets, filled, with_room};
use crate::simd::{self, Element, Isa, Kernel, Real};
use crate::threads::{self, Disjoint, Tiles};

use super::distribution::{Top, binary, probabilities, top_of_logits, top_of_probabilities};

/// The largest weight of a row.
pub const MAX_WEIGHT: f64 = 4_294_967_296.0; // 2^32

/// 1 if the prediction is correct, 0 if it is not, -1 if the row is ignored.
pub type Outcome = i8;

/// Rows of predictions with their targets and weights, of matching shapes.
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
            AnyRows::Bool(_) => unreachable!("rejected by `Predictions::new`"),
        }
    };
}
pub(super) use typed;

impl<'a> Predictions<'a> {
    /// Checks shapes and weights. Rows of one number and targets of two classes make binary events.
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

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of classes; 1 for a binary event.
    pub fn n_classes(&self) -> usize {
        self.rows.shape().1
    }

    /// The class of each row.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The weights of the rows, if there are any.
    pub fn weights(&self) -> Option<&[f64]> {
        self.weights.as_deref()
    }

    /// The numbers, each rounded to the type of the predictions.
    pub(crate) fn rounded(&self, numbers: impl Iterator<Item = f64>) -> Vec<f64> {
        fn round<E: Element>(_: &Rows<'_, E>, numbers: impl Iterator<Item = f64>) -> Vec<f64> {
            numbers.map(|x| E::narrow(E::Wide::from_f64(x)).widen().to_f64()).collect()
        }
        typed!(&self.rows, rows => round(rows, numbers))
    }

    /// The confidence of each row, and whether the prediction is correct.
    ///
    /// The confidence is the probability of the most probable class; of equally probable classes, the first is
    /// predicted. For a binary event, it is the probability of class 1, and the prediction is correct if the target
    /// is 1.
    pub fn top_labels(&self) -> Result<(Vec<f64>, Vec<Outcome>), Error> {
        let (mut confidence, mut outcome) = (zeros(self.len())?, zeros(self.len())?);
        let (confidences, outcomes) = (Disjoint::new(&mut confidence), Disjoint::new(&mut outcome));
        self.share(1, &|range| {
            // SAFETY: `parallel_for` passes every row to one call only.
            let (confidence, outcome) =
                unsafe { (confidences.part(range.clone()), outcomes.part(range.clone())) };
            self.top_labels_of(range, confidence, outcome)
        })?;
        Ok((confidence, outcome))
    }

    /// The probabilities of all classes, row by row; 0 for ignored rows.
    pub fn probabilities(&self) -> Result<Vec<f64>, Error> {
        let n_classes = self.n_classes();
        let mut out = zeros(self.len().saturating_mul(n_classes))?;
        let parts = Disjoint::new(&mut out);
        self.share(1, &|range| {
            // SAFETY: `parallel_for` passes every row to one call only.
            let out = unsafe { parts.part(range.start * n_classes..range.end * n_classes) };
            self.probabilities_of(range, out)
        })?;
        Ok(out)
    }

    /// [`Predictions::top_labels`] of a range; returns the first row that is not a distribution.
    pub(crate) fn top_labels_of(
        &self,
        range: Range<usize>,
        confidence: &mut [f64],
        outcome: &mut [Outcome],
    ) -> Result<Option<usize>, Error> {
        assert!(confidence.len() == range.len() && outcome.len() == range.len());
        let (targets, scores) = (&self.targets, self.scores);
        typed!(&self.rows, rows => simd::run(self.isa, TopLabels { rows, targets, scores, range, confidence, outcome }))
    }

    /// [`Predictions::probabilities`] of a range; returns the first row that is not a distribution.
    pub(crate) fn probabilities_of(
        &self,
        range: Range<usize>,
        out: &mut [f64],
    ) -> Result<Option<usize>, Error> {
        assert!(out.len() == range.len() * self.n_classes());
        let (targets, scores) = (&self.targets, self.scores);
        typed!(&self.rows, rows => simd::run(self.isa, Probabilities { rows, targets, scores, range, out }))
    }

    /// Runs `work` on ranges of rows in parallel, of at least `least` tiles each. `work` returns the first row that
    /// is not a distribution; the error names the first of all.
    pub(crate) fn share(
        &self,
        least: usize,
        work: &(dyn Fn(Range<usize>) -> Result<Option<usize>, Error> + Sync),
    ) -> Result<(), Error> {
        let tiles = Tiles::new(self.len(), self.n_classes());
        let failure = Mutex::new(Ok(None));
        threads::parallel_for(tiles.len().div_ceil(least), &|groups| {
            let tiles_of_groups = groups.start * least..(groups.end * least).min(tiles.len());
            let found = work(tiles.rows(tiles_of_groups));
            let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
            match (&*failure, &found) {
                (Err(_), _) | (_, Ok(None)) => {}
                (Ok(Some(first)), Ok(Some(row))) if first <= row => {}
                _ => *failure = found,
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner)? {
            None => Ok(()),
            Some(row) => Err(self.not_a_distribution(row)),
        }
    }

    fn not_a_distribution(&self, row: usize) -> Error {
        fn can_be_normalized<E: Element>(rows: &Rows<'_, E>, row: usize) -> (bool, f64) {
            let Ok(mut scratch) = rows.scratch() else { return (false, f64::NAN) };
            let p = rows.row(row, &mut scratch).iter().map(|p| p.widen().to_f64());
            let in_range = p.clone().all(|p| (-E::SLACK..=1.0 + E::SLACK).contains(&p));
            let sum: f64 = p.sum();
            (in_range && sum > 0.0, sum)
        }
        let why = match (self.scores, self.n_classes()) {
            (Scores::Logits, 1) => "logits that are not NaN".into(),
            (Scores::Logits, _) => "logits that have a softmax (no NaN, no +inf, not all -inf)".into(),
            (Scores::Probabilities, 1) => "probabilities in [0, 1] (pass `from_logits=True` for logits)".into(),
            (Scores::Probabilities, _) => match typed!(&self.rows, rows => can_be_normalized(rows, row)) {
                (true, sum) => format!(
                    "probabilities that sum to 1 (the sum is {sum:.6}; pass `normalize=True` to divide rows by their sum)"
                )
                .into(),
                (false, _) => {
                    "probabilities that are not negative and sum to 1 (pass `from_logits=True` for logits)".into()
                }
            },
        };
        Error::Row { argument: "preds", row, why }
    }
}

/// n zeros.
pub(crate) fn zeros<T: Clone + Default>(n: usize) -> Result<Vec<T>, Error> {
    filled(T::default(), n)
}

struct TopLabels<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    scores: Scores,
    range: Range<usize>,
    confidence: &'a mut [f64],
    outcome: &'a mut [Outcome],
}

impl<E: Element> Kernel for TopLabels<'_, E> {
    type Output = Result<Option<usize>, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut scratch = self.rows.scratch()?;
        let first = self.range.start;
        for i in self.range {
            let Some(y) = self.targets.class(i) else {
                self.outcome[i - first] = -1;
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let (confidence, correct) = if row.len() == 1 && self.targets.n_classes() == 2 {
                (binary(row[0], self.scores), y == 1)
            } else {
                let Top { score, confidence } = match self.scores {
                    Scores::Logits => top_of_logits(row),
                    Scores::Probabilities => top_of_probabilities(row),
                };
                // The first of the classes with the highest score is predicted.
                (confidence, row[y].widen() == score && !row[..y].iter().any(|z| z.widen() == score))
            };
            if confidence.is_nan() {
                return Ok(Some(i));
            }
            (self.confidence[i - first], self.outcome[i - first]) = (confidence, Outcome::from(correct));
        }
        Ok(None)
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
    type Output = Result<Option<usize>, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut scratch, mut p) = (self.rows.scratch()?, with_room(self.rows.n_classes())?);
        let rows = self.range.zip(self.out.chunks_exact_mut(self.rows.n_classes()));
        for (i, out) in rows {
            if self.targets.class(i).is_none() {
                continue;
            }
            if !probabilities(self.rows.row(i, &mut scratch), self.scores, &mut p) {
                return Ok(Some(i));
            }
            for (out, p) in out.iter_mut().zip(&p) {
                *out = p.to_f64().min(1.0);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn of<'a>(p: &'a [f64], n_classes: usize, y: &[i64], scores: Scores) -> Predictions<'a> {
        let rows = AnyRows::F64(Rows::from_slice(p, n_classes).unwrap());
        let targets = Targets::new(y, n_classes.max(2), -100).unwrap();
        Predictions::new(rows, targets, None, scores, Isa::best()).unwrap()
    }
}
