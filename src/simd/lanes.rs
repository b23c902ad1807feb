//! Operations on [`Lanes`], arrays of sixteen values that the compiler keeps in vector registers.
//!
//! Sixteen `f32` fill one AVX-512 register, two AVX2 registers, or four SSE2 or NEON registers. The width is the
//! same for every instruction set, so that sums are always computed in the same order.

use super::element::Element;
use super::real::Real;

/// The number of lanes.
pub const LANES: usize = 16;

/// One value per lane.
pub type Lanes<T> = [T; LANES];

/// The first elements, with `rest` in the lanes that they do not fill.
#[inline(always)]
pub(crate) fn load<T: Copy>(elements: &[T], rest: T) -> Lanes<T> {
    match elements.first_chunk() {
        Some(full) => *full,
        None => {
            let mut lanes = [rest; LANES];
            lanes[..elements.len()].copy_from_slice(elements);
            lanes
        }
    }
}

/// Stores the first lanes in `out`, as many as it has room for.
#[inline(always)]
pub(crate) fn store<T: Copy>(lanes: &Lanes<T>, out: &mut [T]) {
    match out.first_chunk_mut() {
        Some(full) => *full = *lanes,
        None => out.copy_from_slice(&lanes[..out.len()]),
    }
}

/// Widens each element.
#[inline(always)]
pub(crate) fn widen<E: Element>(elements: &Lanes<E>) -> Lanes<E::Wide> {
    let mut out = [E::Wide::ZERO; LANES];
    for i in 0..LANES {
        out[i] = elements[i].widen();
    }
    out
}

/// Narrows each value into `out`.
#[inline(always)]
pub(crate) fn narrow<E: Element>(values: &Lanes<E::Wide>, out: &mut Lanes<E>) {
    for i in 0..LANES {
        out[i] = E::narrow(values[i]);
    }
}

/// f(a)
#[inline(always)]
pub(crate) fn map<F: Copy>(a: &Lanes<F>, f: impl Fn(F) -> F) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

/// f(a, b)
#[inline(always)]
pub(crate) fn zip<F: Copy, G: Copy>(a: &Lanes<F>, b: &Lanes<G>, f: impl Fn(F, G) -> F) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// a where the mask is positive, otherwise b
#[inline(always)]
pub(crate) fn select<F: Real>(mask: &Lanes<F>, a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        // Load both values first: a conditional load would be a branch.
        let (a, b) = (a[i], b[i]);
        out[i] = if mask[i] > F::ZERO { a } else { b };
    }
    out
}

/// max(a, b); a where b is NaN
#[inline(always)]
pub(crate) fn max<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = if b[i] > a[i] { b[i] } else { a[i] };
    }
    out
}

/// min(a, b); a where b is NaN
#[inline(always)]
pub(crate) fn min<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = if b[i] < a[i] { b[i] } else { a[i] };
    }
    out
}

/// Whether a > b in any lane.
#[inline(always)]
pub(crate) fn any_greater<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> bool {
    let mut any = false;
    for i in 0..LANES {
        any |= a[i] > b[i];
    }
    any
}

/// a + b
#[inline(always)]
pub(crate) fn add<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = a[i].add(b[i]);
    }
    out
}

/// sum + x, in double precision
#[inline(always)]
pub(crate) fn add_to<F: Real>(sum: &Lanes<f64>, x: &Lanes<F>) -> Lanes<f64> {
    let mut wide = [0.0; LANES];
    for i in 0..LANES {
        wide[i] = x[i].to_f64();
    }
    for i in 0..LANES {
        wide[i] += sum[i];
    }
    wide
}

/// e^(x - shift) times [`Real::BIAS`]
#[inline(always)]
pub(crate) fn exp_biased_sub<F: Real>(x: &Lanes<F>, shift: &Lanes<F>) -> Lanes<F> {
    let mut out = *x;
    for i in 0..LANES {
        out[i] = x[i].sub(shift[i]).exp_biased();
    }
    out
}

/// Reduces the lanes to one value, always in the same order: pairwise, by halves.
///
/// `black_box` stores the lanes in memory first. Otherwise the compiler would use shorter vectors for the reduction
/// and for the whole loop that computes the lanes.
#[inline(always)]
pub(crate) fn fold<T: Copy>(x: Lanes<T>, f: impl Fn(T, T) -> T) -> T {
    let x = std::hint::black_box(x);
    let mut eight = [x[0]; 8];
    for i in 0..8 {
        eight[i] = f(x[i], x[i + 8]);
    }
    let mut four = [x[0]; 4];
    for i in 0..4 {
        four[i] = f(eight[i], eight[i + 4]);
    }
    f(f(four[0], four[2]), f(four[1], four[3]))
}
