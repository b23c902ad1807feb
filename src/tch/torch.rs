//! What tch does not offer: a view of a tensor's memory, tensors over memory of ours, and functions with a
//! backward of their own. The Rust side of torch.cpp.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

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

/// As torch numbers them, c10/core/DeviceType.h.
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
    keep_graph: bool,
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

/// "lr_relax is built for torch " and the release; kept, so that it can be read off the file.
#[used]
static BUILT_FOR: &c_char = {
    // SAFETY: only its address is taken.
    unsafe { &lr_relax_built_for }
};

/// Lets torch's own threads do the work.
pub(super) fn connect_threads() {
    const PARALLEL_FOR: TorchParallelFor = torch_parallel_for;
    // SAFETY: torch's own function; torch is linked, and so never unloaded.
    unsafe { use_torch(PARALLEL_FOR) };
}

/// The reason of the failure that was just reported on this thread.
#[cold]
fn failure() -> Error {
    // SAFETY: a string that lasts until the next failure on this thread.
    let reason = unsafe { CStr::from_ptr(lr_relax_error()) }.to_string_lossy();
    Error::Torch(reason.lines().next().unwrap_or_default().to_owned())
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Error {
        let reason = match &error {
            tch::TchError::Torch(reason) => reason.clone(),
            other => other.to_string(),
        };
        Error::Torch(reason.lines().next().unwrap_or_default().to_owned())
    }
}

/// torch's scalar types, c10/core/ScalarType.h.
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

/// A tensor's type and shape, and where it lies in memory that the processor reads.
pub(crate) struct Borrowed {
    /// Without data, if the tensor is not on the CPU.
    pub view: View,
    pub device: Device,
}

/// What `tensor`, the argument `name`, looks like.
pub(crate) fn view(tensor: &Tensor, name: &str) -> Result<Borrowed, Error> {
    let mut raw = RawView {
        data: null_mut(),
        sizes: null_mut(),
        strides: null_mut(),
        dim: 0,
        scalar_type: 0,
        device: Device { kind: 0, index: 0 },
        is_plain: false,
    };
    // SAFETY: a tensor, and a place for the answer.
    if !unsafe { lr_relax_view(tensor.as_ptr(), &mut raw) } {
        let Error::Torch(reason) = failure() else { unreachable!() };
        return Err(Error::r#type(format!(
            "Expected argument `{name}` to be a dense tensor of real numbers ({reason})."
        )));
    }
    // SAFETY: both point to `dim` numbers that the tensor owns, or to nothing where there are none.
    let read = |p: *const i64| unsafe {
        if raw.dim == 0 { &[][..] } else { std::slice::from_raw_parts(p, raw.dim) }
    };
    let dtype = DTYPES.iter().find(|(code, _)| *code == raw.scalar_type).map(|&(_, dtype)| dtype);
    let other = match (dtype, raw.scalar_type) {
        (Some(_), _) => "",
        (None, 9) => "torch.complex64",
        (None, 10) => "torch.complex128",
        (None, 11) => "torch.bool",
        (None, _) => "another type",
    };
    let view = View {
        data: raw.data.cast_mut().cast(),
        dtype: dtype.unwrap_or(Dtype::Other),
        type_name: other.into(),
        shape: read(raw.sizes).iter().map(|&n| n as usize).collect(),
        strides: read(raw.strides).iter().map(|&s| s as isize).collect(),
    };
    if raw.device.is_cpu() {
        view.check_memory(name, raw.is_plain)?;
    }
    Ok(Borrowed { view, device: raw.device })
}

fn scalar_type(dtype: Dtype) -> i32 {
    DTYPES.iter().find(|&&(_, d)| d == dtype).expect("every type but Other is in the table").0
}

unsafe extern "C" fn drop_box<T>(pointer: *mut c_void) {
    // SAFETY: made by `Box::into_raw`, and given back once.
    drop(unsafe { Box::from_raw(pointer.cast::<T>()) });
}

/// The tensor that a function of torch.cpp has made, or why it could not.
fn made(done: bool, tensor: *mut C_tensor) -> Result<Tensor, Error> {
    // SAFETY: where it is done, a new tensor, given to us.
    if done { Ok(unsafe { Tensor::from_ptr(tensor) }) } else { Err(failure()) }
}

/// A contiguous tensor over lent memory, which comes back when torch is done with it.
pub(crate) fn adopt(block: CachedBuffer, dtype: Dtype, shape: &[usize]) -> Result<Tensor, Error> {
    let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    let (data, owner) = (block.data(), Box::into_raw(Box::new(block)));
    let mut out = null_mut();
    // SAFETY: the memory is as large as the shape asks for, by the caller; the owner is given away.
    let done = unsafe {
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
    made(done, out)
}

/// A new contiguous tensor.
pub(crate) fn allocate(dtype: Dtype, shape: &[usize]) -> Result<Tensor, Error> {
    let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::f_empty(sizes, (kind(dtype), tch::Device::Cpu))?)
}

