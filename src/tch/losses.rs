//! The losses of `tch::Tensor`, with a gradient that `backward()` goes through.

use tch::{Kind, Reduction, Tensor};

use super::reference;
use super::torch::{self, Backward, Borrowed, Device, Pass};
use crate::losses::focal::Focal;
use crate::losses::label_relaxation::LabelRelaxation;
use crate::losses::pass::{Loss, Reduction as Reduced};
use crate::memory;
use crate::rows::Error;
use crate::rows::Scores;
use crate::untyped::View;
use crate::untyped::losses::{Arguments, Batch, Gradient, Numbers, check};

/// The divergence of the prediction from the set of distributions with `p[target] >= 1 - alpha`.
///
/// Equivalent to, for logits of shape (N, C) and the mean,
///
/// ```text
/// p = softmax(logits)[target]
/// loss = (1 - alpha) ln((1 - alpha) / p) + alpha ln(alpha / (1 - p)), or 0 where p >= 1 - alpha
/// ```
///
/// * `logits`: (..., C) with C >= 2, any strides; half, bfloat16, float or double.
/// * `target`: (...), class indices in [0, C) of any integer kind; rows of class -100 do not count.
/// * `alpha`: the imprecision in [0, 1): the probability that the set leaves to the other classes.
/// * `reduction`: the mean over the rows that count, the sum, or none.
///
/// Returns a scalar, or the losses in nats in the shape of `target`; float for half precision, else of the kind
/// of `logits`. Loss and gradient are exactly 0 inside the set. [`Criterion`] has more options.
///
/// # Errors
///
/// [`Error::Value`] or [`Error::Type`] for a wrong argument, [`Error::TargetOutOfRange`] for a target that is no
/// class, [`Error::Torch`] for what torch itself refuses.
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
/// assert_eq!(logits.grad().double_value(&[1, 0]), 0.0); // the second row is inside the set
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

/// Cross-entropy: [`label_relaxation`] with `alpha` 0, in one pass over the logits.
///
/// * `logits`: (..., C) with C >= 2; `target`: (...), class indices in [0, C); arguments, result and errors as
///   of [`label_relaxation`].
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

/// The focal loss, cross-entropy that counts a row the less the surer it is of its class.
///
/// Equivalent to `-(1 - p).pow(gamma) * ln(p)` with `p = softmax(logits)[target]`; `gamma` is at least 0, of which 0
/// is cross-entropy. The other arguments, result and errors are those of [`label_relaxation`].
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

/// A loss of [`crate::kernels`] with all options.
///
/// ```
/// use lr_relax::rows::Scores;
/// use lr_relax::losses::label_relaxation::LabelRelaxation;
/// use lr_relax::tch::Criterion;
/// use tch::{Kind, Tensor};
///
/// // Images: classes in dimension 1, and the first class half as important.
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
    weight: Option<Tensor>,
    alpha: Option<Tensor>,
}

/// The loss, and what is made of its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub loss: Loss,
    pub reduction: Reduction,
    pub dim: i64,
    pub ignore_index: i64,
}

impl Criterion {
    /// The mean of `loss` over rows whose classes are in the last dimension, of which those with target -100 do
    /// not count.
    pub fn new(loss: impl Into<Loss>) -> Self {
        let (loss, reduction) = (loss.into(), Reduction::Mean);
        Criterion {
            options: Options { loss, reduction, dim: -1, ignore_index: -100 },
            weight: None,
            alpha: None,
        }
    }

