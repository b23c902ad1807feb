//! Python bindings of the metrics: they return sums and scores as NumPy arrays, from which `lr_relax.metrics` computes
//! the results.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;

use crate::metrics::{Binning, DIGITS, Exact, Kind, MAX_TERM, Resampled, Score, bin_labels, bootstrap};
use crate::rows::{Scores, collected, with_room};
use crate::simd::Isa;
use crate::untyped::View;
use crate::untyped::metrics::Arguments;

use super::arrays;

type Any<'a, 'py> = &'a Bound<'py, PyAny>;
type Floats<'py> = Bound<'py, PyArray1<f64>>;
type Outcomes<'py> = Bound<'py, PyArray1<i8>>;
type Indices<'py> = Bound<'py, PyArray1<u32>>;
type Integers<'py> = Bound<'py, PyArray1<i64>>;

/// Arrays that are borrowed for one call.
struct Borrowed {
    name: &'static str,
    preds: View,
    target: View,
    weight: Option<View>,
    scores: Scores,
    ignore_index: Option<i64>,
}

impl Borrowed {
    fn new(
        name: &'static str,
        preds: Any<'_, '_>,
        target: Any<'_, '_>,
        weight: Option<Any<'_, '_>>,
        from_logits: bool,
        ignore_index: Option<i64>,
    ) -> PyResult<Borrowed> {
        arrays::check(preds, name)?;
        arrays::check(target, "target")?;
        weight.map_or(Ok(()), |weight| arrays::check(weight, "sample_weight"))?;
        Ok(Borrowed {
            name,
            // Before the others, because asking for the name of a type that is refused later may run Python code.
            weight: weight.map(|weight| arrays::borrow(weight, "sample_weight")).transpose()?,
            preds: arrays::borrow(preds, name)?,
            target: arrays::borrow(target, "target")?,
            scores: if from_logits { Scores::Logits } else { Scores::Probabilities },
            ignore_index,
        })
    }

    fn arguments(&self) -> Arguments<'_> {
        Arguments {
            name: self.name,
            preds: &self.preds,
            target: &self.target,
            weight: self.weight.as_ref(),
            scores: self.scores,
            ignore_index: self.ignore_index,
        }
    }
}

/// The edges of the bins, the number of predictions in each, and the exact sums of their weights, of the weights of
/// the correct ones, and of the weighted confidences, as digits, one column after another.
#[pyfunction]
#[pyo3(signature = (preds, target, sample_weight, from_logits, n_bins, binning, kind, ignore_index))]
pub(super) fn calibration_bins<'py>(
    py: Python<'py>,
    preds: Any<'_, 'py>,
    target: Any<'_, 'py>,
    sample_weight: Option<Any<'_, 'py>>,
    from_logits: bool,
    n_bins: usize,
    binning: Any<'_, 'py>,
    kind: &str,
    ignore_index: Option<i64>,
) -> PyResult<(Floats<'py>, Integers<'py>, Integers<'py>)> {
    let binning = parse_binning(binning)?;
    let kind = match kind {
        "top_label" => Kind::TopLabel,
        "classwise" => Kind::Classwise,
        _ => {
            return Err(PyValueError::new_err(format!(
                "Expected argument `kind` to be 'top_label' or 'classwise', but got {kind:?}."
            )));
        }
    };
    let borrowed = Borrowed::new("preds", preds, target, sample_weight, from_logits, ignore_index)?;
    let bins = py.allow_threads(|| borrowed.arguments().bin(kind, &binning, n_bins))?;
    let columns = [&bins.weight, &bins.correct, &bins.confidence].into_iter().flatten();
    let mut digits: Vec<i64> = with_room(3 * DIGITS * bins.counts.len())?;
    digits.extend(columns.flat_map(|sum| sum.digits()));
    let counts = collected(bins.counts.iter().map(|&n| n as i64))?;
    let edges = collected(bins.edges.iter().map(|edge| edge.min(1.0)))?;
    Ok((edges.into_pyarray(py), counts.into_pyarray(py), digits.into_pyarray(py)))
}

