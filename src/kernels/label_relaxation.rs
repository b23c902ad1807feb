//! The label relaxation loss of class-index targets, and its gradient.
//!
//! Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7. The target of class
//! y is the set Q = {p : p_y >= 1 - a}. Outside of it the loss is
//!
//! ```text
//! L = (1 - a) ln((1 - a) / p_y) + a ln(a / (1 - p_y)),
//! ```
//!
//! the Kullback-Leibler divergence of two coins: (1 - a, a) against (p_y, 1 - p_y). So all that a row has to
//! tell is one number, the log-odds of its class against all others,
//!
//! ```text
//! d = z_y - ln(sum over k != y of e^z_k),      p_y = 1 / (1 + e^-d),      1 - p_y = 1 / (1 + e^d),
//! ```
//!
//! in which nothing cancels however close p_y is to 0 or 1. With the excess e = (1 - p_y) - a, positive
//! outside of Q, the gradient is the prediction minus its projection onto Q,
//!
//! ```text
//! dL/dz_y = -e,      dL/dz_k = e r_k,      r = softmax over the classes other than y,
//! ```
//!
//! and sums to zero. Cross-entropy is a = 0.

use std::ops::Range;

use crate::rows::{Error, Rows, RowsMut, Targets};
use crate::simd::lanes::{self, any_greater, exp_biased_sub, fold, narrow, widen};
use crate::simd::log::{atanh_tail, ln, ln_1p};
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real};
use crate::threads::{self, Tiles};

use super::sum_exp::{MAX_COLUMNS, SumExpColumns, sum_exp};

/// What the rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Logits z, with p = softmax(z); the gradient is with respect to them.
    Logits,
    /// Probabilities, divided by their sum if that is not 1; the gradient is with respect to them. A row that
    /// is negative somewhere, infinite, or all 0, has loss NaN.
    Probabilities,
}

/// How the losses of the rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over the rows that count, weighted by the weights of their classes.
    Mean,
    /// The sum.
    Sum,
}

/// The loss with its hyperparameters.
#[derive(Clone, Copy, Debug)]
pub struct LabelRelaxation {
    alpha: f64,
    scores: Scores,
    upstream: f64,
    isa: Isa,
}

impl LabelRelaxation {
    /// `alpha` in [0, 1): how much probability the set leaves to the other classes.
    pub fn new(alpha: f64, scores: Scores) -> Result<Self, Error> {
        if !(0.0..1.0).contains(&alpha) {
            return Err(Error::value(format!(
                "Expected argument `alpha` to be a number in [0, 1), but got {alpha:?}."
            )));
        }
        Ok(LabelRelaxation { alpha, scores, upstream: 1.0, isa: Isa::best() })
    }

    /// Multiplies gradients by `upstream` before they are rounded to the type of the scores.
    pub fn with_upstream(self, upstream: f64) -> Self {
        LabelRelaxation { upstream, ..self }
    }

    /// Computes with the given instruction set; all give the same bits.
    ///
    /// # Panics
    ///
    /// The computation, if the machine lacks it.
    pub fn with_isa(self, isa: Isa) -> Self {
        LabelRelaxation { isa, ..self }
    }

    /// The reduced loss; with `grad`, also its gradient.
    ///
    /// `weight` holds a factor per class. Rows that targets ignore have loss and gradient 0. The mean of no
    /// rows is NaN, as PyTorch's is.
    pub fn reduce<E: Element>(
        &self,
        rows: &Rows<'_, E>,
        targets: &Targets,
        weight: Option<&[f64]>,
        reduction: Reduction,
        grad: Option<&RowsMut<'_, E>>,
    ) -> Result<f64, Error> {
        check(rows, targets, weight, grad)?;
        let factor = match reduction {
            Reduction::Sum => 1.0,
            Reduction::Mean => match weight {
                None => 1.0 / targets.counted().count() as f64,
                Some(weight) => 1.0 / targets.counted().map(|y| weight[y]).sum::<f64>(),
            },
        };
        let pass = Pass { loss: self, rows, targets, weight, factor: factor * self.upstream, grad };
        let tiles = Tiles::new(rows.len(), rows.n_classes());
        let sums = threads::collect(tiles.len(), 0.0_f64, &|range, sums| {
            simd::run(self.isa, Task { pass, tiles, range, out: Out::Sums(sums) });
        });
        // 0 * inf, where no row counts, is the NaN that 0 / 0 would be.
        Ok(sums.iter().sum::<f64>() * factor)
    }

