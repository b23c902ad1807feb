//! The calibration metrics.

use numpy::{IntoPyArray, PyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::kernels::calibration::Binning;
use crate::kernels::coin::Scores;
use crate::untyped;

use super::arrays;

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
    let bins =
        py.allow_threads(|| untyped::metrics::calibration_bins(&preds, &target, scores, n_bins, binning))?;
    let signed = |counts: &[u64]| counts.iter().map(|&n| n as i64).collect::<Vec<_>>().into_pyarray(py);
    Ok((
        signed(&bins.counts),
        signed(&bins.correct),
        bins.confidence().into_pyarray(py),
        bins.expected_calibration_error(),
    ))
}
