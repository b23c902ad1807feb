//! Rows with their exponentials, for losses that depend on more than the log-odds of the class.
//!
//! A row is read once; what is made of it stays in the first- or second-level cache, sixteen classes to a vector, so
//! that no exponential is computed twice. The gradients of such losses are
//!
//! ```text
//! dL/dz_k = e_k (a + b x_k) + c w_k,      x_k = z_k - max,      e_k = e^x_k,      for the classes k other than y.
//! ```
//!
//! Nothing on the way through a row takes a closure of its own: what is not inlined is compiled for the baseline.

use std::ops::Range;

use crate::simd::lanes::{self, exp_biased_sub, fold, narrow, widen};
use crate::simd::log::ln;
use crate::simd::{self, Element, LANES, Lanes, Real};

use super::coin::Coins;
use super::pass::{Group, Pass, Scratch};

/// How many vectors are summed in the type of the scores before they go to a sum in double precision.
pub(super) const BLOCK: usize = 8;

/// A few rows of scores, as vectors.
pub(super) struct Exps<F> {
    /// z - max; 0 for classes left out and past the end. Kept only if the moment asks for it; after `read`, the scores.
    pub x: Vec<Lanes<F>>,
    /// e^(z - max); 0 as above.
    pub e: Vec<Lanes<F>>,
    /// The sums of the blocks of the last row, by way of memory: sums that stay in registers on their way to double
    /// precision make the compiler split the vectors.
    pub sums: Vec<Lanes<F>>,
    pub moments: Vec<Lanes<F>>,
}

/// What is summed over the classes beside the exponentials.
pub(super) trait Moment {
    /// Whether the scores are kept, there being a b.
    const KEEPS_SCORES: bool;

    /// What is kept of z - max, and given to the moment.
    #[inline(always)]
    fn score<F: Real>(x: F) -> F {
        x
    }

    fn terms<F: Real>(x: &Lanes<F>, e: &Lanes<F>) -> Lanes<F>;
}

/// Nothing.
pub(super) struct NoMoment<const KEEPS_SCORES: bool>;

impl<const KEEPS_SCORES: bool> Moment for NoMoment<KEEPS_SCORES> {
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
    pub exps: f64,
    pub moment: f64,
}

impl<F: Real> Exps<F> {
    pub(super) fn new() -> Self {
        Exps { x: Vec::new(), e: Vec::new(), sums: Vec::new(), moments: Vec::new() }
    }

    /// Takes the scores of a row as number `slot`, and sums all of them but those of the classes `left_out` (none, if
    /// that are no classes). The `next` row is brought near meanwhile.
    #[inline(always)]
    pub(super) fn load<E: Element<Wide = F>, M: Moment>(
        &mut self,
        slot: usize,
        row: &[E],
        next: Option<&[E]>,
        left_out: [usize; 2],
    ) -> RowSums<F> {
        let n_vectors = self.resize(slot, row.len(), M::KEEPS_SCORES);
        let first = slot * n_vectors;
        let shift = [max_without(row, left_out); LANES];
        let (vectors, tail) = row.as_chunks();
        let next = next.unwrap_or_default().as_chunks::<LANES>().0;
        let mut n_blocks = 0;
        for block in vectors.chunks(BLOCK) {
            let v = n_blocks * BLOCK;
            let e = &mut self.e[first + v..][..block.len()];
            let x = if M::KEEPS_SCORES { &mut self.x[first + v..][..block.len()] } else { &mut [] };
            for z in next.iter().skip(v).take(BLOCK) {
                simd::prefetch(z);
            }
            let left_out = left_out.map(|y| y.wrapping_sub(v * LANES));
            // Nothing is taken from a sum again, where it might cancel.
            let sums = if left_out[0].min(left_out[1]) < BLOCK * LANES {
                exps_of_block::<E, M, true>(block, &shift, x, e, left_out)
            } else {
                exps_of_block::<E, M, false>(block, &shift, x, e, left_out)
            };
            (self.sums[n_blocks], self.moments[n_blocks]) = sums;
            n_blocks += 1;
        }
        if !tail.is_empty() {
            let (mut padded, last) = ([E::ZERO; LANES], first + n_vectors - 1);
            padded[..tail.len()].copy_from_slice(tail);
            let (mut x, mut e) = exps(&widen(&padded), &shift);
            for k in 0..LANES {
                x[k] = M::score(x[k]);
                if k >= tail.len() || left_out.contains(&(vectors.len() * LANES + k)) {
                    (x[k], e[k]) = (F::ZERO, F::ZERO);
                }
            }
            if M::KEEPS_SCORES {
                self.x[last] = x;
            }
            self.e[last] = e;
            (self.sums[n_blocks], self.moments[n_blocks]) = (e, M::terms(&x, &e));
            n_blocks += 1;
        }
        RowSums {
            max: shift[0],
            exps: total(&self.sums[..n_blocks]),
            moment: total(&self.moments[..n_blocks]),
        }
    }