    /// The loss of each row into `losses`; with `grad`, also the gradient of their sum.
    pub fn per_row<E: Element>(
        &self,
        rows: &Rows<'_, E>,
        targets: &Targets,
        weight: Option<&[f64]>,
        losses: &mut [E::Wide],
        grad: Option<&RowsMut<'_, E>>,
    ) -> Result<(), Error> {
        check(rows, targets, weight, grad)?;
        if losses.len() != rows.len() {
            return Err(Error::value(format!("Expected {} losses, but got {}.", rows.len(), losses.len())));
        }
        let pass = Pass { loss: self, rows, targets, weight, factor: self.upstream, grad };
        let tiles = Tiles::new(rows.len(), rows.n_classes());
        let out = threads::Disjoint::new(losses);
        threads::share(tiles.len(), &|range| {
            // SAFETY: `share` gives every tile to one call only, and tiles do not share rows.
            let losses = unsafe { out.part(tiles.rows(range.clone())) };
            simd::run(self.isa, Task { pass, tiles, range, out: Out::Each(losses) });
        });
        Ok(())
    }
}

fn check<E: Element>(
    rows: &Rows<'_, E>,
    targets: &Targets,
    weight: Option<&[f64]>,
    grad: Option<&RowsMut<'_, E>>,
) -> Result<(), Error> {
    let shape = (rows.len(), rows.n_classes());
    targets.check_shape(shape.0, shape.1)?;
    if let Some(weight) = weight.filter(|w| w.len() != shape.1) {
        return Err(Error::value(format!(
            "Expected argument `weight` to hold {} numbers, one for each class, but got {}.",
            shape.1,
            weight.len()
        )));
    }
    if let Some(grad) = grad.filter(|g| g.shape() != shape) {
        return Err(Error::value(format!("Expected a gradient of {shape:?}, but got {:?}.", grad.shape())));
    }
    Ok(())
}

/// The parts of one call.
struct Pass<'a, E: Element> {
    loss: &'a LabelRelaxation,
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    weight: Option<&'a [f64]>,
    /// What the gradient of every row is multiplied by.
    factor: f64,
    grad: Option<&'a RowsMut<'a, E>>,
}

impl<E: Element> Clone for Pass<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Pass<'_, E> {}

/// A range of tiles, and where their losses go.
struct Task<'a, E: Element> {
    pass: Pass<'a, E>,
    tiles: Tiles,
    range: Range<usize>,
    out: Out<'a, E::Wide>,
}

enum Out<'a, F> {
    /// The sum of each tile.
    Sums(&'a mut [f64]),
    /// The loss of each row.
    Each(&'a mut [F]),
}

impl<E: Element> Kernel for Task<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let mut scratch = Scratch { row: Vec::new(), grad: Vec::new() };
        // A group of rows is read twice; it should still be in the second-level cache.
        let step = (32_768 / self.pass.rows.n_classes()).clamp(1, LANES);
        let first_row = self.tiles.rows(self.range.clone()).start;
        for tile in self.range.clone() {
            let rows = self.tiles.rows(tile..tile + 1);
            for first in rows.clone().step_by(step) {
                let group = first..rows.end.min(first + step);
                let losses = self.pass.group(group.clone(), &mut scratch);
                let losses = &losses[..group.len()];
                match &mut self.out {
                    Out::Sums(sums) => {
                        for loss in losses {
                            sums[tile - self.range.start] += loss;
                        }
                    }
                    Out::Each(out) => {
                        for (out, &loss) in out[first - first_row..].iter_mut().zip(losses) {
                            *out = E::Wide::from_f64(loss);
                        }
                    }
                }
            }
        }
    }
}

/// Rows whose classes are not neighbours are gathered here.
struct Scratch<E> {
    row: Vec<E>,
    grad: Vec<E>,
}

