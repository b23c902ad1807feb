//! An array of any kind, as it lies in memory: what tensors and NumPy arrays become before they are typed.

use half::{bf16, f16};

use crate::rows::{Error, Rows, RowsMut, Targets};
use crate::simd::Element;

/// The element types that the kernels take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
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
    /// One that they do not take.
    Other,
}

impl Dtype {
    pub(super) fn size(self) -> usize {
        match self {
            Dtype::I8 | Dtype::U8 | Dtype::Other => 1,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }

    pub(super) fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16 | Dtype::F32 | Dtype::F64)
    }
}

/// A borrowed array. Its owner keeps the memory alive while the call lasts.
#[derive(Debug)]
pub(super) struct View {
    pub data: *mut u8,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In elements.
    pub strides: Vec<isize>,
}

// SAFETY: plain memory, which the kernels read or, where it was allocated for them, write.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// A contiguous one.
    pub(super) fn contiguous(data: *mut u8, dtype: Dtype, shape: Vec<usize>) -> View {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1) as isize;
        }
        View { data, dtype, shape, strides }
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// A tensor may only stand for its shape.
    pub(super) fn has_memory(&self) -> bool {
        !self.data.is_null() || self.len() == 0
    }

    /// # Safety
    ///
    /// `E` is the type that `dtype` names.
    pub(super) unsafe fn rows<E: Element>(&self, class_axis: usize) -> Rows<'_, E> {
        // SAFETY: the owner describes its own memory.
        unsafe { Rows::from_raw(self.data.cast(), &self.shape, &self.strides, class_axis) }
    }

    /// # Safety
    ///
    /// `E` is the type that `dtype` names, and the memory is new: no one else's.
    pub(super) unsafe fn rows_mut<E: Element>(&self, class_axis: usize) -> RowsMut<'_, E> {
        // SAFETY: a fresh allocation of this shape.
        unsafe { RowsMut::from_raw(self.data.cast(), &self.shape, &self.strides, class_axis) }
    }

    /// The elements in order, as classes.
    pub(super) fn targets(&self, n_classes: usize, ignore_index: Option<i64>) -> Result<Targets, Error> {
        macro_rules! read {
            ($($dtype:ident $t:ty),*) => {
                match self.dtype {
                    // SAFETY: the type is the one that is named.
                    $(Dtype::$dtype => Targets::from_iter(unsafe { self.elements::<$t>() }, n_classes, ignore_index),)*
                    _ => Err(Error::r#type("Expected argument `target` to be of an integer type.")),
                }
            };
        }
        read!(I64 i64, I32 i32, I16 i16, I8 i8, U64 u64, U32 u32, U16 u16, U8 u8)
    }

    /// The elements in order, in double precision.
    pub(super) fn to_f64(&self) -> Result<Vec<f64>, Error> {
        macro_rules! read {
            ($($dtype:ident $t:ty),*) => {
                match self.dtype {
                    // SAFETY: the type is the one that is named.
                    $(Dtype::$dtype => Ok(unsafe { self.elements::<$t>() }.map(f64::from).collect()),)*
                    _ => Err(Error::r#type("Expected a floating-point type.")),
                }
            };
        }
        read!(F64 f64, F32 f32, F16 f16, Bf16 bf16)
    }

    /// # Safety
    ///
    /// `T` is the type that `dtype` names.
    unsafe fn elements<T: Copy>(&self) -> impl ExactSizeIterator<Item = T> {
        let data = self.data.cast::<T>().cast_const();
        let is_slice = self.strides == View::contiguous(self.data, self.dtype, self.shape.clone()).strides;
        (0..self.len()).map(move |i| {
            let (mut rest, mut offset) = (i, i as isize);
            if !is_slice {
                offset = 0;
                for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
                    offset += (rest % size) as isize * stride;
                    rest /= size;
                }
            }
            // SAFETY: i is below the number of elements, and the owner describes its own memory.
            unsafe { *data.offset(offset) }
        })
    }
}

/// A shape as Python prints it.
pub(super) fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    }
}