    /// The mean over the rows that count (weighted by `weight`), the sum, or a loss for each row.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.options.reduction = reduction;
        self
    }

    /// The dimension of the classes.
    pub fn dim(mut self, dim: i64) -> Self {
        self.options.dim = dim;
        self
    }

    /// Rows with this target have loss and gradient 0 and do not count.
    pub fn ignore_index(mut self, ignore_index: i64) -> Self {
        self.options.ignore_index = ignore_index;
        self
    }

    /// A factor for each class, of shape (C,), taken as constant.
    pub fn weight(mut self, weight: Tensor) -> Self {
        self.weight = Some(weight);
        self
    }

    /// An alpha for each row in place of that of the loss, of the shape of the rows or a scalar, taken as constant.
    pub fn alpha(mut self, alpha: Tensor) -> Self {
        self.alpha = Some(alpha);
        self
    }

    /// The loss of `input`, (..., C), for the classes `target`, (...).
    ///
    /// Label relaxation also takes targets of the shape of `input`: sets of classes (of kind bool), or distributions.
    ///
    /// # Errors
    ///
    /// As [`label_relaxation`]; [`Error::Row`] for an empty set or a row that is no distribution.
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, Error> {
        self.compute(Tensors {
            input: input.shallow_clone(),
            target: target.shallow_clone(),
            weight: self.weight.as_ref().map(Tensor::shallow_clone),
            alpha: self.alpha.as_ref().map(Tensor::shallow_clone),
            mixed: None,
        })
    }

    /// Label relaxation of inputs that are mixed of two classes, `target_a` with share `lam` and `target_b`: without
    /// a dense target the same as `lam * one_hot(target_a) + (1 - lam) * one_hot(target_b)`.
    ///
    /// `lam` in [0, 1] has the shape of the targets, or is a scalar.
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
        self.compute(Tensors {
            input: input.shallow_clone(),
            target: target_a.shallow_clone(),
            weight: self.weight.as_ref().map(Tensor::shallow_clone),
            alpha: self.alpha.as_ref().map(Tensor::shallow_clone),
            mixed: Some((target_b.shallow_clone(), lam.shallow_clone())),
        })
    }

    fn compute(&self, tensors: Tensors) -> Result<Tensor, Error> {
        let options = self.options;
        let reduction = options.reduction()?;
        torch::connect_threads();
        let views = tensors.views()?;
        if !views.device.is_cpu() {
            check(options.loss, &views.arguments(options))?;
            return reference::loss(options, &tensors);
        }
        let batch = Batch::new(options.loss, views.arguments(options))?;
        let losses = match reduction {
            Some(_) => torch::allocate(batch.loss_type(), &[])?,
            None => torch::allocate(batch.loss_type(), &batch.rows())?,
        };
        let input = &tensors.input;
        let grad = torch::needs_grad(input).then(|| gradient(input, batch.input())).transpose()?;
        let out = torch::view(&losses, "losses")?.view;
        let grad_out = grad.as_ref().map(|grad| torch::view(grad, "gradient")).transpose()?.map(|b| b.view);
        // SAFETY: both are new, and of the types and shapes that the batch asks for.
        unsafe {
            batch.compute(
                options.loss,
                1.0,
                reduction,
                &out,
                grad_out.as_ref().map_or(Gradient::None, Gradient::To),
            )
        }?;
        match &grad {
            Some(grad) => torch::attach(&losses, input, &tensors.saved(grad), options),
            None => Ok(losses),
        }
    }
}

/// The tensors of a call.
pub(super) struct Tensors {
    pub input: Tensor,
    pub target: Tensor,
    pub weight: Option<Tensor>,
    pub alpha: Option<Tensor>,
    /// The second class of each row, and the share of the first.
    pub mixed: Option<(Tensor, Tensor)>,
}