impl<E: Element> Pass<'_, E> {
    /// The weighted losses of up to sixteen rows; their gradients go to their places.
    #[inline(always)]
    fn group(&self, rows: Range<usize>, scratch: &mut Scratch<E>) -> Lanes<f64> {
        let n_classes = self.rows.n_classes();
        let mut coins = Coins::new();
        let mut columns = (self.loss.scores == Scores::Logits && n_classes <= MAX_COLUMNS)
            .then(SumExpColumns::<E::Wide>::new);
        let mut max = [E::Wide::ZERO; LANES];
        for (lane, i) in rows.clone().enumerate() {
            let Some(y) = self.targets.class(i) else { continue };
            let row = self.rows.row(i, &mut scratch.row);
            coins.weight[lane] = self.weight.map_or(1.0, |weight| weight[y]);
            coins.own[lane] = row[y].widen().to_f64();
            match (&mut columns, self.loss.scores) {
                (Some(columns), _) => columns.load(lane, row, y),
                (None, Scores::Logits) => {
                    let others = sum_exp(row, y);
                    max[lane] = others.max;
                    coins.others[lane] = others.sum;
                }
                (None, Scores::Probabilities) => {
                    coins.others[lane] = mass(&row[..y]) + mass(&row[y + 1..]);
                    if !(coins.own[lane] >= 0.0 && coins.own[lane] + coins.others[lane] < f64::INFINITY) {
                        coins.own[lane] = f64::NAN;
                    }
                }
            }
        }
        if let Some(columns) = &mut columns {
            columns.sum(n_classes);
            (max, coins.others) = (columns.max, columns.sum);
        }
        let d = match self.loss.scores {
            Scores::Logits => coins.log_odds_of_logits(&max),
            Scores::Probabilities => coins.log_odds_of_probabilities(),
        };
        let (losses, factors) = coins.finish(&d, self.loss.alpha, self.factor);

        let Some(grad) = self.grad else { return losses };
        if let Some(columns) = &mut columns {
            let (mut first, mut second) = ([E::Wide::ZERO; LANES], [E::Wide::ZERO; LANES]);
            for i in 0..LANES {
                (first[i], second[i]) = unbiased(factors[i] / coins.others[i]);
            }
            for e in &mut columns.e[..n_classes] {
                for i in 0..LANES {
                    e[i] = e[i].mul(first[i]).mul(second[i]);
                }
            }
        }
        for (lane, i) in rows.enumerate() {
            let factor = factors[lane];
            // SAFETY: every row is in one tile, and every tile with one thread.
            let out = unsafe { grad.row(i, &mut scratch.grad) };
            match (&columns, self.targets.class(i)) {
                (_, Some(y)) if factor != 0.0 => {
                    let mut own = -factor;
                    match (&columns, self.loss.scores) {
                        (Some(columns), _) => columns.store(lane, out),
                        (None, Scores::Logits) => {
                            let row = self.rows.row(i, &mut scratch.row);
                            softmax(row, max[lane], factor / coins.others[lane], out);
                        }
                        // By the chain rule over z = ln p.
                        (None, Scores::Probabilities) => {
                            out.fill(E::narrow(E::Wide::from_f64(factor / coins.others[lane])));
                            own /= coins.own[lane];
                        }
                    }
                    out[y] = E::narrow(E::Wide::from_f64(own));
                }
                _ => out.fill(E::ZERO),
            }
            // SAFETY: as above.
            unsafe { grad.finish(i, &scratch.grad) };
        }
        losses
    }
}

