//! Losses that depend on more than the log-odds of the class: they sum a term over all classes.
//!
//! The gradients of such losses are
//!
//! ```text
//! dL/dz_k = e_k (a + b x_k) + c w_k,      x_k = z_k - max,      e_k = e^x_k,      for the classes k other than y,
//! ```
//!
//! with the class weights w and three coefficients a, b and c per row.

use std::ops::Range;

use crate::simd::lanes::{self, fold};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, Scratch};
use super::exponentials::{Accumulator, store};
use super::log_odds::Binary;

/// The sums of up to sixteen rows.
pub(super) struct GroupSums {
    /// z_y - max
    pub own: Lanes<f64>,
    /// The sum of e_k over the other classes.
    pub others: Lanes<f64>,
    pub ln_others: Lanes<f64>,
    /// The sum of the accumulator's terms over the other classes.
    pub accumulated: Lanes<f64>,
    pub binary: Binary,
    pub n_classes: usize,
    /// The sum of the class weights; without weights, the number of classes.
    pub weight_sum: f64,
    /// The weight of class y.
    pub own_weight: Lanes<f64>,
}

/// The losses of up to sixteen rows, and the coefficients of their gradients.
pub(super) struct LossesAndCoefficients {
    pub losses: Lanes<f64>,
    /// dL/dz_y
    pub own_gradient: Lanes<f64>,
    /// a, b and c of the other classes.
    pub coefficients: [Lanes<f64>; 3],
}

impl LossesAndCoefficients {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        LossesAndCoefficients {
            losses: [0.0; LANES],
            own_gradient: [0.0; LANES],
            coefficients: [[0.0; LANES]; 3],
        }
    }
}

/// A loss of logits that depends on all of them.
pub(super) trait AccumulatingLoss {
    type Accumulator: Accumulator;
    /// Whether the terms are multiplied by the class weights, and c is not 0.
    const IS_SMOOTHED: bool;

    fn losses(&self, sums: &GroupSums) -> LossesAndCoefficients;
}

/// The group size that keeps the exponentials of a group in the first-level cache.
#[inline(always)]
pub(super) fn group_size<L: AccumulatingLoss>() -> usize {
    if L::Accumulator::KEEPS_SCORES { 2048 } else { 4096 }
}

/// See [`super::batch::GroupLoss::group`].
#[inline(always)]
pub(super) fn group<E: Element, L: AccumulatingLoss>(
    loss: &L,
    batch: &Batch<'_, E>,
    rows: Range<usize>,
    scratch: &mut Scratch<E>,
) -> Lanes<f64> {
    let n_classes = batch.rows.n_classes();
    let mut sums = GroupSums {
        own: [0.0; LANES],
        others: [1.0; LANES],
        ln_others: [0.0; LANES],
        accumulated: [0.0; LANES],
        binary: Binary::from_log_odds(&[0.0; LANES]),
        n_classes,
        weight_sum: scratch.weight_sum,
        own_weight: [0.0; LANES],
    };
    let mut classes = [None; LANES];
    for (lane, i) in rows.clone().enumerate() {
        let Some(y) = batch.class(i) else {
            batch.no_gradient(i, scratch);
            continue;
        };
        classes[lane] = Some(y);
        let row = batch.rows.row(i, &mut scratch.row);
        let own = row[y].widen().to_f64();
        let row_sums =
            scratch.exponentials.load::<E, L::Accumulator>(lane, row, batch.rows.slice(i + 1), [y; 2]);
        // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
        sums.own[lane] = if own == f64::INFINITY { f64::NAN } else { own - row_sums.max.to_f64() };
        (sums.others[lane], sums.accumulated[lane]) = (row_sums.exponentials, row_sums.accumulated);
        sums.own_weight[lane] = batch.class_weight(y);
        if let (true, Some(weight)) = (L::IS_SMOOTHED, batch.weight) {
            sums.accumulated[lane] = weighted(&row[..y], &weight[..y], row_sums.max)
                + weighted(&row[y + 1..], &weight[y + 1..], row_sums.max);
        }
    }
    let mut d = [0.0; LANES];
    for lane in 0..LANES {
        sums.ln_others[lane] = ln(sums.others[lane]);
        d[lane] = sums.own[lane] - sums.ln_others[lane];
    }
    sums.binary = Binary::from_log_odds(&d);
    let mut result = loss.losses(&sums);
    let n_vectors = n_classes.div_ceil(LANES);
    for (lane, i) in rows.enumerate() {
        let Some(y) = classes[lane] else {
            result.losses[lane] = 0.0;
            continue;
        };
        let Some(out) = batch.out(i, &mut scratch.grad) else { continue };
        let factor = batch.factor(i);
        let [a, b, c] = result.coefficients.map(|x| E::Wide::from_f64(x[lane] * factor));
        let e = &scratch.exponentials.e[lane * n_vectors..][..n_vectors];
        if L::Accumulator::KEEPS_SCORES {
            let x = &scratch.exponentials.x[lane * n_vectors..][..n_vectors];
            for (v, (x, e)) in x.iter().zip(e).enumerate() {
                store(&lanes::zip(e, x, |e, x| e.mul(b.mul(x).add(a))), out, v);
            }
        } else if let (true, Some(_)) = (L::IS_SMOOTHED, batch.weight) {
            for (v, (e, w)) in e.iter().zip(&scratch.weight).enumerate() {
                store(&lanes::zip(e, w, |e, w| e.mul(a).add(w.mul(c))), out, v);
            }
        } else {
            for (v, e) in e.iter().enumerate() {
                store(&lanes::map(e, |e| e.mul(a).add(c)), out, v);
            }
        }
        out[y] = E::narrow(E::Wide::from_f64(result.own_gradient[lane] * factor));
        batch.finish(i, &scratch.grad);
    }
    result.losses
}

/// The sum of w_k (z_k - max) over part of a row.
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
