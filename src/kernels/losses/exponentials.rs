//! Rows with their exponentials, and sums over their classes.
//!
//! A row is read once. Its exponentials stay in the first- or second-level cache, sixteen classes to a vector, so that
//! none is computed twice.
//!
//! No function here takes a closure for a whole row: a closure that is not inlined is compiled for the baseline.

use crate::rows::{Error, with_room};
use crate::simd::lanes::{self, exp_biased_sub, fold, narrow, widen};
use crate::simd::{self, Element, LANES, Lanes, Real};

/// The number of vectors that are summed in the type of the scores before the sum is added in double precision.
pub(super) const BLOCK: usize = 8;

/// A few rows of scores, as vectors.
pub(super) struct Exponentials<F> {
    /// z - max; 0 for classes that are left out and past the end. Filled only if the accumulator keeps the scores;
    /// after `read`, the scores themselves.
    pub x: Vec<Lanes<F>>,
    /// e^(z - max); 0 as above.
    pub e: Vec<Lanes<F>>,
    /// The sums of the blocks of the last row. They go through memory, because sums that stay in registers on their
    /// way to double precision make the compiler split the vectors.
    pub sums: Vec<Lanes<F>>,
    /// The accumulated terms of the blocks of the last row.
    pub accumulated: Vec<Lanes<F>>,
}

/// A sum over the classes beside that of the exponentials.
pub(super) trait Accumulator {
    /// Whether z - max is kept for each class.
    const KEEPS_SCORES: bool;

    /// Transforms z - max before it is kept and passed to [`Accumulator::terms`].
    #[inline(always)]
    fn score<F: Real>(x: F) -> F {
        x
    }

    /// The terms of sixteen classes with x = z - max and e = e^x.
    fn terms<F: Real>(x: &Lanes<F>, e: &Lanes<F>) -> Lanes<F>;
}

/// Sums only the exponentials.
pub(super) struct NoAccumulator<const KEEPS_SCORES: bool>;

impl<const KEEPS_SCORES: bool> Accumulator for NoAccumulator<KEEPS_SCORES> {
    const KEEPS_SCORES: bool = KEEPS_SCORES;

    #[inline(always)]
    fn terms<F: Real>(_: &Lanes<F>, _: &Lanes<F>) -> Lanes<F> {
        [F::ZERO; LANES]
    }
}

/// The sums over the classes that are not left out.
#[derive(Clone, Copy)]
pub(super) struct RowSums<F> {
    /// The largest score.
    pub max: F,
    /// The sum of e^(z - max).
    pub exponentials: f64,
    /// The sum of the accumulator's terms.
    pub accumulated: f64,
}

impl<F: Real> Exponentials<F> {
    /// With room for one row of `n_vectors` vectors.
    pub(super) fn with_room(n_vectors: usize) -> Result<Self, Error> {
        // As in `resize`.
        let n_blocks = if n_vectors == 0 { 0 } else { n_vectors.div_ceil(BLOCK) + 1 };
        Ok(Exponentials {
            x: with_room(n_vectors)?,
            e: with_room(n_vectors)?,
            sums: with_room(n_blocks)?,
            accumulated: with_room(n_blocks)?,
        })
    }

    /// Loads the scores of a row into number `slot`, and sums over all classes but `left_out`; an index past the end
    /// leaves out nothing. Prefetches the `next` row.
    #[inline(always)]
    pub(super) fn load<E: Element<Wide = F>, A: Accumulator>(
        &mut self,
        slot: usize,
        row: &[E],
        next: Option<&[E]>,
        left_out: [usize; 2],
    ) -> RowSums<F> {
        let n_vectors = self.resize(slot, row.len(), A::KEEPS_SCORES);
        let first = slot * n_vectors;
        let shift = [max_without(row, left_out); LANES];
        let (vectors, tail) = row.as_chunks();
        let next = next.unwrap_or_default().as_chunks::<LANES>().0;
        let mut n_blocks = 0;
        for block in vectors.chunks(BLOCK) {
            let v = n_blocks * BLOCK;
            let e = &mut self.e[first + v..][..block.len()];
            let x = if A::KEEPS_SCORES { &mut self.x[first + v..][..block.len()] } else { &mut [] };
            for z in next.iter().skip(v).take(BLOCK) {
                simd::prefetch(z);
            }
            let left_out = left_out.map(|y| y.wrapping_sub(v * LANES));
            // A class is left out of the sum, not subtracted from it, where it might cancel.
            let sums = if left_out[0].min(left_out[1]) < BLOCK * LANES {
                block_exponentials::<E, A, true>(block, &shift, x, e, left_out)
            } else {
                block_exponentials::<E, A, false>(block, &shift, x, e, left_out)
            };
            (self.sums[n_blocks], self.accumulated[n_blocks]) = sums;
            n_blocks += 1;
        }
        if !tail.is_empty() {
            let last = first + n_vectors - 1;
            let (mut x, mut e) = exponentials(&widen(&lanes::load(tail, E::ZERO)), &shift);
            for k in 0..LANES {
                x[k] = A::score(x[k]);
                if k >= tail.len() || left_out.contains(&(vectors.len() * LANES + k)) {
                    (x[k], e[k]) = (F::ZERO, F::ZERO);
                }
            }
            if A::KEEPS_SCORES {
                self.x[last] = x;
            }
            self.e[last] = e;
            (self.sums[n_blocks], self.accumulated[n_blocks]) = (e, A::terms(&x, &e));
            n_blocks += 1;
        }
        RowSums {
            max: shift[0],
            exponentials: total(&self.sums[..n_blocks]),
            accumulated: total(&self.accumulated[..n_blocks]),
        }
    }

