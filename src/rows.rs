//! A validated view of `(N, C)` data, the class of each row, and what can be wrong with either.
//!
//! Everything that a kernel later indexes with is checked here, once: a view cannot reach outside its
//! array, and a class that [`Targets`] holds is below the number of classes.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use half::{bf16, f16};

use crate::simd::{Element, Real, prefetch};

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// An argument whose value is out of its range.
    Value(Cow<'static, str>),
    /// An argument of a type that the call does not take.
    Type(Cow<'static, str>),
    /// There is no memory for what the call needs.
    Memory {
        /// How much.
        bytes: usize,
    },
    /// A target that names no class.
    TargetOutOfRange {
        /// Of which argument.
        argument: &'static str,
        /// Which row, counted over the flattened targets.
        row: usize,
        /// The target.
        class: i128,
        /// The number of classes.
        n_classes: usize,
    },
    /// A row that is not what it should be.
    Row {
        /// Of which argument.
        argument: &'static str,
        /// Which row, counted over the flattened rows.
        row: usize,
        /// What the argument is to hold.
        why: Cow<'static, str>,
    },
    /// What torch itself refused.
    #[cfg(feature = "tch")]
    Torch(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value(message) | Error::Type(message) => f.write_str(message),
            #[cfg(feature = "tch")]
            Error::Torch(reason) => write!(f, "torch: {reason}"),
            Error::Memory { bytes } => write!(f, "Could not allocate {bytes} bytes."),
            Error::TargetOutOfRange { argument, row, class, n_classes } => write!(
                f,
                "Expected argument `{argument}` to hold classes in [0, {n_classes}), but got {class} at row {row}."
            ),
            Error::Row { argument, row, why } => {
                write!(f, "Expected argument `{argument}` to hold {why}, but row {row} does not.")
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// A value out of its range.
    pub fn value(message: impl Into<Cow<'static, str>>) -> Error {
        Error::Value(message.into())
    }

    /// The same of another argument.
    #[cfg(any(feature = "python", feature = "tch"))]
    pub(crate) fn named(mut self, name: &'static str) -> Error {
        if let Error::TargetOutOfRange { argument, .. } | Error::Row { argument, .. } = &mut self {
            *argument = name;
        }
        self
    }

    /// A type that the call does not take.
    pub fn r#type(message: impl Into<Cow<'static, str>>) -> Error {
        Error::Type(message.into())
    }
}

/// How the rows of an array lie in memory: all axes but the class axis, merged where they can be.
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

    /// Where row `i` begins, in elements.
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

    /// Whether a row is a slice.
    #[inline(always)]
    fn has_slices(&self) -> bool {
        self.class_stride == 1 || self.n_classes == 1
    }
}

/// What the rows of a prediction hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Logits z, with p = softmax(z); gradients are with respect to z.
    Logits,
    /// Probabilities, normalized to sum to 1; gradients are with respect to them. A row with a negative or an
    /// infinite number, or with only zeros, has loss NaN; against the set of all classes its loss is 0.
    Probabilities,
}

/// A borrowed array whose rows are read: (..., C) with the class axis anywhere and any strides.
#[derive(Clone, Debug)]
pub struct Rows<'a, E> {
    data: *const E,
    layout: Layout,
    borrowed: PhantomData<&'a [E]>,
}

// SAFETY: a shared borrow of plain numbers.
unsafe impl<E: Sync> Send for Rows<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Rows<'_, E> {}

impl<'a, E: Copy> Rows<'a, E> {
    /// Rows of `n_classes` numbers, one after the other.
    pub fn from_slice(data: &'a [E], n_classes: usize) -> Result<Self, Error> {
        if n_classes == 0 || !data.len().is_multiple_of(n_classes) {
            return Err(Error::value(format!(
                "Expected rows of {n_classes} classes, at least 1, but got {} numbers.",
                data.len()
            )));
        }
        let shape = [data.len() / n_classes, n_classes];
        // SAFETY: shape and strides are those of the slice.
        Ok(unsafe { Rows::from_raw(data.as_ptr(), &shape, &[n_classes as isize, 1], 1) })
    }

    /// # Safety
    ///
    /// For `'a`, every element that shape and strides (in elements) reach from `data` can be read, and
    /// `class_axis` is below the length of both.
    pub unsafe fn from_raw(data: *const E, shape: &[usize], strides: &[isize], class_axis: usize) -> Self {
        Rows { data, layout: Layout::new(shape, strides, class_axis), borrowed: PhantomData }
    }