/// A new tensor of the same type and shape, with the same strides where these leave no gaps.
pub(crate) fn empty_like(model: &Tensor) -> Result<Tensor, Error> {
    Ok(model.f_detach()?.f_empty_like()?)
}

fn kind(dtype: Dtype) -> tch::Kind {
    match dtype {
        Dtype::F16 => tch::Kind::Half,
        Dtype::Bf16 => tch::Kind::BFloat16,
        Dtype::F32 => tch::Kind::Float,
        Dtype::F64 => tch::Kind::Double,
        _ => unreachable!("only losses and gradients are made"),
    }
}

/// Whether autograd wants a gradient with respect to `tensor`.
pub(super) fn needs_grad(tensor: &Tensor) -> bool {
    // SAFETY: a tensor.
    unsafe { lr_relax_needs_grad(tensor.as_ptr()) }
}

/// What a backward pass will do with the graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// The gradient must have a gradient itself.
    pub creates_graph: bool,
    /// Another backward pass may come.
    pub keeps_graph: bool,
}

/// How a precomputed loss tells its gradient.
pub(super) trait Backward: Send + Sync + 'static {
    /// The gradient with respect to the input, from the tensors that [`attach`] saved and the gradient with
    /// respect to the loss.
    fn backward(&self, saved: Vec<Tensor>, upstream: &Tensor, pass: Pass) -> Result<Tensor, Error>;
}

/// `loss` as a function of `input`; autograd asks `backward` for the gradient.
pub(super) fn attach<B: Backward>(
    loss: &Tensor,
    input: &Tensor,
    saved: &[Option<&Tensor>],
    backward: B,
) -> Result<Tensor, Error> {
    let saved: Vec<*const C_tensor> =
        saved.iter().map(|t| t.map_or(null_mut(), |t| t.as_ptr().cast_mut()).cast_const()).collect();
    let context = Box::into_raw(Box::new(backward)).cast();
    let mut out = null_mut();
    // SAFETY: tensors; and the closure, given away, with the functions of its type.
    let done = unsafe {
        lr_relax_attach(
            loss.as_ptr(),
            input.as_ptr(),
            saved.as_ptr(),
            saved.len(),
            context,
            call::<B>,
            drop_box::<B>,
            &mut out,
        )
    };
    made(done, out)
}

/// The gradient of `loss` with respect to `input`, times `upstream`, with a graph of its own.
///
/// Not by tch, whose backward pass begins at a product with `upstream`: through that it would go on to whatever
/// `upstream` depends on, which is the very function that asks.
pub(super) fn differentiable_gradient(
    loss: &Tensor,
    input: &Tensor,
    upstream: &Tensor,
) -> Result<Tensor, Error> {
    let mut out = null_mut();
    // SAFETY: tensors, and a place for the answer.
    let done = unsafe { lr_relax_gradient(loss.as_ptr(), input.as_ptr(), upstream.as_ptr(), &mut out) };
    made(done, out)
}

/// Calls a closure for C++.
unsafe extern "C" fn call<B: Backward>(
    context: *const c_void,
    saved: *const *mut C_tensor,
    n_saved: usize,
    upstream: *const C_tensor,
    creates_graph: bool,
    keeps_graph: bool,
    gradient: *mut *mut C_tensor,
) -> bool {
    // SAFETY: the saved tensors are ours from here on.
    let saved: Vec<Tensor> = unsafe { std::slice::from_raw_parts(saved, n_saved) }
        .iter()
        .map(|&tensor| unsafe { Tensor::from_ptr(tensor) })
        .collect();
    // SAFETY: what `attach` gave away, and a tensor.
    let result = catch_unwind(AssertUnwindSafe(|| unsafe {
        let upstream = Tensor::clone_from_ptr(upstream.cast_mut());
        (*context.cast::<B>()).backward(saved, &upstream, Pass { creates_graph, keeps_graph })
    }));
    let reason = match result {
        Ok(Ok(mut tensor)) => {
            // SAFETY: a place for a tensor, which is given away.
            unsafe { *gradient = tensor.as_mut_ptr() };
            std::mem::forget(tensor);
            return true;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the computation of the gradient panicked".to_owned(),
    };
    // SAFETY: a string of that length.
    unsafe { lr_relax_set_error(reason.as_ptr().cast(), reason.len()) };
    false
}
