//! The arguments of a loss: its options and its tensors.

use tch::{Reduction, Tensor};

use super::torch::{self, Borrowed, Device};
use crate::losses::{Loss, Reduction as KernelReduction};
use crate::rows::Error;
use crate::untyped::View;
use crate::untyped::losses::{Arguments, Numbers};

/// A loss and the options that all losses share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub loss: Loss,
    pub reduction: Reduction,
    pub dim: i64,
    pub ignore_index: i64,
}

impl Options {
    /// The reduction of the kernels, or `None` for a loss per row.
    pub(super) fn kernel_reduction(self) -> Result<Option<KernelReduction>, Error> {
        match self.reduction {
            Reduction::Mean => Ok(Some(KernelReduction::Mean)),
            Reduction::Sum => Ok(Some(KernelReduction::Sum)),
            Reduction::None => Ok(None),
            Reduction::Other(n) => Err(Error::value(format!(
                "Expected argument `reduction` to be Mean, Sum or None, but got Other({n})."
            ))),
        }
    }
}

/// The tensors of a call, or views of them.
pub(super) struct Tensors<T = Tensor> {
    pub input: T,
    pub target: T,
    pub weight: Option<T>,
    pub alpha: Option<T>,
    /// The second class of each row, for mixup.
    pub target_b: Option<T>,
    /// The share of the first class, for mixup.
    pub lam: Option<T>,
}

impl Tensors {
    /// The tensors that autograd saves, in the order that [`Tensors::from_saved`] expects.
    pub(super) fn to_saved<'a>(&'a self, grad: &'a Tensor) -> [Option<&'a Tensor>; 7] {
        let Tensors { input, target, weight, alpha, target_b, lam } = self;
        let [weight, alpha, target_b, lam] = [weight, alpha, target_b, lam].map(Option::as_ref);
        [Some(input), Some(target), weight, alpha, target_b, lam, Some(grad)]
    }

    /// The tensors of a call and the gradient from the tensors that autograd saved.
    pub(super) fn from_saved(saved: Vec<Tensor>) -> (Tensors, Tensor) {
        let Ok([input, target, weight, alpha, target_b, lam, grad]) = <[Tensor; 7]>::try_from(saved) else {
            unreachable!("autograd returns as many tensors as it saved")
        };
        let [weight, alpha, target_b, lam] =
            [weight, alpha, target_b, lam].map(|tensor| tensor.defined().then_some(tensor));
        (Tensors { input, target, weight, alpha, target_b, lam }, grad)
    }

    /// Views of the tensors, and their device; checks that all tensors are on the same device.
    pub(super) fn views(&self) -> Result<(Tensors<View>, Device), Error> {
        let Borrowed { view: input, device } = torch::view(&self.input, "input")?;
        let view = |tensor: &Tensor, name: &str| {
            let borrowed = torch::view(tensor, name)?;
            if borrowed.device == device {
                return Ok(borrowed.view);
            }
            Err(Error::r#type(format!(
                "Expected argument `{name}` to be on {device}, the device of `input`, but got {}.",
                borrowed.device
            )))
        };
        let optional = |tensor: &Option<Tensor>, name| tensor.as_ref().map(|t| view(t, name)).transpose();
        let target = if self.target_b.is_some() { "target_a" } else { "target" };
        let views = Tensors {
            input,
            target: view(&self.target, target)?,
            weight: optional(&self.weight, "weight")?,
            alpha: optional(&self.alpha, "alpha")?,
            target_b: optional(&self.target_b, "target_b")?,
            lam: optional(&self.lam, "lam")?,
        };
        Ok((views, device))
    }
}

impl Tensors<View> {
    /// The arguments of the kernels.
    pub(super) fn arguments(&self, options: Options) -> Arguments<'_> {
        Arguments {
            input: self.input.clone(),
            target: &self.target,
            mixed: self.target_b.as_ref().zip(self.lam.as_ref().map(Numbers::Each)),
            weight: self.weight.as_ref(),
            alpha: self.alpha.as_ref(),
            dim: options.dim,
            ignore_index: options.ignore_index,
        }
    }
}
