//! Proper scores of single predictions; a metric is their mean.

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, Scores, Targets, with_room};
use crate::simd::lanes::{self, fold};
use crate::simd::{self, Element, Kernel, LANES, Real, log};
use crate::threads::Disjoint;

use super::super::sum_exp::sum_exp;
use super::distribution::{binary, divisor, probabilities};
use super::exact::MAX_TERM;
use super::predictions::{MAX_WEIGHT, Predictions, typed, zeros};

/// A score of a single prediction; a metric is the mean score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// The squared distance from the one-hot target, sum over k of (p_k - [k = y])^2; for a binary event,
    /// (p - y)^2 (Brier, "Verification of forecasts expressed in terms of probability", 1950).
    Brier,
    /// The negative log-likelihood -ln p_y.
    NegativeLogLikelihood,
}

impl Predictions<'_> {
    /// The score of each row; 0 for ignored rows.
    pub fn score(&self, score: Score) -> Result<Vec<f64>, Error> {
        let mut out = zeros(self.len())?;
        let parts = Disjoint::new(&mut out);
        self.share(1, &|range| {
            // SAFETY: `parallel_for` passes every row to one call only.
            let out = unsafe { parts.part(range.clone()) };
            let (targets, scores) = (&self.targets, self.scores);
            typed!(&self.rows, rows => simd::run(self.isa, ScoreRows { rows, targets, scores, score, range, out }))
        })?;
        Ok(out)
    }
}

struct ScoreRows<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    scores: Scores,
    score: Score,
    range: Range<usize>,
    out: &'a mut [f64],
}

impl<E: Element> Kernel for ScoreRows<'_, E> {
    type Output = Result<Option<usize>, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        // Only this score needs all probabilities.
        let keeps_all = self.score == Score::Brier && self.scores == Scores::Logits;
        let room = if keeps_all { self.rows.n_classes() } else { 0 };
        let (mut scratch, mut p) = (self.rows.scratch()?, with_room(room)?);
        for (i, out) in self.range.zip(self.out) {
            let Some(y) = self.targets.class(i) else {
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let is_binary = row.len() == 1 && self.targets.n_classes() == 2;
            *out = match self.score {
                Score::Brier if is_binary => {
                    let distance = binary(row[0], self.scores) - y as f64;
                    distance * distance
                }
                Score::Brier => {
                    // The target class is left out: 1 - p_y would lose digits in the sum of squares.
                    let (rest, others) = match self.scores {
                        Scores::Probabilities => {
                            let divisor = divisor(row);
                            let squares = sum_of_squares_without(y, row, E::widen);
                            (1.0 - row[y].widen().to_f64() / divisor, squares / (divisor * divisor))
                        }
                        Scores::Logits if probabilities(row, self.scores, &mut p) => {
                            (1.0 - p[y].to_f64(), sum_of_squares_without(y, &p, |p| p))
                        }
                        _ => (f64::NAN, f64::NAN),
                    };
                    rest.mul_add(rest, others)
                }
                Score::NegativeLogLikelihood => match (self.scores, is_binary) {
                    (Scores::Logits, true) => {
                        let z = row[0].widen().to_f64();
                        softplus(if y == 1 { -z } else { z })
                    }
                    (Scores::Logits, false) => negative_log_likelihood(row, y),
                    (Scores::Probabilities, true) => {
                        let p = binary(row[0], self.scores);
                        -if y == 1 { p.ln() } else { (-p).ln_1p() }
                    }
                    (Scores::Probabilities, false) => {
                        -(row[y].widen().to_f64() / divisor(row)).clamp(0.0, 1.0).ln()
                    }
                },
            };
            if out.is_nan() {
                return Ok(Some(i));
            }
            // No negative zero, and nothing too large for an exact sum: e^-(2^64) counts as probability 0.
            *out = if *out >= MAX_TERM / MAX_WEIGHT { f64::INFINITY } else { *out + 0.0 };
        }
        Ok(None)
    }
}

/// The sum of squares of all elements but `p[y]`.
///
/// No branch depends on y where there are few classes: a processor cannot predict it. p[y] is multiplied by 0.
#[inline(always)]
fn sum_of_squares_without<T: Copy, F: Real>(y: usize, p: &[T], widen: impl Fn(T) -> F) -> f64 {
    let (vectors, own) = (p.as_chunks::<LANES>().0, y / LANES);
    let mut sum = [0.0; LANES];
    for (k, p) in vectors.iter().enumerate() {
        if k != own {
            sum = lanes::zip(&sum, p, |sum, p| {
                let p = widen(p).to_f64();
                p.mul_add(p, sum)
            });
        }
    }
    let mut total = if vectors.is_empty() { 0.0 } else { fold(sum, |a, b| a + b) };
    let (start, end) = (own * LANES, (own * LANES + LANES).min(p.len()));
    let tail = (vectors.len() * LANES).max(end);
    for rest in [start..end, tail..p.len()] {
        for k in rest {
            let p = widen(p[k]).to_f64() * f64::from(u8::from(k != y));
            total = p.mul_add(p, total);
        }
    }
    total
}

