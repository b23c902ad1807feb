//! Losses of a distribution t as target, which are sums over the classes.
//!
//! Cross-entropy, the focal loss and the confidence penalty have a number for each class that t weighs:
//!
//! ```text
//! L = sum over k of w_k t_k (1 - p_k)^g (-ln p_k) - b W H,      W = sum over k of w_k t_k,
//! ```
//!
//! with the class weights w and the entropy H of the prediction p; one of g and b is 0. With
//!
//! ```text
//! u_k = w_k t_k (1 - p_k)^g (g p_k ln p_k / (1 - p_k) - 1),
//! dL/dz_k = u_k - p_k (sum of u) + b W p_k (ln p_k + H).
//! ```
//!
//! The most probable class y is computed in double precision from its log-odds, so that 1 - p_y does not cancel. All
//! other classes have p_k <= 1/2. Where t_k is 0, so is its term, even if ln p_k is infinite.

use std::ops::Range;

use crate::simd::lanes;
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, GroupLoss, Scratch};
use super::exponentials::{BLOCK, NoAccumulator, largest, store, total};
use super::hyperparameter::SoftTargetLoss;
use super::log_odds::Binary;
use super::row_target::{RowTarget, read};

impl GroupLoss for SoftTargetLoss {
    /// Rows are computed one by one.
    fn group_size(&self) -> usize {
        0
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let mut losses = [0.0; LANES];
        for (lane, i) in rows.enumerate() {
            match read(batch, i, scratch) {
                RowTarget::Distribution(sum) => losses[lane] = row(*self, batch, i, sum, scratch),
                RowTarget::Class(_) => losses[lane] = row(*self, batch, i, 1.0, scratch),
                _ => scratch.invalid_row = scratch.invalid_row.min(i),
            }
        }
        losses
    }
}

/// The loss of row `i` for the distribution in `scratch.target`, whose sum is `sum`.
#[inline(always)]
fn row<E: Element>(
    loss: SoftTargetLoss,
    batch: &Batch<'_, E>,
    i: usize,
    sum: f64,
    scratch: &mut Scratch<E>,
) -> f64 {
    let wide = E::Wide::from_f64;
    let n_classes = batch.rows.n_classes();
    let SoftTargetLoss { label_smoothing, gamma, beta } = loss;
    let row = batch.rows.row(i, &mut scratch.row);
    let y = largest(row);
    let next = batch.rows.slice(i + 1);
    let sums = scratch.exponentials.load::<E, NoAccumulator<true>>(0, row, next, [y; 2]);
    let own = row[y].widen().to_f64();
    // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
    let own = if own == f64::INFINITY { f64::NAN } else { own - sums.max.to_f64() };
    let (others, ln_others) = (sums.exponentials, ln(sums.exponentials));
    let binary = Binary::from_log_odds(&[own - ln_others; LANES]);
    let (q, ln_p, ln_q) = (binary.q[0], binary.ln_p[0], binary.ln_q[0]);
    let p = 1.0 - q;
    // For the other classes, p_k = share e_k and -ln p_k = shift - x_k. If all of them have probability 0, x_k is -inf.
    let share = if q == 0.0 { 0.0 } else { q / others };
    let shift = if others == 0.0 { 0.0 } else { ln_others - ln_q };

    // w t, up to the factor `keep`.
    let keep = (1.0 - label_smoothing) / sum;
    let spread = label_smoothing / n_classes as f64;
    let changes = batch.weight.is_some() || spread != 0.0;
    let target = &mut scratch.target;
    if changes {
        smooth_and_weigh(target, wide(keep), wide(spread), batch.weight.is_some().then_some(&scratch.weight));
    }
    let keep = if changes { 1.0 } else { keep };
    let elements = target.as_flattened_mut();
    elements[n_classes..].fill(E::Wide::ZERO);
    let own_target = elements[y].to_f64();
    elements[y] = E::Wide::ZERO;

    let n_vectors = target.len();
    let exponentials = &mut scratch.exponentials;
    let (x, e) = (&mut exponentials.x[..n_vectors], &exponentials.e[..n_vectors]);
    let n_blocks = n_vectors.div_ceil(BLOCK);
    let (values, slopes) = (&mut exponentials.sums[..n_blocks], &mut exponentials.accumulated[..n_blocks]);
    if gamma == 0.0 {
        plain_terms(x, target, wide(shift), values, slopes);
    } else {
        focal_terms([wide(gamma), wide(share), wide(shift)], x, e, target, values, slopes);
    }
    let (mut value, others_slope) = (total(values), total(slopes));
    let mut power = 1.0;
    let mut own_slope = -own_target;
    if gamma != 0.0 {
        power = (gamma * ln_q).exp_biased() * (1.0 / f64::BIAS);
        let ratio = if q == 0.0 { -1.0 } else { p * ln_p / q };
        own_slope *= power * (1.0 - gamma * ratio);
    }
    value -= own_target * power * ln_p;
    let slope = own_slope + others_slope;
    let (mut entropy, mut pull) = (0.0, 0.0);
    if beta != 0.0 {
        entropy = share * entropy_terms(x, e, wide(shift), values) - p * ln_p;
        pull = beta * -slope; // b W
        value -= pull * entropy;
    }
    let factor = keep * batch.factor(i);
    if let Some(out) = batch.out(i, &mut scratch.grad) {
        let a = wide(factor * share * (pull * (entropy - shift) - slope));
        let (b, factors) = (wide(factor * share * pull), wide(factor));
        for (v, (u, e)) in target.iter().zip(e).enumerate() {
            let mut g = *e;
            if beta == 0.0 {
                for k in 0..LANES {
                    g[k] = e[k].mul(a).add(u[k].mul(factors));
                }
            } else {
                for k in 0..LANES {
                    g[k] = e[k].mul(b.mul(x[v][k]).add(a)).add(u[k].mul(factors));
                }
            }
            store(&g, out, v);
        }
        let own = q * own_slope - p * others_slope + pull * p * (ln_p + entropy);
        out[y] = E::narrow(wide(factor * own));
        batch.finish(i, &scratch.grad);
    }
    // The next row is read to the elements before.
    scratch.target.as_flattened_mut()[n_classes..].fill(E::Wide::ZERO);
    keep * value
}

