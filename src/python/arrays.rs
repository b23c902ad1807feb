//! Views of NumPy arrays.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::untyped::{Dtype, View};

use super::tensors;

/// See [`tensors::check`]. Borrowing a NumPy array runs no Python code.
pub(super) fn check(array: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    if array.downcast::<PyUntypedArray>().is_ok() { Ok(()) } else { tensors::check(array, name) }
}

/// A view of the argument `name`, a NumPy array or a torch tensor.
pub(super) fn borrow(array: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    let Ok(array) = array.downcast::<PyUntypedArray>() else {
        return tensors::borrow(array, name);
    };
    let descr = array.dtype();
    let dtype = match (descr.kind(), descr.itemsize()) {
        (b'f', 4) => Dtype::F32,
        (b'f', 8) => Dtype::F64,
        (b'f', 2) => Dtype::F16,
        (b'i', 8) => Dtype::I64,
        (b'i', 4) => Dtype::I32,
        (b'i', 2) => Dtype::I16,
        (b'i', 1) => Dtype::I8,
        (b'u', 8) => Dtype::U64,
        (b'u', 4) => Dtype::U32,
        (b'u', 2) => Dtype::U16,
        (b'u', 1) => Dtype::U8,
        _ => Dtype::Other,
    };
    let size = dtype.size() as isize;
    // SAFETY: `array` is a NumPy array, as checked above.
    let (data, flags) = unsafe { ((*array.as_array_ptr()).data, (*array.as_array_ptr()).flags) };
    let whole = array.strides().iter().all(|stride| stride % size == 0);
    let native = descr.byteorder() == b'=' || descr.byteorder() == b'|';
    if dtype != Dtype::Other && !(native && whole && flags & numpy::npyffi::NPY_ARRAY_ALIGNED != 0) {
        return Err(PyTypeError::new_err(format!(
            "Expected argument `{name}` to be an aligned array in native byte order; copy it with `numpy.array`."
        )));
    }
    Ok(View {
        data: data.cast(),
        dtype,
        type_name: descr.to_string().into(),
        shape: array.shape().to_vec(),
        strides: array.strides().iter().map(|stride| stride / size).collect(),
    })
}