    /// Takes the scores of the only row as they are, `past_the_end` behind them, and makes room for exponentials.
    #[inline(always)]
    pub(super) fn read<E: Element<Wide = F>>(&mut self, row: &[E], past_the_end: F) {
        let n_vectors = self.resize(0, row.len(), true);
        let (vectors, tail) = row.as_chunks();
        for (x, z) in self.x.iter_mut().zip(vectors) {
            *x = widen(z);
        }
        if !tail.is_empty() {
            let mut last = [past_the_end; LANES];
            for (x, z) in last.iter_mut().zip(tail) {
                *x = z.widen();
            }
            self.x[n_vectors - 1] = last;
        }
    }

    /// Makes room for a row of `n` classes; returns how many vectors that are.
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
        // And one for the last classes, where these are no full vector.
        self.sums.resize(n_vectors.div_ceil(BLOCK) + 1, zero);
        self.moments.resize(n_vectors.div_ceil(BLOCK) + 1, zero);
        n_vectors
    }
}

/// The exponentials of a block, their sum, and its moment; without the classes `left_out`, counted from its beginning,
/// if there are any.
#[inline(always)]
fn exps_of_block<E: Element, M: Moment, const LEAVES_OUT: bool>(
    block: &[Lanes<E>],
    shift: &Lanes<E::Wide>,
    x: &mut [Lanes<E::Wide>],
    e: &mut [Lanes<E::Wide>],
    left_out: [usize; 2],
) -> (Lanes<E::Wide>, Lanes<E::Wide>) {
    let zero = E::Wide::ZERO;
    let (mut sum, mut moment) = ([zero; LANES], [zero; LANES]);
    assert!(e.len() == block.len() && (!M::KEEPS_SCORES || x.len() == block.len()));
    for (v, z) in block.iter().enumerate() {
        let (xs, mut es) = exps(&widen(z), shift);
        let mut xs = lanes::map(&xs, M::score);
        if LEAVES_OUT && (left_out[0] / LANES == v || left_out[1] / LANES == v) {
            for k in 0..LANES {
                let is_left_out = v * LANES + k == left_out[0] || v * LANES + k == left_out[1];
                xs[k] = if is_left_out { zero } else { xs[k] };
                es[k] = if is_left_out { zero } else { es[k] };
            }
        }
        e[v] = es;
        if M::KEEPS_SCORES {
            x[v] = xs;
        }
        sum = lanes::add(&sum, &es);
        moment = lanes::add(&moment, &M::terms(&xs, &es));
    }
    (sum, moment)
}

/// x = z - shift, and its exponential.
#[inline(always)]
pub(super) fn exps<F: Real>(z: &Lanes<F>, shift: &Lanes<F>) -> (Lanes<F>, Lanes<F>) {
    let unbias = F::from_f64(1.0 / F::BIAS);
    // By values: arrays that are changed where they lie are not vectorised.
    (lanes::zip(z, shift, F::sub), lanes::map(&exp_biased_sub(z, shift), |e| e.mul(unbias)))
}

/// The sum of the sums of blocks, in double precision.
#[inline(always)]
pub(super) fn total<F: Real>(sums: &[Lanes<F>]) -> f64 {
    let mut total = [0.0; LANES];
    for sum in sums {
        total = lanes::add_to(&total, sum);
    }
    fold(total, |a, b| a + b)
}

