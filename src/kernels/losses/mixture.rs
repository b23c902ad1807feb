//! Label relaxation against a mixture of two classes, and its gradient.
//!
//! The set of the mixture s e_a + (1 - s) e_b (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018)
//! is Q = {q : q_a >= (1 - alpha) s, q_b >= (1 - alpha) (1 - s)}. A row is a coin with three sides, a, b and all
//! others, and water-filling ([`super::credal`]) takes two rounds over these three. Their
//! probabilities are known by their logarithms, relative to the largest of the three: none of them underflows.

use crate::simd::log::{ln, ln_1p};
use crate::simd::{Element, Real};

use super::coin::mass;
use super::credal::positive;
use super::pass::{Pass, Scratch};
use super::row::{NoMoment, store};
use crate::rows::Scores;

/// Two classes that differ, and their shares, none of them 0.
#[derive(Clone, Copy)]
pub(super) struct Mixture {
    pub classes: [usize; 2],
    pub shares: [f64; 2],
}

impl Mixture {
    /// What the loss is multiplied by: the mean of the weights of the classes.
    #[inline(always)]
    pub(super) fn weight<E: Element>(&self, pass: &Pass<'_, E>) -> f64 {
        let [a, b] = self.classes.map(|y| pass.weight_of(y));
        self.shares[0] * a + self.shares[1] * b
    }
}

/// The loss of row `i` against a mixture.
#[inline(always)]
pub(super) fn mixture<E: Element>(
    scores: Scores,
    pass: &Pass<'_, E>,
    i: usize,
    alpha: f64,
    mixture: Mixture,
    scratch: &mut Scratch<E>,
) -> f64 {
    let [a, b] = mixture.classes;
    let row = pass.rows.row(i, &mut scratch.row);
    let own = [a, b].map(|y| row[y].widen().to_f64());
    // The logarithms of what the three sides have, but for a common summand; and the sum over the others.
    let (logs, others) = match scores {
        Scores::Logits => {
            let sums =
                scratch.exps.load::<E, NoMoment<false>>(0, row, pass.rows.slice(i + 1), mixture.classes);
            // Relative to the largest of all, however far below it the others are.
            let max = sums.max.to_f64();
            let top = max.max(own[0]).max(own[1]);
            // An infinite logit has no softmax: inf - inf, as in PyTorch.
            ([own[0] - top, own[1] - top, (max - top) + ln(sums.exps)], sums.exps)
        }
        Scores::Probabilities => {
            let (first, last) = (a.min(b), a.max(b));
            let others = mass(&row[..first]) + mass(&row[first + 1..last]) + mass(&row[last + 1..]);
            // A row that is no distribution spoils all three.
            let spoiled = positive(own[0] + own[1] + others) * 0.0 + mass(row) * 0.0;
            ([ln(own[0]) + spoiled, ln(own[1]) + spoiled, ln(others) + spoiled], others)
        }
    };
    let Outcome { loss, slopes } = projected(logs, mixture.shares, alpha);
    let weight = mixture.weight(pass);
    let [slope_a, slope_b, slope] = slopes.map(|slope| slope * weight * pass.factor);
    if let Some(out) = pass.out(i, &mut scratch.grad) {
        let slope = E::Wide::from_f64(if slope == 0.0 { 0.0 } else { slope / others });
        let mut own_slopes = [slope_a, slope_b];
        if scores == Scores::Logits {
            for (v, e) in scratch.exps.e.iter().enumerate() {
                store(&e.map(|e| e.mul(slope)), out, v);
            }
        } else {
            // By the chain rule over z = ln p.
            out.fill(E::narrow(slope));
            for (slope, own) in own_slopes.iter_mut().zip(own) {
                *slope = if *slope == 0.0 { 0.0 } else { *slope / own };
            }
        }
        (out[a], out[b]) =
            (E::narrow(E::Wide::from_f64(own_slopes[0])), E::narrow(E::Wide::from_f64(own_slopes[1])));
        pass.finish(i, &scratch.grad);
    }
    loss * weight
}

struct Outcome {
    loss: f64,
    /// p - q of the three sides.
    slopes: [f64; 3],
}

/// The divergence of a coin with three sides from its projection.
#[inline(always)]
fn projected(logs: [f64; 3], shares: [f64; 2], alpha: f64) -> Outcome {
    let ln_total = ln_add(ln_add(logs[0], logs[1]), logs[2]);
    let ln_p = logs.map(|log| log - ln_total);
    let p = ln_p.map(exp);
    let bounds = shares.map(|share| (1.0 - alpha) * share);
    if p.iter().any(|p| p.is_nan()) {
        return Outcome { loss: f64::NAN, slopes: [f64::NAN; 3] };
    }
    // What the sides that are not raised have, and are to have.
    let (mut raised, mut rest, mut ln_free) = ([false; 2], 1.0, 0.0);
    loop {
        let before = raised;
        for side in 0..2 {
            raised[side] |= bounds[side] > rest * exp(ln_p[side] - ln_free);
        }
        if raised == before {
            break;
        }
        (rest, ln_free) = (alpha, ln_p[2]);
        for side in 0..2 {
            if !raised[side] {
                rest += bounds[side];
                ln_free = ln_add(ln_free, ln_p[side]);
            }
        }
    }
    if raised == [false; 2] {
        return Outcome { loss: 0.0, slopes: [0.0; 3] };
    }
    let mut loss = 0.0;
    // Where nothing is left, or all that would get it is impossible, it gets nothing.
    let left = rest > 0.0 && ln_free > f64::NEG_INFINITY;
    if left {
        loss += rest * (ln(rest) - ln_free);
    }
    let mut q = ln_p.map(|ln_p| if left { rest * exp(ln_p - ln_free) } else { 0.0 });
    for side in 0..2 {
        if raised[side] {
            q[side] = bounds[side];
            loss += bounds[side] * (ln(bounds[side]) - ln_p[side]);
        }
    }
    // A divergence is not negative; rounded, it may be.
    let loss = if loss < 0.0 { 0.0 } else { loss };
    Outcome { loss, slopes: [p[0] - q[0], p[1] - q[1], p[2] - q[2]] }
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
