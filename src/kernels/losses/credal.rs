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
//! Mixtures of two classes need no round over the classes: [`super::mixture`].

use std::ops::Range;

use crate::rows::{AnyRows, Scores};
use crate::simd::lanes::{self, fold};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::coin::{Coin, CoinGroup, Coins, mass};
use super::label_relaxation::LabelRelaxation;
use super::mixture::{Mixture, mixture};
use super::pass::{Group, Pass, Scratch, Target};
use super::row::{BLOCK, Exps, NoMoment, exps, larger, store, total};

/// What a row of a target is.
enum Kind {
    /// One class, which is computed as such, to the bit.
    Class(usize),
    /// Two of them.
    Mixture(Mixture),
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
    const CLASSES: usize = 32_768;

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
            let alpha = alphas[lane];
            match read(pass, i, scratch) {
                Kind::Class(y) => classes[lane] = Some(y),
                Kind::Mixture(classes) => {
                    losses[lane] = mixture(self.0.scores, pass, i, alpha, classes, scratch);
                }
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

/// Reads the target of row `i`; one that is dense into `scratch.target`.
#[inline(always)]
fn read<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> Kind {
    let (rows, is_set) = match pass.target {
        Target::Sets(rows) => (rows, true),
        Target::Distributions(rows) => (rows, false),
        Target::Classes(targets) => return targets.class(i).map_or(Kind::Ignored, Kind::Class),
        Target::Mixtures { first, second, share } => {
            let (Some(a), Some(b)) = (first.class(i), second.class(i)) else { return Kind::Ignored };
            let share = if share.len() == 1 { share[0] } else { share[i] };
            return if a == b || share == 1.0 {
                Kind::Class(a)
            } else if share == 0.0 {
                Kind::Class(b)
            } else {
                Kind::Mixture(Mixture { classes: [a, b], shares: [share, 1.0 - share] })
            };
        }
    };
    let n_classes = pass.rows.n_classes();
    let (target, zero) = (&mut scratch.target, E::Wide::ZERO);
    target.resize(n_classes.div_ceil(LANES), [zero; LANES]);
    if is_set {
        rows.read(i, 0, &mut target.as_flattened_mut()[..n_classes]);
        if !matches!(rows, AnyRows::Bool(_)) {
            for t in target.iter_mut() {
                *t = lanes::map(t, |t| E::Wide::from_f64(if t > zero { 1.0 } else { 0.0 }));
            }
        }
        return match count(target) {
            0 => Kind::Wrong,
            1 => only(target),
            n if n == n_classes => Kind::Anything,
            _ => Kind::Set,
        };
    }
    let (mut least, mut most) = ([zero; LANES], [zero; LANES]);
    scratch.sums.resize(target.len().div_ceil(BLOCK), [zero; LANES]);
    for (j, (block, sums)) in target.chunks_mut(BLOCK).zip(&mut scratch.sums).enumerate() {
        // Reading from memory and summing overlap.
        let first = j * BLOCK * LANES;
        let n = (n_classes - first).min(BLOCK * LANES);
        rows.read(i, first, &mut block.as_flattened_mut()[..n]);
        let mut sum = [zero; LANES];
        for t in &*block {
            sum = lanes::add(&sum, t);
            least = lanes::min(&least, t);
            most = lanes::max(&most, t);
        }
        *sums = sum;
    }
    let sum = total(&scratch.sums);
    let negative = fold(least, |a, b| if b < a { b } else { a }) < zero;
    let is_whole = (sum - 1.0).abs() <= rows.sum_tolerance(); // NaN is not
    if negative || !is_whole {
        Kind::Wrong
    } else if fold(most, larger) == E::Wide::from_f64(1.0) && count(target) == 1 {
        only(target)
    } else {
        Kind::Distribution(sum)
    }
}

/// How many classes have something.
#[inline(always)]
fn count<F: Real>(target: &[Lanes<F>]) -> usize {
    let (zero, one) = (F::ZERO, F::from_f64(1.0));
    let mut positive = [zero; LANES]; // exact up to 2^24 in each lane
    for t in target {
        positive = lanes::zip(&positive, t, |n, t| if t > zero { n.add(one) } else { n });
    }
    fold(positive, F::add).to_f64() as usize
}

/// The only class that has something.
#[inline(always)]
fn only<F: Real>(target: &[Lanes<F>]) -> Kind {
    target.as_flattened().iter().position(|&t| t > F::ZERO).map_or(Kind::Wrong, Kind::Class)
}

/// Whether the target of row `i` is no target.
pub(super) fn is_wrong<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> bool {
    matches!(read(pass, i, scratch), Kind::Wrong)
}

/// What the loss of row `i` is multiplied by; 0 if it does not count.
#[inline(always)]
pub(super) fn weight_of_row<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) -> f64 {
    match read(pass, i, scratch) {
        Kind::Class(y) => pass.weight_of(y),
        Kind::Mixture(mixture) => mixture.weight(pass),
        Kind::Wrong | Kind::Ignored => 0.0,
        _ => pass.row_weight(&scratch.target, &scratch.weight),
    }
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
    let (zero, lowest) = (E::Wide::ZERO, E::Wide::LOWEST);
    let row = pass.rows.row(i, &mut scratch.row);
    let (exponentials, target) = (&mut scratch.exps, &scratch.target);
    let n_blocks = target.len().div_ceil(BLOCK);
    // Each part relative to its own maximum: either may be far below the other.
    let (mut max_in, mut max_out) = ([zero; LANES], [zero; LANES]);
    let spoiled; // 0, or NaN
    if loss.scores == Scores::Logits {
        exponentials.read(row, E::Wide::from_f64(f64::NEG_INFINITY));
        (max_in, max_out) = ([lowest; LANES], [lowest; LANES]);
        for (z, t) in exponentials.x.iter().zip(target) {
            let inside = lanes::zip(z, t, |z, t| if t > zero { z } else { lowest });
            let outside = lanes::zip(z, t, |z, t| if t > zero { lowest } else { z });
            max_in = lanes::max(&max_in, &inside);
            max_out = lanes::max(&max_out, &outside);
        }
        (max_in, max_out) = ([fold(max_in, larger); LANES], [fold(max_out, larger); LANES]);
        // An infinite logit has no softmax: inf - inf, as in PyTorch.
        spoiled = max_in[0].to_f64() * 0.0 + max_out[0].to_f64() * 0.0;
    } else {
        exponentials.read(row, zero);
        spoiled = positive(mass(row)) * 0.0;
    }
    if loss.scores == Scores::Logits {
        for ((x, e), t) in exponentials.x.iter().zip(&mut exponentials.e).zip(target) {
            (_, *e) = exps(x, &lanes::select(t, &max_in, &max_out));
        }
    } else {
        exponentials.e.copy_from_slice(&exponentials.x);
    }
    for (i, (e, t)) in exponentials.e.chunks(BLOCK).zip(target.chunks(BLOCK)).enumerate() {
        let (mut inside, mut outside) = ([zero; LANES], [zero; LANES]);
        for (e, t) in e.iter().zip(t) {
            let own = lanes::zip(e, t, E::Wide::mul); // t is 0 or 1
            inside = lanes::add(&inside, &own);
            outside = lanes::add(&outside, &lanes::zip(e, &own, E::Wide::sub));
        }
        (exponentials.sums[i], exponentials.moments[i]) = (inside, outside);
    }
    let (mut inside, outside) =
        (total(&exponentials.sums[..n_blocks]), total(&exponentials.moments[..n_blocks]));
    let d = (max_in[0].to_f64() - max_out[0].to_f64()) + ln(inside) - ln(outside) + spoiled;
    if inside == 0.0 && loss.scores == Scores::Logits {
        // All of the set is impossible: its projection is the same for each of its classes.
        for (e, t) in exponentials.e.iter_mut().zip(target) {
            *e = lanes::add(e, t);
        }
        inside = count(target) as f64;
    }
    let (losses, excesses) = loss.losses(&Coins::new(&[d; LANES]), &[alpha; LANES]);
    let weight = pass.row_weight(&scratch.target, &scratch.weight);
    let excess = excesses[0] * weight * pass.factor;
    if excess == 0.0 {
        pass.no_gradient(i, scratch);
    } else if let Some(out) = pass.out(i, &mut scratch.grad) {
        let (up, down) = (E::Wide::from_f64(excess / outside), E::Wide::from_f64(-excess / inside));
        let slopes = scratch.target.iter().map(|t| lanes::select(t, &[down; LANES], &[up; LANES]));
        if loss.scores == Scores::Logits {
            for (v, (slope, e)) in slopes.zip(&scratch.exps.e).enumerate() {
                store(&lanes::zip(&slope, e, E::Wide::mul), out, v);
            }
        } else {
            // By the chain rule over z = ln p.
            for (v, slope) in slopes.enumerate() {
                store(&slope, out, v);
            }
        }
        pass.finish(i, &scratch.grad);
    }
    losses[0] * weight
}

/// A sum of probabilities; NaN if it is none that one can divide by.
#[inline(always)]
pub(super) fn positive(sum: f64) -> f64 {
    if sum > 0.0 && sum < f64::INFINITY { sum } else { f64::NAN }
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
    let row = pass.rows.row(i, &mut scratch.row);
    let (exponentials, target) = (&mut scratch.exps, &scratch.target);
    let whole = positive(match loss.scores {
        Scores::Logits => {
            exponentials.load::<E, NoMoment<true>>(0, row, pass.rows.slice(i + 1), [usize::MAX; 2]).exps
        }
        Scores::Probabilities => {
            exponentials.read(row, zero);
            for (x, e) in exponentials.x.iter_mut().zip(&mut exponentials.e) {
                *e = *x;
                for k in 0..LANES {
                    x[k] = wide(ln(x[k].to_f64()));
                }
            }
            mass(row)
        }
    });
    let weight = pass.row_weight(target, &scratch.weight);
    let factor = weight * pass.factor;
    if whole.is_nan() {
        if let Some(out) = pass.out(i, &mut scratch.grad) {
            out.fill(E::narrow(wide(f64::NAN)));
            pass.finish(i, &scratch.grad);
        }
        return f64::NAN;
    }
    let keep = (1.0 - alpha) / sum; // l = keep t
    let Some(water) = fill(exponentials, target, whole, sum, keep, alpha) else {
        pass.no_gradient(i, scratch);
        return 0.0;
    };
    let Water { level, ratio, rest, free } = water;
    let ln_keep = ln(keep) + ln(whole);
    let mut value = keep * divergence(exponentials, target, &scratch.sums, ratio, wide(ln_keep));
    if rest > 0.0 && free > 0.0 {
        value += rest * ln(rest * whole / free);
    }

    let (own, shrink) = (wide(factor / whole), wide(factor * (1.0 / whole - level)));
    let pull = wide(factor * keep);
    if let Some(out) = pass.out(i, &mut scratch.grad) {
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
            // By the chain rule over z = ln p.
            for (v, (e, t)) in vectors {
                let mut g = *e;
                for k in 0..LANES {
                    let up = own.sub(t[k].mul(pull).div(e[k]));
                    g[k] = if raised(ratio, e[k], t[k]) { up } else { shrink };
                }
                store(&g, out, v);
            }
        }
        pass.finish(i, &scratch.grad);
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
    exponentials: &mut Exps<F>,
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
        let (sums, moments) = (&mut exponentials.sums[..n_blocks], &mut exponentials.moments[..n_blocks]);
        let blocks = exponentials.e.chunks(BLOCK).zip(target.chunks(BLOCK));
        for ((e, t), (other_sum, free_sum)) in blocks.zip(sums.iter_mut().zip(moments.iter_mut())) {
            let (mut other, mut free) = ([zero; LANES], [zero; LANES]);
            for (e, t) in e.iter().zip(t) {
                let not_raised = |own, t, e| if raised(ratio, e, t) { zero } else { own };
                other = lanes::add(&other, &lanes::zip(t, e, |t, e| not_raised(t, t, e)));
                free = lanes::add(&free, &lanes::zip(e, t, |e, t| not_raised(e, t, e)));
            }
            (*other_sum, *free_sum) = (other, free);
        }
        // Sums of positive numbers: nothing cancels.
        let (other, free) = (total(sums), total(moments));
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
    exponentials: &mut Exps<F>,
    target: &[Lanes<F>],
    of_target: &[Lanes<F>],
    ratio: F,
    constant: F,
) -> f64 {
    let Exps { x, e, sums, .. } = exponentials;
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
