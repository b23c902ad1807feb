//! Label relaxation of a mixture of two classes.
//!
//! The set of the mixture s e_a + (1 - s) e_b (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)
//! is Q = {q : q_a >= (1 - alpha) s, q_b >= (1 - alpha) (1 - s)}. Water-filling ([`super::distribution`]) takes two
//! rounds over three parts: a, b and all other classes. Their log-probabilities are relative to the largest of the
//! three, so that none of them underflows.

use crate::rows::Scores;
use crate::simd::lanes;
use crate::simd::log::{ln, ln_1p};
use crate::simd::{Element, Real};

use super::super::batch::{Batch, Scratch};
use super::super::exponentials::{NoAccumulator, store};
use super::super::probabilities::{mass, positive};
use super::super::row_target::Mixture;

/// The loss of row `i` against a mixture.
#[inline(always)]
pub(super) fn mixture<E: Element>(
    scores: Scores,
    batch: &Batch<'_, E>,
    i: usize,
    alpha: f64,
    mixture: Mixture,
    scratch: &mut Scratch<E>,
) -> f64 {
    let [a, b] = mixture.classes;
    let row = batch.rows.row(i, &mut scratch.row);
    let own = [a, b].map(|y| row[y].widen().to_f64() + 0.0); // of -0.0, the slope would have the wrong sign
    // The log-probabilities of the three parts, up to a common summand, and the sum over the other classes.
    let (logs, others) = match scores {
        Scores::Logits => {
            let sums =
                scratch.exponentials.load::<E, NoAccumulator<false>>(0, row, batch.rows.slice(i + 1), mixture.classes);
            // Relative to the largest of all, however far below it the others are.
            let max = sums.max.to_f64();
            let top = max.max(own[0]).max(own[1]);
            // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
            ([own[0] - top, own[1] - top, (max - top) + ln(sums.exponentials)], sums.exponentials)
        }
        Scores::Probabilities => {
            let (first, last) = (a.min(b), a.max(b));
            let others = mass(&row[..first]) + mass(&row[first + 1..last]) + mass(&row[last + 1..]);
            // NaN if the row has no probabilities, else 0.
            let invalid = positive(own[0] + own[1] + others) * 0.0 + mass(row) * 0.0;
            ([ln(own[0]) + invalid, ln(own[1]) + invalid, ln(others) + invalid], others)
        }
    };
    let Projected { loss, slopes } = projected(logs, mixture.shares, alpha);
    let weight = mixture.weight(batch);
    let [slope_a, slope_b, slope] = slopes.map(|slope| slope * weight * batch.factor(i));
    if let Some(out) = batch.out(i, &mut scratch.grad) {
        let slope = E::Wide::from_f64(if slope == 0.0 { 0.0 } else { slope / others });
        let mut own_slopes = [slope_a, slope_b];
        if scores == Scores::Logits {
            for (v, e) in scratch.exponentials.e.iter().enumerate() {
                store(&lanes::map(e, |e| e.mul(slope)), out, v);
            }
        } else {
            // By the chain rule, z = ln p.
            out.fill(E::narrow(slope));
            for (slope, own) in own_slopes.iter_mut().zip(own) {
                *slope = if *slope == 0.0 { 0.0 } else { *slope / own };
            }
        }
        (out[a], out[b]) =
            (E::narrow(E::Wide::from_f64(own_slopes[0])), E::narrow(E::Wide::from_f64(own_slopes[1])));
        batch.finish(i, &scratch.grad);
    }
    loss * weight
}

/// The loss and its gradient.
struct Projected {
    loss: f64,
    /// p - q of the three parts.
    slopes: [f64; 3],
}

/// The divergence of three probabilities from their projection.
#[inline(always)]
fn projected(logs: [f64; 3], shares: [f64; 2], alpha: f64) -> Projected {
    let ln_total = ln_add(ln_add(logs[0], logs[1]), logs[2]);
    // Not by `map`, which is compiled for the baseline if it is not inlined.
    let ln_p = [logs[0] - ln_total, logs[1] - ln_total, logs[2] - ln_total];
    let p = [exp(ln_p[0]), exp(ln_p[1]), exp(ln_p[2])];
    let bounds = [(1.0 - alpha) * shares[0], (1.0 - alpha) * shares[1]];
    if p[0].is_nan() || p[1].is_nan() || p[2].is_nan() {
        return Projected { loss: f64::NAN, slopes: [f64::NAN; 3] };
    }
    // The probability of the parts that are not raised, before (`ln_free`) and after (`rest`).
    let (mut raised, mut rest, mut ln_free) = ([false; 2], 1.0, 0.0);
    loop {
        let before = raised;
        for part in 0..2 {
            raised[part] |= bounds[part] > rest * exp(ln_p[part] - ln_free);
        }
        if raised == before {
            break;
        }
        (rest, ln_free) = (alpha, ln_p[2]);
        for part in 0..2 {
            if !raised[part] {
                rest += bounds[part];
                ln_free = ln_add(ln_free, ln_p[part]);
            }
        }
    }
    if raised == [false; 2] {
        return Projected { loss: 0.0, slopes: [0.0; 3] };
    }
    let mut loss = 0.0;
    // Nothing is left, or the parts that would get it have probability 0.
    let left = rest > 0.0 && ln_free > f64::NEG_INFINITY;
    if left {
        loss += rest * (ln(rest) - ln_free);
    }
    let mut q = [0.0; 3];
    for part in 0..3 {
        q[part] = if left { rest * exp(ln_p[part] - ln_free) } else { 0.0 };
    }
    for part in 0..2 {
        if raised[part] {
            q[part] = bounds[part];
            loss += bounds[part] * (ln(bounds[part]) - ln_p[part]);
        }
    }
    // A divergence is not negative; rounded, it may be.
    let loss = if loss < 0.0 { 0.0 } else { loss };
    Projected { loss, slopes: [p[0] - q[0], p[1] - q[1], p[2] - q[2]] }
}

#[inline(always)]
fn exp(x: f64) -> f64 {
    x.exp_biased() * (1.0 / f64::BIAS)
}

/// ln(e^a + e^b)
#[inline(always)]
fn ln_add(a: f64, b: f64) -> f64 {
    let (high, low) = if b > a { (b, a) } else { (a, b) };
    if high == f64::NEG_INFINITY { high } else { high + ln_1p(exp(low - high)) }
}
