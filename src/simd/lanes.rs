//! Sixteen values side by side: the width that every kernel is written in.
//!
//! A plain array; its loops are unrolled into one AVX-512 register of `f32`, two AVX2 registers or four of
//! SSE2 or NEON. The width is the same on all of them, so sums are taken in the same order.

use super::{Element, Real};

/// How many values lie side by side.
pub const LANES: usize = 16;

/// Sixteen values.
pub type Lanes<T> = [T; LANES];

/// Loads sixteen elements and widens them.
#[inline(always)]
pub(crate) fn widen<E: Element>(elements: &Lanes<E>) -> Lanes<E::Wide> {
    let mut out = [E::Wide::ZERO; LANES];
    for i in 0..LANES {
        out[i] = elements[i].widen();
    }
    out
}

/// Narrows sixteen values and stores them.
#[inline(always)]
pub(crate) fn narrow<E: Element>(values: &Lanes<E::Wide>, out: &mut Lanes<E>) {
    for i in 0..LANES {
        out[i] = E::narrow(values[i]);
    }
}

/// f of each value.
#[inline(always)]
pub(crate) fn map<F: Copy>(a: &Lanes<F>, f: impl Fn(F) -> F) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = f(a[i]);
    }
    out
}

/// f of each pair.
#[inline(always)]
pub(crate) fn zip<F: Copy, G: Copy>(a: &Lanes<F>, b: &Lanes<G>, f: impl Fn(F, G) -> F) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// a where the mask is positive, else b.
#[inline(always)]
pub(crate) fn select<F: Real>(mask: &Lanes<F>, a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        // Both are loaded: a load on a condition is a branch.
        let (a, b) = (a[i], b[i]);
        out[i] = if mask[i] > F::ZERO { a } else { b };
    }
    out
}

/// The larger of each pair; the left one where the right one is NaN.
#[inline(always)]
pub(crate) fn max<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = if b[i] > a[i] { b[i] } else { a[i] };
    }
    out
}

/// The smaller of each pair; the left one where the right one is NaN.
#[inline(always)]
pub(crate) fn min<F: Real>(a: &Lanes<F>, b: &Lanes<F>) -> Lanes<F> {
    let mut out = *a;
    for i in 0..LANES {
        out[i] = if b[i] < a[i] { b[i] } else { a[i] };
    }
    out
}

/// Whether any lane of `a` exceeds its partner.
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

/// sum + x, in double precision.
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

/// e^(x - shift), [`Real::BIAS`] times too large.
#[inline(always)]
pub(crate) fn exp_biased_sub<F: Real>(x: &Lanes<F>, shift: &Lanes<F>) -> Lanes<F> {
    let mut out = *x;
    for i in 0..LANES {
        out[i] = x[i].sub(shift[i]).exp_biased();
    }
    out
}

/// Folds sixteen values to one, always in the same order: halves onto halves.
///
/// By way of memory: of what stays in registers until it is folded, the compiler makes short vectors, all the way
/// back through the loop that it comes from.
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