/// -ln softmax(row)_y, from the sum over the other classes, so that small values keep their precision.
#[inline(always)]
fn negative_log_likelihood<E: Element>(row: &[E], y: usize) -> f64 {
    let rest = sum_exp(row, y);
    if row.len() == 1 {
        return if row[0].widen().to_f64().is_finite() { 0.0 } else { f64::NAN };
    }
    let (z, max) = (row[y].widen().to_f64(), rest.max.to_f64());
    let best = if z > max { z } else { max };
    if rest.sum.is_nan() || z.is_nan() || best == f64::INFINITY {
        return f64::NAN;
    }
    if rest.sum == 0.0 {
        // All other logits are -inf.
        return if z == f64::NEG_INFINITY { f64::NAN } else { 0.0 };
    }
    // ln(1 + sum e^(max - z)), with the larger of the two factored out.
    let d = max - z;
    let e = (-d.abs()).exp_biased() * (1.0 / f64::BIAS);
    if d <= 0.0 { ln_1p(rest.sum * e) } else { d + log::ln(rest.sum + e) }
}

/// ln(1 + e^x)
#[inline(always)]
fn softplus(x: f64) -> f64 {
    let e = (-x.abs()).exp_biased() * (1.0 / f64::BIAS);
    if x <= 0.0 { log::ln_1p(e) } else { x + log::ln_1p(e) }
}

/// ln(1 + x) for x >= 0.
#[inline(always)]
fn ln_1p(x: f64) -> f64 {
    if x <= 1.0 { log::ln_1p(x) } else { log::ln(1.0 + x) }
}

#[cfg(test)]
mod tests {
    use super::super::predictions::tests::of;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_losses_are_exact() {
        let z = [40.0, 0.0];
        let nll = of(&z, 2, &[0], Scores::Logits).score(Score::NegativeLogLikelihood).unwrap()[0];
        assert!((nll / (-40.0_f64).exp() - 1.0).abs() < 1e-14);
        let binary = of(&z[..1], 1, &[1], Scores::Logits).score(Score::NegativeLogLikelihood).unwrap()[0];
        assert!((binary / nll - 1.0).abs() < 1e-14);
        let impossible = of(&[1.0, 0.0], 2, &[1], Scores::Probabilities);
        assert_eq!(impossible.score(Score::NegativeLogLikelihood).unwrap(), [f64::INFINITY]);
        assert_eq!(impossible.score(Score::Brier).unwrap(), [2.0]);
        let masked = of(&[1.0, f64::NEG_INFINITY], 2, &[0], Scores::Logits);
        assert_eq!(masked.score(Score::NegativeLogLikelihood).unwrap(), [0.0]);
    }

    proptest! {
        #[test]
        fn one_square_is_left_out(p in prop::collection::vec(0.0..1.0_f64, 1..70), y: prop::sample::Index) {
            let y = y.index(p.len());
            let naive: f64 = p.iter().enumerate().filter(|&(k, _)| k != y).map(|(_, p)| p * p).sum();
            prop_assert!((sum_of_squares_without(y, &p, |p| p) - naive).abs() <= 1e-14 * naive);
        }

        #[test]
        fn logits_match_their_softmax(
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
            let ((c, correct), (d, correct_too)) = (logits.top_labels().unwrap(), direct.top_labels().unwrap());
            prop_assert_eq!(correct, correct_too);
            prop_assert!(c.iter().zip(&d).all(|(c, d)| (c - d).abs() <= 1e-14));
            for score in [Score::Brier, Score::NegativeLogLikelihood] {
                let (a, b) = (logits.score(score).unwrap(), direct.score(score).unwrap());
                // A probability close to 1 has lost digits of 1 - p.
                let budget = |a: f64| 1e-13 * a + 1e-15 * if n_classes == 1 { a.exp() } else { 1.0 };
                prop_assert!(a.iter().zip(&b).all(|(&a, b)| (a - b).abs() <= budget(a)), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn rounded_rows_are_divided_by_their_sum() {
        for (row, sum) in [([0.625, 0.25, 0.126_953_125], 1.001_953_125), ([1.000_000_1, -1e-7, 0.0], 1.0)] {
            let predictions = of(&row, 3, &[0], Scores::Probabilities);
            let p = row.map(|p| (p / sum).clamp(0.0, 1.0));
            assert_eq!(predictions.probabilities().unwrap(), p);
            assert_eq!(predictions.top_labels().unwrap(), (vec![p[0]], vec![1]));
            assert_eq!(predictions.score(Score::NegativeLogLikelihood).unwrap()[0], -p[0].ln());
            let brier = (1.0 - p[0]).powi(2) + p[1] * p[1] + p[2] * p[2];
            assert!((predictions.score(Score::Brier).unwrap()[0] - brier).abs() < 1e-12);
        }
    }

    #[test]
    fn invalid_rows_are_named() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for (invalid, n_classes, scores) in [
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
            p[n_classes..2 * n_classes].copy_from_slice(&invalid);
            for y in [[0, 0, 1], [1, 1, 1]] {
                let predictions = of(&p, n_classes, &y, scores);
                let names = |error: Error| matches!(error, Error::Row { argument: "preds", row: 1, .. });
                assert!(names(predictions.top_labels().unwrap_err()), "{invalid:?}");
                assert!(n_classes == 1 || names(predictions.probabilities().unwrap_err()), "{invalid:?}");
                assert!(names(predictions.score(Score::Brier).unwrap_err()), "{invalid:?}");
                assert!(
                    names(predictions.score(Score::NegativeLogLikelihood).unwrap_err()),
                    "{invalid:?} {y:?}"
                );
            }
            let ignored = of(&p, n_classes, &[0, -100, 1], scores);
            assert_eq!(ignored.top_labels().unwrap().1[1], -1);
            assert_eq!(ignored.score(Score::Brier).unwrap()[1], 0.0);
        }
    }
}
