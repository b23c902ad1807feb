//! Label relaxation: the divergence of the prediction from the target's set of distributions.
//!
//! Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021. Every target is a set Q. Outside of Q
//! the loss is the Kullback-Leibler divergence KL(q || p) of the prediction p from its projection q, the nearest member
//! of Q, and the gradient is p - q. One file per kind of target.

mod class;
mod distribution;
mod mixture;
mod set;

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::{Element, LANES, Lanes};

use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::binary::{self, BinaryLoss};
use super::hyperparameter::Hyperparameter;
use super::row_target::{RowTarget, read};

pub use class::LabelRelaxation;

impl NamedLoss for LabelRelaxation {
    const PARAMETER: Hyperparameter = class::ALPHA;
    const IS_CREDAL: bool = true;

    fn with(alpha: f64, scores: Scores) -> Result<Self, Error> {
        LabelRelaxation::new(alpha, scores)
    }
}

impl GroupLoss for LabelRelaxation {
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
        if CLASSES {
            binary::group(self, batch, rows, scratch)
        } else {
            credal_group(self, batch, rows, scratch)
        }
    }
}

/// The group of targets that are not class indices. Rows whose target is one class are computed together.
#[inline(always)]
fn credal_group<E: Element>(
    loss: &LabelRelaxation,
    batch: &Batch<'_, E>,
    rows: Range<usize>,
    scratch: &mut Scratch<E>,
) -> Lanes<f64> {
    let alphas = batch.parameters(loss.parameter(), rows.clone());
    let (mut losses, mut classes) = ([0.0; LANES], [None; LANES]);
    for (lane, i) in rows.clone().enumerate() {
        let alpha = alphas[lane];
        match read(batch, i, scratch) {
            RowTarget::Class(y) => classes[lane] = Some(y),
            RowTarget::Mixture(mixture) => {
                losses[lane] = mixture::mixture(loss.scores(), batch, i, alpha, mixture, scratch);
            }
            RowTarget::Set => losses[lane] = set::set(loss, batch, i, alpha, scratch),
            RowTarget::Distribution(sum) => {
                losses[lane] = distribution::distribution(loss, batch, i, alpha, sum, scratch);
            }
            RowTarget::AllClasses | RowTarget::Ignored => batch.no_gradient(i, scratch),
            RowTarget::Invalid => scratch.invalid_row = scratch.invalid_row.min(i),
        }
    }
    if classes.iter().any(Option::is_some) {
        let of_classes = binary::group_of_classes(loss, batch, rows, &classes, scratch);
        for lane in 0..LANES {
            losses[lane] = if classes[lane].is_some() { of_classes[lane] } else { losses[lane] };
        }
    }
    losses
}
