//! Arrays whose element type is only known at run time, and the kernels for them.
//!
//! The bindings (`python`, `tch`) convert their tensors to a [`View`]. All checks of arguments against each other are
//! here, so that all bindings raise the same errors.

pub(crate) mod losses;
pub(crate) mod metrics;
pub(crate) mod scale;

use std::borrow::Cow;
use std::ops::Range;
use std::ptr::NonNull;

use half::{bf16, f16};

use crate::rows::{AnyRows, Error, Rows, RowsMut, Targets, collected};
use crate::simd::Element;

/// The element types that the kernels support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
    /// Any other type.
    Other,
}

impl Dtype {
    /// The size of an element in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Dtype::I8 | Dtype::U8 | Dtype::Bool | Dtype::Other => 1,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }

    /// The type of losses, and of what a gradient of this floating-point type is computed in: single precision for half.
    pub(crate) fn wide(self) -> Dtype {
        if self == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
    }

    /// The name in PyTorch.
    fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "torch.float16",
            Dtype::Bf16 => "torch.bfloat16",
            Dtype::F32 => "torch.float32",
            Dtype::F64 => "torch.float64",
            Dtype::I8 => "torch.int8",
            Dtype::I16 => "torch.int16",
            Dtype::I32 => "torch.int32",
            Dtype::I64 => "torch.int64",
            Dtype::U8 => "torch.uint8",
            Dtype::U16 => "torch.uint16",
            Dtype::U32 => "torch.uint32",
            Dtype::U64 => "torch.uint64",
            Dtype::Bool => "torch.bool",
            Dtype::Other => "another type",
        }
    }
}

/// A borrowed array. Its owner must keep the memory alive during the call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub data: *mut u8,
    pub dtype: Dtype,
    /// The name of the element type in error messages; if empty, the name in PyTorch.
    pub type_name: Cow<'static, str>,
    pub shape: Vec<usize>,
    /// The strides in elements.
    pub strides: Vec<isize>,
}

