//! Differentiable losses of `tch::Tensor`.

use tch::{Kind, Reduction, Tensor};

use super::arguments::{Options, Tensors};
use super::formulas;
use super::torch::{self, BackwardMode};
use crate::losses::{Focal, LabelRelaxation, Loss};
use crate::memory;
use crate::rows::{Error, Scores};
use crate::untyped::View;
use crate::untyped::losses::{Gradient, Inputs, Numbers, check, check_default_dim};
use crate::untyped::scale::scale;

/// Label relaxation: the KL divergence of the prediction from the set of distributions with
/// `p[target] >= 1 - alpha`.
///
/// The loss of a row is
///
/// ```text
/// p = softmax(logits)[target]
/// loss = (1 - alpha) ln((1 - alpha) / p) + alpha ln(alpha / (1 - p)), or 0 where p >= 1 - alpha
/// ```
///
/// * `logits`: (..., C) with C >= 2, of kind half, bfloat16, float or double, with any strides.
/// * `target`: (...), class indices in [0, C) of any integer kind; rows with target -100 are ignored.
/// * `alpha`: the imprecision in [0, 1), the largest probability of all other classes together inside the set.
/// * `reduction`: the mean over the rows that are not ignored, the sum, or a loss per row.
///
/// Returns a scalar, or the losses in the shape of `target`, in nats. Their kind is that of `logits`, or float for
/// half precision. Loss and gradient are exactly 0 inside the set. [`Criterion`] has more options.
///
/// # Errors
///
/// [`Error::Value`] or [`Error::Type`] for an invalid argument, [`Error::TargetOutOfRange`] for a target that is not
/// a class index, [`Error::Torch`] if an operation of torch fails.
///
/// Source: Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021, eq. 5-7.
///
/// ```
/// use tch::{Kind, Reduction, Tensor};
///
/// let logits = Tensor::from_slice(&[2.0_f32, 0.0, 4.0, 0.0]).reshape([2, 2]).set_requires_grad(true);
/// let target = Tensor::from_slice(&[0_i64, 0]);
/// let loss = lr_relax::tch::label_relaxation(&logits, &target, 0.1, Reduction::Sum)?;
/// assert!((loss.double_value(&[]) - 0.0018).abs() < 1e-4);
/// loss.backward();
/// assert_eq!(logits.grad().double_value(&[1, 0]), 0.0); // inside the set
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn label_relaxation(
    logits: &Tensor,
    target: &Tensor,
    alpha: f64,
    reduction: Reduction,
) -> Result<Tensor, Error> {
    Criterion::new(LabelRelaxation::new(alpha, Scores::Logits)?).reduction(reduction).forward(logits, target)
}

/// Cross-entropy, which is [`label_relaxation`] with `alpha` 0.
///
/// Arguments, result and errors are those of [`label_relaxation`].
///
/// ```
/// use tch::{Kind, Reduction, Tensor};
///
/// let logits = Tensor::randn([8, 10], (Kind::Double, tch::Device::Cpu));
/// let target = Tensor::randint(10, [8], (Kind::Int64, tch::Device::Cpu));
/// let ours = lr_relax::tch::cross_entropy(&logits, &target, Reduction::Mean)?;
/// let theirs = logits.cross_entropy_loss::<Tensor>(&target, None, Reduction::Mean, -100, 0.0);
/// assert!((ours.double_value(&[]) - theirs.double_value(&[])).abs() < 1e-14);
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, target: &Tensor, reduction: Reduction) -> Result<Tensor, Error> {
    label_relaxation(logits, target, 0.0, reduction)
}

/// The focal loss: cross-entropy, in which rows with a high probability of the target have less weight.
///
/// The loss of a row is `-(1 - p).pow(gamma) * ln(p)` with `p = softmax(logits)[target]` and `gamma` >= 0; 0 gives
/// cross-entropy. The other arguments, the result and the errors are those of [`label_relaxation`].
///
/// Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4.
///
/// ```
/// use tch::{Reduction, Tensor};
///
/// let logits = Tensor::from_slice(&[0.0_f64, 0.0]).reshape([1, 2]);
/// let loss = lr_relax::tch::focal(&logits, &Tensor::from_slice(&[0_i64]), 2.0, Reduction::Mean)?;
/// assert!((loss.double_value(&[]) - 0.25 * 2.0_f64.ln()).abs() < 1e-15);
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
pub fn focal(logits: &Tensor, target: &Tensor, gamma: f64, reduction: Reduction) -> Result<Tensor, Error> {
    Criterion::new(Focal::new(gamma)?).reduction(reduction).forward(logits, target)
}

