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

use crate::rows::{Error, Rows, RowsMut, Targets};
use crate::simd::lanes::{exp_biased_sub, narrow, widen};
use crate::simd::{self, Element, Isa, Kernel, LANES, Real};
use crate::threads::{self, Tiles};

use super::sum_exp::sum_exp;

/// What the rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Logits z, with p = softmax(z); the gradient is with respect to them.
    Logits,
    /// Probabilities, divided by their sum if that is not 1; the gradient is with respect to them.
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
        Ok(LabelRelaxation { alpha, scores, isa: Isa::best() })
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
        let pass = Pass { loss: self, rows, targets, weight, factor, grad };
        let tiles = Tiles::new(rows.len(), rows.n_classes());
        let sums = threads::collect(tiles.len(), 0.0_f64, &|range, sums| {
            simd::run(self.isa, Tile { pass, tiles, first: range.start, sums });
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
        let pass = Pass { loss: self, rows, targets, weight, factor: 1.0, grad };
        let tiles = Tiles::new(rows.len(), rows.n_classes());
        // Each range of tiles is a range of rows, and its losses are no one else's.
        let out = threads::Disjoint::new(losses);
        threads::share(tiles.len(), &|range| {
            let rows = tiles.rows(range);
            // SAFETY: `share` gives every tile to one call only.
            let losses = unsafe { out.part(rows.clone()) };
            simd::run(self.isa, Each { pass, first: rows.start, losses });
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

/// Sums the losses of each of a range of tiles.
struct Tile<'a, E: Element> {
    pass: Pass<'a, E>,
    tiles: Tiles,
    first: usize,
    sums: &'a mut [f64],
}

impl<E: Element> Kernel for Tile<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut scratch = Scratch::default();
        for (t, sum) in self.sums.iter_mut().enumerate() {
            for i in self.tiles.rows(self.first + t..self.first + t + 1) {
                *sum += self.pass.row(i, &mut scratch);
            }
        }
    }
}

/// Stores the loss of each of a range of rows.
struct Each<'a, E: Element> {
    pass: Pass<'a, E>,
    first: usize,
    losses: &'a mut [E::Wide],
}

impl<E: Element> Kernel for Each<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut scratch = Scratch::default();
        for (i, loss) in self.losses.iter_mut().enumerate() {
            *loss = E::Wide::from_f64(self.pass.row(self.first + i, &mut scratch));
        }
    }
}

struct Scratch<E> {
    row: Vec<E>,
    grad: Vec<E>,
}

impl<E> Default for Scratch<E> {
    fn default() -> Self {
        Scratch { row: Vec::new(), grad: Vec::new() }
    }
}

impl<E: Element> Pass<'_, E> {
    /// The weighted loss of row `i`; its gradient goes to its place.
    #[inline(always)]
    fn row(&self, i: usize, scratch: &mut Scratch<E>) -> f64 {
        let class = self.targets.class(i);
        let row = self.rows.row(i, &mut scratch.row);
        let (coins, weight) = match class {
            None => (None, 0.0),
            Some(y) => {
                let coins = match self.loss.scores {
                    Scores::Logits => Coins::of_logits(row, y),
                    Scores::Probabilities => Coins::of_probabilities(row, y),
                };
                (Some((y, coins)), self.weight.map_or(1.0, |w| w[y]))
            }
        };
        let excess = coins.as_ref().map_or(0.0, |(_, c)| c.q - self.loss.alpha);
        // NaN is not inside.
        let inside = excess <= 0.0;

        if let Some(grad) = self.grad {
            // SAFETY: every row is in one tile, and every tile with one thread.
            let out = unsafe { grad.row(i, &mut scratch.grad) };
            match coins {
                Some((y, ref coins)) if !inside => {
                    let factor = excess * weight * self.factor;
                    match self.loss.scores {
                        Scores::Logits => {
                            softmax(row, coins.max, factor / coins.others, out);
                            out[y] = E::narrow(E::Wide::from_f64(-factor));
                        }
                        // By the chain rule over z = ln p.
                        Scores::Probabilities => {
                            out.fill(E::narrow(E::Wide::from_f64(factor / coins.others)));
                            out[y] = E::narrow(E::Wide::from_f64(-factor / coins.own));
                        }
                    }
                }
                _ => out.fill(E::ZERO),
            }
            // SAFETY: as above.
            unsafe { grad.finish(i, &scratch.grad) };
        }
        match coins {
            Some((_, ref coins)) if !inside => weight * coins.divergence(self.loss.alpha, excess),
            _ => 0.0,
        }
    }
}