    /// N
    pub fn len(&self) -> usize {
        self.layout.n_rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// C
    pub fn n_classes(&self) -> usize {
        self.layout.n_classes
    }

    /// Whether rows are slices of the array.
    pub(crate) fn has_slices(&self) -> bool {
        self.layout.has_slices()
    }

    /// Row `i` as a slice, gathered into `scratch` where the classes are not neighbours.
    #[inline(always)]
    pub(crate) fn row<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> &'s [E] {
        assert!(i < self.len());
        let n_classes = self.layout.n_classes;
        // SAFETY: row i lies inside the array, by the contract of `from_raw`.
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

    /// Row `i` if there is one, and it is a slice.
    #[inline(always)]
    pub(crate) fn slice(&self, i: usize) -> Option<&[E]> {
        // SAFETY: row i lies inside the array, by the contract of `from_raw`.
        (i < self.len() && self.has_slices()).then(|| unsafe {
            std::slice::from_raw_parts(self.data.offset(self.layout.offset(i)), self.n_classes())
        })
    }

    /// Row `i` from class `k` on into `out`, each element by `f`; the same of the next row is brought near.
    #[inline(always)]
    fn read<T>(&self, i: usize, k: usize, out: &mut [T], f: impl Fn(E) -> T) {
        assert!(i < self.len() && k <= self.n_classes() && out.len() <= self.n_classes() - k);
        if let Some(next) = self.slice(i + 1) {
            for line in next[k..k + out.len()].chunks(64 / size_of::<E>()) {
                prefetch(&line[0]);
            }
        }
        // SAFETY: row i lies inside the array, by the contract of `from_raw`.
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

/// Rows whose element type is known at run time only: what a target holds for every class.
#[derive(Clone, Debug)]
pub enum AnyRows<'a> {
    /// Whether a class belongs to the set: not 0.
    Bool(Rows<'a, u8>),
    /// Probabilities, as are the others.
    F32(Rows<'a, f32>),
    #[allow(missing_docs)]
    F64(Rows<'a, f64>),
    #[allow(missing_docs)]
    F16(Rows<'a, f16>),
    #[allow(missing_docs)]
    Bf16(Rows<'a, bf16>),
}

impl AnyRows<'_> {
    /// N and C
    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            AnyRows::Bool(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F32(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F64(rows) => (rows.len(), rows.n_classes()),
            AnyRows::F16(rows) => (rows.len(), rows.n_classes()),
            AnyRows::Bf16(rows) => (rows.len(), rows.n_classes()),
        }
    }

    /// How far from 1 the sum of a row may be.
    pub(crate) fn sum_tolerance(&self) -> f64 {
        match self {
            AnyRows::Bool(_) => f64::INFINITY,
            AnyRows::F32(_) => f32::SUM_TOLERANCE,
            AnyRows::F64(_) => f64::SUM_TOLERANCE,
            AnyRows::F16(_) => f16::SUM_TOLERANCE,
            AnyRows::Bf16(_) => bf16::SUM_TOLERANCE,
        }
    }

    /// Row `i` from class `k` on into `out`.
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

/// A borrowed array whose rows are written, each by one thread.
#[derive(Debug)]
pub struct RowsMut<'a, E> {
    data: *mut E,
    layout: Layout,
    borrowed: PhantomData<&'a mut [E]>,
}

// SAFETY: an exclusive borrow of plain numbers. Not Sync: what computes with a shared reference writes the rows.
unsafe impl<E: Element> Send for RowsMut<'_, E> {}

impl<'a, E: Element> RowsMut<'a, E> {
    /// Rows of `n_classes` numbers, one after the other.
    pub fn from_slice(data: &'a mut [E], n_classes: usize) -> Result<Self, Error> {
        let shape = [Rows::from_slice(data, n_classes)?.len(), n_classes];
        // SAFETY: shape and strides are those of the slice.
        Ok(unsafe { RowsMut::from_raw(data.as_mut_ptr(), &shape, &[n_classes as isize, 1], 1) })
    }

    /// # Safety
    ///
    /// For `'a`, every element that shape and strides (in elements) reach from `data` can be written, by
    /// nobody else, no two indices reach the same one, and `class_axis` is below the length of both.
    pub unsafe fn from_raw(data: *mut E, shape: &[usize], strides: &[isize], class_axis: usize) -> Self {
        RowsMut { data, layout: Layout::new(shape, strides, class_axis), borrowed: PhantomData }
    }

    /// N and C
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.layout.n_rows, self.layout.n_classes)
    }

    /// A place to write row `i` to: the row itself, or `scratch`, which [`RowsMut::finish`] then scatters.
    ///
    /// # Safety
    ///
    /// No other thread uses row `i`.
    #[inline(always)]
    pub(crate) unsafe fn row<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> &'s mut [E] {
        assert!(i < self.layout.n_rows);
        let n_classes = self.layout.n_classes;
        if self.layout.has_slices() {
            // SAFETY: row i lies inside the array, by the contract of `from_raw`, and is the caller's alone.
            return unsafe {
                std::slice::from_raw_parts_mut(self.data.offset(self.layout.offset(i)), n_classes)
            };
        }
        scratch.resize(n_classes, E::ZERO);
        scratch
    }

    /// Ends the writing of row `i`.
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

/// An integer type that class targets come in.
pub trait Index: Copy + Into<i128> {
    /// The class, if there are that many.
    fn class(self, n_classes: u32) -> Option<u32>;
}

macro_rules! index {
    ($($t:ty)*) => {$(
        impl Index for $t {
            #[inline(always)]
            fn class(self, n_classes: u32) -> Option<u32> {
                u32::try_from(self).ok().filter(|&class| class < n_classes)
            }
        }
    )*};
}

index!(i8 i16 i32 i64 u8 u16 u32 u64);

/// The class of each row, checked: a copy, so that no one can change a class after the check.
#[derive(Clone, Debug)]
pub struct Targets {
    classes: Vec<u32>,
    n_classes: usize,
}

/// Stands for a row that is not counted.
const IGNORED: u32 = u32::MAX;

impl Targets {
    /// Checks that every target is in [0, `n_classes`) or equals `ignore_index`.
    pub fn new<I: Index>(targets: &[I], n_classes: usize, ignore_index: i64) -> Result<Self, Error> {
        Targets::from_iter(targets.iter().copied(), n_classes, Some(ignore_index))
    }

    /// The same from any sequence; without an `ignore_index` every row counts.
    pub fn from_iter<I: Index>(
        targets: impl ExactSizeIterator<Item = I>,
        n_classes: usize,
        ignore_index: Option<i64>,
    ) -> Result<Self, Error> {
        if n_classes == 0 || n_classes >= IGNORED as usize {
            return Err(Error::value(format!(
                "Expected between 1 and {} classes, but got {n_classes}.",
                IGNORED - 1
            )));
        }
        let ignore_index = ignore_index.map(i128::from);
        let mut classes = Vec::new();
        // A tensor that is expanded may have far more rows than memory.
        classes
            .try_reserve_exact(targets.len())
            .map_err(|_| Error::Memory { bytes: targets.len().saturating_mul(size_of::<u32>()) })?;
        for (row, target) in targets.enumerate() {
            if ignore_index == Some(target.into()) {
                classes.push(IGNORED);
            } else if let Some(class) = target.class(n_classes as u32) {
                classes.push(class);
            } else {
                let (argument, class) = ("target", target.into());
                return Err(Error::TargetOutOfRange { argument, row, class, n_classes });
            }
        }
        Ok(Targets { classes, n_classes })
    }

    /// N
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// C
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The class of row `i`, or `None` where the row is not counted.
    #[inline(always)]
    pub fn class(&self, i: usize) -> Option<usize> {
        let class = self.classes[i];
        (class != IGNORED).then_some(class as usize)
    }

    /// The classes of the rows that count.
    pub fn counted(&self) -> impl Iterator<Item = usize> {
        self.classes.iter().filter(|&&c| c != IGNORED).map(|&c| c as usize)
    }

    /// That these are targets for `rows`.
    pub(crate) fn check_shape(&self, n_rows: usize, n_classes: usize) -> Result<(), Error> {
        if (self.len(), self.n_classes) == (n_rows, n_classes) {
            return Ok(());
        }
        Err(Error::value(format!(
            "Expected {n_rows} targets of {n_classes} classes, but got {} targets of {} classes.",
            self.len(),
            self.n_classes
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_layout_gives_the_same_rows() {
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
    fn written_rows_land_where_they_are_read() {
        let mut data = vec![0.0_f64; 24];
        // SAFETY: the strides of a contiguous array of that shape, borrowed mutably for the loop.
        let rows = unsafe { RowsMut::from_raw(data.as_mut_ptr(), &[2, 3, 4], &[12, 4, 1], 1) };
        let mut scratch = Vec::new();
        for i in 0..8 {
            // SAFETY: one thread.
            unsafe {
                rows.row(i, &mut scratch).copy_from_slice(&[i as f64, 10.0, 20.0]);
                rows.finish(i, &scratch);
            }
        }
        assert_eq!(data[..8], [0.0, 1.0, 2.0, 3.0, 10.0, 10.0, 10.0, 10.0]);
        assert_eq!(data[12..16], [4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn a_target_outside_the_classes_is_named() {
        let error = Targets::new(&[0_i64, 2, 1 << 40, -1], 3, -100).unwrap_err();
        assert_eq!(
            error,
            Error::TargetOutOfRange { argument: "target", row: 2, class: 1 << 40, n_classes: 3 }
        );
        assert!(Targets::new(&[u64::MAX], 3, -1).is_err());
        let targets = Targets::new(&[-100_i8, 2], 3, -100).unwrap();
        assert_eq!((targets.class(0), targets.class(1)), (None, Some(2)));
        assert_eq!(Targets::new(&[1_u8], 1, 1).unwrap().class(0), None);
    }

    #[test]
    fn rows_must_fill_the_slice() {
        assert!(Rows::from_slice(&[0.0_f32; 5], 2).is_err());
        assert!(Rows::from_slice(&[0.0_f32; 5], 0).is_err());
        assert_eq!(Rows::<f32>::from_slice(&[], 7).unwrap().len(), 0);
    }
}
