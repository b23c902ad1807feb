//! Operations that tch lacks: a view of a tensor's memory, a tensor that owns a cached buffer, and a custom
//! autograd function. Safe wrappers of torch.cpp.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{null, null_mut};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::memory::CachedBuffer;
use crate::rows::Error;
use crate::threads::{TorchParallelFor, use_torch};
use crate::untyped::{Dtype, View};

#[repr(C)]
struct RawView {
    data: *const c_void,
    sizes: *const i64,
    strides: *const i64,
    dim: usize,
    scalar_type: i32,
    device: Device,
    is_plain: bool,
}

/// A device; `kind` is a value of c10/core/DeviceType.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    kind: i32,
    index: i32,
}

impl Device {
    pub(crate) fn is_cpu(self) -> bool {
        self.kind == 0
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            0 => write!(f, "cpu"),
            1 => write!(f, "cuda:{}", self.index),
            13 => write!(f, "mps:{}", self.index),
            14 => write!(f, "meta"),
            kind => write!(f, "a device of type {kind}"),
        }
    }
}

type Drop = unsafe extern "C" fn(*mut c_void);

type RawBackward = unsafe extern "C" fn(
    context: *const c_void,
    saved: *const *mut C_tensor,
    n_saved: usize,
    upstream: *const C_tensor,
    create_graph: bool,
    retain_graph: bool,
    gradient: *mut *mut C_tensor,
) -> bool;

unsafe extern "C" {
    static lr_relax_built_for: c_char;
    fn lr_relax_error() -> *const c_char;
    fn lr_relax_set_error(text: *const c_char, length: usize);
    fn lr_relax_view(tensor: *const C_tensor, out: *mut RawView) -> bool;
    fn lr_relax_from_blob(
        data: *mut c_void,
        sizes: *const i64,
        dim: usize,
        scalar_type: i32,
        owner: *mut c_void,
        drop: Drop,
        out: *mut *mut C_tensor,
    ) -> bool;
    fn lr_relax_needs_grad(tensor: *const C_tensor) -> bool;
    fn lr_relax_attach(
        loss: *const C_tensor,
        input: *const C_tensor,
        saved: *const *const C_tensor,
        n_saved: usize,
        context: *mut c_void,
        call: RawBackward,
        drop: Drop,
        out: *mut *mut C_tensor,
    ) -> bool;
    fn lr_relax_gradient(
        loss: *const C_tensor,
        input: *const C_tensor,
        upstream: *const C_tensor,
        out: *mut *mut C_tensor,
    ) -> bool;
    fn torch_parallel_for(
        begin: i64,
        end: i64,
        grain: i64,
        work: unsafe extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32;
}

/// Keeps the string in the binary, where the Python package reads for which torch release it was built.
#[used]
static BUILT_FOR: &c_char = {
    // SAFETY: only the address is used.
    unsafe { &lr_relax_built_for }
};

/// Makes kernels run on torch's thread pool.
pub(super) fn connect_threads() {
    const PARALLEL_FOR: TorchParallelFor = torch_parallel_for;
    // SAFETY: this is torch's function, and torch is linked, so it is never unloaded.
    unsafe { use_torch(PARALLEL_FOR) };
}

/// The message of the last failure on this thread, without the C++ stack trace.
#[cold]
fn failure() -> String {
    // SAFETY: the string is valid until the next failure on this thread.
    first_line(&unsafe { CStr::from_ptr(lr_relax_error()) }.to_string_lossy())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Error {
        Error::Torch(match &error {
            tch::TchError::Torch(reason) => first_line(reason),
            error => first_line(&error.to_string()),
        })
    }
}

/// Element types by the values of c10/core/ScalarType.h.
const DTYPES: [(i32, Dtype); 13] = [
    (0, Dtype::U8),
    (1, Dtype::I8),
    (2, Dtype::I16),
    (3, Dtype::I32),
    (4, Dtype::I64),
    (5, Dtype::F16),
    (6, Dtype::F32),
    (7, Dtype::F64),
    (11, Dtype::Bool),
    (15, Dtype::Bf16),
    (27, Dtype::U16),
    (28, Dtype::U32),
    (29, Dtype::U64),
];

/// A view of a tensor, and its device.
pub(crate) struct Borrowed {
    /// The data is null if the tensor is not on the CPU.
    pub view: View,
    pub device: Device,
}

/// A view of `tensor`, the argument `name`.
pub(crate) fn view(tensor: &Tensor, name: &str) -> Result<Borrowed, Error> {
    let mut raw = RawView {
        data: null(),
        sizes: null(),
        strides: null(),
        dim: 0,
        scalar_type: 0,
        device: Device { kind: 0, index: 0 },
        is_plain: false,
    };
    // SAFETY: both pointers are valid.
    if !unsafe { lr_relax_view(tensor.as_ptr(), &mut raw) } {
        return Err(Error::r#type(format!(
            "Expected argument `{name}` to be a dense tensor of real numbers, but got one that {}.",
            failure()
        )));
    }
    // SAFETY: both arrays have `dim` elements and belong to the tensor; the pointers may be null if `dim` is 0.
    let read = |p: *const i64| unsafe {
        if raw.dim == 0 { &[][..] } else { std::slice::from_raw_parts(p, raw.dim) }
    };
    let dtype = DTYPES.iter().find(|(code, _)| *code == raw.scalar_type).map(|&(_, dtype)| dtype);
    let view = View {
        data: raw.data.cast_mut().cast(),
        dtype: dtype.unwrap_or(Dtype::Other),
        type_name: match raw.scalar_type {
            9 => "torch.complex64".into(),
            10 => "torch.complex128".into(),
            _ => "".into(),
        },
        shape: read(raw.sizes).iter().map(|&n| n as usize).collect(),
        strides: read(raw.strides).iter().map(|&s| s as isize).collect(),
    };
    if raw.device.is_cpu() {
        if !raw.is_plain {
            return Err(View::not_in_memory(name));
        }
        view.check_memory(name)?;
    }
    Ok(Borrowed { view, device: raw.device })
}

