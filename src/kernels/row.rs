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
pub(super) const BLOCK: usize = 8;

/// A row of scores without the class `left_out`.
pub(super) struct Row<F> {
    /// z - max; 0 for the class left out and past the end.
    pub x: Vec<Lanes<F>>,
    /// e^(z - max); 0 as above.
    pub e: Vec<Lanes<F>>,
    /// Of the blocks, by way of memory: sums that stay in registers on their way to double precision make the
    /// compiler split the vectors.
    pub sums: Vec<Lanes<F>>,
}

/// The sum of the sums of blocks, in double precision.
#[inline(always)]
pub(super) fn total<F: Real>(sums: &[Lanes<F>]) -> f64 {
    let mut total = [0.0; LANES];
    for sum in sums {
        total = lanes::add_to(&total, sum);
    }
    fold(total, |a, b| a + b)
}

impl<F: Real> Row<F> {
    pub(super) fn new() -> Self {
        Row { x: Vec::new(), e: Vec::new(), sums: Vec::new() }
    }

    /// Takes the scores as they are; minus infinity past the end.
    #[inline(always)]
    pub(super) fn read<E: Element<Wide = F>>(&mut self, row: &[E]) {
        let (vectors, tail) = row.as_chunks();
        self.x.clear();
        self.x.extend(vectors.iter().map(widen));
        if !tail.is_empty() {
            let mut last = [F::from_f64(f64::NEG_INFINITY); LANES];
            for (x, z) in last.iter_mut().zip(tail) {
                *x = z.widen();
            }
            self.x.push(last);
        }
    }

    /// Takes probabilities as they are, in place of exponentials; 0 past the end.
    #[inline(always)]
    pub(super) fn read_probabilities<E: Element<Wide = F>>(&mut self, row: &[E]) {
        self.read(row);
        let n = row.len();
        if let Some(last) = self.x.last_mut().filter(|_| !n.is_multiple_of(LANES)) {
            last[n % LANES..].fill(F::ZERO);
        }
        std::mem::swap(&mut self.x, &mut self.e);
        self.x.resize(self.e.len(), [F::ZERO; LANES]);
    }

    /// Takes the scores, and sums their exponentials.
    #[inline(always)]
    pub(super) fn load<E: Element<Wide = F>>(&mut self, row: &[E], left_out: usize) -> SumExp<F> {
        self.read(row);
        if left_out < row.len() {
            self.x[left_out / LANES][left_out % LANES] = F::from_f64(f64::NEG_INFINITY);
        }
        let mut max = [F::LOWEST; LANES];
        for x in &self.x {
            max = lanes::max(&max, x);
        }
        let max = fold(max, |a, b| if b > a { b } else { a });
        self.exps(&[max; LANES], &[max; LANES], None);
        let n = row.len();
        if let Some(last) = self.x.last_mut().filter(|_| !n.is_multiple_of(LANES)) {
            last[n % LANES..].fill(F::ZERO);
        }
        if left_out < n {
            self.x[left_out / LANES][left_out % LANES] = F::ZERO;
        }
        SumExp { max, sum: sum!(self, |_, _, e| *e) }
    }

    /// Turns the scores x into x - shift and its exponential; where there is a `set`, classes in it have another
    /// shift.
    #[inline(always)]
    pub(super) fn exps(&mut self, shift: &Lanes<F>, in_set: &Lanes<F>, set: Option<&[Lanes<F>]>) {
        let unbias = F::from_f64(1.0 / F::BIAS);
        self.e.resize(self.x.len(), [F::ZERO; LANES]);
        for (v, (x, e)) in self.x.iter_mut().zip(&mut self.e).enumerate() {
            let mut shift = *shift;
            if let Some(set) = set {
                for k in 0..LANES {
                    shift[k] = if set[v][k] > F::ZERO { in_set[k] } else { shift[k] };
                }
            }
            // By values: arrays that are changed where they lie are not vectorised.
            let z = *x;
            *e = lanes::map(&lanes::exp_biased_sub(&z, &shift), |e| e.mul(unbias));
            *x = lanes::zip(&z, &shift, |z, shift| z.sub(shift));
        }
    }
}

// Macros, not functions that take closures: what is not inlined is compiled for the baseline.

/// The sum over all classes, `|v, x, e|` being the number of a vector, and its scores and exponentials.
macro_rules! sum {
    ($row:expr, |$v:pat_param, $x:pat_param, $e:pat_param| $body:expr) => {{
        let row = &mut *$row;
        row.sums.clear();
        for (i, (x, e)) in row.x.chunks($crate::kernels::row::BLOCK).zip(row.e.chunks($crate::kernels::row::BLOCK)).enumerate() {
            let mut sum = $crate::kernels::row::zeros(x);
            for (j, ($x, $e)) in x.iter().zip(e).enumerate() {
                let $v = i * $crate::kernels::row::BLOCK + j;
                sum = $crate::simd::lanes::add(&sum, &$body);
            }
            row.sums.push(sum);
        }
        $crate::kernels::row::total(&row.sums)
    }};
}

/// Writes a number for each class to `out`; the rest as in `sum`.
macro_rules! put {
    ($row:expr, $out:expr, |$v:pat_param, $x:pat_param, $e:pat_param| $body:expr) => {{
        let (row, out): (&_, &mut [_]) = (&$row, &mut *$out);
        for (v, ($x, $e)) in row.x.iter().zip(&row.e).enumerate() {
            let $v = v;
            $crate::kernels::row::store(&$body, &mut out[v * LANES..]);
        }
    }};
}

pub(super) use {put, sum};

#[inline(always)]
pub(super) fn zeros<F: Real>(_: &[Lanes<F>]) -> Lanes<F> {
    [F::ZERO; LANES]
}

/// Stores a vector at the beginning of `out`, which may be shorter.
#[inline(always)]
pub(super) fn store<E: Element>(vector: &Lanes<E::Wide>, out: &mut [E]) {
    match out.first_chunk_mut() {
        Some(out) => narrow(vector, out),
        None => {
            let mut short = [E::ZERO; LANES];
            narrow(vector, &mut short);
            out.copy_from_slice(&short[..out.len()]);
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
            let Some(y) = pass.class(i) else {
                pass.no_gradient(i, scratch);
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
            let [a, b, c] = outcome.coefficients.map(|x| E::Wide::from_f64(x * pass.factor));
            // A class that is impossible has x = -inf and e = 0; e^-1000 is 0 too.
            let least = E::Wide::from_f64(-1000.0);
            let Some(out) = pass.out(i, &mut scratch.grad) else { continue };
            put!(scratch.exps, out, |v, x, e| {
                let g = lanes::zip(e, x, |e, x| e.mul(b.mul(if x < least { least } else { x }).add(a)));
                match weight {
                    Some(weight) => lanes::zip(&g, &weight[v], |g, w| g.add(w.mul(c))),
                    None => lanes::map(&g, |g| g.add(c)),
                }
            });
            out[y] = E::narrow(E::Wide::from_f64(outcome.own * pass.factor));
            pass.finish(i, &scratch.grad);
        }
        losses
    }
}
