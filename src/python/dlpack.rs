//! Reads and makes torch tensors through DLPack's C exchange API.
//!
//! `torch.Tensor.__dlpack_c_exchange_api__` is a table of C functions, the same for every torch since 2.10
//! (DLPack 1.3, dmlc/dlpack include/dlpack/dlpack.h): with it one binary, linked to nothing of torch, sees
//! a tensor's memory, type, shape and strides in some tens of nanoseconds, and makes tensors.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use pyo3::exceptions::{PyImportError, PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyCapsule};
use pyo3::{ffi, intern};

use crate::memory::Lent;
use crate::untyped::{Dtype, View};

#[repr(C)]
#[derive(Clone, Copy)]
struct Version {
    major: u32,
    minor: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Device {
    kind: i32,
    id: i32,
}

const CPU: i32 = 1;
/// Host memory that a GPU can reach, which the processor reads as any other.
const CUDA_HOST: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const BOOL: u8 = 6;

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
pub(super) struct Managed {
    version: Version,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Tensor,
}

type SetError = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char);

#[repr(C)]
struct Api {
    version: Version,
    older: *const Api,
    allocate: unsafe extern "C" fn(*mut Tensor, *mut *mut Managed, *mut c_void, SetError) -> c_int,
    export: unsafe extern "C" fn(*mut c_void, *mut *mut Managed) -> c_int,
    import: unsafe extern "C" fn(*mut Managed, *mut *mut c_void) -> c_int,
    borrow: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
    stream: unsafe extern "C" fn(i32, i32, *mut *mut c_void) -> c_int,
}

// SAFETY: a table of functions that lives as long as the process (its specification).
unsafe impl Sync for Api {}
// SAFETY: as above.
unsafe impl Send for Api {}

static API: OnceLock<&'static Api> = OnceLock::new();

/// torch's own functions, for small tensors quicker than those of the table.
struct Torch {
    empty_like: Py<PyAny>,
    /// Of type float32 and float64.
    scalars: [Py<PyAny>; 2],
}

static TORCH: OnceLock<Torch> = OnceLock::new();

const MAJOR: u32 = 1;

/// Finds torch's table.
pub(super) fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    let missing = || {
        let version = torch.getattr("__version__").map(|v| v.to_string()).unwrap_or_default();
        PyImportError::new_err(format!("lr_relax needs torch 2.10 or later, but found {version}."))
    };
    let capsule = torch.getattr("Tensor")?.getattr("__dlpack_c_exchange_api__").map_err(|_| missing())?;
    let capsule = capsule.downcast::<PyCapsule>().map_err(|_| missing())?;
    // SAFETY: the name is the one the specification gives to a pointer to this table.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), c"dlpack_exchange_api".as_ptr()) };
    let Some(pointer) = NonNull::new(pointer.cast::<Api>()) else {
        return Err(PyErr::fetch(torch.py()));
    };
    // SAFETY: the table lives as long as the process; its header is the same in every version.
    let mut api = unsafe { pointer.as_ref() };
    while api.version.major != MAJOR {
        // SAFETY: as above; the chain of older tables ends with null.
        api = unsafe { api.older.as_ref() }.ok_or_else(missing)?;
    }
    api.borrow.ok_or_else(missing)?;
    let _ = API.set(api);
    let scalar = |dtype: &str| -> PyResult<Py<PyAny>> {
        // On the CPU, whatever the default device is at this moment.
        let options =
            [("dtype", torch.getattr(dtype)?), ("device", "cpu".into_pyobject(torch.py())?.into_any())];
        let scalar = torch.call_method("zeros", ((),), Some(&options.into_py_dict(torch.py())?))?;
        Ok(scalar.unbind())
    };
    let _ = TORCH.set(Torch {
        empty_like: torch.getattr("empty_like")?.unbind(),
        scalars: [scalar("float32")?, scalar("float64")?],
    });
    Ok(())
}

fn api() -> PyResult<&'static Api> {
    API.get().copied().ok_or_else(not_connected)
}

fn not_connected() -> PyErr {
    PyImportError::new_err("lr_relax._native is not connected to torch.")
}