/// The name of a binning, or edges.
fn parse_binning(binning: Any<'_, '_>) -> PyResult<Binning> {
    let Ok(name) = binning.extract::<PyBackedStr>() else {
        return Ok(Binning::Edges(binning.extract::<Vec<f64>>()?.into()));
    };
    match &*name {
        "uniform" => Ok(Binning::Uniform),
        "paper" => Ok(Binning::Paper),
        "quantile" => Ok(Binning::Quantile),
        _ => Err(PyValueError::new_err(format!(
            "Expected argument `binning` to be 'uniform', 'quantile' or 'paper', but got {name:?}."
        ))),
    }
}

/// The results of `top_labels`, and the bin of each row.
#[pyfunction]
pub(super) fn binned_top_labels<'py>(
    py: Python<'py>,
    preds: Any<'_, 'py>,
    target: Any<'_, 'py>,
    from_logits: bool,
    n_bins: usize,
    binning: Any<'_, 'py>,
    ignore_index: Option<i64>,
) -> PyResult<(Floats<'py>, Outcomes<'py>, Indices<'py>)> {
    let binning = parse_binning(binning)?;
    let borrowed = Borrowed::new("preds", preds, target, None, from_logits, ignore_index)?;
    let (confidence, outcome, bins) =
        py.allow_threads(|| bin_labels(&borrowed.arguments().predictions()?, &binning, n_bins))?;
    Ok((confidence.into_pyarray(py), outcome.into_pyarray(py), bins.into_pyarray(py)))
}

/// The confidence of each row, and whether the prediction is correct: 1 or 0, or -1 for ignored rows.
#[pyfunction]
pub(super) fn top_labels<'py>(
    py: Python<'py>,
    preds: Any<'_, 'py>,
    target: Any<'_, 'py>,
    from_logits: bool,
    ignore_index: Option<i64>,
) -> PyResult<(Floats<'py>, Outcomes<'py>)> {
    let borrowed = Borrowed::new("preds", preds, target, None, from_logits, ignore_index)?;
    let (confidence, outcome) = py.allow_threads(|| borrowed.arguments().predictions()?.top_labels())?;
    Ok((confidence.into_pyarray(py), outcome.into_pyarray(py)))
}

/// The score of each row, "brier" or "log_likelihood" (negative); 0 for ignored rows.
#[pyfunction]
pub(super) fn row_scores<'py>(
    py: Python<'py>,
    preds: Any<'_, 'py>,
    target: Any<'_, 'py>,
    from_logits: bool,
    ignore_index: Option<i64>,
    name: &str,
) -> PyResult<Floats<'py>> {
    let score = match name {
        "brier" => Score::Brier,
        "log_likelihood" => Score::NegativeLogLikelihood,
        _ => {
            return Err(PyValueError::new_err(format!(
                "Expected argument `name` to be 'brier' or 'log_likelihood', but got {name:?}."
            )));
        }
    };
    let borrowed = Borrowed::new("preds", preds, target, None, from_logits, ignore_index)?;
    let scores = py.allow_threads(|| borrowed.arguments().predictions()?.score(score))?;
    Ok(scores.into_pyarray(py))
}

/// The exact sum of numbers in [0, 2^96], as digits.
#[pyfunction]
pub(super) fn exact_sum<'py>(
    py: Python<'py>,
    numbers: PyReadonlyArray1<'py, f64>,
) -> PyResult<Integers<'py>> {
    let mut sum = Exact::default();
    for &x in numbers.as_array() {
        if !(0.0..=MAX_TERM).contains(&x) {
            return Err(PyValueError::new_err(format!("Expected numbers in [0, 2^96], but got {x}.")));
        }
        sum.add(x);
    }
    Ok(sum.digits().to_vec().into_pyarray(py))
}

