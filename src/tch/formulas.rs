//! The losses as ATen operators, for tensors that are not on the CPU and for higher-order gradients.
//!
//! One function per loss, with a list of them in [`loss`]. The arguments are already validated.

use tch::{Kind, Reduction, Tensor};

use super::arguments::{Options, Tensors};
use crate::losses::{BinaryLabelRelaxation, LabelRelaxation, Loss};
use crate::rows::{Error, Scores};

/// The loss that `options` describe.
pub(super) fn loss(options: Options, tensors: &Tensors) -> Result<Tensor, Error> {
    if let Loss::BinaryLabelRelaxation(loss) = options.loss {
        return self::loss(
            Options { loss: loss.relaxation.into(), ..options },
            &of_two_classes(loss, options, tensors)?,
        );
    }
    let rows = Rows::new(options, tensors)?;
    let losses = match options.loss {
        Loss::LabelRelaxation(loss) => label_relaxation(&rows, loss, tensors.alpha.as_ref()),
        Loss::CrossEntropy(loss) if rows.class.is_none() => {
            soft_target(&rows, loss.label_smoothing, 0.0, 0.0)
        }
        Loss::Focal(loss) if rows.class.is_none() => soft_target(&rows, 0.0, loss.gamma, 0.0),
        Loss::ConfidencePenalty(loss) if rows.class.is_none() => soft_target(&rows, 0.0, 0.0, loss.beta),
        Loss::CrossEntropy(loss) => cross_entropy(&rows, loss.label_smoothing),
        Loss::Focal(loss) => focal(&rows, loss.gamma),
        Loss::DualFocal(loss) => dual_focal(&rows, loss.gamma),
        Loss::ConfidencePenalty(loss) => confidence_penalty(&rows, loss.beta),
        Loss::BinaryLabelRelaxation(_) => unreachable!("two classes, above"),
    }?;
    Ok(match options.reduction {
        Reduction::Mean => losses.f_sum(None)?.f_div(&rows.row_weight.f_sum(None)?)?,
        Reduction::Sum => losses.f_sum(None)?,
        _ => losses,
    })
}

/// One score for an event as the scores of two classes.
fn of_two_classes(
    loss: BinaryLabelRelaxation,
    options: Options,
    tensors: &Tensors,
) -> Result<Tensors, Error> {
    let z = &tensors.input;
    let other = match loss.relaxation.scores {
        Scores::Logits => z.f_zeros_like()?,
        Scores::Probabilities => z.f_neg()?.f_add_scalar(1.0)?,
    };
    let copy = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
    Ok(Tensors {
        input: Tensor::f_cat(&[&other, z], options.dim)?,
        target: tensors.target.shallow_clone(),
        weight: copy(&tensors.weight),
        alpha: None,
        target_b: None,
        lam: None,
    })
}

/// The tensors of a call with the classes in the last dimension, in the type of the losses.
struct Rows {
    /// Logits or probabilities, (..., C); 0 in ignored rows.
    scores: Tensor,
    /// Class indices, (..., 1), if the targets are classes.
    class: Option<Tensor>,
    /// A set of classes (bool; the one-hot encoding if the targets are classes) or a distribution, (..., C).
    target: Tensor,
    /// The classes in the set or the support of the distribution, (..., C).
    in_set: Tensor,
    /// The rows that are not ignored, (...).
    counted: Tensor,
    /// The weight of each class, (C,).
    class_weight: Option<Tensor>,
    /// The weight of the target of each row, (...); 0 in ignored rows.
    row_weight: Tensor,
}

