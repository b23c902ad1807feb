//! The calibration metrics of `tch::Tensor`.

use tch::{Device, Tensor};

use super::torch;
use crate::kernels::calibration::{Binning, Bins};
use crate::kernels::coin::Scores;
use crate::rows::Error;
use crate::untyped;

/// The mean distance of confidence and accuracy over `n_bins` bins of confidence (ECE).
///
/// * `preds`: probabilities or logits (`scores` tells which) of shape (..., C); half, bfloat16, float or double.
/// * `target`: (...), class indices in [0, C) of any integer kind.
///
/// Returns a value in [0, 1]. Confidences are summed without rounding: the result depends neither on the order of
/// the rows nor on the number of threads. Tensors of other devices are copied to the CPU.
///
/// # Errors
///
/// [`Error::Row`] names the first row that is no distribution; [`Error::Value`], [`Error::Type`] and
/// [`Error::TargetOutOfRange`] as for the losses.
///
/// Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
///
/// ```
/// use lr_relax::kernels::{calibration::Binning, coin::Scores};
/// use tch::Tensor;
///
/// let preds = Tensor::from_slice(&[0.9, 0.1, 0.8, 0.2, 0.3, 0.7]).reshape([3, 2]);
/// let target = Tensor::from_slice(&[0_i64, 1, 1]);
/// let ece = lr_relax::tch::expected_calibration_error(&preds, &target, Scores::Probabilities, 15, Binning::Uniform)?;
/// assert!((ece - 0.4).abs() < 1e-15);
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn expected_calibration_error(
    preds: &Tensor,
    target: &Tensor,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
) -> Result<f64, Error> {
    Ok(reliability_curve(preds, target, scores, n_bins, binning)?.expected_calibration_error())
}

/// Counts, hits and confidences over bins of confidence: what a reliability diagram shows.
///
/// Arguments and errors as of [`expected_calibration_error`].
///
/// ```
/// use lr_relax::kernels::{calibration::Binning, coin::Scores};
/// use tch::Tensor;
///
/// let preds = Tensor::from_slice(&[0.9_f32, 0.1, 0.2, 0.8]).reshape([2, 2]);
/// let target = Tensor::from_slice(&[0_i64, 0]);
/// let bins = lr_relax::tch::reliability_curve(&preds, &target, Scores::Probabilities, 2, Binning::Uniform)?;
/// assert_eq!((bins.counts, bins.correct), (vec![0, 2], vec![0, 1]));
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn reliability_curve(
    preds: &Tensor,
    target: &Tensor,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
) -> Result<Bins, Error> {
    torch::connect_threads();
    let (preds, target) = (on_cpu(preds, "preds")?, on_cpu(target, "target")?);
    let (preds, target) = (torch::view(&preds, "preds")?.view, torch::view(&target, "target")?.view);
    untyped::metrics::calibration_bins(&preds, &target, scores, n_bins, binning)
}

fn on_cpu(tensor: &Tensor, name: &str) -> Result<Tensor, Error> {
    let is_cpu = torch::view(tensor, name)?.device.is_cpu();
    Ok(if is_cpu { tensor.shallow_clone() } else { tensor.f_to(Device::Cpu)? })
}
