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
use crate::simd::{Real, lanes};

use super::row::{Outcome, RowLoss, Summed, sum};

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

impl RowLoss for ConfidencePenalty {
    #[inline(always)]
    fn row<F: Real>(&self, summed: Summed<'_, F>) -> Outcome {
        let Summed { q, ln_p, ln_q, others, ln_others, own_weight: weight, .. } = summed;
        let least = F::from_f64(-1000.0);
        let moment =
            sum!(summed.row, |_, x, e| lanes::zip(e, x, |e, x| e.mul(if x < least { least } else { x })));
        // Where something is impossible it adds nothing: 0 ln 0 is 0.
        let p_ln_p = if ln_p == f64::NEG_INFINITY { 0.0 } else { (1.0 - q) * ln_p };
        let (q_ln_q, q_entropy) =
            if q == 0.0 { (0.0, 0.0) } else { (q * ln_q, q * (ln_others - moment / others)) };
        let entropy = q_entropy - p_ln_p - q_ln_q;
        let scale = if q == 0.0 { 0.0 } else { weight * q / others };
        let shift = if q == 0.0 { 0.0 } else { self.beta * (ln_q - ln_others + entropy) };
        Outcome {
            loss: weight * (-ln_p - self.beta * entropy),
            own: weight * (self.beta * (p_ln_p + (1.0 - q) * entropy) - q),
            coefficients: [scale * (1.0 + shift), scale * self.beta, 0.0],
        }
    }
}