// SAFETY: kernels only read the memory, or write it if it was allocated for them.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A contiguous array.
    pub(crate) fn contiguous(data: *mut u8, dtype: Dtype, shape: Vec<usize>) -> View {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
        }
        View { data, dtype, type_name: Cow::Borrowed(""), shape, strides }
    }

    /// The name of the element type.
    fn type_name(&self) -> &str {
        if self.type_name.is_empty() { self.dtype.name() } else { &self.type_name }
    }

    /// Whether a target of this type has a value per class: a set of classes (bool) or a distribution (float).
    pub(crate) fn is_dense(&self) -> bool {
        self.dtype.is_float() || self.dtype == Dtype::Bool
    }

    /// The rows of a target with a value per class.
    pub(crate) fn any_rows(&self, class_axis: usize) -> AnyRows<'_> {
        // SAFETY: each type is the one of `dtype`.
        unsafe {
            match self.dtype {
                Dtype::Bool => AnyRows::Bool(self.rows(class_axis)),
                Dtype::F32 => AnyRows::F32(self.rows(class_axis)),
                Dtype::F64 => AnyRows::F64(self.rows(class_axis)),
                Dtype::F16 => AnyRows::F16(self.rows(class_axis)),
                Dtype::Bf16 => AnyRows::Bf16(self.rows(class_axis)),
                _ => unreachable!("the target is dense"),
            }
        }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether different indices may reach the same element, as in an expanded array.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn repeats(&self) -> bool {
        if self.len() == 0 {
            return false;
        }
        let mut axes: Vec<_> = self
            .shape
            .iter()
            .zip(&self.strides)
            .filter(|&(&n, _)| n > 1)
            .map(|(&n, s)| (s.unsigned_abs(), n))
            .collect();
        axes.sort_unstable();
        // From the innermost axis outwards, each stride must exceed the extent of all inner axes.
        let mut reach = 0;
        axes.iter().any(|&(stride, n)| {
            let inside = stride <= reach;
            reach += stride * (n - 1);
            inside
        })
    }

    /// Whether two arrays may share memory, because their address ranges overlap.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        let (a, b) = (self.addresses(), other.addresses());
        a.start < b.end && b.start < a.end
    }

    fn addresses(&self) -> Range<usize> {
        if self.len() == 0 {
            return 0..0;
        }
        let (mut first, mut last) = (self.data.addr(), self.data.addr());
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = stride.unsigned_abs() * (n - 1) * self.dtype.size();
            if stride < 0 { first -= reach } else { last += reach }
        }
        first..last + self.dtype.size()
    }

    /// Whether the array has data. Meta tensors, for example, only have a shape.
    pub(crate) fn has_memory(&self) -> bool {
        !self.data.is_null() || self.len() == 0
    }

    /// The error for a lazy view, such as one that negates its memory, or a tensor without memory.
    pub(crate) fn not_in_memory(name: &str) -> Error {
        Error::r#type(format!(
            "Expected argument `{name}` to be a tensor that holds its values in memory, but got a lazy view or a \
             tensor without data; call `.resolve_neg()` or `.clone()`."
        ))
    }

    /// Checks that the memory of the argument `name` exists and is aligned.
    pub(crate) fn check_memory(&self, name: &str) -> Result<(), Error> {
        if !self.has_memory() {
            return Err(View::not_in_memory(name));
        }
        if !self.data.addr().is_multiple_of(self.dtype.size()) {
            return Err(Error::r#type(format!(
                "Expected argument `{name}` to be aligned to a multiple of its element size; call `.clone()`."
            )));
        }
        Ok(())
    }

    /// A view of the rows.
    ///
    /// # Safety
    ///
    /// `E` must be the type of `dtype`.
    pub(crate) unsafe fn rows<E: Copy>(&self, class_axis: usize) -> Rows<'_, E> {
        // SAFETY: shape and strides are those of the owner.
        unsafe { Rows::from_raw(self.data.cast(), &self.shape, &self.strides, class_axis) }
    }

    /// A mutable view of the rows.
    ///
    /// # Safety
    ///
    /// `E` must be the type of `dtype`, and nothing else may use the memory.
    pub(crate) unsafe fn rows_mut<E: Element>(&self, class_axis: usize) -> RowsMut<'_, E> {
        // SAFETY: shape and strides are those of the owner; the rest is the contract of this function.
        unsafe { RowsMut::from_raw(self.data.cast(), &self.shape, &self.strides, class_axis) }
    }

    /// The elements as a slice.
    ///
    /// # Safety
    ///
    /// `T` must be the type of `dtype`, the array must be contiguous, and nothing else may use the memory.
    #[allow(clippy::mut_from_ref)] // safe by the contract
    pub(crate) unsafe fn elements_mut<T>(&self) -> &mut [T] {
        let data = if self.len() == 0 { NonNull::dangling().as_ptr() } else { self.data.cast() };
        // SAFETY: by the contract of this function.
        unsafe { std::slice::from_raw_parts_mut(data, self.len()) }
    }

    /// The elements in row-major order, as class targets.
    pub(crate) fn targets(
        &self,
        name: &'static str,
        n_classes: usize,
        ignore_index: Option<i64>,
    ) -> Result<Targets, Error> {
        macro_rules! read {
            ($($dtype:ident $t:ty),*) => {
                match self.dtype {
                    $(Dtype::$dtype => {
                        // SAFETY: each type is the one of `dtype`.
                        let elements = unsafe { self.elements::<$t>() }?;
                        Targets::from_iter(elements.iter().copied(), n_classes, ignore_index)
                            .map_err(|error| error.named(name))
                    })*
                    _ => Err(Error::r#type(format!(
                        "Expected argument `{name}` to hold class indices of an integer type, but got {}.",
                        self.type_name()
                    ))),
                }
            };
        }
        read!(I64 i64, I32 i32, I16 i16, I8 i8, U64 u64, U32 u32, U16 u16, U8 u8)
    }

    /// The elements in row-major order, which are 0 or 1 in whatever type, as class targets.
    pub(crate) fn binary_targets(&self, name: &'static str) -> Result<Targets, Error> {
        fn read<T: Copy + Into<f64>>(elements: Result<Cow<'_, [T]>, Error>) -> Result<Targets, Error> {
            let class = |x: f64| if x == 1.0 { 1_u8 } else { 2 * u8::from(x != 0.0) };
            Targets::from_iter(elements?.iter().map(|&x| class(x.into())), 2, None)
        }
        let targets = match self.dtype {
            // SAFETY: each type is the one of `dtype`.
            Dtype::F32 => read(unsafe { self.elements::<f32>() }),
            // SAFETY: as above.
            Dtype::F64 => read(unsafe { self.elements::<f64>() }),
            // SAFETY: as above.
            Dtype::F16 => read(unsafe { self.elements::<f16>() }),
            // SAFETY: as above.
            Dtype::Bf16 => read(unsafe { self.elements::<bf16>() }),
            // SAFETY: as above.
            Dtype::Bool => read(unsafe { self.elements::<u8>() }),
            _ => self.targets(name, 2, None),
        };
        targets.map_err(|error| {
            let Error::TargetOutOfRange { row, class, .. } = error else { return error };
            let got = if self.dtype.is_float() {
                self.to_f64().map(|numbers| numbers[row].to_string()).unwrap_or_default()
            } else {
                class.to_string()
            };
            Error::value(format!(
                "Expected argument `{name}` to hold 0 and 1 only, but got {got} at row {row}."
            ))
        })
    }

    /// The elements in row-major order, in double precision.
    pub(crate) fn to_f64(&self) -> Result<Vec<f64>, Error> {
        fn read<T: Copy + Into<f64>>(elements: &[T]) -> Result<Vec<f64>, Error> {
            collected(elements.iter().map(|&x| x.into()))
        }
        macro_rules! read {
            ($($dtype:ident $t:ty),*) => {
                match self.dtype {
                    // SAFETY: each type is the one of `dtype`.
                    $(Dtype::$dtype => read(&unsafe { self.elements::<$t>() }?),)*
                    _ => Err(Error::r#type("Expected a floating-point type.")),
                }
            };
        }
        read!(F64 f64, F32 f32, F16 f16, Bf16 bf16)
    }

    /// The elements in row-major order; a copy of them unless they lie in this order, one after another.
    ///
    /// # Safety
    ///
    /// `T` must be the type of `dtype`.
    unsafe fn elements<T: Copy>(&self) -> Result<Cow<'_, [T]>, Error> {
        if self.len() == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let data = self.data.cast::<T>().cast_const();
        if self.strides == View::contiguous(self.data, self.dtype, self.shape.clone()).strides {
            // SAFETY: as many elements as the shape says lie there one after another.
            return Ok(Cow::Borrowed(unsafe { std::slice::from_raw_parts(data, self.len()) }));
        }
        let elements = (0..self.len()).map(|i| {
            let (mut rest, mut offset) = (i, 0);
            for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
                offset += (rest % size) as isize * stride;
                rest /= size;
            }
            // SAFETY: the index is less than the number of elements; shape and strides are those of the owner.
            unsafe { *data.offset(offset) }
        });
        collected(elements).map(Cow::Owned)
    }
}

/// A shape in the notation of Python.
pub(crate) fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