impl Rows {
    fn new(options: Options, tensors: &Tensors) -> Result<Rows, Error> {
        let Tensors { input, target, weight, target_b, lam, .. } = tensors;
        let half = matches!(input.f_kind()?, Kind::Half | Kind::BFloat16);
        let scores = if half { input.f_to_kind(Kind::Float)? } else { input.shallow_clone() };
        let scores = scores.f_movedim_int(options.dim, -1)?;
        let kind = scores.f_kind()?;
        let class_weight = weight.as_ref().map(|w| w.f_detach()?.f_to_kind(kind)).transpose()?;
        let one_hot = |y: &Tensor| scores.f_zeros_like()?.f_scatter_value(-1, &y.f_unsqueeze(-1)?, 1);
        let is_dense =
            matches!(target.f_kind()?, Kind::Bool | Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        let (class, target, counted) = if let (Some(target_b), Some(lam)) = (target_b, lam) {
            let counted =
                target.f_ne(options.ignore_index)?.f_logical_and(&target_b.f_ne(options.ignore_index)?)?;
            let class = |y: &Tensor| y.f_to_kind(Kind::Int64)?.f_where_scalarother(&counted, 0);
            let (first, second) = (one_hot(&class(target)?)?, one_hot(&class(target_b)?)?);
            let share = lam.f_detach()?.f_to_kind(kind)?.f_unsqueeze(-1)?;
            let rest = share.f_neg()?.f_add_scalar(1.0)?;
            (None, first.f_mul(&share)?.f_add(&second.f_mul(&rest)?)?, counted)
        } else if is_dense {
            let target = target.f_detach()?.f_movedim_int(options.dim, -1)?;
            let counted = scores.f_select(-1, 0)?.f_isnan()?.f_ones_like()?;
            (
                None,
                if target.f_kind()? == Kind::Bool {
                    target
                } else {
                    target.f_to_kind(kind)?.f_clamp_min(0.0)?
                },
                counted,
            )
        } else {
            let counted = target.f_ne(options.ignore_index)?;
            let y = target.f_to_kind(Kind::Int64)?.f_where_scalarother(&counted, 0)?;
            (Some(y.f_unsqueeze(-1)?), one_hot(&y)?.f_to_kind(Kind::Bool)?, counted)
        };
        let mut row_weight = counted.f_to_kind(kind)?;
        // With distributions, only label relaxation weighs rows; the other losses weigh each class.
        if let Some(class_weight) =
            class_weight.as_ref().filter(|_| class.is_some() || options.loss.is_credal())
        {
            let of_target = sum(&target.f_mul(class_weight)?)?.f_div(&sum(&target)?)?;
            row_weight = row_weight.f_mul(&of_target)?;
        }
        // Replace the scores of ignored rows: the gradient of 0 * inf would be NaN.
        let scores = scores.f_where_scalarother(&counted.f_unsqueeze(-1)?, 0.0)?;
        let in_set = target.f_to_kind(Kind::Bool)?;
        Ok(Rows { scores, class, target, in_set, counted, class_weight, row_weight })
    }

    /// `x` at the target class, or its sum over the set.
    fn target_sum(&self, x: &Tensor) -> Result<Tensor, Error> {
        match &self.class {
            Some(class) => Ok(x.f_gather(-1, class, false)?.f_squeeze_dim(-1)?),
            None => sum(&x.f_where_scalarother(&self.in_set, 0.0)?),
        }
    }
}

/// The formulas are in src/kernels/losses/label_relaxation.
fn label_relaxation(rows: &Rows, loss: LabelRelaxation, alpha: Option<&Tensor>) -> Result<Tensor, Error> {
    let alpha = match alpha {
        Some(alpha) => alpha.f_detach()?.f_to_kind(rows.scores.f_kind()?)?,
        None => rows.scores.f_select(-1, 0)?.f_detach()?.f_full_like(loss.alpha)?,
    };
    if rows.target.f_kind()? == Kind::Bool {
        relax_set(rows, &alpha, loss.scores)
    } else {
        relax_distribution(rows, &alpha, loss.scores)
    }
}

/// Label relaxation of a class or a set of classes, from the log-odds of the set.
fn relax_set(rows: &Rows, alpha: &Tensor, scores: Scores) -> Result<Tensor, Error> {
    let (log_odds, outside) = match scores {
        Scores::Logits => {
            let (log_odds, certain) = log_odds(rows)?;
            // Rows with NaN count as outside, so that their losses are NaN.
            let inside = certain.f_logical_or(&log_odds.f_neg()?.f_sigmoid()?.f_le_tensor(alpha)?)?;
            (log_odds, rows.counted.f_logical_and(&inside.f_logical_not()?)?)
        }
        Scores::Probabilities => {
            let own = rows.target_sum(&rows.scores)?;
            let rest = sum(&rows.scores.f_masked_fill(&rows.in_set, 0.0)?)?;
            let total = own.f_add(&rest)?;
            let valid = is_valid(&rows.scores, &total)?;
            let inside = rest.f_le_tensor(&total.f_mul(alpha)?)?.f_logical_and(&valid)?;
            let outside = rows.counted.f_logical_and(&inside.f_logical_not()?)?;
            let log = |part: &Tensor| -> Result<Tensor, Error> {
                let part = part.f_where_scalarother(&outside, 1.0)?;
                Ok(part.f_where_scalarother(&valid, f64::NAN)?.f_log()?)
            };
            (log(&own)?.f_sub(&log(&rest)?)?, outside)
        }
    };
    let log_odds = log_odds.f_where_scalarother(&outside, 0.0)?;
    let ln_alpha = alpha.f_where_scalarother(&alpha.f_gt(0.0)?, 1.0)?.f_log()?;
    // With p the probability of the set: (1 - alpha) ln((1 - alpha) / p) + alpha ln(alpha / (1 - p)).
    let in_set = softplus(&log_odds.f_neg()?)?.f_add(&alpha.f_neg()?.f_log1p()?)?;
    let in_set = in_set.f_mul(&alpha.f_neg()?.f_add_scalar(1.0)?)?;
    let losses = in_set.f_add(&softplus(&log_odds)?.f_add(&ln_alpha)?.f_mul(alpha)?)?;
    Ok(clamp_negative(&losses)?.f_where_scalarother(&outside, 0.0)?.f_mul(&rows.row_weight)?)
}

/// Label relaxation of a distribution t, whose credal set is p_k >= (1 - alpha) t_k.
fn relax_distribution(rows: &Rows, alpha: &Tensor, scores: Scores) -> Result<Tensor, Error> {
    let ln_p = match scores {
        Scores::Logits => rows.scores.f_log_softmax(-1, None)?,
        Scores::Probabilities => {
            let total = sum(&rows.scores)?;
            let valid = is_valid(&rows.scores, &total)?.f_unsqueeze(-1)?;
            let positive = rows.scores.f_gt(0.0)?;
            let ln = rows.scores.f_where_scalarother(&positive, 1.0)?.f_log()?;
            let ln_total = total.f_unsqueeze(-1)?.f_where_scalarother(&valid, 1.0)?.f_log()?;
            let ln_p = ln.f_where_scalarother(&positive, f64::NEG_INFINITY)?.f_sub(&ln_total)?;
            ln_p.f_where_scalarother(&valid, f64::NAN)?
        }
    };
    let invalid = ln_p.f_isnan()?.f_any_dim(-1, false)?.f_logical_and(&rows.counted)?;
    let share = alpha.f_neg()?.f_add_scalar(1.0)?.f_unsqueeze(-1)?;
    let bound = rows.target.f_mul(&share)?.f_div(&sum(&rows.target)?.f_unsqueeze(-1)?)?;
    let active = active_bounds(&ln_p.f_detach()?.f_exp()?, &bound, alpha)?;
    // q_k = bound_k where the bound is active.
    let ln_bound = bound.f_where_scalarother(&active, 1.0)?.f_log()?;
    let bounded = ln_bound.f_sub(&ln_p.f_where_scalarother(&active, 0.0)?)?.f_mul(&bound)?;
    let bounded = sum(&bounded.f_where_scalarother(&active, 0.0)?)?;
    // The other classes share the remaining probability in proportion to p.
    let q_free = sum(&bound.f_masked_fill(&active, 0.0)?)?.f_add(alpha)?;
    let p_free = sum(&ln_p.f_exp()?.f_masked_fill(&active, 0.0)?)?;
    let positive = q_free.f_gt(0.0)?.f_logical_and(&p_free.f_gt(0.0)?)?;
    let (q_free, p_free) =
        (q_free.f_where_scalarother(&positive, 1.0)?, p_free.f_where_scalarother(&positive, 1.0)?);
    let free =
        q_free.f_log()?.f_sub(&p_free.f_log()?)?.f_mul(&q_free)?.f_where_scalarother(&positive, 0.0)?;
    let losses = bounded.f_add(&free)?;
    let outside = active.f_any_dim(-1, false)?.f_logical_and(&rows.counted)?;
    let losses = clamp_negative(&losses)?.f_where_scalarother(&outside, 0.0)?;
    Ok(sum(&ln_p)?.f_where_self(&invalid, &losses)?.f_mul(&rows.row_weight)?)
}

/// The classes whose lower bound is active in the projection. These have the largest ratios bound / p.
fn active_bounds(p: &Tensor, bound: &Tensor, alpha: &Tensor) -> Result<Tensor, Error> {
    let ratio = bound.f_div(p)?.f_where_scalarother(&bound.f_gt(0.0)?, 0.0)?;
    let (_, order) = ratio.f_sort(-1, true)?;
    let (p_sorted, bound_sorted) = (p.f_gather(-1, &order, false)?, bound.f_gather(-1, &order, false)?);
    let suffix_sum = |x: &Tensor| x.f_flip([-1])?.f_cumsum(-1, None)?.f_flip([-1]);
    // If all classes before this one are active, p_free and q_free are the probabilities of the other classes
    // before and after the projection.
    let (p_free, q_free) =
        (suffix_sum(&p_sorted)?, suffix_sum(&bound_sorted)?.f_add(&alpha.f_unsqueeze(-1)?)?);
    let active = bound_sorted.f_mul(&p_free)?.f_gt_tensor(&q_free.f_mul(&p_sorted)?)?;
    let active = active.f_scatter(-1, &order, &active)?;
    Ok(active.f_logical_and(&bound.f_gt_tensor(p)?.f_any_dim(-1, true)?)?)
}

/// The formula is in src/kernels/losses/soft_target.rs.
fn soft_target(rows: &Rows, label_smoothing: f64, gamma: f64, beta: f64) -> Result<Tensor, Error> {
    let target =
        rows.target.f_div(&sum(&rows.target)?.f_unsqueeze(-1)?)?.f_mul_scalar(1.0 - label_smoothing)?;
    let mut target = target.f_add_scalar(label_smoothing / *target.size().last().unwrap_or(&1) as f64)?;
    if let Some(class_weight) = &rows.class_weight {
        target = target.f_mul(class_weight)?;
    }
    let ln_p = rows.scores.f_log_softmax(-1, None)?;
    // Where p is 0, so is its product with ln p.
    let finite = ln_p.f_masked_fill(&ln_p.f_eq(f64::NEG_INFINITY)?, -1000.0)?;
    let mut losses = target.f_mul(&ln_p)?.f_neg()?;
    if gamma != 0.0 {
        let q = finite.f_expm1()?.f_neg()?;
        let some = q.f_gt(0.0)?;
        let power = q.f_where_scalarother(&some, 1.0)?.f_log()?.f_mul_scalar(gamma)?.f_exp()?;
        losses = losses.f_mul(&power.f_where_scalarother(&some, 0.0)?)?;
    }
    let losses = sum(&losses.f_where_scalarother(&target.f_gt(0.0)?, 0.0)?)?;
    let entropy = sum(&finite.f_exp()?.f_mul(&finite)?)?.f_neg()?;
    Ok(losses.f_sub(&entropy.f_mul(&sum(&target)?)?.f_mul_scalar(beta)?)?)
}

/// The formula is in src/kernels/losses/cross_entropy.rs.
fn cross_entropy(rows: &Rows, label_smoothing: f64) -> Result<Tensor, Error> {
    let losses = negative_log_likelihood(rows)?.f_mul_scalar(1.0 - label_smoothing)?;
    if label_smoothing == 0.0 {
        return Ok(losses);
    }
    let mut of_classes = rows.scores.f_log_softmax(-1, None)?.f_neg()?;
    if let Some(class_weight) = &rows.class_weight {
        of_classes = of_classes.f_mul(class_weight)?;
    }
    let of_classes = of_classes.f_where_scalarother(&rows.counted.f_unsqueeze(-1)?, 0.0)?;
    Ok(losses.f_add(&of_classes.f_mean_dim(-1, false, None)?.f_mul_scalar(label_smoothing)?)?)
}

/// The formula is in src/kernels/losses/focal.rs.
fn focal(rows: &Rows, gamma: f64) -> Result<Tensor, Error> {
    let (log_odds, certain) = log_odds(rows)?;
    let log_odds = log_odds.f_masked_fill(&certain, 0.0)?;
    let discount = softplus(&log_odds)?.f_mul_scalar(-gamma)?.f_exp()?;
    let losses = discount.f_mul(&softplus(&log_odds.f_neg()?)?)?.f_masked_fill(&certain, 0.0)?;
    Ok(losses.f_mul(&rows.row_weight)?)
}

/// The formula is in src/kernels/losses/dual_focal.rs.
fn dual_focal(rows: &Rows, gamma: f64) -> Result<Tensor, Error> {
    let (log_odds, certain) = log_odds(rows)?;
    let log_odds = log_odds.f_masked_fill(&certain, 0.0)?;
    let below = rows.scores.f_lt_tensor(&rows.target_sum(&rows.scores)?.f_unsqueeze(-1)?)?;
    let ln_p = rows.scores.f_log_softmax(-1, None)?.f_where_scalarother(&below, f64::NEG_INFINITY)?;
    let next = ln_p.f_max_dim(-1, false)?.0.f_exp()?;
    let rest = softplus(&log_odds)?.f_neg()?.f_exp()?;
    let discount = rest.f_add(&next)?.f_pow_tensor_scalar(gamma)?;
    let losses = discount.f_mul(&softplus(&log_odds.f_neg()?)?)?.f_masked_fill(&certain, 0.0)?;
    Ok(losses.f_mul(&rows.row_weight)?)
}

/// The formula is in src/kernels/losses/confidence_penalty.rs.
fn confidence_penalty(rows: &Rows, beta: f64) -> Result<Tensor, Error> {
    let ln_p = rows.scores.f_log_softmax(-1, None)?;
    let ln_p = ln_p.f_masked_fill(&ln_p.f_eq(f64::NEG_INFINITY)?, 0.0)?; // p ln p is 0 at p = 0
    let penalty = sum(&rows.scores.f_softmax(-1, None)?.f_mul(&ln_p)?)?.f_mul_scalar(beta)?;
    Ok(negative_log_likelihood(rows)?.f_add(&penalty.f_mul(&rows.row_weight)?)?)
}

/// Cross-entropy, as label relaxation with alpha 0.
fn negative_log_likelihood(rows: &Rows) -> Result<Tensor, Error> {
    relax_set(rows, &rows.row_weight.f_zeros_like()?, Scores::Logits)
}

/// The log-odds ln(p / (1 - p)) of the target class or set, and the rows where they are infinite because all
/// other classes have probability 0.
fn log_odds(rows: &Rows) -> Result<(Tensor, Tensor), Error> {
    if rows.class.is_none() {
        let (inside, _) = masked_logsumexp(&rows.scores, &rows.in_set)?;
        let (outside, empty) = masked_logsumexp(&rows.scores, &rows.in_set.f_logical_not()?)?;
        let certain = empty.f_logical_and(&inside.f_isnan()?.f_logical_not()?)?;
        return Ok((inside.f_sub(&outside)?, certain));
    }
    // Subtract the maximum, so that a large common offset of the logits does not cost precision.
    let scores = rows.scores.f_sub(&rows.scores.f_detach()?.f_amax([-1], true)?)?;
    let rest = sum(&scores.f_exp()?.f_masked_fill(&rows.in_set, 0.0)?)?;
    let own = rows.target_sum(&scores)?;
    let vanished = rest.f_eq(0.0)?;
    let certain = vanished.f_logical_and(&own.f_isnan()?.f_logical_not()?)?;
    Ok((own.f_sub(&rest.f_masked_fill(&vanished, 1.0)?.f_log()?)?, certain))
}

/// The logsumexp over the classes in the mask, and the rows where all of these are -inf.
fn masked_logsumexp(scores: &Tensor, mask: &Tensor) -> Result<(Tensor, Tensor), Error> {
    let scores = scores.f_where_scalarother(mask, f64::NEG_INFINITY)?;
    let max = scores.f_detach()?.f_amax([-1], true)?;
    let empty = max.f_eq(f64::NEG_INFINITY)?;
    let exps = sum(&scores.f_sub(&max.f_masked_fill(&empty, 0.0)?)?.f_exp()?)?;
    let empty = empty.f_squeeze_dim(-1)?;
    Ok((exps.f_masked_fill(&empty, 1.0)?.f_log()?.f_add(&max.f_squeeze_dim(-1)?)?, empty))
}

/// The rows whose values are nonnegative with a positive, finite sum.
fn is_valid(scores: &Tensor, total: &Tensor) -> Result<Tensor, Error> {
    let positive = total.f_gt(0.0)?.f_logical_and(&total.f_lt(f64::INFINITY)?)?;
    Ok(scores.f_ge(0.0)?.f_all_dim(-1, false)?.f_logical_and(&positive)?)
}

/// Raises negative losses to 0, which a divergence can only have by rounding; the gradient is unchanged.
fn clamp_negative(losses: &Tensor) -> Result<Tensor, Error> {
    Ok(losses.f_add(&losses.f_neg()?.f_clamp_min(0.0)?.f_detach()?)?)
}

/// The sum over the classes.
fn sum(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_sum_dim_intlist(-1, false, None)?)
}

/// ln(1 + e^x). torch's softplus replaces it with x above a threshold, which is less precise.
fn softplus(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_logaddexp(&x.f_zeros_like()?)?)
}
