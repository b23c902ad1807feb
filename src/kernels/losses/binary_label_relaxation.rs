//! Label relaxation of one logit for an event, such as one label among several.
//!
//! The target 1 is the set p >= 1 - alpha and the target 0 the set p <= alpha, where p = sigmoid(z). That is label
//! relaxation of two classes with the logits 0 and z, whose log-odds are z or -z.

use std::ops::Range;

use crate::rows::{Error, Scores};
use crate::simd::lanes::{self, narrow, widen};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, GroupLoss, NamedLoss, Scratch};
use super::hyperparameter::Hyperparameter;
use super::label_relaxation::LabelRelaxation;

/// The loss with its hyperparameter. Rows have one column, targets the classes 0 and 1.
#[derive(Clone, Copy, Debug)]
pub struct BinaryLabelRelaxation {
    pub(crate) relaxation: LabelRelaxation,
    /// (1 - a) ln(1 - a) + a ln a
    constant: f64,
}

impl BinaryLabelRelaxation {
    /// `alpha` in [0, 1): the probability that the set leaves to the other outcome.
    pub fn new(alpha: f64, scores: Scores) -> Result<Self, Error> {
        let relaxation = LabelRelaxation::new(alpha, scores)?;
        let constant = (1.0 - alpha) * ln(1.0 - alpha) + if alpha > 0.0 { alpha * ln(alpha) } else { 0.0 };
        Ok(BinaryLabelRelaxation { relaxation, constant })
    }
}

impl NamedLoss for BinaryLabelRelaxation {
    const PARAMETER: Hyperparameter = LabelRelaxation::PARAMETER;
    const IS_BINARY: bool = true;

    fn with(alpha: f64, scores: Scores) -> Result<Self, Error> {
        BinaryLabelRelaxation::new(alpha, scores)
    }
}

impl GroupLoss for BinaryLabelRelaxation {
    #[inline(always)]
    fn group_size(&self) -> usize {
        LANES
    }

    #[inline(always)]
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64> {
        let LabelRelaxation { alpha, scores } = self.relaxation;
        let wide = E::Wide::from_f64;
        let mut z = [E::ZERO; LANES];
        if let Some(column) = batch.rows.column(rows.clone()) {
            z = lanes::load(column, E::ZERO);
        } else {
            for (lane, i) in rows.clone().enumerate() {
                z[lane] = batch.rows.row(i, &mut scratch.row)[0];
            }
        }
        let signs = batch.signs(rows.clone());
        // By probabilities, the loss falls with that of the target by (1 - a / q) / p.
        let (mut d, mut fall) = (widen(&z), [E::Wide::ZERO; LANES]);
        if scores == Scores::Logits {
            d = log_odds(&d);
        } else {
            for i in 0..LANES {
                let p = d[i].to_f64() + 0.0; // of -0.0, the slope would have the wrong sign
                let p = if (0.0..=1.0).contains(&p) { p } else { f64::NAN };
                d[i] = wide(ln(p) - ln(1.0 - p));
                let (p, q) = if signs[i] > 0 { (p, 1.0 - p) } else { (1.0 - p, p) };
                fall[i] = wide((1.0 - alpha / q) / p * batch.factor);
            }
        }
        let (losses, excess) = self.losses(&d, &signs);
        if scores == Scores::Logits {
            fall = lanes::map(&excess, |excess| excess.mul(wide(batch.factor)));
        }
        if batch.wants_gradient() {
            let mut grad = gradient(&excess, &fall, &signs);
            batch.multiply(rows.clone(), &mut grad);
            let mut narrowed = [E::ZERO; LANES];
            narrow(&grad, &mut narrowed);
            batch.store_column(rows, &narrowed, &mut scratch.grad);
        }
        lanes::add_to(&[0.0; LANES], &losses)
    }

    /// Logits in one slice: what [`GroupLoss::group`] asks for every sixteen of them takes longer than their losses.
    #[inline(always)]
    fn tile<E: Element>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        sum: &mut Lanes<f64>,
        mut each: Option<&mut [E::Wide]>,
    ) -> bool {
        // SAFETY: every tile belongs to one thread.
        let columns = unsafe { batch.column(rows.clone()) };
        let (Scores::Logits, Some((z, mut grad))) = (self.relaxation.scores, columns) else { return false };
        let factor = E::Wide::from_f64(batch.factor);
        for (offset, z) in (0..z.len()).step_by(LANES).zip(z.chunks(LANES)) {
            let first = rows.start + offset;
            let signs = batch.signs(first..first + z.len());
            let (losses, excess) = self.losses(&log_odds(&widen(&lanes::load(z, E::ZERO))), &signs);
            *sum = lanes::add_to(sum, &losses);
            if let Some(each) = &mut each {
                lanes::store(&losses, &mut each[offset..]);
            }
            if let Some(grad) = &mut grad {
                let fall = lanes::map(&excess, |excess| excess.mul(factor));
                let mut narrowed = [E::ZERO; LANES];
                narrow(&gradient(&excess, &fall, &signs), &mut narrowed);
                lanes::store(&narrowed, &mut grad[offset..]);
            }
        }
        true
    }
}

