//! Label relaxation against credal sets of every kind, and its gradient.
//!
//! A target distribution t stands for the set Q = {q : q_k >= (1 - a) t_k for all k}, and a set of classes S for
//! Q = {q : sum over S of q_k >= 1 - a}; the class y is both t = e_y and S = {y} (Lienen & Hüllermeier, AAAI 2021;
//! sets as in "Robust Data Ambiguation", AAAI 2024). Outside of Q the loss is the Kullback-Leibler divergence of
//! the prediction from its projection q, the nearest member of Q, and the gradient is p - q.
//!
//! For sets the projection scales the two parts: a coin once more, S against the other classes.
//!
//! For distributions it is found by water-filling. With the lower bounds l = (1 - a) t,
//!
//! ```text
//! q_k = l_k where l_k > c p_k, else c p_k,      c = (1 - sum of those l_k) / (sum of the other p_k).
//! ```
//!
//! Starting with c = 1, the classes at their bound only become more and c only falls, so that the first c that adds
//! no class is the solution: Newton's method for a convex piecewise linear equation, in practice two to four rounds.

use std::ops::Range;

use crate::simd::lanes::{self, fold};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::coin::{Coin, CoinGroup, Coins, Scores, mass};
use super::label_relaxation::LabelRelaxation;
use super::pass::{Group, Pass, Scratch, Target};
use super::row::{BLOCK, put, sum, total};

/// What a row of a target is.
enum Kind {
    /// One class, which is computed as such, to the bit.
    Class(usize),
    /// A set of classes, of which there are some and not all.
    Set,
    /// The set of all classes.
    Anything,
    /// A distribution with this sum.
    Distribution(f64),
    /// No distribution, or an empty set.
    Wrong,
    /// A row that does not count.
    Ignored,
}

/// Label relaxation against targets that are no classes.
pub(super) struct Credal(pub LabelRelaxation);

impl Group for Credal {
    #[inline(always)]
    fn group<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let alphas = pass.parameters(self.0.parameter(), rows.clone());
        let (mut losses, mut classes) = ([0.0; LANES], [None; LANES]);
        for (lane, i) in rows.clone().enumerate() {
            let kind = read(pass, i, scratch);
            let alpha = alphas[lane];
            match kind {
                Kind::Class(y) => classes[lane] = Some(y),
                Kind::Set => losses[lane] = set(&self.0, pass, i, alpha, scratch),
                Kind::Distribution(sum) => {
                    losses[lane] = distribution(&self.0, pass, i, alpha, sum, scratch);
                }
                Kind::Anything | Kind::Ignored => pass.no_gradient(i, scratch),
                Kind::Wrong => scratch.wrong_row = scratch.wrong_row.min(i),
            }
        }
        if classes.iter().any(Option::is_some) {
            let of_classes = self.0.coins(pass, rows, &classes, scratch);
            for lane in 0..LANES {
                losses[lane] = if classes[lane].is_some() { of_classes[lane] } else { losses[lane] };
            }
        }
        losses
    }
}

/// Reads the target of row `i` into `scratch.target`.
#[inline(always)]
fn read<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> Kind {
    let n_classes = pass.rows.n_classes();
    let target = &mut scratch.target;
    target.resize(n_classes.div_ceil(LANES), [E::Wide::ZERO; LANES]);
    let (rows, is_set) = match pass.target {
        Target::Sets(rows) => (rows, true),
        Target::Distributions(rows) => (rows, false),
        Target::Classes(targets) => return targets.class(i).map_or(Kind::Ignored, Kind::Class),
        Target::Mixtures { first, second, share } => {
            let (Some(a), Some(b)) = (first.class(i), second.class(i)) else { return Kind::Ignored };
            let share = if share.len() == 1 { share[0] } else { share[i] };
            if a == b || share == 1.0 {
                return Kind::Class(a);
            } else if share == 0.0 {
                return Kind::Class(b);
            }
            target.fill([E::Wide::ZERO; LANES]);
            target.as_flattened_mut()[a] = E::Wide::from_f64(share);
            target.as_flattened_mut()[b] = E::Wide::from_f64(1.0 - share);
            return Kind::Distribution(1.0);
        }
    };
    rows.read(i, &mut target.as_flattened_mut()[..n_classes]);
    let (zero, one) = (E::Wide::ZERO, E::Wide::from_f64(1.0));
    let (mut least, mut most) = ([zero; LANES], [zero; LANES]);
    let mut positive = [zero; LANES]; // how many, exact up to 2^24 in each lane
    scratch.sums.clear();
    for block in target.chunks(BLOCK) {
        let mut sum = [zero; LANES];
        for t in block {
            sum = lanes::add(&sum, t);
            least = lanes::min(&least, t);
            most = lanes::max(&most, t);
            positive = lanes::zip(&positive, t, |n, t| if t > zero { n.add(one) } else { n });
        }
        scratch.sums.push(sum);
    }
    let sum = total(&scratch.sums);
    let positive = fold(positive, |a, b| a.add(b)).to_f64();
    let most = fold(most, |a, b| if b > a { b } else { a });
    let is_row = if is_set {
        positive > 0.0
    } else {
        (sum - 1.0).abs() <= rows.sum_tolerance() && fold(least, |a, b| if b < a { b } else { a }) == zero
    };
    if !is_row {
        Kind::Wrong
    } else if positive == 1.0 && most == one {
        let y = scratch.target.as_flattened().iter().position(|&t| t > zero);
        y.map_or(Kind::Wrong, Kind::Class)
    } else if is_set && positive == n_classes as f64 {
        Kind::Anything
    } else if is_set {
        Kind::Set
    } else {
        Kind::Distribution(sum)
    }
}

