//! Cross-entropy with a penalty on confidence, and its gradient.
//!
//! Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output Distributions", 2017, section 3:
//!
//! ```text
//! L = -ln p_y - b H,      H = -(sum over k of p_k ln p_k),      dL/dz_k = p_k - [k = y] + b p_k (ln p_k + H).
//! ```
//!
//! With q = 1 - p_y and the entropy H' of the other classes among themselves, H = -p_y ln p_y - q ln q + q H'.

use crate::rows::Error;
use crate::simd::{LANES, Lanes, Real, lanes};

use super::row::{Moment, Outcome, RowLoss, Summed};

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct ConfidencePenalty {
    pub(crate) beta: f64,
}

impl ConfidencePenalty {
    /// `beta`, at least 0: how much the entropy of the prediction counts; 0 is cross-entropy.
    pub fn new(beta: f64) -> Result<Self, Error> {
        if !(0.0..f64::INFINITY).contains(&beta) {
            return Err(Error::value(format!(
                "Expected argument `beta` to be a finite number of at least 0, but got {beta:?}."
            )));
        }
        Ok(ConfidencePenalty { beta })
    }
}

/// The sum of e_k x_k.
pub(super) struct MeanScore;

impl Moment for MeanScore {
    const KEEPS_SCORES: bool = true;

    /// A class that is impossible has x = -inf and e = 0, whose product is to be 0; e^-1000 is 0 too.
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

impl RowLoss for ConfidencePenalty {
    type Moment = MeanScore;
    const IS_SPREAD: bool = false;

    #[inline(always)]
    fn losses(&self, summed: &Summed) -> Outcome {
        let Summed { coins, others, ln_others, moment, own_weight: weight, .. } = summed;
        let mut outcome =
            Outcome { losses: [0.0; LANES], own: [0.0; LANES], coefficients: [[0.0; LANES]; 3] };
        for i in 0..LANES {
            let (q, ln_p, ln_q) = (coins.q[i], coins.ln_p[i], coins.ln_q[i]);
            // Where something is impossible it adds nothing: 0 ln 0 is 0.
            let certain = q == 0.0;
            let p_ln_p = if ln_p == f64::NEG_INFINITY { 0.0 } else { (1.0 - q) * ln_p };
            let q_ln_q = if certain { 0.0 } else { q * ln_q };
            let q_entropy = if certain { 0.0 } else { q * (ln_others[i] - moment[i] / others[i]) };
            let entropy = q_entropy - p_ln_p - q_ln_q;
            let scale = if certain { 0.0 } else { weight[i] * q / others[i] };
            let shift = if certain { 0.0 } else { self.beta * (ln_q - ln_others[i] + entropy) };
            outcome.losses[i] = weight[i] * (-ln_p - self.beta * entropy);
            outcome.own[i] = weight[i] * (self.beta * (p_ln_p + (1.0 - q) * entropy) - q);
            outcome.coefficients[0][i] = scale * (1.0 + shift);
            outcome.coefficients[1][i] = scale * self.beta;
        }
        outcome
    }
}
