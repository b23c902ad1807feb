//! One row with its exponentials, for losses that depend on more than the log-odds of the class.
//!
//! The row is read once; what is made of it stays in the first-level cache, sixteen classes to a vector, so that
//! no exponential is computed twice. The gradients of such losses are
//!
//! ```text
//! dL/dz_k = e_k (a + b x_k) + c w_k,      x_k = z_k - max,      e_k = e^x_k,      for the classes k other than y.
//! ```

use std::ops::Range;

use crate::simd::lanes::{self, fold, narrow, widen};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::coin::Coins;
use super::pass::{Group, Pass, Scratch};
use super::sum_exp::SumExp;

/// How many vectors are summed in the type of the scores before they go to a sum in double precision.
const BLOCK: usize = 8;

/// A row of scores without the class `left_out`.
pub(super) struct Row<F> {
    /// z - max; 0 for the class left out and past the end.
    pub x: Vec<Lanes<F>>,
    /// e^(z - max); 0 as above.
    pub e: Vec<Lanes<F>>,
    /// Of the blocks, by way of memory: sums that stay in registers on their way to double precision make the
    /// compiler split the vectors.
    sums: Vec<Lanes<F>>,
}

impl<F: Real> Row<F> {
    pub(super) fn new() -> Self {
        Row { x: Vec::new(), e: Vec::new(), sums: Vec::new() }
    }

    /// Takes the scores, and sums their exponentials.
    #[inline(always)]
    pub(super) fn load<E: Element<Wide = F>>(&mut self, row: &[E], left_out: usize) -> SumExp<F> {
        let nothing = F::from_f64(f64::NEG_INFINITY);
        let (vectors, tail) = row.as_chunks();
        self.x.clear();
        self.x.extend(vectors.iter().map(widen));
        if !tail.is_empty() {
            let mut last = [nothing; LANES];
            for (x, z) in last.iter_mut().zip(tail) {
                *x = z.widen();
            }
            self.x.push(last);
        }
        if left_out < row.len() {
            self.x[left_out / LANES][left_out % LANES] = nothing;
        }
        let mut max = [F::LOWEST; LANES];
        for x in &self.x {
            max = lanes::max(&max, x);
        }
        let max = fold(max, |a, b| if b > a { b } else { a });
        let (shift, unbias) = ([max; LANES], F::from_f64(1.0 / F::BIAS));
        self.e.resize(self.x.len(), [F::ZERO; LANES]);
        self.sums.clear();
        for (x, e) in self.x.chunks_mut(BLOCK).zip(self.e.chunks_mut(BLOCK)) {
            let mut sum = [F::ZERO; LANES];
            for (x, e) in x.iter_mut().zip(e) {
                // By values: arrays that are changed where they lie are not vectorised.
                let z = *x;
                let exps = lanes::map(&lanes::exp_biased_sub(&z, &shift), |e| e.mul(unbias));
                sum = lanes::add(&sum, &exps);
                *e = exps;
                *x = lanes::map(&z, |z| z.sub(max));
            }
            self.sums.push(sum);
        }
        if let Some(last) = self.x.last_mut().filter(|_| !tail.is_empty()) {
            last[tail.len()..].fill(F::ZERO);
        }
        if left_out < row.len() {
            self.x[left_out / LANES][left_out % LANES] = F::ZERO;
        }
        SumExp { max, sum: self.total() }
    }

    /// The sum of `f` of the vectors.
    #[inline(always)]
    pub(super) fn sum(&mut self, f: impl Fn(usize, &Lanes<F>, &Lanes<F>) -> Lanes<F>) -> f64 {
        self.sums.clear();
        for (i, (x, e)) in self.x.chunks(BLOCK).zip(self.e.chunks(BLOCK)).enumerate() {
            let mut sum = [F::ZERO; LANES];
            for (v, (x, e)) in x.iter().zip(e).enumerate() {
                sum = lanes::add(&sum, &f(i * BLOCK + v, x, e));
            }
            self.sums.push(sum);
        }
        self.total()
    }

    /// The sum of the sums of blocks, in double precision.
    #[inline(always)]
    fn total(&self) -> f64 {
        let mut total = [0.0; LANES];
        for sum in &self.sums {
            total = lanes::add_to(&total, sum);
        }
        fold(total, |a, b| a + b)
    }