/// Exact sums, given as rows of digits, rounded to doubles.
#[pyfunction]
pub(super) fn exact_to_float<'py>(
    py: Python<'py>,
    digits: PyReadonlyArray1<'py, i64>,
) -> PyResult<Floats<'py>> {
    Ok(collected(sums(digits)?.into_iter().map(Exact::to_f64))?.into_pyarray(py))
}

/// The absolute differences of exact sums, rounded to doubles.
#[pyfunction]
pub(super) fn exact_distance<'py>(
    py: Python<'py>,
    digits: PyReadonlyArray1<'py, i64>,
    others: PyReadonlyArray1<'py, i64>,
) -> PyResult<Floats<'py>> {
    let (sums, others) = (sums(digits)?, sums(others)?);
    if sums.len() != others.len() {
        return Err(PyValueError::new_err("Expected argument `others` to hold as many sums as `digits`."));
    }
    let distances = sums.into_iter().zip(others).map(|(a, b)| a.distance(b).to_f64());
    Ok(collected(distances)?.into_pyarray(py))
}

fn sums(digits: PyReadonlyArray1<'_, i64>) -> PyResult<Vec<Exact>> {
    let digits = collected(digits.as_array().iter().copied())?;
    let (rows, []) = digits.as_chunks::<DIGITS>() else {
        return Err(PyTypeError::new_err("Expected argument `digits` to hold 8 digits for each sum."));
    };
    let mut sums = with_room(rows.len())?;
    for row in rows {
        sums.push(Exact::from_digits(row).ok_or_else(|| {
            PyValueError::new_err("Expected argument `digits` to hold the digits of sums in [0, 2^128).")
        })?);
    }
    Ok(sums)
}

/// The temperature of maximum likelihood, whether it is an end of the range, and the number of passes.
#[pyfunction]
pub(super) fn fit_temperature(
    py: Python<'_>,
    logits: Any<'_, '_>,
    target: Any<'_, '_>,
    ignore_index: Option<i64>,
) -> PyResult<(f64, bool, usize)> {
    let borrowed = Borrowed::new("logits", logits, target, None, true, ignore_index)?;
    let fit = py.allow_threads(|| borrowed.arguments().fit_temperature())?;
    Ok((fit.temperature, fit.at_end, fit.passes))
}

/// The expected calibration error at each temperature, over the bins of the paper's code.
#[pyfunction]
pub(super) fn calibration_errors_of_temperatures<'py>(
    py: Python<'py>,
    logits: Any<'_, 'py>,
    target: Any<'_, 'py>,
    temperatures: Vec<f64>,
    n_bins: usize,
    ignore_index: Option<i64>,
) -> PyResult<Floats<'py>> {
    let borrowed = Borrowed::new("logits", logits, target, None, true, ignore_index)?;
    let bins = py.allow_threads(|| borrowed.arguments().bin_each(&temperatures, n_bins))?;
    let errors: Vec<f64> = bins.iter().map(|bins| bins.expected_calibration_error()).collect();
    Ok(errors.into_pyarray(py))
}

/// The number of rows and the sum of their values in each group of each resample.
#[pyfunction]
pub(super) fn bootstrap_sums<'py>(
    py: Python<'py>,
    values: PyReadonlyArray1<'py, f64>,
    groups: PyReadonlyArray1<'py, u32>,
    n_groups: usize,
    n_resamples: usize,
    seed: u64,
) -> PyResult<(Floats<'py>, Floats<'py>)> {
    let values = collected(values.as_array().iter().copied())?;
    let groups = collected(groups.as_array().iter().copied())?;
    let sums = py.allow_threads(|| bootstrap(&values, &groups, n_groups, n_resamples, seed, Isa::best()))?;
    let column =
        |of: fn(&Resampled) -> f64| -> PyResult<_> { Ok(collected(sums.iter().map(of))?.into_pyarray(py)) };
    Ok((column(|sum| sum.weight)?, column(|sum| sum.value)?))
}
