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

/// The tensors of a call.
pub(super) struct Tensors {
    pub input: Tensor,
    pub target: Tensor,
    pub weight: Option<Tensor>,
    pub alpha: Option<Tensor>,
    /// The second class of each row, and the share of the first class.
    pub mixed: Option<(Tensor, Tensor)>,
}

impl Tensors {
    /// The tensors that autograd saves, in the order that [`Tensors::from_saved`] expects.
    pub(super) fn to_saved<'a>(&'a self, grad: &'a Tensor) -> [Option<&'a Tensor>; 7] {
        let (second, share) = self.mixed.as_ref().map(|(second, share)| (second, share)).unzip();
        let (weight, alpha) = (self.weight.as_ref(), self.alpha.as_ref());
        [Some(&self.input), Some(&self.target), weight, alpha, second, share, Some(grad)]
    }

    /// The tensors and the gradient from the tensors that autograd saved.
    pub(super) fn from_saved(saved: Vec<Tensor>) -> (Tensors, Tensor) {
        let Ok([input, target, weight, alpha, second, share, grad]) = <[Tensor; 7]>::try_from(saved) else {
            unreachable!("autograd returns as many tensors as it saved")
        };
        let defined = |tensor: Tensor| tensor.defined().then_some(tensor);
        let (weight, alpha, mixed) = (defined(weight), defined(alpha), defined(second).zip(defined(share)));
        (Tensors { input, target, weight, alpha, mixed }, grad)
    }

    /// Views of the tensors; checks that all tensors are on the same device.
    pub(super) fn views(&self) -> Result<Views, Error> {
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

/// Views of the tensors of a call.
pub(super) struct Views {
    input: View,
    target: View,
    weight: Option<View>,
    alpha: Option<View>,
    second: Option<View>,
    share: Option<View>,
    pub device: Device,
}

impl Views {
    /// The arguments of the kernels.
    pub(super) fn arguments(&self, options: Options) -> Arguments<'_> {
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
