//! Views and creates torch tensors with pyo3-tch, which accesses the C++ tensor of a Python tensor.
//!
//! It has the functions of dlpack.rs, for builds that are bound to one torch release.

use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3_tch::PyTensor;
use tch::Tensor;

use crate::memory::CachedBuffer;
use crate::rows::Error;
use crate::tch::torch;
use crate::untyped::{Dtype, View};

/// Does nothing, because this build is linked to torch.
pub(super) fn connect(_torch: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}

/// A view of `tensor`, the argument `name`.
pub(super) fn borrow(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    // The Python object keeps the memory alive, so the C++ tensor can be dropped.
    let borrowed = torch::view(&unwrap(tensor, name)?, name)?;
    let mut view = borrowed.view;
    if !borrowed.device.is_cpu() {
        return Err(PyTypeError::new_err(format!(
            "Expected argument `{name}` to be on cpu, the device of `input`, but got {}.",
            tensor.getattr("device")?
        )));
    }
    if view.dtype == Dtype::Other {
        view.type_name = tensor.getattr("dtype")?.to_string().into();
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
    // `into_pyobject` would turn a failure into None.
    let object = tensor.pyobject_wrap().map_err(Error::from)?;
    // SAFETY: the pointer is a new reference, or null with an exception set.
    Ok((unsafe { Bound::from_owned_ptr_or_err(py, object.cast()) }?, view))
}

/// A new tensor of the type and shape of `model`, not initialized; of the same strides if these are dense.
pub(super) fn empty_like<'py>(
    model: &Bound<'py, PyAny>,
    _dtype: Dtype,
    _shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(model.py(), torch::empty_like(&unwrap(model, "input")?))
}

/// A new scalar tensor, not initialized.
pub(super) fn empty_scalar(py: Python<'_>, dtype: Dtype) -> PyResult<(Bound<'_, PyAny>, View)> {
    allocate(py, dtype, &[])
}

/// A new contiguous tensor, not initialized.
pub(super) fn allocate<'py>(
    py: Python<'py>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(py, torch::allocate(dtype, shape))
}

/// A contiguous tensor that owns a cached buffer.
pub(super) fn adopt<'py>(
    py: Python<'py>,
    buffer: CachedBuffer,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    wrap(py, torch::adopt(buffer, dtype, shape))
}