/// The largest score but those of the classes `left_out`.
#[inline(always)]
fn max_without<E: Element>(row: &[E], left_out: [usize; 2]) -> E::Wide {
    let [a, b] = left_out.map(|y| y.min(row.len()));
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    let between = row.get(a + 1..b).unwrap_or_default();
    let behind = row.get(b + 1..).unwrap_or_default();
    let mut max = [E::Wide::LOWEST; LANES];
    for part in [&row[..a], between, behind] {
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

#[inline(always)]
pub(super) fn larger<F: Real>(a: F, b: F) -> F {
    if b > a { b } else { a }
}

/// Stores a vector where vector `v` of a row lies, which may end before.
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

/// What the sums of up to sixteen rows tell.
pub(super) struct Summed {
    /// z_y - max
    pub own: Lanes<f64>,
    /// The sum of e_k over the other classes.
    pub others: Lanes<f64>,
    pub ln_others: Lanes<f64>,
    /// That of the loss, over the other classes.
    pub moment: Lanes<f64>,
    pub coins: Coins,
    pub n_classes: usize,
    /// The sum of the factors of all classes, and that of y; the number of classes and 1, where there are none.
    pub weight_sum: f64,
    pub own_weight: Lanes<f64>,
}

/// The losses of rows, and the coefficients of their gradients.
pub(super) struct Outcome {
    pub losses: Lanes<f64>,
    /// dL/dz_y
    pub own: Lanes<f64>,
    /// a, b and c of the other classes.
    pub coefficients: [Lanes<f64>; 3],
}

/// A loss of logits that depends on all of them.
pub(super) trait RowLoss {
    type Moment: Moment;
    /// Whether the terms of the moment are multiplied by the factors of the classes, and there is a c.
    const IS_SPREAD: bool;

    fn losses(&self, summed: &Summed) -> Outcome;
}

/// Makes a group of a loss by rows.
pub(super) struct ByRow<L>(pub L);

impl<L: RowLoss> Group for ByRow<L> {
    // The exponentials of a group are to stay in the first-level cache.
    const CLASSES: usize = if L::Moment::KEEPS_SCORES { 2048 } else { 4096 };

    #[inline(always)]
    fn group<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let n_classes = pass.rows.n_classes();
        let mut summed = Summed {
            own: [0.0; LANES],
            others: [1.0; LANES],
            ln_others: [0.0; LANES],
            moment: [0.0; LANES],
            coins: Coins::new(&[0.0; LANES]),
            n_classes,
            weight_sum: scratch.weight_sum,
            own_weight: [0.0; LANES],
        };
        let mut classes = [None; LANES];
        for (lane, i) in rows.clone().enumerate() {
            let Some(y) = pass.class(i) else {
                pass.no_gradient(i, scratch);
                continue;
            };
            classes[lane] = Some(y);
            let row = pass.rows.row(i, &mut scratch.row);
            let own = row[y].widen().to_f64();
            let sums = scratch.exps.load::<E, L::Moment>(lane, row, pass.rows.slice(i + 1), [y; 2]);
            // An infinite logit has no softmax: inf - inf, as in PyTorch.
            summed.own[lane] = if own == f64::INFINITY { f64::NAN } else { own - sums.max.to_f64() };
            (summed.others[lane], summed.moment[lane]) = (sums.exps, sums.moment);
            summed.own_weight[lane] = pass.weight_of(y);
            if let (true, Some(weight)) = (L::IS_SPREAD, pass.weight) {
                summed.moment[lane] = weighted(&row[..y], &weight[..y], sums.max)
                    + weighted(&row[y + 1..], &weight[y + 1..], sums.max);
            }
        }
        let mut d = [0.0; LANES];
        for lane in 0..LANES {
            summed.ln_others[lane] = ln(summed.others[lane]);
            d[lane] = summed.own[lane] - summed.ln_others[lane];
        }
        summed.coins = Coins::new(&d);
        let mut outcome = self.0.losses(&summed);
        let n_vectors = n_classes.div_ceil(LANES);
        for (lane, i) in rows.enumerate() {
            let Some(y) = classes[lane] else {
                outcome.losses[lane] = 0.0;
                continue;
            };
            let Some(out) = pass.out(i, &mut scratch.grad) else { continue };
            let [a, b, c] = outcome.coefficients.map(|x| E::Wide::from_f64(x[lane] * pass.factor));
            let e = &scratch.exps.e[lane * n_vectors..][..n_vectors];
            if L::Moment::KEEPS_SCORES {
                let x = &scratch.exps.x[lane * n_vectors..][..n_vectors];
                for (v, (x, e)) in x.iter().zip(e).enumerate() {
                    store(&lanes::zip(e, x, |e, x| e.mul(b.mul(x).add(a))), out, v);
                }
            } else if let (true, Some(_)) = (L::IS_SPREAD, pass.weight) {
                for (v, (e, w)) in e.iter().zip(&scratch.weight).enumerate() {
                    store(&lanes::zip(e, w, |e, w| e.mul(a).add(w.mul(c))), out, v);
                }
            } else {
                for (v, e) in e.iter().enumerate() {
                    store(&lanes::map(e, |e| e.mul(a).add(c)), out, v);
                }
            }
            out[y] = E::narrow(E::Wide::from_f64(outcome.own[lane] * pass.factor));
            pass.finish(i, &scratch.grad);
        }
        outcome.losses
    }
}

/// The sum of w_k (z_k - max) over a part of a row.
#[inline(always)]
fn weighted<E: Element>(row: &[E], weight: &[f64], max: E::Wide) -> f64 {
    let mut sums = [0.0; LANES];
    for (z, w) in row.chunks(LANES).zip(weight.chunks(LANES)) {
        for ((sum, z), w) in sums.iter_mut().zip(z).zip(w) {
            *sum += w * z.widen().sub(max).to_f64();
        }
    }
    fold(sums, |a, b| a + b)
}
