//! Losses of a row as the coin that it is: its class against all others.
//!
//! Such a loss L is a function of one number, the log-odds d = ln(p_y / (1 - p_y)), so its gradient is
//!
//! ```text
//! dL/dz_y = L'(d),      dL/dz_k = -L'(d) r_k,      r = softmax over the classes other than y.
//! ```
//!
//! The sum over the other classes is taken without y: nothing cancels however close p_y is to 0 or 1.

use std::ops::Range;

use crate::rows::Scores;
use crate::simd::lanes::{self, any_greater, exp_biased_sub, fold, narrow, widen};
use crate::simd::log::{ln, ln_1p};
use crate::simd::{Element, LANES, Lanes, Real};

use super::super::sum_exp::{MAX_COLUMNS, SumExpColumns, sum_exp};
use super::pass::{Group, Pass, Scratch};

/// A loss that is a function of the log-odds.
pub(super) trait Coin {
    /// What the rows hold.
    fn scores(&self) -> Scores;

    /// The hyperparameter.
    fn parameter(&self) -> f64;

    /// The losses of sixteen coins, and -L'(d), which is 0 exactly where a row is to have no gradient.
    fn losses(&self, coins: &Coins, parameters: &Lanes<f64>) -> (Lanes<f64>, Lanes<f64>);
}

/// Sixteen coins, each by numbers of which the small ones have not been taken from 1.
pub(super) struct Coins {
    /// The probability of the other classes, q = 1 - p.
    pub q: Lanes<f64>,
    pub ln_p: Lanes<f64>,
    pub ln_q: Lanes<f64>,
}

impl Coins {
    /// From the log-odds ln(p / q).
    #[inline(always)]
    pub(super) fn new(d: &Lanes<f64>) -> Coins {
        let mut coins = Coins { q: [0.0; LANES], ln_p: [0.0; LANES], ln_q: [0.0; LANES] };
        let mut small = [0.0; LANES]; // e^-|d|, which does not overflow
        for i in 0..LANES {
            small[i] = (-d[i].abs()).exp_biased() * (1.0 / f64::BIAS);
        }
        for i in 0..LANES {
            let positive = d[i] > 0.0;
            coins.q[i] = if positive { small[i] } else { 1.0 } / (1.0 + small[i]);
            // ln p and ln q, each from whichever of the two is not close to 1.
            let ln_large = -ln_1p(small[i]);
            let ln_small = ln_large - d[i].abs();
            (coins.ln_p[i], coins.ln_q[i]) =
                if positive { (ln_large, ln_small) } else { (ln_small, ln_large) };
        }
        coins
    }
}

/// Sixteen rows, summed.
struct Sums<F> {
    /// The score of y; of a row that does not count, as if it were certain.
    own: Lanes<f64>,
    /// The largest of the other scores.
    max: Lanes<F>,
    /// The sum over the other classes of the scores, or of e^(z - max).
    others: Lanes<f64>,
    /// What the loss is multiplied by.
    weight: Lanes<f64>,
    /// Of few classes, e^(z - max) itself.
    columns: Option<SumExpColumns<F>>,
}