fn dtype(dtype: DataType) -> Dtype {
    match (dtype.code, dtype.bits, dtype.lanes) {
        (FLOAT, 32, 1) => Dtype::F32,
        (FLOAT, 64, 1) => Dtype::F64,
        (FLOAT, 16, 1) => Dtype::F16,
        (BFLOAT, 16, 1) => Dtype::Bf16,
        (INT, 64, 1) => Dtype::I64,
        (INT, 32, 1) => Dtype::I32,
        (INT, 16, 1) => Dtype::I16,
        (INT, 8, 1) => Dtype::I8,
        (UINT, 64, 1) => Dtype::U64,
        (UINT, 32, 1) => Dtype::U32,
        (UINT, 16, 1) => Dtype::U16,
        (UINT, 8, 1) => Dtype::U8,
        (BOOL, 8, 1) => Dtype::Bool,
        _ => Dtype::Other,
    }
}

fn data_type(dtype: Dtype) -> DataType {
    let (code, bits) = match dtype {
        Dtype::F16 => (FLOAT, 16),
        Dtype::Bf16 => (BFLOAT, 16),
        Dtype::F32 => (FLOAT, 32),
        Dtype::F64 => (FLOAT, 64),
        _ => unreachable!("only losses and gradients are made"),
    };
    DataType { code, bits, lanes: 1 }
}

/// What `tensor`, the argument `name`, looks like in memory.
pub(super) fn borrow(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    let py = tensor.py();
    let mut view = borrow_raw(tensor, name)?;
    if view.dtype == Dtype::Other {
        view.other = tensor.getattr(intern!(py, "dtype"))?.to_string().into();
    }
    // A tensor may stand for minus its memory (the imaginary part of a conjugate).
    let is_plain = !(view.dtype.is_float() && tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()?);
    view.check_memory(name, is_plain)?;
    Ok(view)
}

fn borrow_raw(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    let py = tensor.py();
    let api = api()?;
    let mut out = Tensor {
        data: null_mut(),
        device: Device { kind: 0, id: 0 },
        ndim: 0,
        dtype: DataType { code: 0, bits: 0, lanes: 0 },
        shape: null_mut(),
        strides: null_mut(),
        byte_offset: 0,
    };
    // SAFETY: the function checks the type of the object, and fills `out` or sets an error.
    let status = unsafe { (api.borrow.expect("checked by connect"))(tensor.as_ptr().cast(), &mut out) };
    if status != 0 || (out.device.kind != CPU && out.device.kind != CUDA_HOST) {
        let cause = PyErr::take(py);
        return Err(not_borrowed(tensor, name, cause)?);
    }
    let axes = out.ndim as usize;
    // SAFETY: both point to `ndim` numbers that the tensor owns, or to nothing where there are none.
    let (shape, strides) = unsafe {
        let read = |p: *mut i64| {
            if axes == 0 { &[][..] } else { std::slice::from_raw_parts(p, axes) }
        };
        (read(out.shape), read(out.strides))
    };
    // Shape and strides are copied: another thread may resize the tensor.
    Ok(View {
        data: if out.data.is_null() {
            null_mut()
        } else {
            out.data.cast::<u8>().wrapping_add(out.byte_offset as usize)
        },
        dtype: dtype(out.dtype),
        other: "".into(),
        shape: shape.iter().map(|&n| n as usize).collect(),
        strides: strides.iter().map(|&s| s as isize).collect(),
    })
}

/// Why a tensor could not be read: the first of the reasons that holds.
#[cold]
fn not_borrowed(tensor: &Bound<'_, PyAny>, name: &str, cause: Option<PyErr>) -> PyResult<PyErr> {
    let what = tensor.get_type().name()?;
    if !tensor.hasattr("requires_grad")? {
        let message = format!("Expected argument `{name}` to be a tensor, but got {what}.");
        return Ok(PyTypeError::new_err(message));
    }
    let device = tensor.getattr("device")?;
    let why = match cause {
        Some(cause) if device.to_string() == "cpu" => {
            let cause = cause.value(tensor.py()).to_string();
            let cause = cause.lines().next().unwrap_or_default();
            format!("to be a dense tensor of real numbers, but got {what} ({cause})")
        }
        _ => format!("to be on cpu, the device of `input`, but got {device}"),
    };
    Ok(PyTypeError::new_err(format!("Expected argument `{name}` {why}.")))
}

unsafe extern "C" fn no_memory(_: *mut c_void, _: *const c_char, _: *const c_char) {}