/// out_k = factor e^(z_k - max)
#[inline(always)]
fn softmax<E: Element>(row: &[E], max: E::Wide, factor: f64, out: &mut [E]) {
    let shift = [max; LANES];
    let factor = E::Wide::from_f64(factor * (1.0 / E::Wide::BIAS));
    let scaled = |z: &[E; LANES], out: &mut [E; LANES]| {
        let mut e = exp_biased_sub(&widen(z), &shift);
        for e in &mut e {
            *e = e.mul(factor);
        }
        narrow(&e, out);
    };
    let ((rows, row_tail), (outs, out_tail)) = (row.as_chunks(), out.as_chunks_mut());
    for (z, out) in rows.iter().zip(outs) {
        scaled(z, out);
    }
    if !row_tail.is_empty() {
        let (mut z, mut e) = ([E::ZERO; LANES], [E::ZERO; LANES]);
        z[..row_tail.len()].copy_from_slice(row_tail);
        scaled(&z, &mut e);
        out_tail.copy_from_slice(&e[..row_tail.len()]);
    }
}

/// A prediction, as the coin that its row is: class y against all others.
struct Coins<F> {
    /// 1 - p_y, without cancellation
    q: f64,
    /// The log-odds, ln(p / q).
    d: f64,
    /// The sum over the other classes of the scores, or of e^(z - max).
    others: f64,
    /// The score of y, where scores are probabilities.
    own: f64,
    /// What exponentials are relative to.
    max: F,
}

impl<F: Real> Coins<F> {
    #[inline(always)]
    fn of_logits<E: Element<Wide = F>>(row: &[E], y: usize) -> Self {
        let others = sum_exp(row, y);
        let own = row[y].widen().to_f64();
        // An infinite logit has no softmax: inf - inf, as in PyTorch.
        let own = if own == f64::INFINITY { f64::NAN } else { own };
        let d = (own - others.max.to_f64()) - others.sum.ln();
        // e^-|d| does not overflow.
        let e = (-d.abs()).exp();
        let q = if d > 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
        Coins { q, d, others: others.sum, own, max: others.max }
    }

    #[inline(always)]
    fn of_probabilities<E: Element<Wide = F>>(row: &[E], y: usize) -> Self {
        let sum = |part: &[E]| part.iter().map(|p| p.widen().to_f64()).sum::<f64>();
        let (others, own) = (sum(&row[..y]) + sum(&row[y + 1..]), row[y].widen().to_f64());
        Coins { q: others / (others + own), d: (own / others).ln(), others, own, max: F::ZERO }
    }

    /// The divergence of (1 - a, a) against (p, q), where `excess` = q - a.
    #[inline(always)]
    fn divergence(&self, a: f64, excess: f64) -> f64 {
        // -ln p and -ln q, each from whichever of the two is not close to 1.
        let e = (-self.d.abs()).exp();
        let ln_large = -e.ln_1p();
        let (ln_p, ln_q) =
            if self.d > 0.0 { (ln_large, ln_large - self.d) } else { (ln_large + self.d, ln_large) };
        if a == 0.0 {
            return -ln_p;
        }
        // p = (1 - a)(1 + u) and q = a (1 + v). In (1 - a)(u - ln(1 + u)) + a (v - ln(1 + v)) the linear
        // terms have cancelled by themselves, which they would do badly in rounded logarithms near the
        // border of the set.
        let (u, v) = (-excess / (1.0 - a), excess / a);
        (1.0 - a) * above_tangent(u, ln_p - (1.0 - a).ln()) + a * above_tangent(v, ln_q - a.ln())
    }
}

/// x - ln(1 + x), for x > -1, given ln(1 + x) as rounded.
#[inline(always)]
fn above_tangent(x: f64, ln_1p: f64) -> f64 {
    if x.abs() > 0.25 {
        return x - ln_1p;
    }
    // With w = x / (2 + x): ln(1 + x) = 2 (w + w^3/3 + w^5/5 + ...) and x - 2w = x w.
    let w = x / (2.0 + x);
    let w2 = w * w;
    let mut series = 0.0;
    for n in (3..=21).rev().step_by(2) {
        series = series * w2 + 1.0 / f64::from(n);
    }
    x * w - 2.0 * w * w2 * series
}
