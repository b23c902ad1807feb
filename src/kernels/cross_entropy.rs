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
use crate::simd::{Real, lanes};

use super::row::{Outcome, RowLoss, Summed, sum};

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

impl RowLoss for CrossEntropy {
    #[inline(always)]
    fn row<F: Real>(&self, summed: Summed<'_, F>) -> Outcome {
        let keep = (1.0 - self.label_smoothing) * summed.own_weight;
        let spread = self.label_smoothing / summed.n_classes as f64;
        let (own_weight, all) = (summed.own_weight, summed.weight_sum);
        // The sum over the other classes of w_k x_k.
        let others = sum!(summed.row, |v, x, _| match summed.weight {
            Some(weight) => lanes::zip(x, &weight[v], |x, w| x.mul(w)),
            None => *x,
        });
        // -ln p_k = (ln of the sum over all classes) - x_k, of which -ln p_y is known best.
        let ln_sum = summed.own - summed.ln_p;
        let smoothed = -own_weight * summed.ln_p + (all - own_weight) * ln_sum - others;
        let slope = keep + spread * all;
        Outcome {
            loss: -keep * summed.ln_p + spread * smoothed,
            own: spread * (all - own_weight) - slope * summed.q,
            coefficients: [
                if summed.q == 0.0 { 0.0 } else { slope * summed.q / summed.others },
                0.0,
                -spread,
            ],
        }
    }
}
