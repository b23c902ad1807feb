//! The losses: one call computes the loss and, where it is wanted, its gradient.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyString};

use crate::losses::confidence_penalty::ConfidencePenalty;
use crate::losses::cross_entropy::CrossEntropy;
use crate::losses::focal::Focal;
use crate::losses::label_relaxation::LabelRelaxation;
use crate::losses::pass::{Loss, Reduction};
use crate::memory;
use crate::rows::Scores;
use crate::untyped::losses::{Arguments, Batch, Gradient, Numbers};
use crate::untyped::{Dtype, View};

use super::tensors;

/// Below this many numbers the GIL is kept: handing it over and back takes longer than the computation.
const QUICK: usize = 10_000;

type Tensor<'py> = Bound<'py, PyAny>;

/// The loss of that name; and, where `upstream` is a number, the gradient of the reduced loss (of the sum, for
/// "none") times that number: a new tensor or, with `inplace`, over `input`.
///
/// Of label relaxation, with `target_b` the classes are mixed, `target` with the share `lam`.
#[pyfunction]
#[pyo3(signature = (input, target, upstream, weight, inplace, name, parameter, reduction, dim, ignore_index, from_logits, target_b=None, lam=None))]
#[allow(clippy::too_many_arguments)] // each by its position: what a call costs counts
pub(super) fn loss<'py>(
    py: Python<'py>,
    input: &Tensor<'py>,
    target: &Tensor<'py>,
    upstream: Option<f64>,
    weight: Option<&Tensor<'py>>,
    inplace: &Bound<'py, PyAny>,
    name: &str,
    parameter: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    dim: &Bound<'py, PyAny>,
    ignore_index: &Bound<'py, PyAny>,
    from_logits: &Bound<'py, PyAny>,
    target_b: Option<&Tensor<'py>>,
    lam: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Tensor<'py>, Option<Tensor<'py>>)> {
    // What is no number may be a tensor with an alpha for each row.
    let each_alpha = name == "label_relaxation" && is_tensor(parameter)?;
    let loss = parse_loss(name, (!each_alpha).then_some(parameter), from_logits)?;
    let (reduction, inplace) = (parse_reduction(reduction)?, boolean(inplace, "inplace")?);
    let (dim, ignore_index) = (integer(dim, "dim")?, integer(ignore_index, "ignore_index")?);
    let view = tensors::borrow(input, "input")?;
    let target_name = if target_b.is_some() { "target_a" } else { "target" };
    let target = tensors::borrow(target, target_name)?;
    let weight = weight.map(|weight| tensors::borrow(weight, "weight")).transpose()?;
    let alpha = each_alpha.then(|| tensors::borrow(parameter, "alpha")).transpose()?;
    let second = target_b.map(|second| tensors::borrow(second, "target_b")).transpose()?;
    let lam = lam.map(parse_share).transpose()?;
    let mixed = second.as_ref().zip(lam.as_ref()).map(|(second, lam)| {
        (
            second,
            match lam {
                Share::Same(lam) => Numbers::Same(*lam),
                Share::Each(view) => Numbers::Each(view),
            },
        )
    });
    let (weight, alpha) = (weight.as_ref(), alpha.as_ref());
    let arguments = Arguments { input: view, target: &target, mixed, weight, alpha, dim, ignore_index };
    let batch = Batch::new(loss, arguments)?;

    let (grad, grad_view) = match upstream {
        Some(_) if inplace => {
            batch.check_in_place()?;
            (None, None)
        }
        Some(_) => Some(gradient(input, batch.input())?).unzip(),
        None => (None, None),
    };
    let to = match &grad_view {
        Some(view) => Gradient::To(view),
        None if upstream.is_some() => Gradient::InPlace,
        None => Gradient::None,
    };
    let (out, losses) = match reduction {
        Some(_) => tensors::empty_scalar(py, batch.loss_type())?,
        None => tensors::allocate(py, batch.loss_type(), &batch.rows())?,
    };
    // SAFETY: both are new, and of the types and shapes that the batch asks for; or the caller gave the input away.
    let work = || unsafe { batch.compute(loss, upstream.unwrap_or(1.0), reduction, &losses, to) };
    if batch.input().len() < QUICK { work() } else { py.allow_threads(work) }?;
    Ok((out, grad))
}

/// A new tensor for the gradient with respect to `input`, which `view` describes; not initialised.
fn gradient<'py>(input: &Tensor<'py>, view: &View) -> PyResult<(Tensor<'py>, View)> {
    match memory::lend(view.len().saturating_mul(view.dtype.size()))? {
        Some(block) => tensors::adopt(input.py(), block, view.dtype, &view.shape),
        None => tensors::empty_like(input, view.dtype, &view.shape),
    }
}

