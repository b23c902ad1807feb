//! Reads and makes torch tensors through pyo3-tch: the C++ tensor behind the Python object.
//!
//! The same functions as those of `dlpack`, for builds that are bound to one torch release anyway.

use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use tch::Tensor;

use crate::memory::Lent;
use crate::rows::Error;
use crate::tch::torch;
use crate::untyped::{Dtype, View};

/// There is nothing to look up: torch is linked.
pub(super) fn connect(_torch: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}

/// What `tensor`, the argument `name`, looks like in memory.
pub(super) fn borrow(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    // The C++ tensor may go: the Python object keeps the memory.
    let borrowed = torch::view(&unwrap(tensor, name)?, name)?;
    let mut view = borrowed.view;
    if !borrowed.device.is_cpu() {
        return Err(PyTypeError::new_err(format!(
            "Expected argument `{name}` to be on cpu, the device of `input`, but got {}.",
            tensor.getattr("device")?
        )));
    }
    if view.dtype == Dtype::Other {
        view.other = tensor.getattr("dtype")?.to_string().into();
    }
    Ok(view)
}

fn unwrap(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    let what = || tensor.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    let unwrapped = tensor.extract::<PyTensor>().map_err(|_| {
        PyTypeError::new_err(format!("Expected argument `{name}` to be a tensor, but got {}.", what()))
    })?;
    Ok(unwrapped.0)
}

fn wrap(py: Python<'_>, tensor: Result<Tensor, Error>) -> PyResult<(Bound<'_, PyAny>, View)> {
    let tensor = tensor.map_err(|error| PyMemoryError::new_err(error.to_string()))?;
    let view = torch::view(&tensor, "output")?.view;
    // Not through `into_pyobject`, which turns a failure into None.
    let object = tensor.pyobject_wrap().map_err(Error::from)?;
    // SAFETY: a new reference, or null with an error set.
    Ok((unsafe { Bound::from_owned_ptr_or_err(py, object.cast()) }?, view))
}

/// A new tensor of the given type and shape, with the strides of `model` where these leave no gaps.
pub(super) fn empty_like<'py>(
    model: &Bound<'py, PyAny>,
    _dtype: Dtype,
    _shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(model.py(), torch::empty_like(&unwrap(model, "input")?))
}

/// A new scalar.
pub(super) fn empty_scalar(py: Python<'_>, dtype: Dtype) -> PyResult<(Bound<'_, PyAny>, View)> {
    allocate(py, dtype, &[])
}

/// A new contiguous tensor, with torch's memory.
pub(super) fn allocate<'py>(
    py: Python<'py>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(py, torch::allocate(dtype, shape))
}

/// A contiguous tensor over lent memory, which comes back when torch is done with it.
pub(super) fn adopt<'py>(
    py: Python<'py>,
    block: Lent,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(py, torch::adopt(block, dtype, shape))
}
