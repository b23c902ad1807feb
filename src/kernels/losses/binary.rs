//! Losses that are functions of the log-odds of a row's class against all others.
//!
//! Such a loss L depends on one number, d = ln(p_y / (1 - p_y)), so its gradient is
//!
//! ```text
//! dL/dz_y = L'(d),      dL/dz_k = -L'(d) r_k,      r = softmax over the classes other than y.
//! ```
//!
//! The sum over the other classes leaves y out, so that nothing cancels however close p_y is to 0 or 1.

use std::ops::Range;

use crate::rows::Scores;
use crate::simd::lanes::{exp_biased_sub, load, narrow, widen};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::super::sum_exp::{MAX_COLUMNS, SumExpColumns, sum_exp};
use super::batch::{Batch, Scratch};
use super::log_odds::Binary;
use super::probabilities::mass;

/// The group size at which a group, which is read twice, stays in the second-level cache.
pub(super) const GROUP_SIZE: usize = 32_768;

/// A loss that is a function of the log-odds.
pub(super) trait BinaryLoss {
    /// What the rows hold.
    fn scores(&self) -> Scores {
        Scores::Logits
    }

    /// The hyperparameter.
    fn parameter(&self) -> f64;

    /// The losses of sixteen rows, and -L'(d), which is 0 exactly where the row has no gradient.
    fn losses(&self, binary: &Binary, parameters: &Lanes<f64>) -> (Lanes<f64>, Lanes<f64>);
}

/// The sums of sixteen rows.
struct Sums<F> {
    /// The score of y; 1 for a row without a class.
    own: Lanes<f64>,
    /// The largest of the other scores.
    max: Lanes<F>,
    /// The sum over the other classes: of e^(z - max), or of the probabilities.
    others: Lanes<f64>,
    /// The weight of the row.
    weight: Lanes<f64>,
    /// With few classes, e^(z - max) itself.
    columns: Option<SumExpColumns<F>>,
}

impl<F: Real> Sums<F> {
    #[inline(always)]
    fn log_odds(&self, scores: Scores) -> Lanes<f64> {
        let mut d = [0.0; LANES];
        match scores {
            Scores::Logits => {
                for i in 0..LANES {
                    // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
                    let own = if self.own[i] == f64::INFINITY { f64::NAN } else { self.own[i] };
                    d[i] = (own - self.max[i].to_f64()) - ln(self.others[i]);
                }
            }
            Scores::Probabilities => {
                for i in 0..LANES {
                    d[i] = ln(self.own[i]) - ln(self.others[i]);
                }
            }
        }
        d
    }
}

/// See [`super::batch::GroupLoss::group`].
#[inline(always)]
pub(super) fn group<E: Element, L: BinaryLoss>(
    loss: &L,
    batch: &Batch<'_, E>,
    rows: Range<usize>,
    scratch: &mut Scratch<E>,
) -> Lanes<f64> {
    let mut classes = [None; LANES];
    for (lane, i) in rows.clone().enumerate() {
        classes[lane] = batch.class(i);
        if classes[lane].is_none() {
            batch.no_gradient(i, scratch);
        }
    }
    group_of_classes(loss, batch, rows, &classes, scratch)
}

/// The losses of the rows that have a class; writes their gradients and leaves those of the other rows alone.
#[inline(always)]
pub(super) fn group_of_classes<E: Element, L: BinaryLoss>(
    loss: &L,
    batch: &Batch<'_, E>,
    rows: Range<usize>,
    classes: &Lanes<Option<usize>>,
    scratch: &mut Scratch<E>,
) -> Lanes<f64> {
    let mut sums = sum(batch, loss.scores(), rows.clone(), classes, scratch);
    let d = sums.log_odds(loss.scores());
    let parameters = batch.parameters(loss.parameter(), rows.clone());
    let (mut losses, mut slopes) = loss.losses(&Binary::from_log_odds(&d), &parameters);
    for i in 0..LANES {
        losses[i] *= sums.weight[i];
        slopes[i] *= sums.weight[i] * batch.factor;
    }
    batch.multiply(rows.clone(), &mut slopes);
    write_gradient(batch, loss.scores(), &mut sums, &slopes, rows, classes, scratch);
    losses
}

/// Sums up to sixteen rows.
#[inline(always)]
fn sum<E: Element>(
    batch: &Batch<'_, E>,
    scores: Scores,
    rows: Range<usize>,
    classes: &Lanes<Option<usize>>,
    scratch: &mut Scratch<E>,
) -> Sums<E::Wide> {
    let n_classes = batch.rows.n_classes();
    let few = scores == Scores::Logits && n_classes <= MAX_COLUMNS;
    let mut sums = Sums {
        own: [1.0; LANES],
        max: [E::Wide::ZERO; LANES],
        others: [0.0; LANES],
        weight: [0.0; LANES],
        columns: few.then(SumExpColumns::new),
    };
    for (lane, i) in rows.enumerate() {
        let Some(y) = classes[lane] else { continue };
        let row = batch.rows.row(i, &mut scratch.row);
        sums.weight[lane] = batch.class_weight(y);
        sums.own[lane] = row[y].widen().to_f64();
        match (&mut sums.columns, scores) {
            (Some(columns), _) => columns.load(lane, row, y),
            (None, Scores::Logits) => {
                let others = sum_exp(row, y);
                sums.max[lane] = others.max;
                sums.others[lane] = others.sum;
            }
            (None, Scores::Probabilities) => {
                sums.own[lane] += 0.0; // of -0.0, the slope would have the wrong sign
                sums.others[lane] = mass(&row[..y]) + mass(&row[y + 1..]);
                if !(sums.own[lane] >= 0.0 && sums.own[lane] + sums.others[lane] < f64::INFINITY) {
                    sums.own[lane] = f64::NAN;
                }
            }
        }
    }
    if let Some(columns) = &mut sums.columns {
        columns.sum(n_classes);
        (sums.max, sums.others) = (columns.max, columns.sum);
    }
    sums
}

