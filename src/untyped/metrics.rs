//! The calibration metrics of arrays.

use half::{bf16, f16};

use super::{Dtype, View, tuple};
use crate::kernels::calibration::{Binning, Bins, bin_top_label};
use crate::kernels::coin::Scores;
use crate::rows::{Error, Targets};
use crate::simd::{Element, Isa};

/// Bins the confidences of `preds`, (..., C), which are right where they predict `target`, (...).
pub(crate) fn calibration_bins(
    preds: &View,
    target: &View,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
) -> Result<Bins, Error> {
    let n_classes = match preds.shape[..] {
        [.., n_classes] if preds.shape.len() >= 2 && n_classes > 0 => n_classes,
        _ => {
            return Err(Error::value(format!(
                "Expected argument `preds` to have shape (N, C) with at least one class, but got {}.",
                tuple(&preds.shape)
            )));
        }
    };
    let rows = &preds.shape[..preds.shape.len() - 1];
    if target.shape != rows {
        return Err(Error::value(format!(
            "Expected argument `target` to have shape {}, that of `preds` without its classes, but got {}.",
            tuple(rows),
            tuple(&target.shape)
        )));
    }
    let targets = target.targets("target", n_classes, None)?;
    // SAFETY: the types are those that are named.
    unsafe {
        match preds.dtype {
            Dtype::F32 => typed::<f32>(preds, &targets, scores, n_bins, binning),
            Dtype::F64 => typed::<f64>(preds, &targets, scores, n_bins, binning),
            Dtype::Bf16 => typed::<bf16>(preds, &targets, scores, n_bins, binning),
            Dtype::F16 => typed::<f16>(preds, &targets, scores, n_bins, binning),
            _ => Err(Error::r#type(format!(
                "Expected argument `preds` to be of a floating-point type, but got {}.",
                preds.type_name()
            ))),
        }
    }
}

/// # Safety
///
/// `E` is the type of the predictions.
unsafe fn typed<E: Element>(
    preds: &View,
    targets: &Targets,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
) -> Result<Bins, Error> {
    // SAFETY: by this function's contract.
    let rows = unsafe { preds.rows::<E>(preds.shape.len() - 1) };
    bin_top_label(&rows, targets, scores, n_bins, binning, Isa::best())
}