/// t_k becomes w_k (keep t_k + spread).
#[inline(always)]
fn smooth_and_weigh<F: Real>(target: &mut [Lanes<F>], keep: F, spread: F, weight: Option<&Vec<Lanes<F>>>) {
    for t in &mut *target {
        *t = lanes::map(t, |t| t.mul(keep).add(spread));
    }
    if let Some(weight) = weight {
        for (t, w) in target.iter_mut().zip(weight) {
            *t = lanes::zip(t, w, F::mul);
        }
    }
}

/// The sums of -t ln p and of u = -t, and u in place of t.
#[inline(always)]
fn plain_terms<F: Real>(
    x: &[Lanes<F>],
    target: &mut [Lanes<F>],
    shift: F,
    values: &mut [Lanes<F>],
    slopes: &mut [Lanes<F>],
) {
    let blocks = x.chunks(BLOCK).zip(target.chunks_mut(BLOCK));
    for ((x, t), (value, slope)) in blocks.zip(values.iter_mut().zip(slopes)) {
        let (mut value_sum, mut slope_sum) = ([F::ZERO; LANES], [F::ZERO; LANES]);
        for (x, t) in x.iter().zip(t) {
            let mut terms = *x;
            for k in 0..LANES {
                let term = t[k].mul(shift.sub(x[k]));
                terms[k] = if t[k] > F::ZERO { term } else { F::ZERO };
            }
            *t = lanes::map(t, |t| F::ZERO.sub(t));
            value_sum = lanes::add(&value_sum, &terms);
            slope_sum = lanes::add(&slope_sum, t);
        }
        (*value, *slope) = (value_sum, slope_sum);
    }
}

/// The sums of -t (1 - p)^g ln p and of u, and u in place of t.
#[inline(always)]
fn focal_terms<F: Real>(
    [gamma, share, shift]: [F; 3],
    x: &[Lanes<F>],
    e: &[Lanes<F>],
    target: &mut [Lanes<F>],
    values: &mut [Lanes<F>],
    slopes: &mut [Lanes<F>],
) {
    let (zero, one, unbias, most) =
        (F::ZERO, F::from_f64(1.0), F::from_f64(1.0 / F::BIAS), F::from_f64(SURPRISE));
    let blocks = x.chunks(BLOCK).zip(e.chunks(BLOCK)).zip(target.chunks_mut(BLOCK));
    for (((x, e), t), (value, slope)) in blocks.zip(values.iter_mut().zip(slopes)) {
        let (mut value_sum, mut slope_sum) = ([zero; LANES], [zero; LANES]);
        for ((x, e), t) in x.iter().zip(e).zip(t) {
            let (mut terms, mut u) = (*x, *x);
            for k in 0..LANES {
                let p = e[k].mul(share);
                let surprise = shift.sub(x[k]); // -ln p
                let q = one.sub(p);
                let weighted = t[k].mul(q.ln_normal().mul(gamma).exp_biased().mul(unbias));
                let term = weighted.mul(surprise);
                terms[k] = if t[k] > zero { term } else { zero };
                let finite = if surprise > most { most } else { surprise };
                u[k] = zero.sub(weighted).mul(gamma.mul(p).mul(finite).div(q).add(one));
            }
            *t = u;
            value_sum = lanes::add(&value_sum, &terms);
            slope_sum = lanes::add(&slope_sum, &u);
        }
        (*value, *slope) = (value_sum, slope_sum);
    }
}

