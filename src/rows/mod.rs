//! Views of `(N, C)` arrays of any strides, class targets, and the error type.
//!
//! Everything that a kernel indexes with is validated here, once: a view cannot reach outside its array, and
//! every class in [`Targets`] is less than the number of classes.

mod buffers;
mod error;
mod targets;

pub(crate) use buffers::{collected, filled, with_room};
pub use error::Error;
pub use targets::{Index, Targets};

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use crate::simd::{Element, Real, prefetch};

/// The memory layout of the rows: all axes except the class axis, with adjacent axes merged where possible.
#[derive(Clone, Debug)]
struct Layout {
    /// (size, stride) of the row axes, outermost first.
    axes: Vec<(usize, isize)>,
    n_rows: usize,
    n_classes: usize,
    class_stride: isize,
}

impl Layout {
    fn new(shape: &[usize], strides: &[isize], class_axis: usize) -> Layout {
        let mut axes: Vec<(usize, isize)> = Vec::with_capacity(1);
        let mut n_rows = 1;
        for (axis, (&size, &stride)) in shape.iter().zip(strides).enumerate() {
            if axis == class_axis {
                continue;
            }
            n_rows *= size;
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(outer) if outer.1 == stride * size as isize => *outer = (outer.0 * size, stride),
                _ => axes.push((size, stride)),
            }
        }
        Layout { axes, n_rows, n_classes: shape[class_axis], class_stride: strides[class_axis] }
    }

    /// The offset of row `i`, in elements.
    #[inline(always)]
    fn offset(&self, i: usize) -> isize {
        if let [(_, stride)] = self.axes[..] {
            return i as isize * stride;
        }
        let (mut rest, mut offset) = (i, 0);
        for &(size, stride) in self.axes.iter().rev() {
            offset += (rest % size) as isize * stride;
            rest /= size;
        }
        offset
    }

    /// Whether there is one column, which is contiguous.
    #[inline(always)]
    fn is_contiguous_column(&self) -> bool {
        self.n_classes == 1 && matches!(self.axes[..], [(_, 1)])
    }

    /// Whether each row is contiguous.
    #[inline(always)]
    fn has_slices(&self) -> bool {
        self.class_stride == 1 || self.n_classes == 1
    }
}

/// Whether predictions are logits or probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Logits z, where p = softmax(z). Gradients are with respect to z.
    Logits,
    /// Probabilities. Losses normalize each row to sum to 1; gradients are with respect to the values passed.
    /// The loss of a row with a negative or infinite value, or with only zeros, is NaN, or 0 if the target is the
    /// set of all classes.
    Probabilities,
}

/// A read-only view of an array as N rows of C classes; the class axis and the strides are arbitrary.
#[derive(Clone, Debug)]
pub struct Rows<'a, E> {
    data: *const E,
    layout: Layout,
    borrowed: PhantomData<&'a [E]>,
}

// SAFETY: equivalent to `&[E]`.
unsafe impl<E: Sync> Send for Rows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Rows<'_, E> {}

impl<'a, E: Copy> Rows<'a, E> {
    /// A contiguous array of rows of `n_classes` elements.
    pub fn from_slice(data: &'a [E], n_classes: usize) -> Result<Self, Error> {
        if n_classes == 0 || !data.len().is_multiple_of(n_classes) {
            return Err(Error::value(format!(
                "Expected argument `data` to hold rows of {n_classes} classes, at least 1, but got {} elements.",
                data.len()
            )));
        }
        let shape = [data.len() / n_classes, n_classes];
        // SAFETY: the shape and strides describe the slice.
        Ok(unsafe { Rows::from_raw(data.as_ptr(), &shape, &[n_classes as isize, 1], 1) })
    }

    /// A view of raw memory; `strides` are in elements.
    ///
    /// # Safety
    ///
    /// Every element that `shape` and `strides` reach from `data` must be valid for reads during `'a`, and
    /// `class_axis` must be an axis of both.
    pub unsafe fn from_raw(data: *const E, shape: &[usize], strides: &[isize], class_axis: usize) -> Self {
        Rows { data, layout: Layout::new(shape, strides, class_axis), borrowed: PhantomData }
    }

    /// The number of rows, N.
    pub fn len(&self) -> usize {
        self.layout.n_rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of classes, C.
    pub fn n_classes(&self) -> usize {
        self.layout.n_classes
    }

    /// Whether each row is contiguous, so that [`Rows::slice`] returns it.
    pub(crate) fn has_slices(&self) -> bool {
        self.layout.has_slices()
    }

    /// A buffer for [`Rows::row`].
    pub(crate) fn scratch(&self) -> Result<Vec<E>, Error> {
        with_room(if self.has_slices() { 0 } else { self.n_classes() })
    }

    /// Row `i` as a slice; a row that is not contiguous is copied into `scratch`.
    #[inline(always)]
    pub(crate) fn row<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> &'s [E] {
        assert!(i < self.len());
        let n_classes = self.layout.n_classes;
        // SAFETY: row i is inside the array, by the contract of `from_raw`.
        unsafe {
            let first = self.data.offset(self.layout.offset(i));
            if self.layout.has_slices() {
                return std::slice::from_raw_parts(first, n_classes);
            }
            scratch.clear();
            scratch.extend((0..n_classes).map(|k| *first.offset(k as isize * self.layout.class_stride)));
            scratch
        }
    }