    /// Loads the scores of a single row as they are, padded with `padding`, and makes room for its exponentials.
    #[inline(always)]
    pub(super) fn read<E: Element<Wide = F>>(&mut self, row: &[E], padding: F) {
        let n_vectors = self.resize(0, row.len(), true);
        let (vectors, tail) = row.as_chunks();
        for (x, z) in self.x.iter_mut().zip(vectors) {
            *x = widen(z);
        }
        if !tail.is_empty() {
            let mut last = [padding; LANES];
            for (x, z) in last.iter_mut().zip(tail) {
                *x = z.widen();
            }
            self.x[n_vectors - 1] = last;
        }
    }

    /// Makes room for a row of `n` classes; returns its number of vectors.
    #[inline(always)]
    fn resize(&mut self, slot: usize, n: usize, keeps_scores: bool) -> usize {
        let (n_vectors, zero) = (n.div_ceil(LANES), [F::ZERO; LANES]);
        let room = (slot + 1) * n_vectors;
        if self.e.len() < room {
            self.e.resize(room, zero);
        }
        if keeps_scores && self.x.len() < room {
            self.x.resize(room, zero);
        }
        // One more block for the last classes, if they do not fill a vector.
        self.sums.resize(n_vectors.div_ceil(BLOCK) + 1, zero);
        self.accumulated.resize(n_vectors.div_ceil(BLOCK) + 1, zero);
        n_vectors
    }
}

/// The exponentials of a block; returns their sum and the sum of the accumulator's terms. `left_out` counts from the
/// beginning of the block.
#[inline(always)]
fn block_exponentials<E: Element, A: Accumulator, const LEAVES_OUT: bool>(
    block: &[Lanes<E>],
    shift: &Lanes<E::Wide>,
    x: &mut [Lanes<E::Wide>],
    e: &mut [Lanes<E::Wide>],
    left_out: [usize; 2],
) -> (Lanes<E::Wide>, Lanes<E::Wide>) {
    let zero = E::Wide::ZERO;
    let (mut sum, mut accumulated) = ([zero; LANES], [zero; LANES]);
    assert!(e.len() == block.len() && (!A::KEEPS_SCORES || x.len() == block.len()));
    for (v, z) in block.iter().enumerate() {
        let (xs, mut es) = exponentials(&widen(z), shift);
        let mut xs = lanes::map(&xs, A::score);
        if LEAVES_OUT && (left_out[0] / LANES == v || left_out[1] / LANES == v) {
            for k in 0..LANES {
                let is_left_out = v * LANES + k == left_out[0] || v * LANES + k == left_out[1];
                xs[k] = if is_left_out { zero } else { xs[k] };
                es[k] = if is_left_out { zero } else { es[k] };
            }
        }
        e[v] = es;
        if A::KEEPS_SCORES {
            x[v] = xs;
        }
        sum = lanes::add(&sum, &es);
        accumulated = lanes::add(&accumulated, &A::terms(&xs, &es));
    }
    (sum, accumulated)
}

/// x = z - shift, and its exponential.
#[inline(always)]
pub(super) fn exponentials<F: Real>(z: &Lanes<F>, shift: &Lanes<F>) -> (Lanes<F>, Lanes<F>) {
    let unbias = F::from_f64(1.0 / F::BIAS);
    // By value: arrays that are changed in place are not vectorized.
    (lanes::zip(z, shift, F::sub), lanes::map(&exp_biased_sub(z, shift), |e| e.mul(unbias)))
}

/// Adds the sums of blocks in double precision.
#[inline(always)]
pub(super) fn total<F: Real>(sums: &[Lanes<F>]) -> f64 {
    let mut total = [0.0; LANES];
    for sum in sums {
        total = lanes::add_to(&total, sum);
    }
    fold(total, |a, b| a + b)
}

/// The largest score of all classes but `left_out`.
#[inline(always)]
fn max_without<E: Element>(row: &[E], left_out: [usize; 2]) -> E::Wide {
    let [a, b] = left_out.map(|y| y.min(row.len()));
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    let between = row.get(a + 1..b).unwrap_or_default();
    let after = row.get(b + 1..).unwrap_or_default();
    let mut max = [E::Wide::LOWEST; LANES];
    for part in [&row[..a], between, after] {
        let (vectors, tail) = part.as_chunks();
        for z in vectors {
            max = lanes::max(&max, &widen(z));
        }
        for (max, z) in max.iter_mut().zip(tail) {
            let z = z.widen();
            *max = if z > *max { z } else { *max };
        }
    }
    fold(max, larger)
}

/// The first class with the largest score; the first of all if every score is NaN or -inf.
#[inline(always)]
pub(super) fn largest<E: Element>(row: &[E]) -> usize {
    let max = max_without(row, [usize::MAX; 2]);
    for (v, z) in row.chunks(LANES).enumerate() {
        let mut found = false;
        for z in z {
            found |= z.widen() == max;
        }
        if found {
            return v * LANES + z.iter().position(|z| z.widen() == max).unwrap_or(0);
        }
    }
    0
}

#[inline(always)]
pub(super) fn larger<F: Real>(a: F, b: F) -> F {
    if b > a { b } else { a }
}

/// Stores vector `v` of a row; what is past the end of the row is dropped.
#[inline(always)]
pub(super) fn store<E: Element>(vector: &Lanes<E::Wide>, out: &mut [E], v: usize) {
    let out = &mut out[v * LANES..];
    match out.first_chunk_mut() {
        Some(out) => narrow(vector, out),
        None => {
            let mut short = [E::ZERO; LANES];
            narrow(vector, &mut short);
            out.copy_from_slice(&short[..out.len()]);
        }
    }
}
