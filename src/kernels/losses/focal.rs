//! The focal loss, and its gradient.
//!
//! Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, of a softmax over classes:
//!
//! ```text
//! L = -(1 - p_y)^g ln p_y,
//! ```
//!
//! cross-entropy that discounts the rows whose class is predicted with confidence. With q = 1 - p_y and the log-odds
//! d of y, for which dp/dd = p q,
//!
//! ```text
//! -dL/dd = q^(g + 1) - g q^g p ln p.
//! ```

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::binary::{self, BinaryLoss};
use super::hyperparameter::{Hyperparameter, SoftTargetLoss};
use super::log_odds::Binary;

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct Focal {
    pub(crate) gamma: f64,
}

impl Focal {
    /// `gamma`, at least 0: how much confident rows are discounted; 0 is cross-entropy.
    pub fn new(gamma: f64) -> Result<Self, Error> {
        Ok(Focal { gamma: Self::PARAMETER.check(gamma)? })
    }
}

impl NamedLoss for Focal {
    const PARAMETER: Hyperparameter = Hyperparameter::below("gamma", f64::INFINITY);

    fn with(gamma: f64, _: Scores) -> Result<Self, Error> {
        Focal::new(gamma)
    }

    /// Each class has its own discount: the sum over k of t_k (1 - p_k)^g (-ln p_k).
    fn of_distributions(&self) -> Option<SoftTargetLoss> {
        Some(SoftTargetLoss { gamma: self.gamma, ..SoftTargetLoss::default() })
    }
}

impl GroupLoss for Focal {
    #[inline(always)]
    fn group_size(&self) -> usize {
        binary::GROUP_SIZE
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        binary::group(self, batch, rows, scratch)
    }
}

impl BinaryLoss for Focal {
    fn parameter(&self) -> f64 {
        self.gamma
    }

    #[inline(always)]
    fn losses(&self, binary: &Binary, gammas: &Lanes<f64>) -> (Lanes<f64>, Lanes<f64>) {
        let (mut losses, mut slopes) = ([0.0; LANES], [0.0; LANES]);
        let mut power = [0.0; LANES];
        for i in 0..LANES {
            let exponent = if gammas[i] == 0.0 { 0.0 } else { gammas[i] * binary.ln_q[i] }; // 0^0 is 1
            power[i] = exponent.exp_biased() * (1.0 / f64::BIAS); // q^g
        }
        for i in 0..LANES {
            let (q, ln_p) = (binary.q[i], binary.ln_p[i]);
            let p = 1.0 - q; // rounded as q is; where p is small, its term is small beside q
            // At p = 0, p ln p is 0.
            let p_ln_p = if p == 0.0 { 0.0 } else { p * ln_p };
            losses[i] = -power[i] * ln_p;
            slopes[i] = power[i] * (q - gammas[i] * p_ln_p);
        }
        (losses, slopes)
    }
}
