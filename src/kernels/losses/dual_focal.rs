//! The dual focal loss, and its gradient.
//!
//! Tao et al., "Dual Focal Loss for Calibration", ICML 2023. With the class j next below y in probability,
//! p_j = max {p_k : p_k < p_y}, or 0 if there is no such class,
//!
//! ```text
//! L = -f^g ln p_y,      f = 1 - p_y + p_j,
//! ```
//!
//! so that unlike the focal loss it also enlarges the gap between the two. With u = -g f^(g - 1),
//!
//! ```text
//! dL/dz_y = g f^g p_y ln p_y - f^g (1 - p_y),      dL/dz_k = p_k (f^g + u (p_y - p_j) ln p_y) + u p_j ln p_y [k = j].
//! ```

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::lanes::{self, fold, widen};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::exponentials::{NoAccumulator, larger, store};
use super::hyperparameter::Hyperparameter;
use super::log_odds::Binary;

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct DualFocal {
    pub(crate) gamma: f64,
}

impl DualFocal {
    /// `gamma`, at least 0: how much confident rows are discounted; 0 is cross-entropy.
    pub fn new(gamma: f64) -> Result<Self, Error> {
        Ok(DualFocal { gamma: Self::PARAMETER.check(gamma)? })
    }
}

/// The sums of one row.
#[derive(Clone, Copy)]
struct Row {
    y: usize,
    /// The index of class j, if there is one.
    j: Option<usize>,
    /// e^(z_j - max); 0 if there is no j.
    e_j: f64,
}

impl NamedLoss for DualFocal {
    const PARAMETER: Hyperparameter = Hyperparameter::below("gamma", f64::INFINITY);

    fn with(gamma: f64, _: Scores) -> Result<Self, Error> {
        DualFocal::new(gamma)
    }
}

impl GroupLoss for DualFocal {
    #[inline(always)]
    fn keeps_exponentials(&self) -> bool {
        true
    }

    /// Keeps the exponentials of a group in the first-level cache.
    #[inline(always)]
    fn group_size(&self) -> usize {
        4096
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let n_vectors = batch.rows.n_classes().div_ceil(LANES);
        let (mut sums, mut others, mut d) = ([None; LANES], [1.0; LANES], [0.0; LANES]);
        for (lane, i) in rows.clone().enumerate() {
            let Some(y) = batch.class(i) else {
                batch.no_gradient(i, scratch);
                continue;
            };
            let row = batch.rows.row(i, &mut scratch.row);
            let row_sums = scratch.exponentials.load::<E, NoAccumulator<false>>(
                lane,
                row,
                batch.rows.slice(i + 1),
                [y; 2],
            );
            // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
            let own = row[y].widen().to_f64();
            let own = if own == f64::INFINITY { f64::NAN } else { own - row_sums.max.to_f64() };
            others[lane] = row_sums.exponentials;
            d[lane] = own - ln(others[lane]);
            let j = next_below(row, y);
            let e = scratch.exponentials.e[lane * n_vectors..].as_flattened();
            sums[lane] = Some(Row { y, j, e_j: j.map_or(0.0, |j| e[j].to_f64()) });
        }
        let binary = Binary::from_log_odds(&d);
        let mut losses = [0.0; LANES];
        for (lane, i) in rows.enumerate() {
            let Some(Row { y, j, e_j }) = sums[lane] else { continue };
            let (q, ln_p, weight) = (binary.q[lane], binary.ln_p[lane], batch.class_weight(y));
            // Where q is 0, all other classes have probability 0.
            let scale = if q == 0.0 { 0.0 } else { q / others[lane] };
            let (p, p_j) = (1.0 - q, scale * e_j);
            let f = q + p_j;
            let power = if self.gamma == 0.0 { 1.0 } else { (self.gamma * ln(f)).exp_biased() / f64::BIAS };
            // At p = 0, p ln p is 0, and so is p_j, which is smaller than p.
            let p_ln_p = if p == 0.0 { 0.0 } else { p * ln_p };
            let p_j_ln_p = if p_j == 0.0 { 0.0 } else { p_j * ln_p };
            let u = if f == 0.0 { 0.0 } else { -self.gamma * power / f };
            losses[lane] = if power == 0.0 { 0.0 } else { -weight * power * ln_p };
            let Some(out) = batch.out(i, &mut scratch.grad) else { continue };
            let factor = weight * batch.factor(i);
            let others = E::Wide::from_f64(factor * scale * (power + u * (p_ln_p - p_j_ln_p)));
            for (v, e) in scratch.exponentials.e[lane * n_vectors..][..n_vectors].iter().enumerate() {
                store(&lanes::map(e, |e| e.mul(others)), out, v);
            }
            out[y] = E::narrow(E::Wide::from_f64(factor * (self.gamma * power * p_ln_p - power * q)));
            if let Some(j) = j {
                let gap = u * (p_ln_p - p_j_ln_p);
                let own = p_j * (power + gap) + u * p_j_ln_p;
                out[j] = E::narrow(E::Wide::from_f64(factor * own));
            }
            batch.finish(i, &scratch.grad);
        }
        losses
    }
}

/// The first class with the largest score below that of class `y`.
#[inline(always)]
fn next_below<E: Element>(row: &[E], y: usize) -> Option<usize> {
    let (own, lowest) = (row[y].widen(), E::Wide::LOWEST);
    let below = |z: E::Wide| if z < own { z } else { lowest };
    let (vectors, tail) = row.as_chunks();
    let mut best = [lowest; LANES];
    for z in vectors {
        best = lanes::max(&best, &lanes::map(&widen(z), below));
    }
    let tail_best = tail.iter().map(|z| below(z.widen())).fold(lowest, larger);
    let best = larger(fold(best, larger), tail_best);
    if best > lowest { row.iter().position(|z| z.widen() == best) } else { None }
}