/// The value of a scalar, in a fraction of the time of `item()`; `None` for what is none, or cannot be read.
#[pyfunction]
pub(super) fn scalar(tensor: &Tensor<'_>) -> Option<f64> {
    let view = tensors::borrow(tensor, "tensor").ok().filter(|view| view.shape.is_empty())?;
    match view.dtype {
        // SAFETY: one number of the type that is named.
        Dtype::F32 => Some(f64::from(unsafe { *view.data.cast::<f32>() })),
        // SAFETY: as above.
        Dtype::F64 => Some(unsafe { *view.data.cast::<f64>() }),
        _ => None,
    }
}

/// The share of the first class.
enum Share {
    Same(f64),
    Each(View),
}

fn parse_share(lam: &Bound<'_, PyAny>) -> PyResult<Share> {
    if is_tensor(lam)? {
        return Ok(Share::Each(tensors::borrow(lam, "lam")?));
    }
    let expected = || format!("Expected argument `lam` to be a number in [0, 1], but got {}.", shown(lam));
    let share = lam.extract::<f64>().map_err(|_| PyTypeError::new_err(expected()))?;
    if (0.0..=1.0).contains(&share) { Ok(Share::Same(share)) } else { Err(PyValueError::new_err(expected())) }
}

fn is_tensor(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!value.is_instance_of::<PyFloat>() && value.hasattr("requires_grad")?)
}

/// Without a parameter, label relaxation whose alpha comes for each row.
fn parse_loss(
    name: &str,
    parameter: Option<&Bound<'_, PyAny>>,
    from_logits: &Bound<'_, PyAny>,
) -> PyResult<Loss> {
    let scores = if boolean(from_logits, "from_logits")? { Scores::Logits } else { Scores::Probabilities };
    let Some(parameter) = parameter else { return Ok(LabelRelaxation::new(0.0, scores)?.into()) };
    let number = if is_tensor(parameter)? { None } else { parameter.extract::<f64>().ok() };
    let value = number.unwrap_or(f64::NAN); // which is in no range
    let loss = match name {
        "label_relaxation" => LabelRelaxation::new(value, scores).map(Loss::from),
        "cross_entropy" => CrossEntropy::new(value).map(Loss::from),
        "confidence_penalty" => ConfidencePenalty::new(value).map(Loss::from),
        "focal" => Focal::new(value).map(Loss::from),
        _ => return Err(PyValueError::new_err(format!("There is no loss {name:?}."))),
    };
    loss.map_err(|error| {
        // As Python prints the number.
        let message = error.to_string().replace(&format!("{value:?}."), &format!("{}.", shown(parameter)));
        if number.is_some() { PyValueError::new_err(message) } else { PyTypeError::new_err(message) }
    })
}

fn boolean(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    let boolean = value.downcast::<PyBool>().map_err(|_| {
        let got = shown(value);
        PyTypeError::new_err(format!("Expected argument `{name}` to be a bool, but got {got}."))
    });
    Ok(boolean?.is_true())
}

fn integer(value: &Bound<'_, PyAny>, name: &str) -> PyResult<i64> {
    let error = match value.extract::<i64>() {
        Ok(integer) => return Ok(integer),
        Err(error) => error,
    };
    let got = shown(value);
    Err(if error.is_instance_of::<PyOverflowError>(value.py()) {
        PyValueError::new_err(format!("Expected argument `{name}` to fit in 64 bits, but got {got}."))
    } else {
        PyTypeError::new_err(format!("Expected argument `{name}` to be an integer, but got {got}."))
    })
}

/// As Python prints it.
fn shown(value: &Bound<'_, PyAny>) -> String {
    value.repr().map(|repr| repr.to_string()).unwrap_or_default()
}

/// `None` is "none".
fn parse_reduction(reduction: &Bound<'_, PyAny>) -> PyResult<Option<Reduction>> {
    let name = reduction.downcast::<PyString>().ok().and_then(|name| name.to_cow().ok());
    match name.as_deref() {
        Some("mean") => Ok(Some(Reduction::Mean)),
        Some("sum") => Ok(Some(Reduction::Sum)),
        Some("none") => Ok(None),
        _ => Err(PyValueError::new_err(format!(
            "Expected argument `reduction` to be 'mean', 'sum' or 'none', but got {}.",
            shown(reduction)
        ))),
    }
}