/// The sum of a part of a row; NaN if any of it is negative.
#[inline(always)]
fn mass<E: Element>(part: &[E]) -> f64 {
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

/// out_k = factor e^(z_k - max)
#[inline(always)]
fn softmax<E: Element>(row: &[E], max: E::Wide, factor: f64, out: &mut [E]) {
    let shift = [max; LANES];
    let (first, second) = unbiased::<E::Wide>(factor);
    let scaled = |z: &Lanes<E>, out: &mut Lanes<E>| {
        let mut e = exp_biased_sub(&widen(z), &shift);
        for e in &mut e {
            *e = e.mul(first).mul(second);
        }
        narrow(&e, out);
    };
    let ((rows, tail), (outs, _)) = (row.as_chunks(), out.as_chunks_mut());
    for (z, out) in rows.iter().zip(outs) {
        scaled(z, out);
    }
    if !tail.is_empty() {
        // The last sixteen, some of them once more.
        let last = "few classes are taken in columns";
        scaled(row.last_chunk().expect(last), out.last_chunk_mut().expect(last));
    }
}

/// Sixteen predictions, each as the coin that its row is: class y against all others.
struct Coins {
    /// The score of y.
    own: Lanes<f64>,
    /// The sum over the other classes of the scores, or of e^(z - max).
    others: Lanes<f64>,
    /// What the loss is multiplied by.
    weight: Lanes<f64>,
}

impl Coins {
    /// Coins that always show their class, inside the set: what a row that does not count is left as.
    #[inline(always)]
    fn new() -> Self {
        Coins { own: [1.0; LANES], others: [0.0; LANES], weight: [0.0; LANES] }
    }

    #[inline(always)]
    fn log_odds_of_logits<F: Real>(&self, max: &Lanes<F>) -> Lanes<f64> {
        let mut d = [0.0; LANES];
        for i in 0..LANES {
            // An infinite logit has no softmax: inf - inf, as in PyTorch.
            let own = if self.own[i] == f64::INFINITY { f64::NAN } else { self.own[i] };
            d[i] = (own - max[i].to_f64()) - ln(self.others[i]);
        }
        d
    }

    #[inline(always)]
    fn log_odds_of_probabilities(&self) -> Lanes<f64> {
        let mut d = [0.0; LANES];
        for i in 0..LANES {
            d[i] = ln(self.own[i]) - ln(self.others[i]);
        }
        d
    }

    /// The losses, and the excesses, both times weight, the latter also times `factor`; 0 inside the set.
    #[inline(always)]
    fn finish(&self, d: &Lanes<f64>, alpha: f64, factor: f64) -> (Lanes<f64>, Lanes<f64>) {
        let (mut losses, mut factors) = ([0.0; LANES], [0.0; LANES]);
        let (ln_keep, ln_alpha) = ((1.0 - alpha).ln(), alpha.ln());
        let (per_keep, per_alpha) = (1.0 / (1.0 - alpha), 1.0 / alpha);
        let mut small = [0.0; LANES]; // e^-|d|, which does not overflow
        for i in 0..LANES {
            small[i] = (-d[i].abs()).exp_biased() * (1.0 / f64::BIAS);
        }
        for i in 0..LANES {
            let positive = d[i] > 0.0;
            let q = if positive { small[i] } else { 1.0 } / (1.0 + small[i]);
            let excess = q - alpha;
            // ln p and ln q, each from whichever of the two is not close to 1.
            let ln_large = -ln_1p(small[i]);
            let ln_small = ln_large - d[i].abs();
            let (ln_p, ln_q) = if positive { (ln_large, ln_small) } else { (ln_small, ln_large) };
            // p = (1 - a)(1 + u) and q = a (1 + v). In (1 - a)(u - ln(1 + u)) + a (v - ln(1 + v)) the
            // linear terms have cancelled by themselves, which they would do badly in rounded logarithms
            // near the border of the set.
            let (u, v) = (-excess * per_keep, excess * per_alpha);
            let above_u = above_tangent(u, ln_p - ln_keep);
            let above_v = above_tangent(v, ln_q - ln_alpha);
            let relaxed = (1.0 - alpha) * above_u + alpha * above_v;
            // An alpha this small makes no difference, but its inverse may be infinite.
            let loss = if alpha < 1e-300 { -ln_p } else { relaxed };
            // NaN is not inside.
            let inside = excess <= 0.0;
            losses[i] = if inside { 0.0 } else { self.weight[i] * loss };
            factors[i] = if inside { 0.0 } else { self.weight[i] * excess * factor };
        }
        (losses, factors)
    }
}

/// x - ln(1 + x), for x > -1, given ln(1 + x) as rounded.
#[inline(always)]
fn above_tangent(x: f64, ln_1p: f64) -> f64 {
    // With w = x / (2 + x): ln(1 + x) = 2 (w + w^3/3 + w^5/5 + ...) and x - 2w = x w.
    let w = x / (2.0 + x);
    let w2 = w * w;
    if x.abs() > 0.25 { x - ln_1p } else { x * w - 2.0 * w * w2 * atanh_tail(w2) }
}
