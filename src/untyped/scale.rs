//! The product of a gradient and the gradient that arrives from above, a number for all rows or one for each.
//!
//! torch's own product would wait forever in a forked child whose parent has used torch's threads.

use half::{bf16, f16};

use super::losses::{Numbers, check_numbers, with_float, without};
use super::{Dtype, View};
use crate::rows::Error;
use crate::simd::{self, Element, Isa, Kernel, Real};
use crate::threads::{self, Tiles};

/// The largest number of elements in a run.
const RUN: usize = 4096;

/// Writes `from` times `upstream` to `to`, which may be `from` itself.
///
/// # Safety
///
/// The views describe memory that exists. Different indices reach different elements of `to`, and nothing else uses it.
pub(crate) unsafe fn scale(from: &View, to: &View, upstream: Numbers<'_>, dim: i64) -> Result<(), Error> {
    let axes = from.shape.len() as i64;
    if !from.dtype.is_float() || !(-axes..axes).contains(&dim) {
        return Err(Error::value("Expected a gradient of a floating-point type with the dimension `dim`."));
    }
    if to.dtype != from.dtype || to.shape != from.shape || !to.has_memory() {
        return Err(Error::r#type("Expected an output in memory of the type and the shape of the gradient."));
    }
    let class_axis = dim.rem_euclid(axes) as usize;
    let mut strides = vec![0; from.shape.len()];
    if let Numbers::Each(upstream) = upstream {
        check_numbers("upstream", upstream, &without(&from.shape, class_axis))?;
        if upstream.overlaps(to) {
            return Err(Error::r#type("Expected argument `upstream` not to share memory with the output."));
        }
        if upstream.dtype != from.dtype.wide() {
            return Err(Error::r#type("Expected the gradient of the losses to be of their type."));
        }
        if !upstream.shape.is_empty() {
            strides = upstream.strides.clone();
            strides.insert(class_axis, 0);
        }
    }
    if from.len() == 0 {
        return Ok(());
    }
    let runs = Runs::new(from, to, &strides);
    with_float!(from.dtype, E => {
        let number;
        let numbers = match upstream {
            Numbers::Same(x) => {
                number = <<E as Element>::Wide as Real>::from_f64(x);
                &raw const number
            }
            Numbers::Each(view) => view.data.cast_const().cast(), // of the type `Wide`, as checked above
        };
        let arrays = Arrays::<E> { to: to.data.cast(), from: from.data.cast_const().cast(), numbers };
        let tiles = Tiles::new(runs.len(), runs.length);
        threads::parallel_for(tiles.len(), &|range| {
            let product = Product { arrays: &arrays, runs: &runs, range: tiles.rows(range) };
            simd::run(Isa::best(), product);
        });
    });
    Ok(())
}

/// An axis of three arrays: its size, and the strides of the product, the gradient, and the numbers.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    strides: [isize; 3],
}

/// A division of the elements into runs along the axis of the smallest stride.
struct Runs {
    outer: Vec<Axis>,
    inner: Axis,
    /// The number of elements in a run; the last one of an axis may have fewer.
    length: usize,
    /// The number of runs along the inner axis.
    per_axis: usize,
}

impl Runs {
    fn new(from: &View, to: &View, numbers: &[isize]) -> Runs {
        let mut axes: Vec<Axis> = (0..from.shape.len())
            .map(|k| Axis { size: from.shape[k], strides: [to.strides[k], from.strides[k], numbers[k]] })
            .filter(|axis| axis.size > 1)
            .collect();
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.strides[0].unsigned_abs()));
        let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
        for axis in axes {
            match merged.last_mut() {
                Some(outer) if outer.strides == axis.strides.map(|stride| stride * axis.size as isize) => {
                    *outer = Axis { size: outer.size * axis.size, ..axis };
                }
                _ => merged.push(axis),
            }
        }
        let inner = merged.pop().unwrap_or(Axis { size: 1, strides: [1, 1, 0] });
        let length = inner.size.min(RUN);
        Runs { outer: merged, inner, length, per_axis: inner.size.div_ceil(length) }
    }

    fn len(&self) -> usize {
        self.outer.iter().map(|axis| axis.size).product::<usize>() * self.per_axis
    }

    /// The offsets of the first element of run `i` in the three arrays, and the number of its elements.
    #[inline(always)]
    fn get(&self, i: usize) -> ([isize; 3], usize) {
        if let ([axis], 1) = (&self.outer[..], self.per_axis) {
            return (axis.strides.map(|stride| stride * i as isize), self.length); // without divisions
        }
        let (mut rest, first) = (i / self.per_axis, i % self.per_axis * self.length);
        let mut offsets = self.inner.strides.map(|stride| stride * first as isize);
        for axis in self.outer.iter().rev() {
            for (offset, stride) in offsets.iter_mut().zip(axis.strides) {
                *offset += (rest % axis.size) as isize * stride;
            }
            rest /= axis.size;
        }
        (offsets, self.length.min(self.inner.size - first))
    }
}

struct Arrays<E: Element> {
    to: *mut E,
    from: *const E,
    numbers: *const E::Wide,
}