impl BinaryLabelRelaxation {
    /// The losses of sixteen events with the log-odds d = ln(p / (1 - p)), and 1 - p_y - a, where p_y is the probability
    /// of the target. Both are exactly 0 inside the set, and for events that are ignored, whose sign is 0.
    #[inline(always)]
    fn losses<F: Real>(&self, d: &Lanes<F>, signs: &Lanes<i32>) -> (Lanes<F>, Lanes<F>) {
        // (1 - a) ln(1 - a) + a ln a - (1 - a) ln p - a ln(1 - p), where ln(1 - p) = ln p - d. Each loop is short
        // enough to vectorize.
        let LabelRelaxation { alpha, .. } = self.relaxation;
        let (a, keep, constant) = (F::from_f64(alpha), F::from_f64(1.0 - alpha), F::from_f64(self.constant));
        let (zero, one, unbias) = (F::ZERO, F::from_f64(1.0), F::from_f64(1.0 / F::BIAS));
        let of_target = lanes::zip(d, signs, |d, sign| if sign < 0 { F::ZERO.sub(d) } else { d });
        let e = lanes::map(&of_target, |d| {
            let minus = zero.sub(d);
            (if d > zero { minus } else { d }).exp_biased().mul(unbias)
        });
        let sum = lanes::map(&e, |e| one.add(e));
        let inverse = lanes::map(&sum, |sum| one.div(sum));
        let ln_sum = lanes::map(&sum, F::ln_normal);
        let (mut losses, mut excess) = ([zero; LANES], [zero; LANES]);
        for i in 0..LANES {
            let is_likely = of_target[i] > zero;
            // -ln p = ln(1 + e), with the rounding error of the sum to first order, where p is the larger one.
            let ln_sum = ln_sum[i].add(e[i].sub(sum[i].sub(one)).mul(inverse[i]));
            // Where p is the smaller one, -ln p + a d = ln(1 + e) - (1 - a) d: no difference of large numbers.
            let by_d = if is_likely { a } else { zero.sub(keep) };
            let loss = ln_sum.add(by_d.mul(of_target[i])).add(constant);
            losses[i] = if loss < zero { zero } else { loss };
        }
        for i in 0..LANES {
            let q = if of_target[i] > zero { e[i].mul(inverse[i]) } else { inverse[i] };
            let is_inside = q.sub(a) <= zero || signs[i] == 0;
            excess[i] = if is_inside { zero } else { q.sub(a) };
            losses[i] = if is_inside { zero } else { losses[i] };
        }
        (losses, excess)
    }
}

/// The log-odds of sixteen logits: NaN for +inf, as the softmax of 0 and +inf.
#[inline(always)]
fn log_odds<F: Real>(z: &Lanes<F>) -> Lanes<F> {
    lanes::map(z, |z| if z < F::from_f64(f64::INFINITY) { z } else { F::from_f64(f64::NAN) })
}