/// A new tensor of the given type and shape, by `torch.empty_like`, with the strides of `model` where these
/// leave no gaps.
pub(super) fn empty_like<'py>(
    model: &Bound<'py, PyAny>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let torch = TORCH.get().ok_or_else(not_connected)?;
    let empty = torch.empty_like.bind(model.py()).call1((model,))?;
    match borrow_raw(&empty, "input") {
        Ok(view) if view.dtype == dtype && view.shape == shape && view.has_memory() => Ok((empty, view)),
        // A mode was at work: it made a tensor of another kind, or without memory.
        _ => allocate(model.py(), dtype, shape),
    }
}

/// A new scalar.
pub(super) fn empty_scalar(py: Python<'_>, dtype: Dtype) -> PyResult<(Bound<'_, PyAny>, View)> {
    let [single, double] = &TORCH.get().ok_or_else(not_connected)?.scalars;
    empty_like(if dtype == Dtype::F64 { double.bind(py) } else { single.bind(py) }, dtype, &[])
}

/// A new contiguous tensor, with torch's memory.
pub(super) fn allocate<'py>(
    py: Python<'py>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let api = api()?;
    let mut sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let mut prototype = Tensor {
        data: null_mut(),
        device: Device { kind: CPU, id: 0 },
        ndim: sizes.len() as i32,
        dtype: data_type(dtype),
        shape: sizes.as_mut_ptr(),
        strides: null_mut(),
        byte_offset: 0,
    };
    let mut managed = null_mut();
    // SAFETY: the prototype is filled as the function asks for.
    let status = unsafe { (api.allocate)(&mut prototype, &mut managed, null_mut(), no_memory) };
    if status != 0 || managed.is_null() {
        return Err(PyMemoryError::new_err(format!("Could not allocate a tensor of shape {shape:?}.")));
    }
    // SAFETY: a tensor of torch's making.
    let data = unsafe { (*managed).tensor.data.cast::<u8>() };
    // SAFETY: the tensor is handed over.
    let tensor = unsafe { import(py, api, managed) }?;
    Ok((tensor, View::contiguous(data, dtype, shape.to_vec())))
}

/// # Safety
///
/// `managed` is valid, and the caller's to give away.
unsafe fn import<'py>(py: Python<'py>, api: &Api, managed: *mut Managed) -> PyResult<Bound<'py, PyAny>> {
    let mut out = null_mut();
    // SAFETY: by this function's contract.
    if unsafe { (api.import)(managed, &mut out) } != 0 {
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new reference, or null with an error set.
    unsafe { Bound::from_owned_ptr_or_err(py, out.cast()) }
}

/// A contiguous tensor over lent memory, which comes back when torch is done with it.
pub(super) fn adopt<'py>(
    py: Python<'py>,
    block: Lent,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let api = api()?;
    let data = block.data();
    let view = View::contiguous(data, dtype, shape.to_vec());
    let mut owned = Box::new(Owned {
        managed: Managed {
            version: Version { major: MAJOR, minor: 0 },
            context: null_mut(),
            deleter: Some(drop_owned),
            flags: 0,
            tensor: Tensor {
                data: data.cast(),
                device: Device { kind: CPU, id: 0 },
                ndim: shape.len() as i32,
                dtype: data_type(dtype),
                shape: null_mut(),
                strides: null_mut(),
                byte_offset: 0,
            },
        },
        shape: shape.iter().map(|&n| n as i64).collect(),
        strides: view.strides.iter().map(|&s| s as i64).collect(),
        _block: block,
    });
    owned.managed.tensor.shape = owned.shape.as_mut_ptr();
    owned.managed.tensor.strides = owned.strides.as_mut_ptr();
    // `managed` comes first, so a pointer to it is a pointer to the whole.
    let managed = Box::into_raw(owned).cast::<Managed>();
    // SAFETY: complete, and given away.
    let tensor = unsafe { import(py, api, managed) }?;
    Ok((tensor, view))
}

#[repr(C)]
struct Owned {
    managed: Managed,
    shape: Vec<i64>,
    strides: Vec<i64>,
    _block: Lent,
}

unsafe extern "C" fn drop_owned(managed: *mut Managed) {
    // SAFETY: torch calls this once, with what `adopt` gave it.
    drop(unsafe { Box::from_raw(managed.cast::<Owned>()) });
}