// SAFETY: the threads of `scale` write different elements.
unsafe impl<E: Element> Sync for Arrays<E> {}

/// The product of a range of runs.
struct Product<'a, E: Element> {
    arrays: &'a Arrays<E>,
    runs: &'a Runs,
    range: std::ops::Range<usize>,
}

impl<E: Element> Kernel for Product<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Product { arrays, runs, range } = self;
        for i in range {
            let (offsets, n) = runs.get(i);
            // SAFETY: a run is inside each array, by the contract of `scale`.
            unsafe {
                let to = arrays.to.offset(offsets[0]);
                let (from, numbers) = (arrays.from.offset(offsets[1]), arrays.numbers.offset(offsets[2]));
                match runs.inner.strides {
                    // Constant strides let the compiler vectorize the loop.
                    [1, 1, 0] => multiply(to, from, numbers, n, [1, 1, 0]),
                    [1, 1, 1] => multiply(to, from, numbers, n, [1, 1, 1]),
                    strides => multiply(to, from, numbers, n, strides),
                }
            }
        }
    }
}

/// # Safety
///
/// The elements are inside the arrays, and nothing else uses those of `to`.
#[inline(always)]
unsafe fn multiply<E: Element>(
    to: *mut E,
    from: *const E,
    numbers: *const E::Wide,
    n: usize,
    strides: [isize; 3],
) {
    if to.cast_const() == from && strides[..2] == [1, 1] {
        // SAFETY: as this function's; in place, one slice tells the compiler that nothing overlaps.
        let slice = unsafe { std::slice::from_raw_parts_mut(to, n) };
        for (k, x) in slice.iter_mut().enumerate() {
            // SAFETY: as this function's.
            let number = unsafe { *numbers.offset(k as isize * strides[2]) };
            *x = E::narrow(x.widen().mul(number));
        }
        return;
    }
    for k in 0..n as isize {
        // SAFETY: as this function's.
        unsafe {
            let number = *numbers.offset(k * strides[2]);
            *to.offset(k * strides[0]) = E::narrow((*from.offset(k * strides[1])).widen().mul(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<T>(data: &mut [T], dtype: Dtype, shape: &[usize], strides: &[isize]) -> View {
        View {
            strides: strides.to_vec(),
            ..View::contiguous(data.as_mut_ptr().cast(), dtype, shape.to_vec())
        }
    }

    #[test]
    fn multiplies_arrays_of_any_strides() {
        // (2, 3, 2) with the classes in the middle, of an array with a gap after each four elements.
        let from: Vec<f32> = (0..15).map(|x| x as f32).collect();
        let mut numbers = [2.0_f32, 3.0, 5.0, 7.0];
        let upstream = view(&mut numbers, Dtype::F32, &[2, 2], &[1, 2]);
        let expected = |out: &[f32], strides: [usize; 3], at: &dyn Fn(usize) -> f32| {
            for (i, k, j) in (0..12).map(|n| (n / 6, n / 2 % 3, n % 2)) {
                let product = at(i + 5 * k + 2 * j) * [[2.0, 5.0], [3.0, 7.0]][i][j];
                assert_eq!(out[i * strides[0] + k * strides[1] + j * strides[2]], product);
            }
        };
        let (mut source, mut out) = (from.clone(), vec![0.0_f32; 12]);
        let of_source = view(&mut source, Dtype::F32, &[2, 3, 2], &[1, 5, 2]);
        let to = view(&mut out, Dtype::F32, &[2, 3, 2], &[6, 2, 1]);
        // SAFETY: the views describe the arrays, which nothing else uses.
        unsafe { scale(&of_source, &to, Numbers::Each(&upstream), -2).unwrap() };
        expected(&out, [6, 2, 1], &|k| from[k]);
        // SAFETY: as above.
        unsafe { scale(&of_source, &of_source, Numbers::Each(&upstream), 1).unwrap() };
        expected(&source, [1, 5, 2], &|k| from[k]);
        assert_eq!((source[4], source[9], source[14]), (4.0, 9.0, 14.0)); // the gaps
    }

    #[test]
    fn multiplies_every_type_in_long_runs() {
        let n = 3 * RUN + 5;
        for number in [0.5, 3.0] {
            let mut out: Vec<bf16> = (0..n).map(|k| bf16::from_f32((k % 7) as f32)).collect();
            let to = view(&mut out, Dtype::Bf16, &[1, n], &[1, 1]);
            // SAFETY: the view describes the array, which nothing else uses.
            unsafe { scale(&to, &to, Numbers::Same(number), 1).unwrap() };
            assert!(out.iter().enumerate().all(|(k, x)| x.to_f64() == (k % 7) as f64 * number));
        }
    }

    #[test]
    fn refuses_numbers_of_another_shape() {
        let (mut data, mut numbers) = ([0.0_f64; 6], [0.0_f64; 3]);
        let from = view(&mut data, Dtype::F64, &[2, 3], &[3, 1]);
        let upstream = view(&mut numbers, Dtype::F64, &[3], &[1]);
        // SAFETY: as above.
        assert!(unsafe { scale(&from, &from, Numbers::Each(&upstream), 1) }.is_err());
    }
}