/// The gradients of sixteen events whose losses fall by `fall` with the log-odds, or the probability, of the target;
/// 0 where the excess is 0.
#[inline(always)]
fn gradient<F: Real>(excess: &Lanes<F>, fall: &Lanes<F>, signs: &Lanes<i32>) -> Lanes<F> {
    let mut grad = [F::ZERO; LANES];
    for i in 0..LANES {
        let slope = if signs[i] > 0 { F::ZERO.sub(fall[i]) } else { fall[i] };
        grad[i] = if excess[i] == F::ZERO { F::ZERO } else { slope };
    }
    grad
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, BinaryLabelRelaxation, LabelRelaxation, Reduction};
    use crate::rows::{Rows, RowsMut, Scores, Targets};

    const Z: [f64; 20] = [
        -40.0, -9.0, -5.0, -3.0, -2.2, -2.1, -1.0, -0.1, 0.0, 0.1, 1.0, 2.1, 2.2, 3.0, 5.0, 9.0, 40.0, 800.0, -800.0,
        f64::NEG_INFINITY,
    ];

    /// The losses, and the gradient of their sum.
    fn compute(scores: &[f64], columns: usize, y: &[i64], binary: bool, kind: Scores) -> (Vec<f64>, Vec<f64>) {
        let (rows, targets) =
            (Rows::from_slice(scores, columns).unwrap(), Targets::new(y, 2, -100).unwrap());
        let (mut losses, mut grad) = (vec![0.0; y.len()], vec![0.0; scores.len()]);
        let out = RowsMut::from_slice(&mut grad, columns).unwrap();
        let batch = Batch::new(&rows, &targets).unwrap().gradient(&out).unwrap();
        if binary {
            batch.per_row(BinaryLabelRelaxation::new(0.1, kind).unwrap(), &mut losses).unwrap();
        } else {
            batch.per_row(LabelRelaxation::new(0.1, kind).unwrap(), &mut losses).unwrap();
        }
        (losses, grad)
    }

    #[test]
    fn equals_two_classes() {
        let two: Vec<f64> = Z.iter().flat_map(|&z| [0.0, z]).collect();
        for y in [0, 1] {
            let y = [y; Z.len()];
            let (losses, grad) = compute(&Z, 1, &y, true, Scores::Logits);
            let (expected, expected_grad) = compute(&two, 2, &y, false, Scores::Logits);
            for i in 0..Z.len() {
                let (loss, slope) = (expected[i], expected_grad[2 * i + 1]);
                assert!(losses[i] == loss || (losses[i] - loss).abs() < 1e-15 * (1.0 + loss), "{} {loss}", losses[i]);
                assert!((grad[i] - slope).abs() < 1e-15, "{} {slope}", grad[i]);
            }
        }
    }

    #[test]
    fn probabilities_equal_logits() {
        let z = &Z[1..16];
        let p: Vec<f64> = z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
        for y in [0, 1, -100] {
            let y = vec![y; z.len()];
            let (losses, grad) = compute(&p, 1, &y, true, Scores::Probabilities);
            let (expected, expected_grad) = compute(z, 1, &y, true, Scores::Logits);
            for i in 0..z.len() {
                assert!((losses[i] - expected[i]).abs() < 1e-12 * (1.0 + expected[i]));
                assert!((grad[i] * p[i] * (1.0 - p[i]) - expected_grad[i]).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn tiles_equal_groups() {
        const N: usize = 19; // finite losses, more than one group of them
        let y: Vec<i64> = (0..N).map(|i| [0, 1, -100][i % 3]).collect();
        let (rows, targets) = (Rows::from_slice(&Z[..N], 1).unwrap(), Targets::new(&y, 2, -100).unwrap());
        let loss = BinaryLabelRelaxation::new(0.1, Scores::Logits).unwrap();
        // Factors of the rows are multiplied by groups.
        let [tiles, groups] = [&[1.0][..], &[1.0; N]].map(|upstreams| {
            let (mut losses, mut grad, mut mean_grad) = ([9.0; N], [9.0; N], [9.0; N]);
            let out = RowsMut::from_slice(&mut grad, 1).unwrap();
            let batch = Batch::new(&rows, &targets).unwrap().upstreams(upstreams).unwrap();
            batch.gradient(&out).unwrap().per_row(loss, &mut losses).unwrap();
            let out = RowsMut::from_slice(&mut mean_grad, 1).unwrap();
            let mean = batch.gradient(&out).unwrap().reduce(loss, Reduction::Mean).unwrap();
            (losses, grad, mean, mean_grad)
        });
        assert!(tiles.2 > 0.0 && tiles.2.is_finite());
        assert_eq!(tiles, groups);
    }

    #[test]
    fn takes_one_column_only() {
        let rows = Rows::from_slice(&Z, 2).unwrap();
        let targets = Targets::new(&[1_i64; 10], 2, -100).unwrap();
        let loss = BinaryLabelRelaxation::new(0.1, Scores::Logits).unwrap();
        assert!(Batch::new(&rows, &targets).unwrap().reduce(loss, Reduction::Sum).is_err());
        let (column, targets) = (Rows::from_slice(&Z, 1).unwrap(), Targets::new(&[1_i64; 20], 2, -100).unwrap());
        let two_classes = LabelRelaxation::new(0.1, Scores::Logits).unwrap();
        assert!(Batch::new(&column, &targets).unwrap().reduce(two_classes, Reduction::Sum).is_err());
        let batch = Batch::new(&column, &targets).unwrap();
        assert!(batch.weight(&[1.0]).unwrap().reduce(loss, Reduction::Sum).is_err());
    }
}
