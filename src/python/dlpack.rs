//! Views and creates torch tensors with DLPack's C exchange API.
//!
//! `torch.Tensor.__dlpack_c_exchange_api__`, available since torch 2.10, is a table of C functions (DLPack 1.3,
//! include/dlpack/dlpack.h of dmlc/dlpack). With it, one binary that is not linked to torch works with all releases.
//! It gets the memory, type, shape and strides of a tensor in less than 100 nanoseconds.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;

use pyo3::exceptions::{PyImportError, PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyCapsule};
use pyo3::{ffi, intern};

use crate::memory::CachedBuffer;
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
/// Pinned memory, which is accessible from the CPU.
const CUDA_HOST: i32 = 3;

#[repr(C)]
#[derive(Clone, Copy)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// Element types by the code (0 int, 1 uint, 2 float, 4 bfloat, 6 bool) and the bits of [`DataType`].
const DTYPES: [((u8, u8), Dtype); 13] = [
    ((2, 32), Dtype::F32),
    ((0, 64), Dtype::I64),
    ((2, 64), Dtype::F64),
    ((2, 16), Dtype::F16),
    ((4, 16), Dtype::Bf16),
    ((6, 8), Dtype::Bool),
    ((0, 32), Dtype::I32),
    ((0, 16), Dtype::I16),
    ((0, 8), Dtype::I8),
    ((1, 64), Dtype::U64),
    ((1, 32), Dtype::U32),
    ((1, 16), Dtype::U16),
    ((1, 8), Dtype::U8),
];

impl DataType {
    fn new(dtype: Dtype) -> DataType {
        let entry = DTYPES.iter().find(|&&(_, d)| d == dtype);
        let ((code, bits), _) = *entry.expect("the table has every type except Other");
        DataType { code, bits, lanes: 1 }
    }

    fn dtype(self) -> Dtype {
        let entry = DTYPES.iter().find(|&&(key, _)| key == (self.code, self.bits) && self.lanes == 1);
        entry.map_or(Dtype::Other, |&(_, dtype)| dtype)
    }
}

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

impl Tensor {
    /// A contiguous CPU tensor.
    fn new(data: *mut u8, dtype: Dtype, shape: &mut [i64]) -> Tensor {
        Tensor {
            data: data.cast(),
            device: Device { kind: CPU, id: 0 },
            ndim: shape.len() as i32,
            dtype: DataType::new(dtype),
            shape: shape.as_mut_ptr(),
            strides: null_mut(),
            byte_offset: 0,
        }
    }
}