    /// Some rows of one column as a slice, if they are contiguous.
    #[inline(always)]
    pub(crate) fn column(&self, rows: Range<usize>) -> Option<&[E]> {
        assert!(rows.start <= rows.end && rows.end <= self.len());
        // SAFETY: the rows are inside the array, by the contract of `from_raw`.
        self.layout
            .is_contiguous_column()
            .then(|| unsafe { std::slice::from_raw_parts(self.data.add(rows.start), rows.len()) })
    }

    /// Row `i`, if it exists and is contiguous.
    #[inline(always)]
    pub(crate) fn slice(&self, i: usize) -> Option<&[E]> {
        // SAFETY: row i is inside the array, by the contract of `from_raw`.
        (i < self.len() && self.has_slices()).then(|| unsafe {
            std::slice::from_raw_parts(self.data.offset(self.layout.offset(i)), self.n_classes())
        })
    }

    /// Writes `f` of the elements of row `i`, from class `k` on, to `out`; prefetches the same part of the next row.
    #[inline(always)]
    fn read<T>(&self, i: usize, k: usize, out: &mut [T], f: impl Fn(E) -> T) {
        assert!(i < self.len() && k <= self.n_classes() && out.len() <= self.n_classes() - k);
        if let Some(next) = self.slice(i + 1) {
            for line in next[k..k + out.len()].chunks(64 / size_of::<E>()) {
                prefetch(&line[0]);
            }
        }
        // SAFETY: row i is inside the array, by the contract of `from_raw`.
        unsafe {
            let first = self.data.offset(self.layout.offset(i) + k as isize * self.layout.class_stride);
            if self.layout.has_slices() {
                let part = std::slice::from_raw_parts(first, out.len());
                for (out, &x) in out.iter_mut().zip(part) {
                    *out = f(x);
                }
            } else {
                for (k, out) in out.iter_mut().enumerate() {
                    *out = f(*first.offset(k as isize * self.layout.class_stride));
                }
            }
        }
    }
}

