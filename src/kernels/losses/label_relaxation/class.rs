//! Label relaxation of class-index targets.
//!
//! Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7. The target of class
//! y is the set Q = {p : p_y >= 1 - a}. Outside of it the loss is
//!
//! ```text
//! L = (1 - a) ln((1 - a) / p_y) + a ln(a / (1 - p_y)),
//! ```
//!
//! the Kullback-Leibler divergence of two binary distributions, (1 - a, a) from (p_y, 1 - p_y). So the loss is a
//! function of one number, the log-odds of the class against all others,
//!
//! ```text
//! d = z_y - ln(sum over k != y of e^z_k),      p_y = 1 / (1 + e^-d),      1 - p_y = 1 / (1 + e^d),
//! ```
//!
//! in which nothing cancels however close p_y is to 0 or 1. With the excess e = (1 - p_y) - a, positive
//! outside of Q, the gradient is the prediction minus its projection onto Q,
//!
//! ```text
//! dL/dz_y = -e,      dL/dz_k = e r_k,      r = softmax over the classes other than y,
//! ```
//!
//! and sums to zero. Cross-entropy is a = 0. [`super::super::binary`] computes d and writes the gradient.

use crate::rows::{Error, Scores};
use crate::simd::log::{atanh_tail, ln};
use crate::simd::{LANES, Lanes};

use super::super::binary::BinaryLoss;
use super::super::hyperparameter::Hyperparameter;
use super::super::log_odds::Binary;

/// The hyperparameter.
pub(super) const ALPHA: Hyperparameter = Hyperparameter::below("alpha", 1.0);

/// Label relaxation: the divergence of the prediction from the target's set of distributions.
#[derive(Clone, Copy, Debug)]
pub struct LabelRelaxation {
    pub(crate) alpha: f64,
    pub(crate) scores: Scores,
}

impl LabelRelaxation {
    /// Cross-entropy of logits, which is label relaxation with alpha 0.
    pub(crate) const CROSS_ENTROPY: LabelRelaxation = LabelRelaxation { alpha: 0.0, scores: Scores::Logits };

    /// `alpha` in [0, 1): the probability that the set leaves to the other classes.
    pub fn new(alpha: f64, scores: Scores) -> Result<Self, Error> {
        Ok(LabelRelaxation { alpha: ALPHA.check(alpha)?, scores })
    }
}

impl BinaryLoss for LabelRelaxation {
    fn scores(&self) -> Scores {
        self.scores
    }

    fn parameter(&self) -> f64 {
        self.alpha
    }

    #[inline(always)]
    fn losses(&self, binary: &Binary, alphas: &Lanes<f64>) -> (Lanes<f64>, Lanes<f64>) {
        let (mut losses, mut excesses) = ([0.0; LANES], [0.0; LANES]);
        let (mut ln_keep, mut ln_alpha) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            ln_keep[i] = ln(1.0 - alphas[i]);
            ln_alpha[i] = ln(alphas[i]);
        }
        for i in 0..LANES {
            let alpha = alphas[i];
            let excess = binary.q[i] - alpha;
            // p = (1 - a)(1 + u) and q = a (1 + v). In L = (1 - a)(u - ln(1 + u)) + a (v - ln(1 + v)) the
            // linear terms cancel exactly. Near the boundary of the set, rounded logarithms would cancel badly.
            let (u, v) = (-excess / (1.0 - alpha), excess / alpha);
            let above_u = above_tangent(u, binary.ln_p[i] - ln_keep[i]);
            let above_v = above_tangent(v, binary.ln_q[i] - ln_alpha[i]);
            let relaxed = (1.0 - alpha) * above_u + alpha * above_v;
            // An alpha this small does not change the loss, but its inverse may be infinite.
            let loss = if alpha < 1e-300 { -binary.ln_p[i] } else { relaxed };
            // NaN counts as outside.
            let inside = excess <= 0.0;
            losses[i] = if inside { 0.0 } else { loss };
            excesses[i] = if inside { 0.0 } else { excess };
        }
        (losses, excesses)
    }
}

/// x - ln(1 + x) for x > -1, given the rounded ln(1 + x).
#[inline(always)]
fn above_tangent(x: f64, ln_1p: f64) -> f64 {
    // With w = x / (2 + x): ln(1 + x) = 2 (w + w^3/3 + w^5/5 + ...) and x - 2w = x w.
    let w = x / (2.0 + x);
    let w2 = w * w;
    if x.abs() > 0.25 { x - ln_1p } else { x * w - 2.0 * w * w2 * atanh_tail(w2) }
}