fn scalar_type(dtype: Dtype) -> i32 {
    DTYPES.iter().find(|&&(_, d)| d == dtype).expect("the table has every type except Other").0
}

unsafe extern "C" fn drop_box<T>(pointer: *mut c_void) {
    // SAFETY: the pointer comes from `Box::into_raw`, and C++ calls this once.
    drop(unsafe { Box::from_raw(pointer.cast::<T>()) });
}

/// The result of a function of torch.cpp that creates a tensor.
fn created(success: bool, tensor: *mut C_tensor) -> Result<Tensor, Error> {
    // SAFETY: on success this is a new tensor, which we own.
    if success { Ok(unsafe { Tensor::from_ptr(tensor) }) } else { Err(Error::Torch(failure())) }
}

/// A contiguous tensor that owns a cached buffer, which must be large enough for the shape.
pub(crate) fn adopt(block: CachedBuffer, dtype: Dtype, shape: &[usize]) -> Result<Tensor, Error> {
    let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let (data, owner) = (block.data(), Box::into_raw(Box::new(block)));
    let mut out = null_mut();
    // SAFETY: the buffer is large enough for the shape; the tensor becomes its owner.
    let success = unsafe {
        lr_relax_from_blob(
            data.cast(),
            sizes.as_ptr(),
            sizes.len(),
            scalar_type(dtype),
            owner.cast(),
            drop_box::<CachedBuffer>,
            &mut out,
        )
    };
    created(success, out)
}

/// A new contiguous tensor, not initialized.
pub(crate) fn allocate(dtype: Dtype, shape: &[usize]) -> Result<Tensor, Error> {
    let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let kind = match dtype {
        Dtype::F16 => tch::Kind::Half,
        Dtype::Bf16 => tch::Kind::BFloat16,
        Dtype::F32 => tch::Kind::Float,
        Dtype::F64 => tch::Kind::Double,
        _ => unreachable!("losses and gradients are floating-point"),
    };
    Ok(Tensor::f_empty(sizes, (kind, tch::Device::Cpu))?)
}

