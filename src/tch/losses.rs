//! The losses of `tch::Tensor`, with a gradient that `backward()` goes through.

use tch::{Kind, Reduction, Tensor};

use super::reference;
use super::torch::{self, Backward, Borrowed, Device, Pass};
use crate::kernels::coin::Scores;
use crate::kernels::focal::Focal;
use crate::kernels::label_relaxation::LabelRelaxation;
use crate::kernels::pass::{Loss, Reduction as Reduced};
use crate::memory;
use crate::rows::Error;
use crate::untyped::View;
use crate::untyped::losses::{Batch, check};

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
/// use lr_relax::kernels::coin::Scores;
/// use lr_relax::kernels::label_relaxation::LabelRelaxation;
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
        Criterion { options: Options { loss, reduction, dim: -1, ignore_index: -100 }, weight: None }
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

    /// The loss of `input`, (..., C), for the classes `target`, (...).
    ///
    /// # Errors
    ///
    /// As [`label_relaxation`].
    pub fn forward(&self, input: &Tensor, target: &Tensor) -> Result<Tensor, Error> {
        let (options, weight) = (self.options, self.weight.as_ref());
        let reduction = options.reduction()?;
        torch::connect_threads();
        let arguments = Arguments::new(input, target, weight)?;
        if !arguments.device.is_cpu() {
            check(&arguments.input, &arguments.target, arguments.weight.as_ref(), options.dim)?;
            return reference::loss(options, input, target, weight);
        }
        let batch = arguments.batch(options)?;
        let losses = match reduction {
            Some(_) => torch::allocate(batch.loss_type(), &[])?,
            None => torch::allocate(batch.loss_type(), &batch.rows())?,
        };
        let grad = torch::needs_grad(input).then(|| gradient(input, batch.input())).transpose()?;
        let out = torch::view(&losses, "losses")?.view;
        let grad_out = grad.as_ref().map(|grad| torch::view(grad, "gradient")).transpose()?.map(|b| b.view);
        // SAFETY: both are new, and of the types and shapes that the batch asks for.
        unsafe { batch.compute(options.loss, 1.0, reduction, &out, grad_out.as_ref()) }?;
        match &grad {
            Some(grad) => {
                torch::attach(&losses, input, &[Some(input), Some(target), weight, Some(grad)], options)
            }
            None => Ok(losses),
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
        let Ok([input, target, weight, mut grad]) = <[Tensor; 4]>::try_from(saved) else {
            unreachable!("what `forward` saved")
        };
        let weight = weight.defined().then_some(weight);
        if pass.creates_graph {
            // Through a formula that autograd can differentiate again.
            let losses = reference::loss(*self, &input, &target, weight.as_ref())?;
            return torch::differentiable_gradient(&losses, &input, upstream);
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
            let batch = Arguments::new(&input, &target, weight.as_ref())?.batch(*self)?;
            let loss = torch::allocate(batch.loss_type(), &[])?;
            let (out, grad_out) = (torch::view(&loss, "loss")?.view, torch::view(&grad, "gradient")?.view);
            // SAFETY: the loss is new; the gradient is like the input, and no one else wants it.
            unsafe { batch.compute(self.loss, scale, self.reduction()?, &out, Some(&grad_out)) }?;
        } else {
            let _ = grad.f_mul_scalar_(scale)?;
        }
        Ok(grad)
    }
}

/// The arguments of a call as they lie in memory.
struct Arguments {
    input: View,
    target: View,
    weight: Option<View>,
    device: Device,
}

impl Arguments {
    /// Checks that all are on one device.
    fn new(input: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Result<Arguments, Error> {
        let Borrowed { view, device } = torch::view(input, "input")?;
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
        let target = on_device(target, "target")?;
        let weight = weight.map(|weight| on_device(weight, "weight")).transpose()?;
        Ok(Arguments { input: view, target, weight, device })
    }

    fn batch(self, options: Options) -> Result<Batch, Error> {
        Batch::new(self.input, &self.target, self.weight.as_ref(), options.dim, options.ignore_index)
    }
}

/// A new tensor for the gradient with respect to `input`, which `view` describes; not initialised.
fn gradient(input: &Tensor, view: &View) -> Result<Tensor, Error> {
    match memory::lend(view.len().saturating_mul(view.dtype.size()))? {
        Some(block) => torch::adopt(block, view.dtype, &view.shape),
        None => torch::empty_like(input),
    }
}
