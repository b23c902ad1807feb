//! Cross-entropy with label smoothing, and its gradient.
//!
//! Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7. The target of
//! class y among K is the distribution (1 - s) [k = y] + s / K. With class weights as PyTorch has them,
//!
//! ```text
//! L = -(1 - s) w_y ln p_y - s / K (sum over k of w_k ln p_k),
//! dL/dz_k = v p_k - (1 - s) w_y [k = y] - s / K w_k,      v = (1 - s) w_y + s / K (sum over k of w_k).
//! ```

use crate::rows::Error;
use crate::simd::{LANES, Lanes, Real};

use super::row::{Moment, Outcome, RowLoss, Summed};

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    pub(crate) label_smoothing: f64,
}

impl CrossEntropy {
    /// `label_smoothing` in [0, 1]: how much of the target is spread evenly over all classes.
    pub fn new(label_smoothing: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&label_smoothing) {
            return Err(Error::value(format!(
                "Expected argument `label_smoothing` to be a number in [0, 1], but got {label_smoothing:?}."
            )));
        }
        Ok(CrossEntropy { label_smoothing })
    }
}

/// The sum of x_k.
pub(super) struct Score;

impl Moment for Score {
    const KEEPS_SCORES: bool = false;

    #[inline(always)]
    fn terms<F: Real>(x: &Lanes<F>, _: &Lanes<F>) -> Lanes<F> {
        *x
    }
}

impl RowLoss for CrossEntropy {
    type Moment = Score;
    const IS_SPREAD: bool = true;

    #[inline(always)]
    fn losses(&self, summed: &Summed) -> Outcome {
        let spread = self.label_smoothing / summed.n_classes as f64;
        let all = summed.weight_sum;
        let mut outcome =
            Outcome { losses: [0.0; LANES], own: [0.0; LANES], coefficients: [[0.0; LANES]; 3] };
        for i in 0..LANES {
            let (own_weight, q, ln_p) = (summed.own_weight[i], summed.coins.q[i], summed.coins.ln_p[i]);
            let keep = (1.0 - self.label_smoothing) * own_weight;
            // -ln p_k = (ln of the sum over all classes) - x_k, of which -ln p_y is known best, if y is possible.
            let own = summed.own[i];
            let ln_sum = if own == f64::NEG_INFINITY { summed.ln_others[i] } else { own - ln_p };
            let smoothed = -own_weight * ln_p + (all - own_weight) * ln_sum - summed.moment[i];
            let slope = keep + spread * all;
            let kept = if keep == 0.0 { 0.0 } else { -keep * ln_p };
            outcome.losses[i] = kept + spread * smoothed;
            outcome.own[i] = spread * (all - own_weight) - slope * q;
            outcome.coefficients[0][i] = if q == 0.0 { 0.0 } else { slope * q / summed.others[i] };
            outcome.coefficients[2][i] = -spread;
        }
        outcome
    }
}