/// [`Rows`] of an element type that is only known at run time.
#[derive(Clone, Debug)]
pub enum AnyRows<'a> {
    /// Boolean: any value other than 0 is true.
    Bool(Rows<'a, u8>),
    /// Single precision.
    F32(Rows<'a, f32>),
    /// Double precision.
    F64(Rows<'a, f64>),
    /// Half precision.
    F16(Rows<'a, f16>),
    /// bfloat16.
    Bf16(Rows<'a, bf16>),
}

impl AnyRows<'_> {
    /// (N, C)
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            AnyRows::Bool(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F32(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F64(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F16(rows) => (rows.len(), rows.n_classes()),
            AnyRows::Bf16(rows) => (rows.len(), rows.n_classes()),
        }
    }

    /// The largest accepted difference between the sum of a row of a target and 1. In every type it allows for a
    /// softmax that was computed in half precision.
    pub(crate) fn sum_tolerance(&self) -> f64 {
        match self {
            AnyRows::Bool(_) => f64::INFINITY,
            AnyRows::F32(_) | AnyRows::F64(_) => 5e-3,
            AnyRows::F16(_) => f16::SUM_TOLERANCE,
            AnyRows::Bf16(_) => bf16::SUM_TOLERANCE,
        }
    }

    /// Converts the elements of row `i`, from class `k` on, to `F` and writes them to `out`.
    #[inline(always)]
    pub(crate) fn read<F: Real>(&self, i: usize, k: usize, out: &mut [F]) {
        match self {
            AnyRows::Bool(rows) => rows.read(i, k, out, |x| F::from_f64(if x != 0 { 1.0 } else { 0.0 })),
            AnyRows::F32(rows) => rows.read(i, k, out, |x| F::from_f64(f64::from(x))),
            AnyRows::F64(rows) => rows.read(i, k, out, F::from_f64),
            AnyRows::F16(rows) => rows.read(i, k, out, |x| F::from_f64(f64::from(x.widen()))),
            AnyRows::Bf16(rows) => rows.read(i, k, out, |x| F::from_f64(f64::from(x.widen()))),
        }
    }
}

/// A mutable view of an array as N rows of C classes, in which several threads may write different rows.
#[derive(Debug)]
pub struct RowsMut<'a, E> {
    data: *mut E,
    layout: Layout,
    borrowed: PhantomData<&'a mut [E]>,
}

// SAFETY: equivalent to `&mut [E]`. It is not `Sync`, because rows are written through a shared reference.
unsafe impl<E: Element> Send for RowsMut<'_, E> {}

impl<'a, E: Element> RowsMut<'a, E> {
    /// A contiguous array of rows of `n_classes` elements.
    pub fn from_slice(data: &'a mut [E], n_classes: usize) -> Result<Self, Error> {
        let shape = [Rows::from_slice(data, n_classes)?.len(), n_classes];
        // SAFETY: the shape and strides describe the slice.
        Ok(unsafe { RowsMut::from_raw(data.as_mut_ptr(), &shape, &[n_classes as isize, 1], 1) })
    }

    /// A view of raw memory; `strides` are in elements.
    ///
    /// # Safety
    ///
    /// Every element that `shape` and `strides` reach from `data` must be valid for writes during `'a` and not be
    /// accessed in any other way, different indices must reach different elements, and `class_axis` must be an
    /// axis of both.
    pub unsafe fn from_raw(data: *mut E, shape: &[usize], strides: &[isize], class_axis: usize) -> Self {
        RowsMut { data, layout: Layout::new(shape, strides, class_axis), borrowed: PhantomData }
    }

    /// (N, C)
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.layout.n_rows, self.layout.n_classes)
    }

    /// A buffer for [`RowsMut::row`].
    pub(crate) fn scratch(&self) -> Result<Vec<E>, Error> {
        with_room(if self.layout.has_slices() { 0 } else { self.layout.n_classes })
    }

    /// Some rows of one column as a slice, if they are contiguous.
    ///
    /// # Safety
    ///
    /// No other thread may use these rows at the same time.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // safe by the contract
    pub(crate) unsafe fn column(&self, rows: Range<usize>) -> Option<&mut [E]> {
        assert!(rows.start <= rows.end && rows.end <= self.layout.n_rows);
        // SAFETY: the rows are inside the array, by the contract of `from_raw`, and no other thread uses them.
        self.layout
            .is_contiguous_column()
            .then(|| unsafe { std::slice::from_raw_parts_mut(self.data.add(rows.start), rows.len()) })
    }

    /// A slice to write row `i` to: the row itself if it is contiguous, else `scratch`, which [`RowsMut::finish`]
    /// copies to the row.
    ///
    /// # Safety
    ///
    /// No other thread may use row `i` at the same time.
    #[inline(always)]
    pub(crate) unsafe fn row<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> &'s mut [E] {
        assert!(i < self.layout.n_rows);
        let n_classes = self.layout.n_classes;
        if self.layout.has_slices() {
            // SAFETY: row i is inside the array, by the contract of `from_raw`, and no other thread uses it.
            return unsafe {
                std::slice::from_raw_parts_mut(self.data.offset(self.layout.offset(i)), n_classes)
            };
        }
        scratch.resize(n_classes, E::ZERO);
        scratch
    }

    /// Copies `scratch` to row `i` if the row is not contiguous; call it after writing the slice of
    /// [`RowsMut::row`].
    ///
    /// # Safety
    ///
    /// As for [`RowsMut::row`].
    #[inline(always)]
    pub(crate) unsafe fn finish(&self, i: usize, scratch: &[E]) {
        if self.layout.has_slices() {
            return;
        }
        assert!(i < self.layout.n_rows && scratch.len() == self.layout.n_classes);
        for (k, &value) in scratch.iter().enumerate() {
            // SAFETY: as in `row`.
            unsafe {
                let first = self.data.offset(self.layout.offset(i));
                *first.offset(k as isize * self.layout.class_stride) = value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rows_of_any_strides() {
        // (2, 3, 4) with the classes in the middle: eight rows of three.
        let data: Vec<f32> = (0..24).map(|i| i as f32).collect();
        // SAFETY: the strides of a contiguous array of that shape.
        let rows = unsafe { Rows::from_raw(data.as_ptr(), &[2, 3, 4], &[12, 4, 1], 1) };
        assert_eq!((rows.len(), rows.n_classes()), (8, 3));
        let mut scratch = Vec::new();
        for i in 0..8 {
            let first = (i / 4 * 12 + i % 4) as f32;
            assert_eq!(rows.row(i, &mut scratch), [first, first + 4.0, first + 8.0]);
        }
    }

    #[test]
    fn writes_rows_of_any_strides() {
        let mut data = vec![0.0_f64; 24];
        // SAFETY: the strides of a contiguous array of that shape; `data` is not used during the loop.
        let rows = unsafe { RowsMut::from_raw(data.as_mut_ptr(), &[2, 3, 4], &[12, 4, 1], 1) };
        let mut scratch = Vec::new();
        for i in 0..8 {
            // SAFETY: there is only one thread.
            unsafe {
                rows.row(i, &mut scratch).copy_from_slice(&[i as f64, 10.0, 20.0]);
                rows.finish(i, &scratch);
            }
        }
        assert_eq!(data[..8], [0.0, 1.0, 2.0, 3.0, 10.0, 10.0, 10.0, 10.0]);
        assert_eq!(data[12..16], [4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn rejects_incomplete_rows() {
        assert!(Rows::from_slice(&[0.0_f32; 5], 2).is_err());
        assert!(Rows::from_slice(&[0.0_f32; 5], 0).is_err());
        assert_eq!(Rows::<f32>::from_slice(&[], 7).unwrap().len(), 0);
    }
}