/// Writes the gradients of up to sixteen rows: -`slope` for class y, `slope` r_k for the others.
#[inline(always)]
fn write_gradient<E: Element>(
    batch: &Batch<'_, E>,
    scores: Scores,
    sums: &mut Sums<E::Wide>,
    slopes: &Lanes<f64>,
    rows: Range<usize>,
    classes: &Lanes<Option<usize>>,
    scratch: &mut Scratch<E>,
) {
    if !batch.wants_gradient() {
        return;
    }
    if let Some(columns) = &mut sums.columns {
        let (mut first, mut second) = ([E::Wide::ZERO; LANES], [E::Wide::ZERO; LANES]);
        for i in 0..LANES {
            (first[i], second[i]) = unbiased(slopes[i] / sums.others[i]);
        }
        for e in &mut columns.e[..batch.rows.n_classes()] {
            for i in 0..LANES {
                e[i] = e[i].mul(first[i]).mul(second[i]);
            }
        }
    }
    let overwrites = batch.in_place && batch.rows.has_slices();
    for (lane, i) in rows.enumerate() {
        let (slope, Some(y)) = (slopes[lane], classes[lane]) else { continue };
        let Some(out) = batch.out(i, &mut scratch.grad) else { continue };
        if slope == 0.0 {
            out.fill(E::ZERO);
        } else {
            let mut own = -slope;
            match (&sums.columns, scores) {
                (Some(columns), _) => columns.store(lane, out),
                (None, Scores::Logits) => {
                    // In place, the row and its gradient are the same slice, which is borrowed once.
                    let row = (!overwrites).then(|| batch.rows.row(i, &mut scratch.row));
                    softmax(row, sums.max[lane], slope / sums.others[lane], out);
                }
                // By the chain rule, z = ln p.
                (None, Scores::Probabilities) => {
                    out.fill(E::narrow(E::Wide::from_f64(slope / sums.others[lane])));
                    own /= sums.own[lane];
                }
            }
            out[y] = E::narrow(E::Wide::from_f64(own));
        }
        batch.finish(i, &scratch.grad);
    }
}

/// Splits `factor` / [`Real::BIAS`] into two factors. The first is not subnormal unless `factor` is, so that its
/// product with an exponential is rounded only where it underflows itself.
#[inline(always)]
fn unbiased<F: Real>(factor: f64) -> (F, F) {
    let small = factor.abs() < F::BIAS * F::BIAS * F::MIN_POSITIVE;
    let (first, second) = if small { (factor, 1.0 / F::BIAS) } else { (factor * (1.0 / F::BIAS), 1.0) };
    (F::from_f64(first), F::from_f64(second))
}

/// out_k = factor e^(z_k - max). Without a `row`, z is read from `out`.
#[inline(always)]
fn softmax<E: Element>(row: Option<&[E]>, max: E::Wide, factor: f64, out: &mut [E]) {
    let shift = [max; LANES];
    let factors = unbiased::<E::Wide>(factor);
    let Some(row) = row else {
        let (vectors, tail) = out.as_chunks_mut();
        for z in vectors {
            *z = scaled_exp(z, &shift, factors);
        }
        tail.copy_from_slice(&scaled_exp(&load(tail, E::ZERO), &shift, factors)[..tail.len()]);
        return;
    };
    let ((rows, tail), (outs, _)) = (row.as_chunks(), out.as_chunks_mut());
    for (z, out) in rows.iter().zip(outs) {
        *out = scaled_exp(z, &shift, factors);
    }
    if !tail.is_empty() {
        // The last sixteen, some of them a second time.
        let last = "few classes are taken in columns";
        let z = row.last_chunk().expect(last);
        *out.last_chunk_mut().expect(last) = scaled_exp(z, &shift, factors);
    }
}

/// e^(z - shift), times the two factors.
#[inline(always)]
fn scaled_exp<E: Element>(
    z: &Lanes<E>,
    shift: &Lanes<E::Wide>,
    (first, second): (E::Wide, E::Wide),
) -> Lanes<E> {
    let mut e = exp_biased_sub(&widen(z), shift);
    for e in &mut e {
        *e = e.mul(first).mul(second);
    }
    let mut out = [E::ZERO; LANES];
    narrow(&e, &mut out);
    out
}
