//! Cross-entropy with label smoothing, and its gradient.
//!
//! Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7. The target of
//! class y among K is the distribution (1 - s) [k = y] + s / K. With class weights as PyTorch has them,
//!
//! ```text
//! L = -(1 - s) w_y ln p_y - s / K (sum over k of w_k ln p_k),
//! dL/dz_k = v p_k - (1 - s) w_y [k = y] - s / K w_k,      v = (1 - s) w_y + s / K (sum over k of w_k).
//! ```

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::{Element, LANES, Lanes, Real};

use super::accumulating::{self, AccumulatingLoss, GroupSums, LossesAndCoefficients};
use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::binary;
use super::exponentials::Accumulator;
use super::hyperparameter::{Hyperparameter, SoftTargetLoss};
use super::label_relaxation::LabelRelaxation;

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy {
    pub(crate) label_smoothing: f64,
}

impl CrossEntropy {
    /// `label_smoothing` in [0, 1]: the part of the target that is spread evenly over all classes.
    pub fn new(label_smoothing: f64) -> Result<Self, Error> {
        Ok(CrossEntropy { label_smoothing: Self::PARAMETER.check(label_smoothing)? })
    }
}

impl NamedLoss for CrossEntropy {
    const PARAMETER: Hyperparameter = Hyperparameter::up_to("label_smoothing", 1.0);

    fn with(label_smoothing: f64, _: Scores) -> Result<Self, Error> {
        CrossEntropy::new(label_smoothing)
    }

    fn of_distributions(&self) -> Option<SoftTargetLoss> {
        Some(SoftTargetLoss { label_smoothing: self.label_smoothing, ..SoftTargetLoss::default() })
    }
}

impl GroupLoss for CrossEntropy {
    #[inline(always)]
    fn keeps_exponentials(&self) -> bool {
        self.label_smoothing != 0.0
    }

    #[inline(always)]
    fn group_size(&self) -> usize {
        if self.label_smoothing == 0.0 { binary::GROUP_SIZE } else { accumulating::group_size::<Self>() }
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        // Without smoothing, the loss is a function of the log-odds: label relaxation with alpha 0.
        if self.label_smoothing == 0.0 {
            binary::group(&LabelRelaxation::CROSS_ENTROPY, batch, rows, scratch)
        } else {
            accumulating::group(self, batch, rows, scratch)
        }
    }
}

/// Sums x_k.
pub(super) struct SumOfScores;

impl Accumulator for SumOfScores {
    const KEEPS_SCORES: bool = false;

    #[inline(always)]
    fn terms<F: Real>(x: &Lanes<F>, _: &Lanes<F>) -> Lanes<F> {
        *x
    }
}

impl AccumulatingLoss for CrossEntropy {
    type Accumulator = SumOfScores;
    const IS_SMOOTHED: bool = true;

    #[inline(always)]
    fn losses(&self, sums: &GroupSums) -> LossesAndCoefficients {
        let spread = self.label_smoothing / sums.n_classes as f64;
        let all = sums.weight_sum;
        let mut result = LossesAndCoefficients::zero();
        for i in 0..LANES {
            let (own_weight, q, ln_p) = (sums.own_weight[i], sums.binary.q[i], sums.binary.ln_p[i]);
            let keep = (1.0 - self.label_smoothing) * own_weight;
            // -ln p_k = ln(sum over all classes) - x_k. -ln p_y is the most exact of them, unless p_y is 0.
            let own = sums.own[i];
            let ln_sum = if own == f64::NEG_INFINITY { sums.ln_others[i] } else { own - ln_p };
            let smoothed = -own_weight * ln_p + (all - own_weight) * ln_sum - sums.accumulated[i];
            let slope = keep + spread * all;
            let kept = if keep == 0.0 { 0.0 } else { -keep * ln_p };
            result.losses[i] = kept + spread * smoothed;
            result.own_gradient[i] = spread * (all - own_weight) - slope * q;
            result.coefficients[0][i] = if q == 0.0 { 0.0 } else { slope * q / sums.others[i] };
            result.coefficients[2][i] = -spread;
        }
        result
    }
}