/// A bound of -ln p that changes no product with p, which is 0 there, but keeps it from being 0 times infinity.
const SURPRISE: f64 = 1000.0;

/// The sum of -e ln p. Where p is 0, x becomes finite.
#[inline(always)]
fn entropy_terms<F: Real>(x: &mut [Lanes<F>], e: &[Lanes<F>], shift: F, sums: &mut [Lanes<F>]) -> f64 {
    let least = F::from_f64(-SURPRISE);
    for ((x, e), sum) in x.chunks_mut(BLOCK).zip(e.chunks(BLOCK)).zip(&mut *sums) {
        let mut block = [F::ZERO; LANES];
        for (x, e) in x.iter_mut().zip(e) {
            *x = lanes::map(x, |x| if x < least { least } else { x });
            block = lanes::add(&block, &lanes::zip(e, x, |e, x| e.mul(shift.sub(x))));
        }
        *sum = block;
    }
    total(sums)
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, ConfidencePenalty, CrossEntropy, Focal, Loss, Reduction, Target};
    use crate::rows::{AnyRows, Rows, RowsMut};

    const Z: [f64; 5] = [1.5, -0.5, 0.0, 3.0, -2.0];
    const T: [f64; 5] = [0.4, 0.0, 0.3, 0.2, 0.1];
    const W: [f64; 5] = [0.5, 1.0, 2.0, 1.5, 0.7];

    /// The formula as it is written, for one row.
    fn formula(z: &[f64], label_smoothing: f64, gamma: f64, beta: f64) -> f64 {
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        let (mut loss, mut entropy, mut expected) = (0.0, 0.0, 0.0);
        for ((z, t), w) in z.iter().zip(T).zip(W) {
            let (p, t) = (z.exp() / total, w * ((1.0 - label_smoothing) * t + label_smoothing / 5.0));
            loss -= t * (1.0 - p).powf(gamma) * p.ln();
            entropy -= p * p.ln();
            expected += t;
        }
        loss - beta * expected * entropy
    }

    #[test]
    fn agrees_with_the_formula() {
        let target = AnyRows::F64(Rows::from_slice(&T, 5).unwrap());
        for (loss, [label_smoothing, gamma, beta]) in [
            (Loss::from(CrossEntropy::new(0.0).unwrap()), [0.0; 3]),
            (CrossEntropy::new(0.3).unwrap().into(), [0.3, 0.0, 0.0]),
            (Focal::new(2.5).unwrap().into(), [0.0, 2.5, 0.0]),
            (ConfidencePenalty::new(0.4).unwrap().into(), [0.0, 0.0, 0.4]),
        ] {
            let rows = Rows::from_slice(&Z, 5).unwrap();
            let mut grad = [0.0; 5];
            let out = RowsMut::from_slice(&mut grad, 5).unwrap();
            let batch = Batch::new(&rows, Target::Distributions(&target)).unwrap();
            let batch = batch.weight(&W).unwrap().gradient(&out).unwrap();
            let got = batch.reduce(loss, Reduction::Mean).unwrap(); // over one row: not divided by a weight
            let formula = |z: &[f64]| formula(z, label_smoothing, gamma, beta);
            assert!((got - formula(&Z)).abs() < 1e-14, "{loss:?}");
            for k in 0..5 {
                let (mut up, mut down) = (Z, Z);
                (up[k], down[k]) = (Z[k] + 1e-5, Z[k] - 1e-5);
                let slope = (formula(&up) - formula(&down)) / 2e-5;
                assert!((grad[k] - slope).abs() < 1e-9, "{loss:?}, class {k}");
            }
        }
    }
}