/// A new tensor, not initialized, of the same type and shape; of the same strides if these are dense.
pub(crate) fn empty_like(model: &Tensor) -> Result<Tensor, Error> {
    Ok(model.f_detach()?.f_empty_like()?)
}

/// Whether autograd needs the gradient with respect to `tensor`.
pub(super) fn needs_grad(tensor: &Tensor) -> bool {
    // SAFETY: the pointer is valid.
    unsafe { lr_relax_needs_grad(tensor.as_ptr()) }
}

/// The options of a backward pass, named as in torch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardMode {
    /// The gradient must be differentiable.
    pub create_graph: bool,
    /// The graph may be used again.
    pub retain_graph: bool,
}

/// Connects `loss` to `input` in the graph of autograd.
///
/// `backward` computes the gradient with respect to `input` from the saved tensors (undefined ones in place of
/// `None`) and the gradient with respect to the loss.
pub(super) fn attach<F>(
    loss: &Tensor,
    input: &Tensor,
    saved: &[Option<&Tensor>],
    backward: F,
) -> Result<Tensor, Error>
where
    F: Fn(Vec<Tensor>, &Tensor, BackwardMode) -> Result<Tensor, Error> + Send + Sync + 'static,
{
    let saved: Vec<*const C_tensor> = saved.iter().map(|t| t.map_or(null(), |t| t.as_ptr())).collect();
    let context = Box::into_raw(Box::new(backward)).cast();
    let mut out = null_mut();
    // SAFETY: all pointers are valid; C++ becomes the owner of the closure, whose type is that of both functions.
    let success = unsafe {
        lr_relax_attach(
            loss.as_ptr(),
            input.as_ptr(),
            saved.as_ptr(),
            saved.len(),
            context,
            call::<F>,
            drop_box::<F>,
            &mut out,
        )
    };
    created(success, out)
}

/// The gradient of `loss` with respect to `input`, times `upstream`, with a graph for further differentiation.
///
/// tch cannot compute it: its backward pass would start at the product of `loss` and `upstream`, and propagate to
/// everything that `upstream` depends on, which includes the function that calls this one.
pub(super) fn differentiable_gradient(
    loss: &Tensor,
    input: &Tensor,
    upstream: &Tensor,
) -> Result<Tensor, Error> {
    let mut out = null_mut();
    // SAFETY: all pointers are valid.
    let success = unsafe { lr_relax_gradient(loss.as_ptr(), input.as_ptr(), upstream.as_ptr(), &mut out) };
    created(success, out)
}

/// Calls the closure of [`attach`] from C++.
unsafe extern "C" fn call<F>(
    context: *const c_void,
    saved: *const *mut C_tensor,
    n_saved: usize,
    upstream: *const C_tensor,
    create_graph: bool,
    retain_graph: bool,
    gradient: *mut *mut C_tensor,
) -> bool
where
    F: Fn(Vec<Tensor>, &Tensor, BackwardMode) -> Result<Tensor, Error>,
{
    // SAFETY: C++ passes `n_saved` tensors, which we own from here on.
    let saved: Vec<Tensor> = unsafe { std::slice::from_raw_parts(saved, n_saved) }
        .iter()
        .map(|&tensor| unsafe { Tensor::from_ptr(tensor) })
        .collect();
    // SAFETY: `context` is the closure, and `upstream` a tensor.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe {
        let upstream = Tensor::clone_from_ptr(upstream.cast_mut());
        (*context.cast::<F>())(saved, &upstream, BackwardMode { create_graph, retain_graph })
    }));
    let reason = match result {
        Ok(Ok(mut tensor)) => {
            // SAFETY: the pointer is valid; C++ becomes the owner of the tensor.
            unsafe { *gradient = tensor.as_mut_ptr() };
            std::mem::forget(tensor);
            return true;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the computation of the gradient panicked".to_owned(),
    };
    // SAFETY: the string has this length.
    unsafe { lr_relax_set_error(reason.as_ptr().cast(), reason.len()) };
    false
}
