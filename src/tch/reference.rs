//! The losses in readable ATen operators: for every device but the CPU, and for gradients of gradients.
//!
//! The same formulas as in python/lr_relax/_reference.py, which knows more of rows that are spoiled or impossible.

use tch::{Kind, Tensor};

use super::losses::{Options, Tensors};
use crate::losses::pass::Loss;
use crate::rows::Error;
use crate::rows::Scores;

/// Scores with the classes last, and what they are compared with.
struct Rows {
    scores: Tensor,
    /// The class of each row; or, in place of it, a distribution or a set.
    y: Option<Tensor>,
    target: Tensor,
    counted: Tensor,
    /// Whether a class is that of the row, or belongs to its set.
    is_own: Tensor,
    /// A factor for each class.
    weight: Option<Tensor>,
    /// That of the target; 0 where the row does not count.
    factor: Tensor,
}

impl Rows {
    fn new(options: Options, tensors: &Tensors) -> Result<Rows, Error> {
        let (input, target) = (&tensors.input, &tensors.target);
        let half = matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
        let scores = if half { input.f_to_kind(Kind::Float)? } else { input.shallow_clone() };
        let scores = scores.f_movedim_int(options.dim, -1)?;
        let kind = scores.f_kind()?;
        let weight = tensors.weight.as_ref().map(|weight| weight.f_detach()?.f_to_kind(kind)).transpose()?;
        let one_hot = |y: &Tensor| scores.f_zeros_like()?.f_scatter_value(-1, &y.f_unsqueeze(-1)?, 1);
        let is_dense =
            matches!(target.f_kind()?, Kind::Bool | Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        let (y, target, counted) = if let Some((second, share)) = &tensors.mixed {
            let counted =
                target.f_ne(options.ignore_index)?.f_logical_and(&second.f_ne(options.ignore_index)?)?;
            let class = |y: &Tensor| y.f_to_kind(Kind::Int64)?.f_where_scalarother(&counted, 0);
            let (first, second) = (one_hot(&class(target)?)?, one_hot(&class(second)?)?);
            let share = share.f_detach()?.f_to_kind(kind)?.f_unsqueeze(-1)?;
            let rest = share.f_neg()?.f_add_scalar(1.0)?;
            (None, first.f_mul(&share)?.f_add(&second.f_mul(&rest)?)?, counted)
        } else if is_dense {
            let target = target.f_detach()?.f_movedim_int(options.dim, -1)?;
            let counted = scores.f_select(-1, 0)?.f_isnan()?.f_ones_like()?;
            (None, if target.f_kind()? == Kind::Bool { target } else { target.f_to_kind(kind)? }, counted)
        } else {
            let counted = target.f_ne(options.ignore_index)?;
            let y = target.f_to_kind(Kind::Int64)?.f_where_scalarother(&counted, 0)?;
            (Some(y.f_unsqueeze(-1)?), one_hot(&y)?.f_to_kind(Kind::Bool)?, counted)
        };
        let mut factor = counted.f_to_kind(kind)?;
        if let Some(weight) = &weight {
            let of_target = sum(&target.f_mul(weight)?)?.f_div(&sum(&target)?)?;
            factor = factor.f_mul(&of_target)?;
        }
        // In rows without loss nothing infinite may reach the gradient, not even as 0 * inf.
        let scores = scores.f_where_scalarother(&counted.f_unsqueeze(-1)?, 0.0)?;
        let is_own = target.f_to_kind(Kind::Bool)?;
        Ok(Rows { scores, y, target, counted, is_own, weight, factor })
    }
}

/// The loss that the options tell.
pub(super) fn loss(options: Options, tensors: &Tensors) -> Result<Tensor, Error> {
    let rows = Rows::new(options, tensors)?;
    let kind = rows.scores.f_kind()?;
    let losses = match options.loss {
        Loss::LabelRelaxation(loss) => {
            let alpha = match &tensors.alpha {
                Some(alpha) => alpha.f_detach()?.f_to_kind(kind)?,
                None => rows.scores.f_select(-1, 0)?.f_detach()?.f_full_like(loss.alpha)?,
            };
            if rows.target.f_kind()? == Kind::Bool {
                label_relaxation(&rows, &alpha, loss.scores)?
            } else {
                of_distributions(&rows, &alpha, loss.scores)?
            }
        }
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

/// [`crate::losses::label_relaxation`] has the formula.
fn label_relaxation(rows: &Rows, alpha: &Tensor, scores: Scores) -> Result<Tensor, Error> {
    let (d, outside) = match scores {
        Scores::Logits => {
            let (d, certain) = log_odds(rows)?;
            // NaN counts as outside of the set.
            let inside = certain.f_logical_or(&d.f_neg()?.f_sigmoid()?.f_le_tensor(alpha)?)?;
            (d, rows.counted.f_logical_and(&inside.f_logical_not()?)?)
        }
        Scores::Probabilities => {
            let own = own(rows, &rows.scores)?;
            let rest = sum(&rows.scores.f_masked_fill(&rows.is_own, 0.0)?)?;
            let total = own.f_add(&rest)?;
            let valid = valid(&rows.scores, &total)?;
            let inside = rest.f_le_tensor(&total.f_mul(alpha)?)?.f_logical_and(&valid)?;
            let outside = rows.counted.f_logical_and(&inside.f_logical_not()?)?;
            let log = |part: &Tensor| -> Result<Tensor, Error> {
                let part = part.f_where_scalarother(&outside, 1.0)?;
                Ok(part.f_where_scalarother(&valid, f64::NAN)?.f_log()?)
            };
            (log(&own)?.f_sub(&log(&rest)?)?, outside)
        }
    };
    let d = d.f_where_scalarother(&outside, 0.0)?;
    let keep = alpha.f_neg()?.f_add_scalar(1.0)?;
    let kept = softplus(&d.f_neg()?)?.f_add(&alpha.f_neg()?.f_log1p()?)?.f_mul(&keep)?;
    let ln_alpha = alpha.f_where_scalarother(&alpha.f_gt(0.0)?, 1.0)?.f_log()?;
    let losses = kept.f_add(&softplus(&d)?.f_add(&ln_alpha)?.f_mul(alpha)?)?;
    Ok(not_negative(&losses)?.f_where_scalarother(&outside, 0.0)?.f_mul(&rows.factor)?)
}

/// [`crate::losses::credal`] has the formula.
fn of_distributions(rows: &Rows, alpha: &Tensor, scores: Scores) -> Result<Tensor, Error> {
    let ln_p = match scores {
        Scores::Logits => rows.scores.f_log_softmax(-1, None)?,
        Scores::Probabilities => {
            let total = sum(&rows.scores)?;
            let valid = valid(&rows.scores, &total)?.f_unsqueeze(-1)?;
            let positive = rows.scores.f_gt(0.0)?;
            let ln = rows.scores.f_where_scalarother(&positive, 1.0)?.f_log()?;
            let ln_total = total.f_unsqueeze(-1)?.f_where_scalarother(&valid, 1.0)?.f_log()?;
            let ln_p = ln.f_where_scalarother(&positive, f64::NEG_INFINITY)?.f_sub(&ln_total)?;
            ln_p.f_where_scalarother(&valid, f64::NAN)?
        }
    };
    let spoiled = ln_p.f_isnan()?.f_any_dim(-1, false)?;
    let keep = alpha.f_neg()?.f_add_scalar(1.0)?.f_unsqueeze(-1)?;
    let bound = rows.target.f_mul(&keep)?.f_div(&sum(&rows.target)?.f_unsqueeze(-1)?)?;
    let raised = raised(&ln_p.f_detach()?.f_exp()?, &bound, alpha)?;
    let ln_bound = bound.f_where_scalarother(&raised, 1.0)?.f_log()?;
    let pulled = ln_bound.f_sub(&ln_p.f_where_scalarother(&raised, 0.0)?)?.f_mul(&bound)?;
    // For the other classes: what is left, and what they have.
    let left = sum(&bound.f_masked_fill(&raised, 0.0)?)?.f_add(alpha)?;
    let free = sum(&ln_p.f_exp()?.f_masked_fill(&raised, 0.0)?)?;
    let some = left.f_gt(0.0)?.f_logical_and(&free.f_gt(0.0)?)?;
    let (left, free) = (left.f_where_scalarother(&some, 1.0)?, free.f_where_scalarother(&some, 1.0)?);
    let spread = left.f_log()?.f_sub(&free.f_log()?)?.f_mul(&left)?.f_where_scalarother(&some, 0.0)?;
    let losses = sum(&pulled.f_where_scalarother(&raised, 0.0)?)?.f_add(&spread)?;
    let outside = raised.f_any_dim(-1, false)?.f_logical_and(&rows.counted)?;
    let losses = not_negative(&losses)?.f_where_scalarother(&outside, 0.0)?;
    let spoiled = spoiled.f_logical_and(&rows.counted)?;
    Ok(sum(&ln_p)?.f_where_self(&spoiled, &losses)?.f_mul(&rows.factor)?)
}

/// Which classes the projection raises to their lower bound: the first ones by bound / p.
fn raised(p: &Tensor, bound: &Tensor, alpha: &Tensor) -> Result<Tensor, Error> {
    let ratio = bound.f_div(p)?.f_where_scalarother(&bound.f_gt(0.0)?, 0.0)?;
    let (_, order) = ratio.f_sort(-1, true)?;
    let (p_sorted, bound_sorted) = (p.f_gather(-1, &order, false)?, bound.f_gather(-1, &order, false)?);
    let from_here = |x: &Tensor| x.f_flip([-1])?.f_cumsum(-1, None)?.f_flip([-1]);
    // If the classes before this one are raised, the others have `free` and are to have `left`.
    let (free, left) = (from_here(&p_sorted)?, from_here(&bound_sorted)?.f_add(&alpha.f_unsqueeze(-1)?)?);
    let is_raised = bound_sorted.f_mul(&free)?.f_gt_tensor(&left.f_mul(&p_sorted)?)?;
    let is_raised = is_raised.f_scatter(-1, &order, &is_raised)?;
    Ok(is_raised.f_logical_and(&bound.f_gt_tensor(p)?.f_any_dim(-1, true)?)?)
}

/// Where rows are probabilities, but for their sum.
fn valid(scores: &Tensor, total: &Tensor) -> Result<Tensor, Error> {
    let positive = total.f_gt(0.0)?.f_logical_and(&total.f_lt(f64::INFINITY)?)?;
    Ok(scores.f_ge(0.0)?.f_all_dim(-1, false)?.f_logical_and(&positive)?)
}

/// A divergence is not negative; rounded, it may be.
fn not_negative(losses: &Tensor) -> Result<Tensor, Error> {
    Ok(losses.f_add(&losses.f_neg()?.f_clamp_min(0.0)?.f_detach()?)?)
}

/// Cross-entropy as label relaxation without imprecision.
fn surprise(rows: &Rows) -> Result<Tensor, Error> {
    label_relaxation(rows, &rows.factor.f_zeros_like()?, Scores::Logits)
}

/// [`crate::losses::cross_entropy`] has the formula.
fn cross_entropy(rows: &Rows, label_smoothing: f64) -> Result<Tensor, Error> {
    let losses = surprise(rows)?.f_mul_scalar(1.0 - label_smoothing)?;
    if label_smoothing == 0.0 {
        return Ok(losses);
    }
    let mut surprise = rows.scores.f_log_softmax(-1, None)?.f_neg()?;
    if let Some(weight) = &rows.weight {
        surprise = surprise.f_mul(weight)?;
    }
    let surprise = surprise.f_where_scalarother(&rows.counted.f_unsqueeze(-1)?, 0.0)?;
    Ok(losses.f_add(&surprise.f_mean_dim(-1, false, None)?.f_mul_scalar(label_smoothing)?)?)
}

/// [`crate::losses::focal`] has the formula.
fn focal(rows: &Rows, gamma: f64) -> Result<Tensor, Error> {
    let (d, certain) = log_odds(rows)?;
    let d = d.f_masked_fill(&certain, 0.0)?;
    let discount = softplus(&d)?.f_mul_scalar(-gamma)?.f_exp()?;
    let losses = discount.f_mul(&softplus(&d.f_neg()?)?)?.f_masked_fill(&certain, 0.0)?;
    Ok(losses.f_mul(&rows.factor)?)
}

/// [`crate::losses::confidence_penalty`] has the formula.
fn confidence_penalty(rows: &Rows, beta: f64) -> Result<Tensor, Error> {
    let ln_p = rows.scores.f_log_softmax(-1, None)?;
    let ln_p = ln_p.f_masked_fill(&ln_p.f_eq(f64::NEG_INFINITY)?, 0.0)?; // where p is 0, p ln p is
    let penalty = sum(&rows.scores.f_softmax(-1, None)?.f_mul(&ln_p)?)?.f_mul_scalar(beta)?;
    Ok(surprise(rows)?.f_add(&penalty.f_mul(&rows.factor)?)?)
}

/// ln(p / (1 - p)) of the row's class or set, and where it is infinite because nothing else is possible.
fn log_odds(rows: &Rows) -> Result<(Tensor, Tensor), Error> {
    if rows.y.is_none() {
        let (inside, _) = ln_sum(&rows.scores, &rows.is_own)?;
        let (outside, none) = ln_sum(&rows.scores, &rows.is_own.f_logical_not()?)?;
        let certain = none.f_logical_and(&inside.f_isnan()?.f_logical_not()?)?;
        return Ok((inside.f_sub(&outside)?, certain));
    }
    // Relative to the maximum, so that what all logits have in common does not cancel digits.
    let scores = rows.scores.f_sub(&rows.scores.f_detach()?.f_amax([-1], true)?)?;
    let rest = sum(&scores.f_exp()?.f_masked_fill(&rows.is_own, 0.0)?)?;
    let own = own(rows, &scores)?;
    let vanished = rest.f_eq(0.0)?;
    let certain = vanished.f_logical_and(&own.f_isnan()?.f_logical_not()?)?;
    Ok((own.f_sub(&rest.f_masked_fill(&vanished, 1.0)?.f_log()?)?, certain))
}

/// The logarithm of the sum of the exponentials in the mask, and where all of them are 0.
fn ln_sum(scores: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor), Error> {
    let scores = scores.f_where_scalarother(mask, f64::NEG_INFINITY)?;
    let max = scores.f_detach()?.f_amax([-1], true)?;
    let none = max.f_eq(f64::NEG_INFINITY)?;
    let exps = sum(&scores.f_sub(&max.f_masked_fill(&none, 0.0)?)?.f_exp()?)?;
    let none = none.f_squeeze_dim(-1)?;
    Ok((exps.f_masked_fill(&none, 1.0)?.f_log()?.f_add(&max.f_squeeze_dim(-1)?)?, none))
}

/// The number of the row's class, or the sum over its set.
fn own(rows: &Rows, x: &Tensor) -> Result<Tensor, Error> {
    match &rows.y {
        Some(y) => Ok(x.f_gather(-1, y, false)?.f_squeeze_dim(-1)?),
        None => sum(&x.f_where_scalarother(&rows.is_own, 0.0)?),
    }
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
    use crate::losses::confidence_penalty::ConfidencePenalty;
    use crate::losses::cross_entropy::CrossEntropy;
    use crate::losses::focal::Focal;
    use crate::losses::label_relaxation::LabelRelaxation;
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
        let double = (Kind::Double, Device::Cpu);
        let z = Tensor::randn([3, 6, 50], double) * 4.0;
        let p = z.softmax(1, None) * 0.7;
        let classes = || {
            let y = Tensor::randint(6, [3, 50], (Kind::Int64, Device::Cpu));
            let _ = y.get(0).narrow(0, 0, 9).fill_(255);
            y
        };
        let sets = Tensor::rand([3, 6, 50], double).lt(0.4);
        let _ = sets.narrow(1, 2, 1).fill_(1);
        let votes = Tensor::rand([3, 6, 50], double) * sets.to_kind(Kind::Double);
        let distributions = &votes / votes.sum_dim_intlist(1, true, None);
        let (y, weight) = (classes(), Tensor::rand([6], double));
        let (share, alphas) = (Tensor::rand([3, 50], double), Tensor::rand([3, 50], double) * 0.5);
        for loss in each_loss() {
            let relaxation = matches!(loss, Loss::LabelRelaxation(_));
            let probabilities = matches!(loss, Loss::LabelRelaxation(l) if l.scores == Scores::Probabilities);
            let input = if probabilities { &p } else { &z };
            let targets: &[_] = if relaxation {
                &[(&y, false), (&y, true), (&sets, false), (&distributions, false)]
            } else {
                &[(&y, false)]
            };
            for &(target, mixed) in targets {
                for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                    for (weight, alpha) in [(None, None), (Some(&weight), relaxation.then_some(&alphas))] {
                        let x = input.detach().set_requires_grad(true);
                        let options = Options { loss, reduction, dim: 1, ignore_index: 255 };
                        let copy = Tensor::shallow_clone;
                        let tensors = Tensors {
                            input: copy(&x),
                            target: copy(target),
                            weight: weight.map(copy),
                            alpha: alpha.map(copy),
                            mixed: mixed.then(|| (classes(), copy(&share))),
                        };
                        let reference = super::loss(options, &tensors).unwrap();
                        let mut criterion =
                            Criterion::new(loss).reduction(reduction).dim(1).ignore_index(255);
                        if let Some(weight) = weight {
                            criterion = criterion.weight(copy(weight));
                        }
                        if let Some(alpha) = alpha {
                            criterion = criterion.alpha(copy(alpha));
                        }
                        let kernel = match &tensors.mixed {
                            Some((second, share)) => criterion.forward_mixed(&x, target, second, share),
                            None => criterion.forward(&x, target),
                        };
                        let kernel = kernel.unwrap();
                        assert!(kernel.allclose(&reference, 1e-11, 1e-13, false), "{options:?}");
                        let grad = |loss: &Tensor| {
                            Tensor::run_backward(&[loss.square().sum(None)], &[&x], false, false).remove(0)
                        };
                        assert!(
                            grad(&kernel).allclose(&grad(&reference), 1e-10, 1e-11, false),
                            "{options:?}"
                        );
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
        let loss = LabelRelaxation::new(0.1, Scores::Logits).unwrap().into();
        let options = Options { loss, reduction: Reduction::None, dim: -1, ignore_index: -100 };
        let tensors = Tensors { input: z, target: y, weight: None, alpha: None, mixed: None };
        let losses = Vec::<f64>::try_from(super::loss(options, &tensors).unwrap()).unwrap();
        assert_eq!((losses[0], losses[2]), (0.0, f64::INFINITY));
        assert!((losses[1] - (0.9 * (0.9_f64.ln() + 800.0) + 0.1 * 0.1_f64.ln())).abs() < 1e-12);
        assert!(losses[3].is_nan());
    }
}