    /// Writes `f` of the vectors to `out`.
    #[inline(always)]
    pub(super) fn write<E: Element<Wide = F>>(
        &self,
        out: &mut [E],
        f: impl Fn(usize, &Lanes<F>, &Lanes<F>) -> Lanes<F>,
    ) {
        let (vectors, tail) = out.as_chunks_mut();
        for (v, out) in vectors.iter_mut().enumerate() {
            narrow(&f(v, &self.x[v], &self.e[v]), out);
        }
        if !tail.is_empty() {
            let (v, mut last) = (vectors.len(), [E::ZERO; LANES]);
            narrow(&f(v, &self.x[v], &self.e[v]), &mut last);
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }
}

/// A row, and what its sum tells.
pub(super) struct Summed<'a, F> {
    pub row: &'a mut Row<F>,
    /// z_y - max
    pub own: f64,
    /// The sum of e_k over the other classes.
    pub others: f64,
    pub ln_others: f64,
    /// q = 1 - p_y
    pub q: f64,
    pub ln_p: f64,
    pub ln_q: f64,
    pub n_classes: usize,
    /// A factor for each class, where there are some, and their sum (the number of classes, where not).
    pub weight: Option<&'a [Lanes<F>]>,
    pub weight_sum: f64,
    /// That of y.
    pub own_weight: f64,
}

/// The loss of a row and the coefficients of its gradient.
pub(super) struct Outcome {
    pub loss: f64,
    /// dL/dz_y
    pub own: f64,
    /// a, b and c of the other classes.
    pub coefficients: [f64; 3],
}

/// A loss of logits that is computed row by row.
pub(super) trait RowLoss {
    fn row<F: Real>(&self, summed: Summed<'_, F>) -> Outcome;
}

/// Makes a group of a loss by rows.
pub(super) struct ByRow<L>(pub L);

impl<L: RowLoss> Group for ByRow<L> {
    #[inline(always)]
    fn group<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let mut losses = [0.0; LANES];
        for (lane, i) in rows.enumerate() {
            let Some(y) = pass.targets.class(i) else {
                zero(pass, i, scratch);
                continue;
            };
            let row = pass.rows.row(i, &mut scratch.row);
            let own = row[y].widen().to_f64();
            let SumExp { max, sum: others } = scratch.exps.load(row, y);
            // An infinite logit has no softmax: inf - inf, as in PyTorch.
            let own = if own == f64::INFINITY { f64::NAN } else { own - max.to_f64() };
            let ln_others = ln(others);
            let coins = Coins::new(&[own - ln_others; LANES]);
            let n_classes = pass.rows.n_classes();
            let weight = pass.weight.map(|_| &scratch.weight[..]);
            let outcome = self.0.row(Summed {
                row: &mut scratch.exps,
                own,
                others,
                ln_others,
                q: coins.q[0],
                ln_p: coins.ln_p[0],
                ln_q: coins.ln_q[0],
                n_classes,
                weight,
                weight_sum: pass.weight.map_or(n_classes as f64, |weight| weight.iter().sum()),
                own_weight: pass.weight_of(y),
            });
            losses[lane] = outcome.loss;
            let Some(grad) = pass.grad else { continue };
            // SAFETY: every row is in one tile, and every tile with one thread.
            let out = unsafe { grad.row(i, &mut scratch.grad) };
            let [a, b, c] = outcome.coefficients.map(|x| E::Wide::from_f64(x * pass.factor));
            // A class that is impossible has x = -inf and e = 0; e^-1000 is 0 too.
            let least = E::Wide::from_f64(-1000.0);
            scratch.exps.write(out, |v, x, e| {
                let g = lanes::zip(e, x, |e, x| e.mul(b.mul(if x < least { least } else { x }).add(a)));
                match weight {
                    Some(weight) => lanes::zip(&g, &weight[v], |g, w| g.add(w.mul(c))),
                    None => lanes::map(&g, |g| g.add(c)),
                }
            });
            out[y] = E::narrow(E::Wide::from_f64(outcome.own * pass.factor));
            // SAFETY: as above.
            unsafe { grad.finish(i, &scratch.grad) };
        }
        losses
    }
}

/// Gives a row no gradient.
#[inline(always)]
pub(super) fn zero<E: Element>(pass: &Pass<'_, E>, i: usize, scratch: &mut Scratch<E>) {
    let Some(grad) = pass.grad else { return };
    // SAFETY: every row is in one tile, and every tile with one thread.
    unsafe {
        grad.row(i, &mut scratch.grad).fill(E::ZERO);
        grad.finish(i, &scratch.grad);
    }
}