/// A loss of [`crate::losses`] with all its options.
///
/// ```
/// use lr_relax::rows::Scores;
/// use lr_relax::losses::LabelRelaxation;
/// use lr_relax::tch::Criterion;
/// use tch::{Kind, Tensor};
///
/// // Segmentation: the classes are in dimension 1, and the first class has half the weight of the others.
/// let weight = Tensor::from_slice(&[0.5_f32, 1.0, 1.0]);
/// let loss = LabelRelaxation::new(0.1, Scores::Logits)?;
/// let criterion = Criterion::new(loss).dim(1).weight(weight).ignore_index(255);
/// let logits = Tensor::randn([2, 3, 4, 4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
/// let target = Tensor::randint(3, [2, 4, 4], (Kind::Uint8, tch::Device::Cpu));
/// criterion.forward(&logits, &target)?.backward();
/// # Ok::<(), lr_relax::rows::Error>(())
/// ```
#[derive(Debug)]
pub struct Criterion {
    options: Options,
    /// Whether nobody has set the dimension of the classes.
    has_default_dim: bool,
    weight: Option<Tensor>,
    alpha: Option<Tensor>,
}

impl Criterion {
    /// `loss` with default options: the mean over the rows, classes in the last dimension, and `ignore_index` -100.
    pub fn new(loss: impl Into<Loss>) -> Self {
        let (loss, reduction) = (loss.into(), Reduction::Mean);
        Criterion {
            options: Options { loss, reduction, dim: -1, ignore_index: -100 },
            has_default_dim: true,
            weight: None,
            alpha: None,
        }
    }

    /// The reduction: the mean over the rows that are not ignored (weighted by `weight`), the sum, or a loss per row.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.options.reduction = reduction;
        self
    }

    /// The dimension of the classes. It must be set if the shape of class indices fits both the last one and 1.
    pub fn dim(mut self, dim: i64) -> Self {
        self.options.dim = dim;
        self.has_default_dim = false;
        self
    }

    /// The target of rows to ignore. Their loss and gradient are 0.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.options.ignore_index = ignore_index;
        self
    }

    /// The weight of each class, of shape (C,). It is a constant in the gradient.
    pub fn weight(mut self, weight: Tensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// An alpha per row, which replaces that of the loss: a tensor of the shape of the rows, or a scalar. It is a
    /// constant in the gradient.
    pub fn alpha(mut self, alpha: Tensor) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// The loss of `input`, (..., C), for the classes `target`, (...).
    ///
    /// `target` can also have the shape of `input`: distributions (floating-point), except for the dual focal loss, or
    /// for label relaxation sets of classes (bool).
    ///
    /// # Errors
    ///
    /// As [`label_relaxation`]; [`Error::Row`] for an empty set, [`Error::NotADistribution`].
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, Error> {
        self.compute(self.tensors(input, target, None))
    }

    /// Label relaxation for mixup: the target is `lam * one_hot(target_a) + (1 - lam) * one_hot(target_b)`, which is
    /// not materialized.
    ///
    /// `lam` in [0, 1] is a scalar or has the shape of the targets.
    ///
    /// # Errors
    ///
    /// As [`Criterion::forward`]; [`Error::Type`] for losses other than label relaxation.
    pub fn forward_mixed(
        &self,
        input: &Tensor,
        target_a: &Tensor,
        target_b: &Tensor,
        lam: &Tensor,
    ) -> Result<Tensor, Error> {
        self.compute(self.tensors(input, target_a, Some((target_b, lam))))
    }

    fn tensors(&self, input: &Tensor, target: &Tensor, mixed: Option<(&Tensor, &Tensor)>) -> Tensors {
        let copy = Tensor::shallow_clone;
        Tensors {
            input: copy(input),
            target: copy(target),
            weight: self.weight.as_ref().map(copy),
            alpha: self.alpha.as_ref().map(copy),
            target_b: mixed.map(|(target_b, _)| copy(target_b)),
            lam: mixed.map(|(_, lam)| copy(lam)),
        }
    }

    fn compute(&self, tensors: Tensors) -> Result<Tensor, Error> {
        let (options, input) = (self.options, &tensors.input);
        let reduction = options.kernel_reduction()?;
        torch::connect_threads();
        let (views, device) = tensors.views()?;
        if self.has_default_dim {
            check_default_dim(&views.input, &views.target)?;
        }
        if !device.is_cpu() {
            check(options.loss, &views.arguments(options))?;
            return formulas::loss(options, &tensors);
        }
        let inputs = Inputs::new(options.loss, views.arguments(options))?;
        let losses = match reduction {
            Some(_) => torch::allocate(inputs.loss_type(), &[])?,
            None => torch::allocate(inputs.loss_type(), &inputs.rows())?,
        };
        let grad = torch::needs_grad(input).then(|| gradient(input, inputs.input())).transpose()?;
        let out = torch::view(&losses, "losses")?.view;
        let grad_out = grad.as_ref().map(|grad| torch::view(grad, "gradient")).transpose()?.map(|b| b.view);
        let to = grad_out.as_ref().map_or(Gradient::None, Gradient::To);
        // SAFETY: both outputs are new and have the types and shapes that the inputs require.
        unsafe { inputs.compute(options.loss, Numbers::Same(1.0), reduction, &out, to) }?;
        let Some(grad) = grad else { return Ok(losses) };
        torch::attach(&losses, input, &tensors.to_saved(&grad), move |saved, upstream, mode| {
            let (tensors, grad) = Tensors::from_saved(saved);
            backward(options, &tensors, grad, upstream, mode)
        })
    }
}

