//! The calibration metrics.

use half::{bf16, f16};
use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::kernels::calibration::{Binning, Bins, bin_top_label};
use crate::kernels::label_relaxation::Scores;
use crate::rows::{Error, Targets};
use crate::simd::{Element, Isa};

use super::arrays;
use super::view::{Dtype, View, tuple};

type Columns<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<f64>>, f64);

/// Per bin the number of predictions, of correct ones, and the sum of confidences; and the expected
/// calibration error.
#[pyfunction]
pub(super) fn calibration_bins<'py>(
    py: Python<'py>,
    preds: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    from_logits: bool,
    n_bins: usize,
    binning: &str,
) -> PyResult<Columns<'py>> {
    let scores = if from_logits { Scores::Logits } else { Scores::Probabilities };
    let binning = match binning {
        "uniform" => Binning::Uniform,
        "paper" => Binning::Paper,
        _ => {
            return Err(PyValueError::new_err(format!(
                "Expected argument `binning` to be 'uniform' or 'paper', but got '{binning}'."
            )));
        }
    };
    let (preds, target) = (arrays::borrow(preds, "preds")?, arrays::borrow(target, "target")?);
    let n_classes = match preds.shape[..] {
        [.., n_classes] if preds.shape.len() >= 2 && n_classes > 0 => n_classes,
        _ => {
            return Err(PyValueError::new_err(format!(
                "Expected argument `preds` to have shape (N, C) with at least one class, but got {}.",
                tuple(&preds.shape)
            )));
        }
    };
    let rows = &preds.shape[..preds.shape.len() - 1];
    if target.shape != rows {
        return Err(PyValueError::new_err(format!(
            "Expected argument `target` to have shape {}, that of `preds` without its classes, but got {}.",
            tuple(rows),
            tuple(&target.shape)
        )));
    }
    let bins = py.allow_threads(|| {
        let targets = target.targets(n_classes, None)?;
        match preds.dtype {
            // SAFETY: the types are those that are named.
            Dtype::F32 => unsafe { count::<f32>(&preds, &targets, scores, n_bins, binning) },
            // SAFETY: as above.
            Dtype::F64 => unsafe { count::<f64>(&preds, &targets, scores, n_bins, binning) },
            // SAFETY: as above.
            Dtype::Bf16 => unsafe { count::<bf16>(&preds, &targets, scores, n_bins, binning) },
            // SAFETY: as above.
            Dtype::F16 => unsafe { count::<f16>(&preds, &targets, scores, n_bins, binning) },
            _ => Err(Error::r#type("Expected argument `preds` to be of a floating-point type.")),
        }
    })?;
    let signed = |counts: &[u64]| counts.iter().map(|&n| n as i64).collect::<Vec<_>>().into_pyarray(py);
    Ok((
        signed(&bins.counts),
        signed(&bins.correct),
        bins.confidence().into_pyarray(py),
        bins.expected_calibration_error(),
    ))
}

/// # Safety
///
/// `E` is the type of the predictions.
unsafe fn count<E: Element>(
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