impl Tensors {
    /// In the order that [`Tensors::restored`] knows.
    fn saved<'a>(&'a self, grad: &'a Tensor) -> [Option<&'a Tensor>; 7] {
        let (second, share) = self.mixed.as_ref().map(|(second, share)| (second, share)).unzip();
        let (weight, alpha) = (self.weight.as_ref(), self.alpha.as_ref());
        [Some(&self.input), Some(&self.target), weight, alpha, second, share, Some(grad)]
    }

    /// The tensors, and the gradient.
    fn restored(saved: Vec<Tensor>) -> (Tensors, Tensor) {
        let Ok([input, target, weight, alpha, second, share, grad]) = <[Tensor; 7]>::try_from(saved) else {
            unreachable!("what `compute` saved")
        };
        let some = |tensor: Tensor| tensor.defined().then_some(tensor);
        let (weight, alpha, mixed) = (some(weight), some(alpha), some(second).zip(some(share)));
        (Tensors { input, target, weight, alpha, mixed }, grad)
    }

    /// As they lie in memory; checks that all are on one device.
    fn views(&self) -> Result<Views, Error> {
        let Borrowed { view: input, device } = torch::view(&self.input, "input")?;
        let on_device = |tensor: &Tensor, name: &str| {
            let borrowed = torch::view(tensor, name)?;
            if borrowed.device == device {
                return Ok(borrowed.view);
            }
            Err(Error::r#type(format!(
                "Expected argument `{name}` to be on {device}, the device of `input`, but got {}.",
                borrowed.device
            )))
        };
        let optional =
            |tensor: Option<&Tensor>, name: &str| tensor.map(|tensor| on_device(tensor, name)).transpose();
        let (second, share) = self.mixed.as_ref().map(|(second, share)| (second, share)).unzip();
        Ok(Views {
            input,
            target: on_device(&self.target, if self.mixed.is_some() { "target_a" } else { "target" })?,
            weight: optional(self.weight.as_ref(), "weight")?,
            alpha: optional(self.alpha.as_ref(), "alpha")?,
            second: optional(second, "target_b")?,
            share: optional(share, "lam")?,
            device,
        })
    }
}

/// The tensors of a call as they lie in memory.
struct Views {
    input: View,
    target: View,
    weight: Option<View>,
    alpha: Option<View>,
    second: Option<View>,
    share: Option<View>,
    device: Device,
}

impl Views {
    fn arguments(&self, options: Options) -> Arguments<'_> {
        Arguments {
            input: self.input.clone(),
            target: &self.target,
            mixed: self.second.as_ref().zip(self.share.as_ref().map(Numbers::Each)),
            weight: self.weight.as_ref(),
            alpha: self.alpha.as_ref(),
            dim: options.dim,
            ignore_index: options.ignore_index,
        }
    }
}

impl Options {
    fn reduction(self) -> Result<Option<Reduced>, Error> {
        match self.reduction {
            Reduction::Mean => Ok(Some(Reduced::Mean)),
            Reduction::Sum => Ok(Some(Reduced::Sum)),
            Reduction::None => Ok(None),
            Reduction::Other(n) => Err(Error::value(format!(
                "Expected argument `reduction` to be Mean, Sum or None, but got Other({n})."
            ))),
        }
    }
}

impl Backward for Options {
    fn backward(&self, saved: Vec<Tensor>, upstream: &Tensor, pass: Pass) -> Result<Tensor, Error> {
        let (tensors, mut grad) = Tensors::restored(saved);
        if pass.creates_graph {
            // Through a formula that autograd can differentiate again.
            let losses = reference::loss(*self, &tensors)?;
            return torch::differentiable_gradient(&losses, &tensors.input, upstream);
        }
        if upstream.dim() > 0 {
            return Ok(grad.f_mul(&upstream.f_unsqueeze(self.dim)?)?.f_to_kind(grad.f_kind()?)?);
        }
        let scale = upstream.f_double_value(&[])?;
        if scale == 1.0 {
            return Ok(grad);
        }
        if pass.keeps_graph {
            return Ok(grad.f_mul_scalar(scale)?);
        }
        if grad.f_kind()? == Kind::Half {
            // A loss scale must enter before the rounding: the mean's small gradients would be 0 by now.
            let batch = Batch::new(self.loss, tensors.views()?.arguments(*self))?;
            let loss = torch::allocate(batch.loss_type(), &[])?;
            let (out, grad_out) = (torch::view(&loss, "loss")?.view, torch::view(&grad, "gradient")?.view);
            // SAFETY: the loss is new; the gradient is like the input, and no one else wants it.
            unsafe { batch.compute(self.loss, scale, self.reduction()?, &out, Gradient::To(&grad_out)) }?;
        } else {
            let _ = grad.f_mul_scalar_(scale)?;
        }
        Ok(grad)
    }
}

/// A new tensor for the gradient with respect to `input`, which `view` describes; not initialised.
fn gradient(input: &Tensor, view: &View) -> Result<Tensor, Error> {
    match memory::lend(view.len().saturating_mul(view.dtype.size()))? {
        Some(block) => torch::adopt(block, view.dtype, &view.shape),
        None => torch::empty_like(input),
    }
}
