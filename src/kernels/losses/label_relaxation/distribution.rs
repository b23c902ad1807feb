//! Label relaxation of a distribution t, with Q = {q : q_k >= (1 - a) t_k for all k}.
//!
//! The projection is found by water-filling. With the lower bounds l = (1 - a) t,
//!
//! ```text
//! q_k = l_k where l_k > c p_k, else c p_k,      c = (1 - sum of those l_k) / (sum of the other p_k).
//! ```
//!
//! Starting with c = 1, more and more classes are at their bound, and c only falls, so the first c that adds no class
//! is the solution. This is Newton's method for a convex piecewise linear equation; it takes two to four rounds.

use crate::rows::Scores;
use crate::simd::lanes::{self, fold};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::super::batch::{Batch, Scratch};
use super::super::exponentials::{BLOCK, Exponentials, NoAccumulator, larger, largest, store, total};
use super::super::probabilities::{mass, positive};
use super::class::LabelRelaxation;

/// The loss of row `i` against the distribution in `scratch.target`, whose sum is `sum`.
#[inline(always)]
pub(super) fn distribution<E: Element>(
    loss: &LabelRelaxation,
    batch: &Batch<'_, E>,
    i: usize,
    alpha: f64,
    sum: f64,
    scratch: &mut Scratch<E>,
) -> f64 {
    let (zero, wide) = (E::Wide::ZERO, E::Wide::from_f64);
    let row = batch.rows.row(i, &mut scratch.row);
    let (exponentials, target) = (&mut scratch.exponentials, &scratch.target);
    // What the probabilities are divided by.
    let mut unit = 1.0;
    let whole = positive(match loss.scores {
        Scores::Logits => {
            exponentials.load::<E, NoAccumulator<true>>(0, row, batch.rows.slice(i + 1), [usize::MAX; 2]).exponentials
        }
        Scores::Probabilities => {
            exponentials.read(row, zero);
            let whole = positive(mass(row));
            // Far from 1, sums of them would overflow and products underflow.
            if !(1e-3..=1e3).contains(&whole) {
                unit = row[largest(row)].widen().to_f64();
            }
            for (x, e) in exponentials.x.iter_mut().zip(&mut exponentials.e) {
                *e = lanes::map(x, |x| x.div(wide(unit)).add(zero)); // -0.0 becomes 0, as for a class
                for k in 0..LANES {
                    x[k] = wide(ln(e[k].to_f64()));
                }
            }
            whole / unit
        }
    });
    let weight = batch.mean_weight(target, &scratch.weight);
    let factor = weight * batch.factor(i) / unit;
    if whole.is_nan() {
        if let Some(out) = batch.out(i, &mut scratch.grad) {
            out.fill(E::narrow(wide(f64::NAN)));
            batch.finish(i, &scratch.grad);
        }
        return f64::NAN;
    }
    let keep = (1.0 - alpha) / sum; // l = keep t
    let Some(water) = fill(exponentials, target, whole, sum, keep, alpha) else {
        batch.no_gradient(i, scratch);
        return 0.0;
    };
    let Water { level, ratio, rest, free } = water;
    let ln_keep = ln(keep) + ln(whole);
    let mut value = keep * divergence(exponentials, target, &scratch.target_sums, ratio, wide(ln_keep));
    if rest > 0.0 && free > 0.0 {
        // Neither underflows, as `free` is at most `whole`, nor overflows.
        value += rest * ln(rest * (whole / free).min(f64::MAX));
    }

    let (own, shrink) = (wide(factor / whole), wide(factor * (1.0 / whole - level)));
    let pull = wide(factor * keep);
    if let Some(out) = batch.out(i, &mut scratch.grad) {
        let vectors = exponentials.e.iter().zip(target).enumerate();
        if loss.scores == Scores::Logits {
            for (v, (e, t)) in vectors {
                let mut g = *e;
                for k in 0..LANES {
                    let (up, down) = (e[k].mul(own).sub(t[k].mul(pull)), e[k].mul(shrink));
                    g[k] = if raised(ratio, e[k], t[k]) { up } else { down };
                }
                store(&g, out, v);
            }
        } else {
            // By the chain rule, z = ln p.
            for (v, (e, t)) in vectors {
                let mut g = *e;
                for k in 0..LANES {
                    let up = own.sub(t[k].mul(pull).div(e[k]));
                    g[k] = if raised(ratio, e[k], t[k]) { up } else { shrink };
                }
                store(&g, out, v);
            }
        }
        batch.finish(i, &scratch.grad);
    }
    // A divergence is not negative; rounded, it may be.
    weight * if value < 0.0 { 0.0 } else { value }
}

