//! The losses in readable ATen operators: for every device but the CPU, and for gradients of gradients.
//!
//! The same formulas as in python/lr_relax/_reference.py.

use tch::{Kind, Tensor};

use super::losses::Options;
use crate::kernels::label_relaxation::Scores;
use crate::rows::Error;

/// The loss of a class index against all other classes; [`crate::kernels::label_relaxation`] has the formula.
pub(super) fn label_relaxation(
    options: Options,
    input: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let alpha = options.alpha;
    let half = matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
    let scores = if half { input.f_to_kind(Kind::Float)? } else { input.shallow_clone() };
    let scores = scores.f_movedim_int(options.dim, -1)?;
    let target = target.f_to_kind(Kind::Int64)?;
    let counted = target.f_ne(options.ignore_index)?;
    let y = target.f_where_scalarother(&counted, 0)?.f_unsqueeze(-1)?;
    let is_own = scores.f_zeros_like()?.f_to_kind(Kind::Bool)?.f_scatter_value(-1, &y, 1)?;
    // In rows without loss nothing infinite may reach the gradient, not even as 0 * inf.
    let scores = scores.f_where_scalarother(&counted.f_unsqueeze(-1)?, 0.0)?;

    // d = ln(p_y / (1 - p_y)), the log-odds of y. NaN counts as outside of the set.
    let (d, outside) = match options.scores {
        Scores::Logits => {
            // Relative to the maximum, so that what all logits have in common does not cancel digits.
            let scores = scores.f_sub(&scores.f_detach()?.f_amax([-1], true)?)?;
            let rest = sum(&scores.f_exp()?.f_masked_fill(&is_own, 0.0)?)?;
            let own = scores.f_gather(-1, &y, false)?.f_squeeze_dim(-1)?;
            let vanished = rest.f_eq(0.0)?;
            let certain = vanished.f_logical_and(&own.f_isnan()?.f_logical_not()?)?;
            let d = own.f_sub(&rest.f_masked_fill(&vanished, 1.0)?.f_log()?)?;
            let inside = certain.f_logical_or(&d.f_neg()?.f_sigmoid()?.f_le(alpha)?)?;
            (d, counted.f_logical_and(&inside.f_logical_not()?)?)
        }
        Scores::Probabilities => {
            let own = scores.f_gather(-1, &y, false)?.f_squeeze_dim(-1)?;
            let rest = sum(&scores.f_masked_fill(&is_own, 0.0)?)?;
            let total = own.f_add(&rest)?;
            let positive = total.f_gt(0.0)?.f_logical_and(&total.f_lt(f64::INFINITY)?)?;
            let valid = scores.f_ge(0.0)?.f_all_dim(-1, false)?.f_logical_and(&positive)?;
            let inside = rest.f_le_tensor(&total.f_mul_scalar(alpha)?)?.f_logical_and(&valid)?;
            let outside = counted.f_logical_and(&inside.f_logical_not()?)?;
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
    losses = losses.f_where_scalarother(&outside, 0.0)?;

    let mut factor = counted.f_to_kind(losses.f_kind()?)?;
    if let Some(weight) = weight {
        let weight = weight.f_detach()?.f_to_kind(losses.f_kind()?)?;
        factor = factor.f_mul(&weight.f_index(&[Some(y.f_squeeze_dim(-1)?)])?)?;
        losses = losses.f_mul(&factor)?;
    }
    Ok(match options.reduction {
        tch::Reduction::Mean => losses.f_sum(None)?.f_div(&factor.f_sum(None)?)?,
        tch::Reduction::Sum => losses.f_sum(None)?,
        _ => losses,
    })
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
    use crate::kernels::label_relaxation::Scores;
    use crate::tch::LabelRelaxationLoss;
    use tch::{Device, Reduction};

    /// The reference is what other devices take: values and gradients must be those of the kernel.
    #[test]
    fn is_the_kernel() {
        tch::manual_seed(1);
        let z = Tensor::randn([3, 6, 50], (Kind::Double, Device::Cpu)) * 4.0;
        let p = z.softmax(1, None) * 0.7;
        let y = Tensor::randint(6, [3, 50], (Kind::Int64, Device::Cpu));
        let _ = y.get(0).narrow(0, 0, 9).fill_(255);
        let weight = Tensor::rand([6], (Kind::Double, Device::Cpu));
        for (input, scores) in [(&z, Scores::Logits), (&p, Scores::Probabilities)] {
            for alpha in [0.0, 0.1, 0.5] {
                for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                    for weight in [None, Some(&weight)] {
                        let x = input.detach().set_requires_grad(true);
                        let options = Options { alpha, reduction, dim: 1, ignore_index: 255, scores };
                        let reference = label_relaxation(options, &x, &y, weight).unwrap();
                        let mut loss = LabelRelaxationLoss::new(alpha).unwrap().reduction(reduction);
                        loss = loss.dim(1).ignore_index(255).scores(scores);
                        if let Some(weight) = weight {
                            loss = loss.weight(weight.shallow_clone());
                        }
                        let kernel = loss.forward(&x, &y).unwrap();
                        assert!(kernel.allclose(&reference, 1e-12, 1e-14, false));
                        let grad = |loss: &Tensor| {
                            Tensor::run_backward(&[loss.square().sum(None)], &[&x], false, false).remove(0)
                        };
                        assert!(grad(&kernel).allclose(&grad(&reference), 1e-11, 1e-13, false));
                    }
                }
            }
        }
    }

    #[test]
    fn certain_and_impossible_classes() {
        let z = Tensor::from_slice(&[800.0, 0.0, 0.0, 800.0, f64::NEG_INFINITY, 0.0, f64::NAN, 0.0]);
        let z = z.reshape([4, 2]).set_requires_grad(true);
        let y = Tensor::from_slice(&[0_i64; 4]);
        let options = Options {
            alpha: 0.1,
            reduction: Reduction::None,
            dim: -1,
            ignore_index: -100,
            scores: Scores::Logits,
        };
        let losses = Vec::<f64>::try_from(label_relaxation(options, &z, &y, None).unwrap()).unwrap();
        assert_eq!((losses[0], losses[2]), (0.0, f64::INFINITY));
        assert!((losses[1] - (0.9 * (0.9_f64.ln() + 800.0) + 0.1 * 0.1_f64.ln())).abs() < 1e-12);
        assert!(losses[3].is_nan());
    }
}
