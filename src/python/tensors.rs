//! Access to torch's tensors: through DLPack or, in the build with pyo3-tch, through tch. Both have the same functions.
//!
//! A call checks all its tensors before it borrows the first one. A check may run Python code (`__torch_function__`),
//! which may resize a tensor; borrowing one of a supported type runs none.

use std::sync::OnceLock;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{ffi, intern};

use crate::untyped::View;

#[cfg(not(feature = "pyo3-tch"))]
use super::dlpack as backend;
#[cfg(feature = "pyo3-tch")]
use super::pyo3_tch as backend;

pub(super) use backend::{adopt, allocate, borrow, empty_like, empty_scalar};

static TENSOR: OnceLock<Py<PyType>> = OnceLock::new();

/// Looks up what the other functions need of torch.
pub(super) fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    let _ = TENSOR.set(torch.getattr("Tensor")?.downcast_into::<PyType>()?.unbind());
    backend::connect(torch)
}

/// Checks that the argument `name` is a tensor that holds its values itself: a lazily negated one (the imaginary part
/// of a conjugate) does not.
pub(super) fn check(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    // `isinstance` would believe an object that only claims to be a tensor, as mocks do.
    let is_tensor = TENSOR.get().is_some_and(|of_torch| {
        // SAFETY: both are types.
        unsafe { ffi::PyType_IsSubtype(ffi::Py_TYPE(tensor.as_ptr()), of_torch.as_ptr().cast()) != 0 }
    });
    if !is_tensor {
        let got = tensor.get_type().name()?;
        return Err(PyTypeError::new_err(format!(
            "Expected argument `{name}` to be a tensor, but got {got}."
        )));
    }
    if tensor.call_method0(intern!(tensor.py(), "is_neg"))?.is_truthy()? {
        return Err(View::not_in_memory(name).into());
    }
    Ok(())
}