impl<F: Real> Sums<F> {
    #[inline(always)]
    fn log_odds(&self, scores: Scores) -> Lanes<f64> {
        let mut d = [0.0; LANES];
        match scores {
            Scores::Logits => {
                for i in 0..LANES {
                    // An infinite logit has no softmax: inf - inf, as in PyTorch.
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

impl<C: Coin> Group for C {
    // A group is read twice; it should still be in the second-level cache.
    const CLASSES: usize = 32_768;

    #[inline(always)]
    fn group<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let mut classes = [None; LANES];
        for (lane, i) in rows.clone().enumerate() {
            classes[lane] = pass.class(i);
            if classes[lane].is_none() {
                pass.no_gradient(i, scratch);
            }
        }
        self.coins(pass, rows, &classes, scratch)
    }
}

/// The losses of those rows that have a class; their gradients go to their places.
pub(super) trait CoinGroup {
    fn coins<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        classes: &Lanes<Option<usize>>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64>;
}

impl<C: Coin> CoinGroup for C {
    #[inline(always)]
    fn coins<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        classes: &Lanes<Option<usize>>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let mut sums = sum(pass, self.scores(), rows.clone(), classes, scratch);
        let d = sums.log_odds(self.scores());
        let parameters = pass.parameters(self.parameter(), rows.clone());
        let (mut losses, mut excesses) = self.losses(&Coins::new(&d), &parameters);
        for i in 0..LANES {
            losses[i] *= sums.weight[i];
            excesses[i] *= sums.weight[i] * pass.factor;
        }
        write_gradient(pass, self.scores(), &mut sums, &excesses, rows, classes, scratch);
        losses
    }
}

/// Sums up to sixteen rows.
#[inline(always)]
fn sum<E: Element>(
    pass: &Pass<'_, E>,
    scores: Scores,
    rows: Range<usize>,
    classes: &Lanes<Option<usize>>,
    scratch: &mut Scratch<E>,
) -> Sums<E::Wide> {
    let n_classes = pass.rows.n_classes();
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
        let row = pass.rows.row(i, &mut scratch.row);
        sums.weight[lane] = pass.weight_of(y);
        sums.own[lane] = row[y].widen().to_f64();
        match (&mut sums.columns, scores) {
            (Some(columns), _) => columns.load(lane, row, y),
            (None, Scores::Logits) => {
                let others = sum_exp(row, y);
                sums.max[lane] = others.max;
                sums.others[lane] = others.sum;
            }
            (None, Scores::Probabilities) => {
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

/// Hands the gradients of up to sixteen rows out: -`excess` to the class y, `excess` r_k to the others.
#[inline(always)]
fn write_gradient<E: Element>(
    pass: &Pass<'_, E>,
    scores: Scores,
    sums: &mut Sums<E::Wide>,
    excesses: &Lanes<f64>,
    rows: Range<usize>,
    classes: &Lanes<Option<usize>>,
    scratch: &mut Scratch<E>,
) {
    if !pass.wants_gradient() {
        return;
    }
    if let Some(columns) = &mut sums.columns {
        let (mut first, mut second) = ([E::Wide::ZERO; LANES], [E::Wide::ZERO; LANES]);
        for i in 0..LANES {
            (first[i], second[i]) = unbiased(excesses[i] / sums.others[i]);
        }
        for e in &mut columns.e[..pass.rows.n_classes()] {
            for i in 0..LANES {
                e[i] = e[i].mul(first[i]).mul(second[i]);
            }
        }
    }
    let overwrites = pass.in_place && pass.rows.has_slices();
    for (lane, i) in rows.enumerate() {
        let (excess, Some(y)) = (excesses[lane], classes[lane]) else { continue };
        let Some(out) = pass.out(i, &mut scratch.grad) else { continue };
        if excess == 0.0 {
            out.fill(E::ZERO);
        } else {
            let mut own = -excess;
            match (&sums.columns, scores) {
                (Some(columns), _) => columns.store(lane, out),
                (None, Scores::Logits) => {
                    // The slices of a row and its gradient must not be the same.
                    let row = (!overwrites).then(|| pass.rows.row(i, &mut scratch.row));
                    softmax(row, sums.max[lane], excess / sums.others[lane], out);
                }
                // By the chain rule over z = ln p.
                (None, Scores::Probabilities) => {
                    out.fill(E::narrow(E::Wide::from_f64(excess / sums.others[lane])));
                    own /= sums.own[lane];
                }
            }
            out[y] = E::narrow(E::Wide::from_f64(own));
        }
        pass.finish(i, &scratch.grad);
    }
}

/// The sum of a part of a row; NaN if any of it is negative.
#[inline(always)]
pub(super) fn mass<E: Element>(part: &[E]) -> f64 {
    let (mut sums, mut least) = ([0.0; LANES], [E::Wide::ZERO; LANES]);
    let mut add = |x: &Lanes<E>| {
        let x = widen(x);
        sums = lanes::add_to(&sums, &x);
        least = lanes::min(&least, &x);
    };
    let (vectors, tail) = part.as_chunks();
    for vector in vectors {
        add(vector);
    }
    let mut padded = [E::ZERO; LANES];
    padded[..tail.len()].copy_from_slice(tail);
    add(&padded);
    let negative = any_greater(&[E::Wide::ZERO; LANES], &least);
    if negative { f64::NAN } else { fold(sums, |a, b| a + b) }
}

/// Two numbers whose product is `factor` / [`Real::BIAS`], and of which the first is not subnormal if
/// `factor` is not: the product with an exponential is rounded where it underflows, and not before.
#[inline(always)]
fn unbiased<F: Real>(factor: f64) -> (F, F) {
    let small = factor.abs() < F::BIAS * F::BIAS * F::MIN_POSITIVE;
    let (first, second) = if small { (factor, 1.0 / F::BIAS) } else { (factor * (1.0 / F::BIAS), 1.0) };
    (F::from_f64(first), F::from_f64(second))
}

/// out_k = factor e^(z_k - max); without a `row`, z lies in `out`.
#[inline(always)]
fn softmax<E: Element>(row: Option<&[E]>, max: E::Wide, factor: f64, out: &mut [E]) {
    let shift = [max; LANES];
    let factors = unbiased::<E::Wide>(factor);
    let Some(row) = row else {
        let (vectors, tail) = out.as_chunks_mut();
        for z in vectors {
            *z = scaled_exp(z, &shift, factors);
        }
        let mut padded = [E::ZERO; LANES];
        padded[..tail.len()].copy_from_slice(tail);
        tail.copy_from_slice(&scaled_exp(&padded, &shift, factors)[..tail.len()]);
        return;
    };
    let ((rows, tail), (outs, _)) = (row.as_chunks(), out.as_chunks_mut());
    for (z, out) in rows.iter().zip(outs) {
        *out = scaled_exp(z, &shift, factors);
    }
    if !tail.is_empty() {
        // The last sixteen, some of them once more.
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
