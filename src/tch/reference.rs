//! The losses in readable ATen operators: for every device but the CPU, and for gradients of gradients.
//!
//! The same formulas as in python/lr_relax/_reference.py.

use tch::{Kind, Tensor};

use super::losses::Options;
use crate::kernels::coin::Scores;
use crate::kernels::pass::Loss;
use crate::rows::Error;

/// Scores with the classes last, and the class of each row.
struct Rows<'a> {
    scores: Tensor,
    y: Tensor,
    counted: Tensor,
    is_own: Tensor,
    /// A factor for each class.
    weight: Option<&'a Tensor>,
    /// That of the class of the row; 0 where the row does not count.
    factor: Tensor,
}

impl Rows<'_> {
    /// The number of the row's class.
    fn own(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_gather(-1, &self.y, false)?.f_squeeze_dim(-1)?)
    }
}

/// The loss that the options tell.
pub(super) fn loss(
    options: Options,
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let half = matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
    let scores = if half { input.f_to_kind(Kind::Float)? } else { input.shallow_clone() };
    let scores = scores.f_movedim_int(options.dim, -1)?;
    let target = target.f_to_kind(Kind::Int64)?;
    let counted = target.f_ne(options.ignore_index)?;
    let y = target.f_where_scalarother(&counted, 0)?.f_unsqueeze(-1)?;
    let is_own = scores.f_zeros_like()?.f_to_kind(Kind::Bool)?.f_scatter_value(-1, &y, 1)?;
    // In rows without loss nothing infinite may reach the gradient, not even as 0 * inf.
    let scores = scores.f_where_scalarother(&counted.f_unsqueeze(-1)?, 0.0)?;
    let kind = scores.f_kind()?;
    let weight = weight.map(|weight| weight.f_detach()?.f_to_kind(kind)).transpose()?;
    let mut factor = counted.f_to_kind(kind)?;
    if let Some(weight) = &weight {
        factor = factor.f_mul(&weight.f_index(&[Some(y.f_squeeze_dim(-1)?)])?)?;
    }
    let rows = Rows { scores, y, counted, is_own, weight: weight.as_ref(), factor };
    let losses = match options.loss {
        Loss::LabelRelaxation(loss) => label_relaxation(&rows, loss.alpha, loss.scores)?,
        Loss::CrossEntropy(loss) => cross_entropy(&rows, loss.label_smoothing)?,
        Loss::Focal(loss) => focal(&rows, loss.gamma)?,
        Loss::ConfidencePenalty(loss) => confidence_penalty(&rows, loss.beta)?,
    };
    Ok(match options.reduction {
        tch::Reduction::Mean => losses.f_sum(None)?.f_div(&rows.factor.f_sum(None)?)?,
        tch::Reduction::Sum => losses.f_sum(None)?,
        _ => losses,
    })
}

/// [`crate::kernels::label_relaxation`] has the formula.
fn label_relaxation(rows: &Rows<'_>, alpha: f64, scores: Scores) -> Result<Tensor, Error> {
    let (d, outside) = match scores {
        Scores::Logits => {
            let (d, certain) = log_odds(rows)?;
            // NaN counts as outside of the set.
            let inside = certain.f_logical_or(&d.f_neg()?.f_sigmoid()?.f_le(alpha)?)?;
            (d, rows.counted.f_logical_and(&inside.f_logical_not()?)?)
        }
        Scores::Probabilities => {
            let own = rows.own(&rows.scores)?;
            let rest = sum(&rows.scores.f_masked_fill(&rows.is_own, 0.0)?)?;
            let total = own.f_add(&rest)?;
            let positive = total.f_gt(0.0)?.f_logical_and(&total.f_lt(f64::INFINITY)?)?;
            let valid = rows.scores.f_ge(0.0)?.f_all_dim(-1, false)?.f_logical_and(&positive)?;
            let inside = rest.f_le_tensor(&total.f_mul_scalar(alpha)?)?.f_logical_and(&valid)?;
            let outside = rows.counted.f_logical_and(&inside.f_logical_not()?)?;
            let log = |part: &Tensor| -> Result<Tensor, Error> {
                let part = part.f_where_scalarother(&outside, 1.0)?;
                Ok(part.f_where_scalarother(&valid, f64::NAN)?.f_log()?)
            };
            (log(&own)?.f_sub(&log(&rest)?)?, outside)
        }
    };
    let d = d.f_where_scalarother(&outside, 0.0)?;
    let mut losses = softplus(&d.f_neg()?)?.f_add_scalar((-alpha).ln_1p())?.f_mul_scalar(1.0 - alpha)?;
    if alpha > 0.0 {
        losses = losses.f_add(&softplus(&d)?.f_add_scalar(alpha.ln())?.f_mul_scalar(alpha)?)?;
    }
    // A divergence is not negative; rounded, it may be.
    losses = losses.f_add(&losses.f_neg()?.f_clamp_min(0.0)?.f_detach()?)?;
    Ok(losses.f_where_scalarother(&outside, 0.0)?.f_mul(&rows.factor)?)
}

