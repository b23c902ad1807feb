//! Cross-entropy with a penalty on confidence, and its gradient.
//!
//! Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017, section 3:
//!
//! ```text
//! L = -ln p_y - b H,      H = -(sum over k of p_k ln p_k),      dL/dz_k = p_k - [k = y] + b p_k (ln p_k + H).
//! ```
//!
//! With q = 1 - p_y and the entropy H' of the other classes among themselves, H = -p_y ln p_y - q ln q + q H'.

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::{Element, LANES, Lanes, Real, lanes};

use super::accumulating::{self, AccumulatingLoss, GroupSums, LossesAndCoefficients};
use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::exponentials::Accumulator;
use super::hyperparameter::{Hyperparameter, SoftTargetLoss};

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct ConfidencePenalty {
    pub(crate) beta: f64,
}

impl ConfidencePenalty {
    /// `beta`, at least 0: the factor of the entropy of the prediction; 0 is cross-entropy.
    pub fn new(beta: f64) -> Result<Self, Error> {
        Ok(ConfidencePenalty { beta: Self::PARAMETER.check(beta)? })
    }
}

impl NamedLoss for ConfidencePenalty {
    const PARAMETER: Hyperparameter = Hyperparameter::below("beta", f64::INFINITY);

    fn with(beta: f64, _: Scores) -> Result<Self, Error> {
        ConfidencePenalty::new(beta)
    }

    fn of_distributions(&self) -> Option<SoftTargetLoss> {
        Some(SoftTargetLoss { beta: self.beta, ..SoftTargetLoss::default() })
    }
}

impl GroupLoss for ConfidencePenalty {
    #[inline(always)]
    fn keeps_exponentials(&self) -> bool {
        true
    }

    #[inline(always)]
    fn group_size(&self) -> usize {
        accumulating::group_size::<Self>()
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        accumulating::group(self, batch, rows, scratch)
    }
}

/// Sums e_k x_k.
pub(super) struct ScoresTimesExponentials;

impl Accumulator for ScoresTimesExponentials {
    const KEEPS_SCORES: bool = true;

    /// At p = 0, x is -inf and e is 0. The product must be 0, so x is replaced by -1000, whose exponential is 0 too.
    #[inline(always)]
    fn score<F: Real>(x: F) -> F {
        let least = F::from_f64(-1000.0);
        if x < least { least } else { x }
    }

    #[inline(always)]
    fn terms<F: Real>(x: &Lanes<F>, e: &Lanes<F>) -> Lanes<F> {
        lanes::zip(e, x, F::mul)
    }
}

impl AccumulatingLoss for ConfidencePenalty {
    type Accumulator = ScoresTimesExponentials;
    const IS_SMOOTHED: bool = false;

    #[inline(always)]
    fn losses(&self, sums: &GroupSums) -> LossesAndCoefficients {
        let GroupSums { binary, others, ln_others, accumulated, own_weight: weight, .. } = sums;
        let mut result = LossesAndCoefficients::zero();
        for i in 0..LANES {
            let (q, ln_p, ln_q) = (binary.q[i], binary.ln_p[i], binary.ln_q[i]);
            // 0 ln 0 is 0.
            let certain = q == 0.0;
            let p_ln_p = if ln_p == f64::NEG_INFINITY { 0.0 } else { (1.0 - q) * ln_p };
            let q_ln_q = if certain { 0.0 } else { q * ln_q };
            let q_entropy = if certain { 0.0 } else { q * (ln_others[i] - accumulated[i] / others[i]) };
            let entropy = q_entropy - p_ln_p - q_ln_q;
            let scale = if certain { 0.0 } else { weight[i] * q / others[i] };
            let shift = if certain { 0.0 } else { self.beta * (ln_q - ln_others[i] + entropy) };
            result.losses[i] = weight[i] * (-ln_p - self.beta * entropy);
            result.own_gradient[i] = weight[i] * (self.beta * (p_ln_p + (1.0 - q) * entropy) - q);
            result.coefficients[0][i] = scale * (1.0 + shift);
            result.coefficients[1][i] = scale * self.beta;
        }
        result
    }
}