/// A new tensor for the gradient with respect to `input`, of which `view` is a view; not initialized.
fn gradient(input: &Tensor, view: &View) -> Result<Tensor, Error> {
    match memory::cached_buffer(view.len().saturating_mul(view.dtype.size()))? {
        Some(buffer) => torch::adopt(buffer, view.dtype, &view.shape),
        None => torch::empty_like(input),
    }
}

/// Multiplies the stored gradient `grad` by `upstream`, the gradient with respect to the loss.
fn backward(
    options: Options,
    tensors: &Tensors,
    grad: Tensor,
    upstream: &Tensor,
    mode: BackwardMode,
) -> Result<Tensor, Error> {
    if mode.create_graph {
        let losses = formulas::loss(options, tensors)?;
        return torch::differentiable_gradient(&losses, &tensors.input, upstream);
    }
    let each = torch::view(upstream, "upstream")?.view;
    let numbers = if each.shape.is_empty() {
        Numbers::Same(upstream.f_double_value(&[])?)
    } else {
        Numbers::Each(&each)
    };
    if matches!(numbers, Numbers::Same(1.0)) {
        return Ok(grad);
    }
    // Another backward will use the same gradient.
    let scaled = if mode.retain_graph { torch::empty_like(&grad)? } else { grad.shallow_clone() };
    let (from, to) = (torch::view(&grad, "gradient")?.view, torch::view(&scaled, "gradient")?.view);
    if grad.f_kind()? == Kind::Half {
        // Compute the gradient again with the loss scale: small gradients of the mean have been rounded to 0.
        let inputs = Inputs::new(options.loss, tensors.views()?.0.arguments(options))?;
        let reduction = options.kernel_reduction()?;
        let rows = if reduction.is_some() { Vec::new() } else { inputs.rows() };
        let losses = torch::allocate(inputs.loss_type(), &rows)?;
        let out = torch::view(&losses, "losses")?.view;
        // SAFETY: the losses are new; the gradient has the type and shape of the input, and nothing else uses it.
        unsafe { inputs.compute(options.loss, numbers, reduction, &out, Gradient::To(&to)) }?;
    } else {
        // SAFETY: the gradient is dense, and nothing else uses its memory or that of a new tensor.
        unsafe { scale(&from, &to, numbers, options.dim) }?;
    }
    Ok(scaled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::{BinaryLabelRelaxation, ConfidencePenalty, CrossEntropy};
    use tch::Device;

    fn all_losses() -> Vec<Loss> {
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

    #[test]
    fn formulas_equal_kernels() {
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
        let (y, second, weight) = (classes(), classes(), Tensor::rand([6], double));
        let (share, alphas) = (Tensor::rand([3, 50], double), Tensor::rand([3, 50], double) * 0.5);
        let copy = Tensor::shallow_clone;
        for loss in all_losses() {
            let relaxation = matches!(loss, Loss::LabelRelaxation(_));
            let probabilities = matches!(loss, Loss::LabelRelaxation(l) if l.scores == Scores::Probabilities);
            let mut targets = vec![(&y, None)];
            if loss.takes_distributions() && !relaxation {
                targets.push((&distributions, None));
            }
            if relaxation {
                targets.extend([(&y, Some((&second, &share))), (&sets, None), (&distributions, None)]);
            }
            for (target, mixed) in targets {
                for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                    for (weight, alpha) in [(None, None), (Some(&weight), relaxation.then_some(&alphas))] {
                        let x = if probabilities { &p } else { &z }.detach().set_requires_grad(true);
                        let is_soft = !relaxation && target.kind() == Kind::Double; // no class to ignore
                        let ignore_index = if is_soft { -100 } else { 255 };
                        let options = Options { loss, reduction, dim: 1, ignore_index };
                        let (weight, alpha) = (weight.map(copy), alpha.map(copy));
                        let criterion = Criterion { options, has_default_dim: false, weight, alpha };
                        let tensors = criterion.tensors(&x, target, mixed);
                        let formula = formulas::loss(options, &tensors).unwrap();
                        let kernel = criterion.compute(tensors).unwrap();
                        assert!(kernel.allclose(&formula, 1e-11, 1e-13, false), "{options:?}");
                        let [of_kernel, of_formula] = [kernel, formula].map(|loss| {
                            Tensor::run_backward(&[loss.square().sum(None)], &[&x], false, false).remove(0)
                        });
                        assert!(of_kernel.allclose(&of_formula, 1e-10, 1e-11, false), "{options:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn binary_formula_equals_kernel() {
        let z = Tensor::linspace(-9.0, 9.0, 40, (Kind::Double, Device::Cpu)).reshape([20, 2, 1]);
        let y = Tensor::randint(2, [20, 2], (Kind::Int64, Device::Cpu));
        for scores in [Scores::Logits, Scores::Probabilities] {
            let x = if scores == Scores::Logits { z.shallow_clone() } else { z.sigmoid() }
                .set_requires_grad(true);
            let criterion = Criterion::new(BinaryLabelRelaxation::new(0.1, scores).unwrap()).dim(-1);
            let formula = formulas::loss(criterion.options, &criterion.tensors(&x, &y, None)).unwrap();
            let kernel = criterion.forward(&x, &y).unwrap();
            assert!(kernel.allclose(&formula, 1e-12, 1e-14, false));
            let [of_kernel, of_formula] =
                [kernel, formula].map(|loss| Tensor::run_backward(&[loss], &[&x], false, false).remove(0));
            assert!(of_kernel.allclose(&of_formula, 1e-10, 1e-12, false));
        }
    }

    #[test]
    fn formula_of_extreme_logits() {
        let z = Tensor::from_slice(&[800.0, 0.0, 0.0, 800.0, f64::NEG_INFINITY, 0.0, f64::NAN, 0.0]);
        let z = z.reshape([4, 2]).set_requires_grad(true);
        let y = Tensor::from_slice(&[0_i64; 4]);
        let loss = LabelRelaxation::new(0.1, Scores::Logits).unwrap();
        let criterion = Criterion::new(loss).reduction(Reduction::None);
        let losses = formulas::loss(criterion.options, &criterion.tensors(&z, &y, None)).unwrap();
        let losses = Vec::<f64>::try_from(losses).unwrap();
        assert_eq!((losses[0], losses[2]), (0.0, f64::INFINITY));
        assert!((losses[1] - (0.9 * (0.9_f64.ln() + 800.0) + 0.1 * 0.1_f64.ln())).abs() < 1e-12);
        assert!(losses[3].is_nan());
    }
}