/// [`crate::kernels::cross_entropy`] has the formula.
fn cross_entropy(rows: &Rows<'_>, label_smoothing: f64) -> Result<Tensor, Error> {
    let losses = label_relaxation(rows, 0.0, Scores::Logits)?.f_mul_scalar(1.0 - label_smoothing)?;
    if label_smoothing == 0.0 {
        return Ok(losses);
    }
    let mut surprise = rows.scores.f_log_softmax(-1, None)?.f_neg()?;
    if let Some(weight) = rows.weight {
        surprise = surprise.f_mul(weight)?;
    }
    let surprise = surprise.f_where_scalarother(&rows.counted.f_unsqueeze(-1)?, 0.0)?;
    Ok(losses.f_add(&surprise.f_mean_dim(-1, false, None)?.f_mul_scalar(label_smoothing)?)?)
}

/// [`crate::kernels::focal`] has the formula.
fn focal(rows: &Rows<'_>, gamma: f64) -> Result<Tensor, Error> {
    let (d, certain) = log_odds(rows)?;
    let d = d.f_masked_fill(&certain, 0.0)?;
    let discount = softplus(&d)?.f_mul_scalar(-gamma)?.f_exp()?;
    let losses = discount.f_mul(&softplus(&d.f_neg()?)?)?.f_masked_fill(&certain, 0.0)?;
    Ok(losses.f_mul(&rows.factor)?)
}

/// [`crate::kernels::confidence_penalty`] has the formula.
fn confidence_penalty(rows: &Rows<'_>, beta: f64) -> Result<Tensor, Error> {
    let ln_p = rows.scores.f_log_softmax(-1, None)?;
    let ln_p = ln_p.f_masked_fill(&ln_p.f_eq(f64::NEG_INFINITY)?, 0.0)?; // where p is 0, p ln p is
    let penalty = sum(&rows.scores.f_softmax(-1, None)?.f_mul(&ln_p)?)?.f_mul_scalar(beta)?;
    Ok(label_relaxation(rows, 0.0, Scores::Logits)?.f_add(&penalty.f_mul(&rows.factor)?)?)
}

/// ln(p / (1 - p)) of the row's class, and where it is infinite because no other class is possible.
fn log_odds(rows: &Rows<'_>) -> Result<(Tensor, Tensor), Error> {
    // Relative to the maximum, so that what all logits have in common does not cancel digits.
    let scores = rows.scores.f_sub(&rows.scores.f_detach()?.f_amax([-1], true)?)?;
    let rest = sum(&scores.f_exp()?.f_masked_fill(&rows.is_own, 0.0)?)?;
    let own = rows.own(&scores)?;
    let vanished = rest.f_eq(0.0)?;
    let certain = vanished.f_logical_and(&own.f_isnan()?.f_logical_not()?)?;
    Ok((own.f_sub(&rest.f_masked_fill(&vanished, 1.0)?.f_log()?)?, certain))
}