#[repr(C)]
struct Managed {
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

// SAFETY: the table is constant and lives as long as the process, by its specification.
unsafe impl Sync for Api {}
// SAFETY: as above.
unsafe impl Send for Api {}

static API: OnceLock<&'static Api> = OnceLock::new();

/// Objects of torch that create small tensors faster than the table does.
struct Torch {
    empty_like: Py<PyAny>,
    /// Scalars of type float32 and float64, as prototypes for `empty_like`.
    scalars: [Py<PyAny>; 2],
}

static TORCH: OnceLock<Torch> = OnceLock::new();

/// The supported major version of DLPack.
const MAJOR: u32 = 1;

/// Looks up torch's table.
pub(super) fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    let missing = || {
        let version = torch.getattr("__version__").map(|v| v.to_string()).unwrap_or_default();
        PyImportError::new_err(format!("lr_relax needs torch 2.10 or later, but found {version}."))
    };
    let capsule = torch.getattr("Tensor")?.getattr("__dlpack_c_exchange_api__").map_err(|_| missing())?;
    let capsule = capsule.downcast::<PyCapsule>().map_err(|_| missing())?;
    // SAFETY: by the specification, the capsule of this name points to the table.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), c"dlpack_exchange_api".as_ptr()) };
    let Some(pointer) = NonNull::new(pointer.cast::<Api>()) else {
        return Err(PyErr::fetch(torch.py()));
    };
    // SAFETY: the table lives as long as the process; its first two fields are the same in every version.
    let mut api = unsafe { pointer.as_ref() };
    while api.version.major != MAJOR {
        // SAFETY: as above; the list of older tables ends with null.
        api = unsafe { api.older.as_ref() }.ok_or_else(missing)?;
    }
    api.borrow.ok_or_else(missing)?;
    let _ = API.set(api);
    let scalar = |dtype: &str| -> PyResult<Py<PyAny>> {
        // The default device may not be the CPU.
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

/// A view of `tensor`, the argument `name`.
pub(super) fn borrow(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    let py = tensor.py();
    let mut view = borrow_raw(tensor, name)?;
    if view.dtype == Dtype::Other {
        view.type_name = tensor.getattr(intern!(py, "dtype"))?.to_string().into();
    }
    view.check_memory(name)?;
    Ok(view)
}

fn borrow_raw(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<View> {
    let py = tensor.py();
    let api = api()?;
    let mut out = Tensor::new(null_mut(), Dtype::F32, &mut []);
    // SAFETY: the function checks the type of the object; it fills `out` or sets an exception.
    let status = unsafe { (api.borrow.expect("checked by connect"))(tensor.as_ptr().cast(), &mut out) };
    if status != 0 || (out.device.kind != CPU && out.device.kind != CUDA_HOST) {
        let cause = PyErr::take(py);
        return Err(not_borrowed(tensor, name, cause)?);
    }
    let axes = out.ndim as usize;
    // SAFETY: both arrays have `ndim` elements and belong to the tensor; the pointers may be null if `ndim` is 0.
    let (shape, strides) = unsafe {
        let read = |p: *mut i64| {
            if axes == 0 { &[][..] } else { std::slice::from_raw_parts(p, axes) }
        };
        (read(out.shape), read(out.strides))
    };
    // Copy shape and strides, because another thread may resize the tensor.
    Ok(View {
        data: if out.data.is_null() {
            null_mut()
        } else {
            out.data.cast::<u8>().wrapping_add(out.byte_offset as usize)
        },
        dtype: out.dtype.dtype(),
        type_name: "".into(),
        shape: shape.iter().map(|&n| n as usize).collect(),
        strides: strides.iter().map(|&s| s as isize).collect(),
    })
}

/// The error for an argument that is not a dense CPU tensor.
#[cold]
fn not_borrowed(tensor: &Bound<'_, PyAny>, name: &str, cause: Option<PyErr>) -> PyResult<PyErr> {
    let what = tensor.get_type().name()?;
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

/// A new tensor of the type and shape of `model`, not initialized; of the same strides if these are dense.
pub(super) fn empty_like<'py>(
    model: &Bound<'py, PyAny>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let torch = TORCH.get().ok_or_else(not_connected)?;
    let empty = torch.empty_like.bind(model.py()).call1((model,))?;
    match borrow_raw(&empty, "input") {
        Ok(view) if view.dtype == dtype && view.shape == shape && view.has_memory() => Ok((empty, view)),
        // A dispatch mode, such as `FakeTensorMode`, created another kind of tensor.
        _ => allocate(model.py(), dtype, shape),
    }
}

/// A new scalar tensor, not initialized.
pub(super) fn empty_scalar(py: Python<'_>, dtype: Dtype) -> PyResult<(Bound<'_, PyAny>, View)> {
    let [single, double] = &TORCH.get().ok_or_else(not_connected)?.scalars;
    empty_like(if dtype == Dtype::F64 { double.bind(py) } else { single.bind(py) }, dtype, &[])
}

/// A new contiguous tensor, not initialized.
pub(super) fn allocate<'py>(
    py: Python<'py>,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let api = api()?;
    let mut sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let mut prototype = Tensor::new(null_mut(), dtype, &mut sizes);
    let mut managed = null_mut();
    // SAFETY: the prototype is complete, and outlives the call.
    let status = unsafe { (api.allocate)(&mut prototype, &mut managed, null_mut(), no_memory) };
    if status != 0 || managed.is_null() {
        return Err(PyMemoryError::new_err(format!("Could not allocate a tensor of shape {shape:?}.")));
    }
    // SAFETY: the tensor is valid, and torch becomes its owner.
    let tensor = unsafe { import(py, api, managed) }?;
    let view = borrow_raw(&tensor, "output")?;
    let expected = View::contiguous(view.data, dtype, shape.to_vec());
    // A dispatch mode may have created another kind of tensor.
    if view.dtype != dtype || view.shape != expected.shape || !view.has_memory() {
        return Err(PyTypeError::new_err(
            "Expected torch to create a tensor in memory, which a mode prevents.",
        ));
    }
    Ok((tensor, expected))
}

/// The Python tensor of `managed`.
///
/// # Safety
///
/// `managed` must be valid. The Python tensor becomes its owner.
unsafe fn import<'py>(py: Python<'py>, api: &Api, managed: *mut Managed) -> PyResult<Bound<'py, PyAny>> {
    let mut out = null_mut();
    // SAFETY: by the contract of this function.
    if unsafe { (api.import)(managed, &mut out) } != 0 {
        return Err(PyErr::fetch(py));
    }
    // SAFETY: the pointer is a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, out.cast()) }
}

/// A contiguous tensor that owns a cached buffer, which must be large enough for the shape.
pub(super) fn adopt<'py>(
    py: Python<'py>,
    buffer: CachedBuffer,
    dtype: Dtype,
    shape: &[usize],
) -> PyResult<(Bound<'py, PyAny>, View)> {
    let api = api()?;
    let view = View::contiguous(buffer.data(), dtype, shape.to_vec());
    let mut shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let mut strides: Vec<i64> = view.strides.iter().map(|&s| s as i64).collect();
    let mut tensor = Tensor::new(view.data, dtype, &mut shape);
    tensor.strides = strides.as_mut_ptr();
    let version = Version { major: MAJOR, minor: 0 };
    let managed = Managed { version, context: null_mut(), deleter: Some(drop_owned), flags: 0, tensor };
    let owned = Owned { managed, _shape: shape, _strides: strides, _buffer: buffer };
    // SAFETY: `managed` is the first field of `Owned`, so a pointer to one is a pointer to the other.
    let tensor = unsafe { import(py, api, Box::into_raw(Box::new(owned)).cast()) }?;
    Ok((tensor, view))
}

/// A tensor with everything that its pointers refer to.
#[repr(C)]
struct Owned {
    managed: Managed,
    _shape: Vec<i64>,
    _strides: Vec<i64>,
    _buffer: CachedBuffer,
}

unsafe extern "C" fn drop_owned(managed: *mut Managed) {
    // SAFETY: torch calls this once, with the pointer that `adopt` passed.
    drop(unsafe { Box::from_raw(managed.cast::<Owned>()) });
}
