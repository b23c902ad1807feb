//! Calibration metrics of `tch::Tensor`.

use tch::{Device, Tensor};

use super::torch;
use crate::metrics::{Binning, Bins, Exact, Fit, Kind, Score};
use crate::rows::{Error, Scores};
use crate::untyped::metrics::Arguments;

/// The expected calibration error (ECE): the mean difference of confidence and accuracy over `n_bins` bins.
///
/// * `preds`: probabilities or logits, depending on `scores`, of shape (..., C) and kind half, bfloat16, float or
///   double; or (N,), the probability (or logit) of class 1 of binary events.
/// * `target`: (...), class indices in [0, C) of any integer kind.
///
/// Returns a value in [0, 1]. Confidences are summed without rounding: the result depends neither on the order of
/// the rows nor on the number of threads. Tensors on other devices are copied to the CPU.
///
/// # Errors
///
/// [`Error::Row`] names the first row that is not a distribution; [`Error::Value`], [`Error::Type`] and
/// [`Error::TargetOutOfRange`] as for the losses.
///
/// Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
///
/// ```
/// use lr_relax::{metrics::Binning, rows::Scores};
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

/// Counts and sums over bins of confidence: the data of a reliability diagram.
///
/// Arguments and errors as in [`expected_calibration_error`].
///
/// ```
/// use lr_relax::{metrics::Binning, rows::Scores};
/// use tch::Tensor;
///
/// let preds = Tensor::from_slice(&[0.9_f32, 0.1, 0.2, 0.8]).reshape([2, 2]);
/// let target = Tensor::from_slice(&[0_i64, 0]);
/// let bins = lr_relax::tch::reliability_curve(&preds, &target, Scores::Probabilities, 2, Binning::Uniform)?;
/// assert_eq!((&bins.counts[..], bins.correct[1].to_f64()), (&[0, 2][..], 1.0));
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn reliability_curve(
    preds: &Tensor,
    target: &Tensor,
    scores: Scores,
    n_bins: usize,
    binning: Binning,
) -> Result<Bins, Error> {
    with(preds, target, scores, |arguments| {
        let bins = arguments.bin(Kind::TopLabel, &binning, n_bins)?;
        if bins.counts.iter().all(|&n| n == 0) {
            return Err(Error::value("Expected argument `preds` to hold at least one row, but got none."));
        }
        Ok(bins)
    })
}

/// The mean squared distance of the predictions from the one-hot targets, sum over k of (p_k - \[k = y\])^2.
///
/// Arguments and errors as in [`expected_calibration_error`].
pub fn brier_score(preds: &Tensor, target: &Tensor, scores: Scores) -> Result<f64, Error> {
    mean(preds, target, scores, Score::Brier)
}

/// The mean of -ln p_y over the rows; infinite if a target has probability 0.
///
/// Arguments and errors as in [`expected_calibration_error`].
pub fn negative_log_likelihood(preds: &Tensor, target: &Tensor, scores: Scores) -> Result<f64, Error> {
    mean(preds, target, scores, Score::NegativeLogLikelihood)
}

fn mean(preds: &Tensor, target: &Tensor, scores: Scores, score: Score) -> Result<f64, Error> {
    with(preds, target, scores, |arguments| {
        let values = arguments.predictions()?.score(score)?;
        if values.is_empty() {
            return Err(Error::value("Expected argument `preds` to hold at least one row, but got none."));
        }
        if values.iter().any(|value| value.is_infinite()) {
            return Ok(f64::INFINITY);
        }
        let mut sum = Exact::default();
        values.iter().for_each(|&value| sum.add(value));
        Ok(sum.to_f64() / values.len() as f64)
    })
}

/// The temperature T that maximizes the likelihood of softmax(logits / T), by Newton's method in double precision.
///
/// Arguments and errors as in [`expected_calibration_error`], with logits.
///
/// ```
/// use tch::Tensor;
///
/// let logits = Tensor::from_slice(&[2.0, 0.0, 2.0, 0.0, 2.0, 0.0]).reshape([3, 2]);
/// let fit = lr_relax::tch::fit_temperature(&logits, &Tensor::from_slice(&[0_i64, 0, 1]))?;
/// assert!((fit.temperature - 2.0 / 2.0_f64.ln()).abs() < 1e-12); // softmax gives 2/3
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn fit_temperature(logits: &Tensor, target: &Tensor) -> Result<Fit, Error> {
    with(logits, target, Scores::Logits, |arguments| {
        Arguments { name: "logits", ..arguments }.fit_temperature()
    })
}

fn with<T>(
    preds: &Tensor,
    target: &Tensor,
    scores: Scores,
    compute: impl FnOnce(Arguments<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    torch::connect_threads();
    let (preds, target) = (on_cpu(preds, "preds")?, on_cpu(target, "target")?);
    let (preds, target) = (torch::view(&preds, "preds")?.view, torch::view(&target, "target")?.view);
    let (preds, target, weight, ignore_index) = (&preds, &target, None, None);
    compute(Arguments { name: "preds", preds, target, weight, scores, ignore_index })
}

fn on_cpu(tensor: &Tensor, name: &str) -> Result<Tensor, Error> {
    let is_cpu = torch::view(tensor, name)?.device.is_cpu();
    Ok(if is_cpu { tensor.shallow_clone() } else { tensor.f_to(Device::Cpu)? })
}
