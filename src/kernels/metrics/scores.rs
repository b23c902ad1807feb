//! Scores of single predictions, of which metrics are the mean.

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::lanes::{self, fold};
use crate::simd::{self, Element, Kernel, LANES, Real, log};
use crate::threads::Disjoint;

use super::super::sum_exp::sum_exp;
use super::exact::MAX_TERM;
use super::predictions::{
    MAX_WEIGHT, Predictions, binary, probabilities, top_of_probabilities, typed, zeros,
};
use crate::rows::Scores;

/// Scores of single predictions, of which a metric is the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// The squared distance of the distribution to the class: sum over k of (p_k - [k = y])^2; of a binary event
    /// (p - y)^2 (Brier, "Verification of forecasts expressed in terms of probability", 1950).
    Brier,
    /// The negative log-likelihood -ln p_y.
    LogLikelihood,
}

impl Predictions<'_> {
    /// The score of each row; 0 where the row is ignored.
    pub fn score(&self, score: Score) -> Result<Vec<f64>, Error> {
        let mut out = zeros(self.len())?;
        let parts = Disjoint::new(&mut out);
        self.share(1, &|range| {
            // SAFETY: `share` gives every row to one call only.
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
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut scratch, mut p) = (Vec::new(), Vec::new());
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
                    // Without the class, whose part would cancel.
                    let (rest, others) = match self.scores {
                        Scores::Probabilities if is_distribution(row) => (
                            1.0 - row[y].widen().to_f64(),
                            sum_of_squares(&row[..y], E::widen) + sum_of_squares(&row[y + 1..], E::widen),
                        ),
                        Scores::Logits if probabilities(row, self.scores, &mut p) => (
                            1.0 - p[y].to_f64(),
                            sum_of_squares(&p[..y], |p| p) + sum_of_squares(&p[y + 1..], |p| p),
                        ),
                        _ => (f64::NAN, f64::NAN),
                    };
                    rest.mul_add(rest, others)
                }
                Score::LogLikelihood => match (self.scores, is_binary) {
                    (Scores::Logits, true) => {
                        let z = row[0].widen().to_f64();
                        softplus(if y == 1 { -z } else { z })
                    }
                    (Scores::Logits, false) => surprise_of_logits(row, y),
                    (Scores::Probabilities, true) => {
                        let p = binary(row[0], self.scores);
                        -if y == 1 { p.ln() } else { (-p).ln_1p() }
                    }
                    (Scores::Probabilities, false) if !is_distribution(row) => f64::NAN,
                    (Scores::Probabilities, false) => -row[y].widen().to_f64().min(1.0).ln(),
                },
            };
            if out.is_nan() {
                return Some(i);
            }
            // No minus zero, and no more than can be summed: a likelihood of e^-(2^64) is one of 0.
            *out = if *out >= MAX_TERM / MAX_WEIGHT { f64::INFINITY } else { *out + 0.0 };
        }
        None
    }
}

#[inline(always)]
fn is_distribution<E: Element>(row: &[E]) -> bool {
    !top_of_probabilities(row).confidence.is_nan()
}

#[inline(always)]
fn sum_of_squares<T: Copy, F: Real>(p: &[T], widen: impl Fn(T) -> F) -> f64 {
    let (vectors, tail) = p.as_chunks::<LANES>();
    let mut sum = [0.0; LANES];
    for p in vectors {
        sum = lanes::zip(&sum, p, |sum, p| {
            let p = widen(p).to_f64();
            p.mul_add(p, sum)
        });
    }
    let mut total = if vectors.is_empty() { 0.0 } else { fold(sum, |a, b| a + b) };
    for &p in tail {
        let p = widen(p).to_f64();
        total = p.mul_add(p, total);
    }
    total
}

/// -ln softmax(row)_y, from the sum without y, so that it is exact also where it is small.
#[inline(always)]
fn surprise_of_logits<E: Element>(row: &[E], y: usize) -> f64 {
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
        // All others are -inf.
        return if z == f64::NEG_INFINITY { f64::NAN } else { 0.0 };
    }
    // ln((sum e^(max - z)) + 1), with what is larger taken out.
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

    #[test]
    fn small_losses_are_exact() {
        let z = [40.0, 0.0];
        let nll = of(&z, 2, &[0], Scores::Logits).score(Score::LogLikelihood).unwrap()[0];
        assert!((nll / (-40.0_f64).exp() - 1.0).abs() < 1e-14);
        let binary = of(&z[..1], 1, &[1], Scores::Logits).score(Score::LogLikelihood).unwrap()[0];
        assert!((binary / nll - 1.0).abs() < 1e-14);
        let impossible = of(&[1.0, 0.0], 2, &[1], Scores::Probabilities);
        assert_eq!(impossible.score(Score::LogLikelihood).unwrap(), [f64::INFINITY]);
        assert_eq!(impossible.score(Score::Brier).unwrap(), [2.0]);
        let masked = of(&[1.0, f64::NEG_INFINITY], 2, &[0], Scores::Logits);
        assert_eq!(masked.score(Score::LogLikelihood).unwrap(), [0.0]);
    }
}