fn sum(scores: &Tensor) -> Result<Tensor, Error> {
    Ok(scores.f_sum_dim_intlist(-1, false, None)?)
}

/// ln(1 + e^x) without the threshold of torch's, which is not exact beyond it.
fn softplus(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_logaddexp(&x.f_zeros_like()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::confidence_penalty::ConfidencePenalty;
    use crate::kernels::cross_entropy::CrossEntropy;
    use crate::kernels::focal::Focal;
    use crate::kernels::label_relaxation::LabelRelaxation;
    use crate::tch::Criterion;
    use tch::{Device, Reduction};

    fn each_loss() -> Vec<Loss> {
        let mut losses: Vec<Loss> = Vec::new();
        for alpha in [0.0, 0.1, 0.5] {
            losses.push(LabelRelaxation::new(alpha, Scores::Logits).unwrap().into());
            losses.push(LabelRelaxation::new(alpha, Scores::Probabilities).unwrap().into());
            losses.push(CrossEntropy::new(alpha).unwrap().into());
            losses.push(Focal::new(4.0 * alpha).unwrap().into());
            losses.push(ConfidencePenalty::new(alpha).unwrap().into());
        }
        losses
    }

    /// The reference is what other devices take: values and gradients must be those of the kernel.
    #[test]
    fn is_the_kernel() {
        tch::manual_seed(1);
        let z = Tensor::randn([3, 6, 50], (Kind::Double, Device::Cpu)) * 4.0;
        let p = z.softmax(1, None) * 0.7;
        let y = Tensor::randint(6, [3, 50], (Kind::Int64, Device::Cpu));
        let _ = y.get(0).narrow(0, 0, 9).fill_(255);
        let weight = Tensor::rand([6], (Kind::Double, Device::Cpu));
        for loss in each_loss() {
            let probabilities = matches!(loss, Loss::LabelRelaxation(l) if l.scores == Scores::Probabilities);
            let input = if probabilities { &p } else { &z };
            for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                for weight in [None, Some(&weight)] {
                    let x = input.detach().set_requires_grad(true);
                    let options = Options { loss, reduction, dim: 1, ignore_index: 255 };
                    let reference = super::loss(options, &x, &y, weight).unwrap();
                    let mut criterion = Criterion::new(loss).reduction(reduction).dim(1).ignore_index(255);
                    if let Some(weight) = weight {
                        criterion = criterion.weight(weight.shallow_clone());
                    }
                    let kernel = criterion.forward(&x, &y).unwrap();
                    assert!(kernel.allclose(&reference, 1e-12, 1e-14, false), "{loss:?}");
                    let grad = |loss: &Tensor| {
                        Tensor::run_backward(&[loss.square().sum(None)], &[&x], false, false).remove(0)
                    };
                    assert!(grad(&kernel).allclose(&grad(&reference), 1e-11, 1e-13, false), "{loss:?}");
                }
            }
        }
    }

    #[test]
    fn certain_and_impossible_classes() {
        let z = Tensor::from_slice(&[800.0, 0.0, 0.0, 800.0, f64::NEG_INFINITY, 0.0, f64::NAN, 0.0]);
        let z = z.reshape([4, 2]).set_requires_grad(true);
        let y = Tensor::from_slice(&[0_i64; 4]);
        let loss = LabelRelaxation::new(0.1, Scores::Logits).unwrap().into();
        let options = Options { loss, reduction: Reduction::None, dim: -1, ignore_index: -100 };
        let losses = Vec::<f64>::try_from(super::loss(options, &z, &y, None).unwrap()).unwrap();
        assert_eq!((losses[0], losses[2]), (0.0, f64::INFINITY));
        assert!((losses[1] - (0.9 * (0.9_f64.ln() + 800.0) + 0.1 * 0.1_f64.ln())).abs() < 1e-12);
        assert!(losses[3].is_nan());
    }
}