/// What water-filling found.
struct Water<F> {
    /// c p = level e
    level: f64,
    /// keep / level: where t ratio > e, a class is raised to its bound.
    ratio: F,
    /// What is left for the other classes together.
    rest: f64,
    /// What these have: the sum of e.
    free: f64,
}

/// The level of the water over a row with its exponentials, whose sum is `whole`; none inside the set.
#[inline(always)]
fn fill<F: Real>(
    exponentials: &mut Exponentials<F>,
    target: &[Lanes<F>],
    whole: f64,
    sum: f64,
    keep: f64,
    alpha: f64,
) -> Option<Water<F>> {
    let zero = F::ZERO;
    let n_blocks = target.len().div_ceil(BLOCK);
    let (mut level, mut first) = (1.0 / whole, true);
    loop {
        let ratio = F::from_f64(keep / level);
        let (sums, accumulated) = (&mut exponentials.sums[..n_blocks], &mut exponentials.accumulated[..n_blocks]);
        let blocks = exponentials.e.chunks(BLOCK).zip(target.chunks(BLOCK));
        for ((e, t), (other_sum, free_sum)) in blocks.zip(sums.iter_mut().zip(accumulated.iter_mut())) {
            let (mut other, mut free) = ([zero; LANES], [zero; LANES]);
            for (e, t) in e.iter().zip(t) {
                let not_raised = |own, t, e| if raised(ratio, e, t) { zero } else { own };
                other = lanes::add(&other, &lanes::zip(t, e, |t, e| not_raised(t, t, e)));
                free = lanes::add(&free, &lanes::zip(e, t, |e, t| not_raised(e, t, e)));
            }
            (*other_sum, *free_sum) = (other, free);
        }
        // Sums of positive numbers: nothing cancels.
        let (other, free) = (total(sums), total(accumulated));
        // Unless a sum shows that some are, make sure that none is raised: inside the set, all is exactly 0.
        if first && other == sum && !any_raised(ratio, &exponentials.e, target) {
            return None;
        }
        first = false;
        let rest = alpha + keep * other;
        // Where nothing is left, or the classes that would get it have all underflowed, they get nothing.
        let next = if free > 0.0 { rest / free } else { 0.0 };
        if next < level {
            level = next;
        } else {
            return Some(Water { level, ratio, rest, free });
        }
    }
}

/// The sum over the raised classes of t ln(l / p), of which `constant` is what all have in common; `of_target` are the
/// sums of the target's blocks.
#[inline(always)]
fn divergence<F: Real>(
    exponentials: &mut Exponentials<F>,
    target: &[Lanes<F>],
    of_target: &[Lanes<F>],
    ratio: F,
    constant: F,
) -> f64 {
    let Exponentials { x, e, sums, .. } = exponentials;
    let vectors = x.chunks(BLOCK).zip(e.chunks(BLOCK)).zip(target.chunks(BLOCK));
    for ((sums, of_target), ((x, e), t)) in sums.iter_mut().zip(of_target).zip(vectors) {
        let mut sum = [F::ZERO; LANES];
        // Many targets are 0 almost everywhere.
        let (x, e, t) =
            if fold(*of_target, F::add) > F::ZERO { (x, e, t) } else { (&[][..], &[][..], &[][..]) };
        for ((x, e), t) in x.iter().zip(e).zip(t) {
            let ln_ratio = lanes::zip(t, x, |t, x| t.ln_normal().add(constant.sub(x)));
            let terms = lanes::zip(t, &ln_ratio, F::mul);
            let mut own = terms;
            for k in 0..LANES {
                own[k] = if raised(ratio, e[k], t[k]) { terms[k] } else { F::ZERO };
            }
            sum = lanes::add(&sum, &own);
        }
        *sums = sum;
    }
    total(&sums[..target.len().div_ceil(BLOCK)])
}

#[inline(always)]
fn any_raised<F: Real>(ratio: F, e: &[Lanes<F>], target: &[Lanes<F>]) -> bool {
    let mut most = [F::ZERO; LANES];
    for (e, t) in e.iter().zip(target) {
        most = lanes::max(&most, &lanes::zip(t, e, |t, e| if raised(ratio, e, t) { t } else { F::ZERO }));
    }
    fold(most, larger) > F::ZERO
}

/// l > c p, with l = keep t, c p = level e, and ratio = keep / level.
#[inline(always)]
fn raised<F: Real>(ratio: F, e: F, t: F) -> bool {
    t.mul(ratio) > e
}
