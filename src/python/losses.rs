//! The losses: one call computes the loss and, where it is wanted, its gradient.

use half::{bf16, f16};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyString};

use crate::kernels::label_relaxation::{LabelRelaxation, Reduction, Scores};
use crate::rows::{Error, Targets};
use crate::simd::Element;

use super::view::{Dtype, View, tuple};
use super::{dlpack, memory};

/// Below this many numbers the GIL is kept: handing it over and back takes longer than the computation.
const QUICK: usize = 10_000;

type Tensor<'py> = Bound<'py, PyAny>;

/// The loss; and, where `upstream` is a number, the gradient of the reduced loss (of the sum, for "none")
/// times that number.
#[pyfunction]
pub(super) fn label_relaxation<'py>(
    py: Python<'py>,
    input: &Tensor<'py>,
    target: &Tensor<'py>,
    upstream: Option<f64>,
    weight: Option<&Tensor<'py>>,
    alpha: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    dim: &Bound<'py, PyAny>,
    ignore_index: &Bound<'py, PyAny>,
    from_logits: &Bound<'py, PyAny>,
) -> PyResult<(Tensor<'py>, Option<Tensor<'py>>)> {
    let from_logits = from_logits.downcast::<PyBool>().map_err(|_| {
        let got = shown(from_logits);
        PyTypeError::new_err(format!("Expected argument `from_logits` to be a bool, but got {got}."))
    });
    let scores = if from_logits?.is_true() { Scores::Logits } else { Scores::Probabilities };
    let loss = parse_alpha(alpha, scores)?.with_upstream(upstream.unwrap_or(1.0));
    let reduction = parse_reduction(reduction)?;
    let (dim, ignore_index) = (integer(dim, "dim")?, integer(ignore_index, "ignore_index")?);
    let (input_tensor, input) = (input, dlpack::borrow(input, "input")?);
    if !input.dtype.is_float() {
        let dtype = input_tensor.getattr("dtype")?;
        return Err(PyTypeError::new_err(format!(
            "Expected argument `input` to be of a floating-point type, but got {dtype}."
        )));
    }
    let axis = class_axis(&input, dim)?;
    let targets = read_targets(target, &input, axis, ignore_index)?;
    let weight = weight.map(|weight| read_weight(weight, input.shape[axis])).transpose()?;

    let grad = upstream.map(|_| memory::gradient(input_tensor, &input)).transpose()?;
    let (grad, grad_view) = grad.unzip();
    let call = Call {
        loss,
        reduction,
        input: &input,
        axis,
        targets: &targets,
        weight: weight.as_deref(),
        grad: grad_view.as_ref(),
    };
    let out = match input.dtype {
        // SAFETY: the types are those that are named.
        Dtype::F32 => unsafe { call.run::<f32>(py, Dtype::F32) },
        // SAFETY: as above.
        Dtype::F64 => unsafe { call.run::<f64>(py, Dtype::F64) },
        // SAFETY: as above.
        Dtype::Bf16 => unsafe { call.run::<bf16>(py, Dtype::F32) },
        // SAFETY: as above.
        Dtype::F16 => unsafe { call.run::<f16>(py, Dtype::F32) },
        _ => unreachable!("checked above"),
    }?;
    Ok((out, grad))
}

/// What a call of the kernel takes, before the element type is known.
struct Call<'a> {
    loss: LabelRelaxation,
    reduction: Option<Reduction>,
    input: &'a View,
    axis: usize,
    targets: &'a Targets,
    weight: Option<&'a [f64]>,
    grad: Option<&'a View>,
}