/// What the loss of row `i` is multiplied by; 0 if it does not count.
pub(super) fn weight_of_row<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> f64 {
    match read(pass, i, scratch) {
        Kind::Class(y) => pass.weight_of(y),
        Kind::Wrong | Kind::Ignored => 0.0,
        _ => pass.row_weight(&scratch.target, &scratch.weight),
    }
}

/// Takes row `i` with its exponentials, or with its probabilities; their sum, NaN if there is none.
#[inline(always)]
fn load<E: Element>(scores: Scores, pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> f64 {
    let row = pass.rows.row(i, &mut scratch.row);
    let sum = match scores {
        Scores::Logits => scratch.exps.load(row, usize::MAX).sum,
        Scores::Probabilities => {
            scratch.exps.read_probabilities(row);
            mass(row)
        }
    };
    if sum > 0.0 && sum < f64::INFINITY { sum } else { f64::NAN }
}

/// The loss of a row against a set of classes.
#[inline(always)]
fn set<E: Element>(
    loss: &LabelRelaxation,
    pass: &Pass<'_, E>,
    i: usize,
    alpha: f64,
    scratch: &mut Scratch<E>,
) -> f64 {
    let zero = E::Wide::ZERO;
    let (mut max_in, mut max_out) = ([E::Wide::LOWEST; LANES], [E::Wide::LOWEST; LANES]);
    let mut spoiled = 0.0;
    match loss.scores {
        Scores::Logits => {
            // Each part relative to its own maximum: either may be far below the other.
            scratch.exps.read(pass.rows.row(i, &mut scratch.row));
            for (z, t) in scratch.exps.x.iter().zip(&scratch.target) {
                let inside = lanes::zip(z, t, |z, t| if t > zero { z } else { E::Wide::LOWEST });
                let outside = lanes::zip(z, t, |z, t| if t > zero { E::Wide::LOWEST } else { z });
                max_in = lanes::max(&max_in, &inside);
                max_out = lanes::max(&max_out, &outside);
            }
            let larger = |a: E::Wide, b: E::Wide| if b > a { b } else { a };
            (max_in, max_out) = ([fold(max_in, larger); LANES], [fold(max_out, larger); LANES]);
            // An infinite logit has no softmax: inf - inf, as in PyTorch.
            spoiled = max_in[0].to_f64() * 0.0 + max_out[0].to_f64() * 0.0;
            scratch.exps.exps(&max_out, &max_in, Some(&scratch.target));
        }
        Scores::Probabilities => {
            let sum = load(loss.scores, pass, i, scratch);
            (max_in, max_out) = ([zero; LANES], [zero; LANES]);
            spoiled += sum * 0.0;
        }
    }
    let target = &scratch.target;
    let inside =
        sum!(&mut scratch.exps, |v, _, e| lanes::zip(e, &target[v], |e, t| if t > zero { e } else { zero }));
    let outside =
        sum!(&mut scratch.exps, |v, _, e| lanes::zip(e, &target[v], |e, t| if t > zero { zero } else { e }));
    let d = (max_in[0].to_f64() - max_out[0].to_f64()) + ln(inside) - ln(outside) + spoiled;
    let (losses, excesses) = loss.losses(&Coins::new(&[d; LANES]), &[alpha; LANES]);
    let weight = pass.row_weight(&scratch.target, &scratch.weight);
    let excess = excesses[0] * weight * pass.factor;
    if excess == 0.0 {
        pass.no_gradient(i, scratch);
    } else {
        let wide = E::Wide::from_f64;
        let (up, down) = (wide(excess / outside), wide(-excess / inside));
        let probabilities = loss.scores == Scores::Probabilities;
        if let Some(out) = pass.out(i, &mut scratch.grad) {
            put!(scratch.exps, out, |v, _, e| {
                let slope = lanes::map(&target[v], |t| if t > zero { down } else { up });
                // By the chain rule over z = ln p.
                if probabilities { slope } else { lanes::zip(&slope, e, |slope, e| slope.mul(e)) }
            });
            pass.finish(i, &scratch.grad);
        }
    }
    losses[0] * weight
}

/// The loss of a row against a distribution whose sum is `sum`.
#[inline(always)]
fn distribution<E: Element>(
    loss: &LabelRelaxation,
    pass: &Pass<'_, E>,
    i: usize,
    alpha: f64,
    sum: f64,
    scratch: &mut Scratch<E>,
) -> f64 {
    let (zero, wide) = (E::Wide::ZERO, E::Wide::from_f64);
    let total = load(loss.scores, pass, i, scratch);
    let weight = pass.row_weight(&scratch.target, &scratch.weight);
    let factor = weight * pass.factor;
    if total.is_nan() {
        if let Some(out) = pass.out(i, &mut scratch.grad) {
            out.fill(E::narrow(wide(f64::NAN)));
            pass.finish(i, &scratch.grad);
        }
        return f64::NAN;
    }
    let keep = (1.0 - alpha) / sum; // l = keep t
    let bound = wide(keep);
    let target = &scratch.target;
    let (mut level, mut n_raised, mut rest, mut free) = (1.0 / total, 0.0, 0.0, 0.0);
    loop {
        let at = wide(level);
        let one = wide(1.0);
        let n = sum!(&mut scratch.exps, |v, _, e| {
            lanes::zip(e, &target[v], |e, t| if raised(bound, at, e, t) { one } else { zero })
        });
        if n == 0.0 {
            pass.no_gradient(i, scratch);
            return 0.0;
        }
        if n == n_raised {
            break;
        }
        n_raised = n;
        // What is left for the other classes, and what they have: sums of positive numbers, nothing cancels.
        let other = sum!(&mut scratch.exps, |v, _, e| lanes::zip(&target[v], e, |t, e| {
            if raised(bound, at, e, t) { zero } else { t }
        }));
        free = sum!(&mut scratch.exps, |v, _, e| lanes::zip(e, &target[v], |e, t| {
            if raised(bound, at, e, t) { zero } else { e }
        }));
        rest = alpha + keep * other;
        // Where nothing is left, or the classes that would get it have all underflowed, they get nothing.
        let next = if free > 0.0 { rest / free } else { 0.0 };
        // It only falls; rounded, it might not.
        level = if next < level { next } else { level };
    }
    let at = wide(level);

    let probabilities = loss.scores == Scores::Probabilities;
    // The sum over the raised classes of l ln(l / p).
    let constant = ln(keep) + ln(total);
    let mut divergence = [0.0; LANES];
    for (v, t) in target.iter().enumerate() {
        let (x, e) = (&scratch.exps.x[v], &scratch.exps.e[v]);
        let l = lanes::zip(t, e, |t, e| if raised(bound, at, e, t) { t } else { zero });
        if !lanes::any_greater(&l, &[zero; LANES]) {
            continue;
        }
        // Loops of one operation each: together they would not be vectorised.
        let (mut wide_t, mut ln_t, mut ln_e) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for k in 0..LANES {
            wide_t[k] = l[k].to_f64();
        }
        for k in 0..LANES {
            ln_t[k] = ln(if wide_t[k] > 0.0 { wide_t[k] } else { 1.0 });
        }
        for k in 0..LANES {
            ln_e[k] = if probabilities { e[k] } else { x[k] }.to_f64();
        }
        if probabilities {
            for k in 0..LANES {
                ln_e[k] = ln(ln_e[k]);
            }
        }
        let mut terms = [0.0; LANES];
        for k in 0..LANES {
            let term = wide_t[k] * (ln_t[k] + constant - ln_e[k]);
            terms[k] = if wide_t[k] > 0.0 { term } else { 0.0 };
        }
        divergence = lanes::add(&divergence, &terms);
    }
    let mut value = keep * fold(divergence, |a, b| a + b);
    if rest > 0.0 && free > 0.0 {
        value += rest * ln(rest * total / free);
    }

    let (own, shrink) = (wide(factor / total), wide(factor * (1.0 / total - level)));
    let pull = wide(factor * keep);
    if let Some(out) = pass.out(i, &mut scratch.grad) {
        put!(scratch.exps, out, |v, _, e| {
            if probabilities {
                // By the chain rule over z = ln p.
                lanes::zip(e, &target[v], |e, t| {
                    if raised(bound, at, e, t) { own.sub(t.mul(pull).div(e)) } else { shrink }
                })
            } else {
                lanes::zip(e, &target[v], |e, t| {
                    if raised(bound, at, e, t) { e.mul(own).sub(t.mul(pull)) } else { e.mul(shrink) }
                })
            }
        });
        pass.finish(i, &scratch.grad);
    }
    // A divergence is not negative; rounded, it may be.
    weight * if value < 0.0 { 0.0 } else { value }
}

/// l_k > c p_k, with l = bound t, p = e / total, and level = c / total.
#[inline(always)]
fn raised<F: Real>(bound: F, level: F, e: F, t: F) -> bool {
    t.mul(bound) > e.mul(level)
}