impl Call<'_> {
    /// # Safety
    ///
    /// `E` is the type of the input, and `out` the type that `E` is computed in.
    unsafe fn run<'py, E: Element>(&self, py: Python<'py>, out: Dtype) -> PyResult<Tensor<'py>> {
        // SAFETY: by this function's contract; the gradient is new.
        let rows = unsafe { self.input.rows::<E>(self.axis) };
        // SAFETY: as above.
        let grad = self.grad.map(|grad| unsafe { grad.rows_mut::<E>(self.axis) });
        let (loss, targets, weight, grad) = (&self.loss, self.targets, self.weight, grad.as_ref());
        let (tensor, mut losses) = match self.reduction {
            Some(_) => dlpack::empty_scalar(py, out)?,
            None => dlpack::allocate(py, out, &without(&self.input.shape, self.axis))?,
        };
        // SAFETY: a new tensor of that type and of as many elements.
        let losses = unsafe { elements::<E::Wide>(&mut losses) };
        let mut work = || -> Result<(), Error> {
            match self.reduction {
                Some(reduction) => {
                    let value = loss.reduce(&rows, targets, weight, reduction, grad)?;
                    losses[0] = crate::simd::Real::from_f64(value);
                    Ok(())
                }
                None => loss.per_row(&rows, targets, weight, losses, grad),
            }
        };
        if self.input.len() < QUICK { work() } else { py.allow_threads(work) }?;
        Ok(tensor)
    }
}

/// # Safety
///
/// The view is contiguous, new, and of type `T`.
unsafe fn elements<T>(view: &mut View) -> &mut [T] {
    let data = if view.len() == 0 { std::ptr::NonNull::dangling().as_ptr() } else { view.data.cast() };
    // SAFETY: by this function's contract.
    unsafe { std::slice::from_raw_parts_mut(data, view.len()) }
}

fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    [&shape[..axis], &shape[axis + 1..]].concat()
}

fn parse_alpha(alpha: &Bound<'_, PyAny>, scores: Scores) -> PyResult<LabelRelaxation> {
    let expected =
        || format!("Expected argument `alpha` to be a number in [0, 1), but got {}.", shown(alpha));
    let number = alpha.is_instance_of::<PyFloat>() || !alpha.hasattr("requires_grad")?;
    let value = alpha.extract::<f64>().ok().filter(|_| number);
    let value = value.ok_or_else(|| PyTypeError::new_err(expected()))?;
    LabelRelaxation::new(value, scores).map_err(|_| PyValueError::new_err(expected()))
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

fn class_axis(input: &View, dim: i64) -> PyResult<usize> {
    let axes = input.shape.len() as i64;
    if axes == 0 {
        return Err(PyValueError::new_err(
            "Expected argument `input` to have a class dimension, but got shape ().",
        ));
    }
    if !(-axes..axes).contains(&dim) {
        return Err(PyValueError::new_err(format!(
            "Expected argument `dim` to be in [{}, {}], but got {dim}.",
            -axes,
            axes - 1
        )));
    }
    let axis = dim.rem_euclid(axes) as usize;
    if input.shape[axis] < 2 {
        return Err(PyValueError::new_err(format!(
            "Expected argument `input` to have at least 2 classes in dimension {dim}, but got shape {}.",
            tuple(&input.shape)
        )));
    }
    Ok(axis)
}

fn read_targets(target: &Tensor<'_>, input: &View, axis: usize, ignore_index: i64) -> PyResult<Targets> {
    let view = dlpack::borrow(target, "target")?;
    if view.dtype.is_float() || view.dtype == Dtype::Other {
        return Err(PyTypeError::new_err(format!(
            "Expected argument `target` to hold class indices of an integer type, but got {}.",
            target.getattr("dtype")?
        )));
    }
    let rows = without(&input.shape, axis);
    if view.shape != rows {
        return Err(PyValueError::new_err(format!(
            "Expected argument `target` to have shape {}, that of `input` {} without its classes, but got {}.",
            tuple(&rows),
            tuple(&input.shape),
            tuple(&view.shape)
        )));
    }
    Ok(view.targets(input.shape[axis], Some(ignore_index))?)
}

fn read_weight(weight: &Tensor<'_>, n_classes: usize) -> PyResult<Vec<f64>> {
    let view = dlpack::borrow(weight, "weight")?;
    if !view.dtype.is_float() {
        return Err(PyTypeError::new_err(format!(
            "Expected argument `weight` to be of a floating-point type, but got {}.",
            weight.getattr("dtype")?
        )));
    }
    if view.shape != [n_classes] {
        return Err(PyValueError::new_err(format!(
            "Expected argument `weight` to have shape ({n_classes},), a number for each class, but got {}.",
            tuple(&view.shape)
        )));
    }
    Ok(view.to_f64()?)
}
