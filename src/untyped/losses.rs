//! The losses of arrays.

use half::{bf16, f16};

use super::{Dtype, View, tuple};
use crate::losses::pass::{Loss, ONLY_LABEL_RELAXATION, Pass, Reduction, Target};
use crate::rows::{Error, Targets};
use crate::simd::{Element, Real};

/// The arguments of a loss, as they come.
pub(crate) struct Arguments<'a> {
    pub input: View,
    pub target: &'a View,
    /// The second class of each row, with the share of the first: label relaxation of a mixture.
    pub mixed: Option<(&'a View, Numbers<'a>)>,
    pub weight: Option<&'a View>,
    /// An alpha for each row, in place of that of the loss.
    pub alpha: Option<&'a View>,
    pub dim: i64,
    pub ignore_index: i64,
}

/// A number for all rows, or one for each.
#[derive(Clone, Copy)]
pub(crate) enum Numbers<'a> {
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    Same(f64),
    Each(&'a View),
}

/// Predictions and their targets, checked against each other.
pub(crate) struct Batch {
    input: View,
    class_axis: usize,
    target: OwnTarget,
    /// A factor for each class.
    weight: Option<Vec<f64>>,
    alpha: Option<Vec<f64>>,
}

enum OwnTarget {
    Classes(Targets),
    /// Sets, or distributions.
    Dense(View),
    Mixtures {
        first: Targets,
        second: Targets,
        share: Vec<f64>,
    },
}

impl Batch {
    /// Checks types, shapes, and every class.
    pub(crate) fn new(loss: Loss, arguments: Arguments<'_>) -> Result<Batch, Error> {
        let class_axis = check(loss, &arguments)?;
        let Arguments { input, target, mixed, weight, alpha, ignore_index, .. } = arguments;
        let n_classes = input.shape[class_axis];
        let target = match mixed {
            Some((second, share)) => OwnTarget::Mixtures {
                first: target.targets("target_a", n_classes, Some(ignore_index))?,
                second: second.targets("target_b", n_classes, Some(ignore_index))?,
                share: match share {
                    Numbers::Same(share) => vec![share],
                    Numbers::Each(view) => view.to_f64()?,
                },
            },
            None if target.is_dense() => OwnTarget::Dense(target.clone()),
            None => OwnTarget::Classes(target.targets("target", n_classes, Some(ignore_index))?),
        };
        let weight = weight.map(View::to_f64).transpose()?;
        let alpha = alpha.map(View::to_f64).transpose()?;
        Ok(Batch { input, class_axis, target, weight, alpha })
    }

    pub(crate) fn input(&self) -> &View {
        &self.input
    }

    /// The type of the losses: single precision for half.
    pub(crate) fn loss_type(&self) -> Dtype {
        if self.input.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 }
    }

    /// The shape of the losses, one for each row.
    pub(crate) fn rows(&self) -> Vec<usize> {
        without(&self.input.shape, self.class_axis)
    }

    /// That the gradient can be written over the input: no element of it stands for several, the target does not
    /// lie in its memory (classes and numbers have been copied), and no loss scale comes later.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn check_in_place(&self) -> Result<(), Error> {
        if self.input.dtype == Dtype::F16 {
            return Err(Error::r#type(
                "Expected argument `inplace` to be False for torch.float16, \
                 whose gradient is computed again where a loss is scaled.",
            ));
        }
        let shared = matches!(&self.target, OwnTarget::Dense(target) if self.input.overlaps(target));
        if shared || self.input.repeats() {
            return Err(Error::value(
                "Expected argument `inplace` to be False for an `input` that shares memory, \
                 with `target` or with itself (as expanded tensors do).",
            ));
        }
        Ok(())
    }

    /// The loss into `losses`, reduced or (`None`) one for each row; with `grad`, also its gradient, times
    /// `upstream`.
    ///
    /// # Safety
    ///
    /// `losses` and the gradient are memory of no one else; `losses` is contiguous, of the type that
    /// [`Batch::loss_type`] tells and of the shape of the rows, or a scalar if it is reduced; the gradient has type
    /// and shape of the input.
    pub(crate) unsafe fn compute(
        &self,
        loss: Loss,
        upstream: f64,
        reduction: Option<Reduction>,
        losses: &View,
        grad: Gradient<'_>,
    ) -> Result<(), Error> {
        let call = Call { batch: self, loss, upstream, reduction, losses, grad };
        // SAFETY: the types are those that are named; the rest is this function's contract.
        unsafe {
            match self.input.dtype {
                Dtype::F32 => call.typed::<f32>(),
                Dtype::F64 => call.typed::<f64>(),
                Dtype::Bf16 => call.typed::<bf16>(),
                Dtype::F16 => call.typed::<f16>(),
                _ => unreachable!("checked by `new`"),
            }
        }
    }
}

/// Where the gradient of a loss goes.
#[derive(Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// It is not wanted.
    None,
    /// To an array of its own.
    To(&'a View),
    /// Over the input, which [`Batch::check_in_place`] has let pass.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    InPlace,
}

/// The arguments of [`Batch::compute`].
struct Call<'a> {
    batch: &'a Batch,
    loss: Loss,
    upstream: f64,
    reduction: Option<Reduction>,
    losses: &'a View,
    grad: Gradient<'a>,
}

impl Call<'_> {
    /// # Safety
    ///
    /// As for [`Batch::compute`], and `E` is the type of the input.
    unsafe fn typed<E: Element>(self) -> Result<(), Error> {
        let batch = self.batch;
        // SAFETY: by this function's contract.
        let (rows, grad, losses) = unsafe {
            let grad = match self.grad {
                Gradient::None => None,
                Gradient::To(grad) => Some(grad.rows_mut::<E>(batch.class_axis)),
                Gradient::InPlace => Some(batch.input.rows_mut::<E>(batch.class_axis)),
            };
            (batch.input.rows::<E>(batch.class_axis), grad, self.losses.elements_mut::<E::Wide>())
        };
        let dense;
        let target = match &batch.target {
            OwnTarget::Classes(targets) => Target::Classes(targets),
            OwnTarget::Mixtures { first, second, share } => Target::Mixtures { first, second, share },
            OwnTarget::Dense(view) => {
                dense = view.any_rows(batch.class_axis);
                if view.dtype == Dtype::Bool { Target::Sets(&dense) } else { Target::Distributions(&dense) }
            }
        };
        let mut pass = Pass::new(&rows, target)?.upstream(self.upstream);
        if let Some(alpha) = &batch.alpha {
            pass = pass.alpha(alpha)?;
        }
        if let Some(weight) = &batch.weight {
            pass = pass.weight(weight)?;
        }
        if let Some(grad) = &grad {
            pass = match self.grad {
                // SAFETY: the memory of the input is no one else's, by this function's contract.
                Gradient::InPlace => unsafe { pass.gradient_in_place(grad) },
                _ => pass.gradient(grad),
            }?;
        }
        match self.reduction {
            Some(reduction) => losses[0] = E::Wide::from_f64(pass.reduce(self.loss, reduction)?),
            None => pass.per_row(self.loss, losses)?,
        }
        Ok(())
    }
}

/// Checks types and shapes, not reading any memory; returns the class axis.
pub(crate) fn check(loss: Loss, arguments: &Arguments<'_>) -> Result<usize, Error> {
    let Arguments { input, target, mixed, weight, alpha, dim, .. } = arguments;
    if !input.dtype.is_float() {
        return Err(Error::r#type(format!(
            "Expected argument `input` to be of a floating-point type, but got {}.",
            input.type_name()
        )));
    }
    if !matches!(loss, Loss::LabelRelaxation(_)) && (mixed.is_some() || alpha.is_some()) {
        return Err(Error::r#type(ONLY_LABEL_RELAXATION));
    }
    let class_axis = class_axis(input, *dim)?;
    let rows = without(&input.shape, class_axis);
    match mixed {
        Some((second, share)) => {
            check_classes("target_a", target, input, &rows)?;
            check_classes("target_b", second, input, &rows)?;
            if let Numbers::Each(share) = share {
                check_numbers("lam", share, &rows)?;
            }
        }
        None if target.is_dense() && matches!(loss, Loss::LabelRelaxation(_)) => {
            if target.shape != input.shape {
                return Err(Error::value(format!(
                    "Expected argument `target` of type {} to have shape {}, that of `input`, but got {}.",
                    target.type_name(),
                    tuple(&input.shape),
                    tuple(&target.shape)
                )));
            }
        }
        None => check_classes("target", target, input, &rows)?,
    }
    if let Some(alpha) = alpha {
        check_numbers("alpha", alpha, &rows)?;
    }
    let Some(weight) = weight else { return Ok(class_axis) };
    if !weight.dtype.is_float() {
        return Err(Error::r#type(format!(
            "Expected argument `weight` to be of a floating-point type, but got {}.",
            weight.type_name()
        )));
    }
    let n_classes = input.shape[class_axis];
    if weight.shape != [n_classes] {
        return Err(Error::value(format!(
            "Expected argument `weight` to have shape ({n_classes},), a number for each class, but got {}.",
            tuple(&weight.shape)
        )));
    }
    Ok(class_axis)
}

fn check_classes(name: &str, target: &View, input: &View, rows: &[usize]) -> Result<(), Error> {
    if target.is_dense() || target.dtype == Dtype::Other {
        return Err(Error::r#type(format!(
            "Expected argument `{name}` to hold class indices of an integer type, but got {}.",
            target.type_name()
        )));
    }
    if target.shape != rows {
        return Err(Error::value(format!(
            "Expected argument `{name}` to have shape {}, that of `input` {} without its classes, but got {}.",
            tuple(rows),
            tuple(&input.shape),
            tuple(&target.shape)
        )));
    }
    Ok(())
}

fn check_numbers(name: &str, numbers: &View, rows: &[usize]) -> Result<(), Error> {
    if !numbers.dtype.is_float() {
        return Err(Error::r#type(format!(
            "Expected argument `{name}` to be of a floating-point type, but got {}.",
            numbers.type_name()
        )));
    }
    if numbers.shape != rows && !numbers.shape.is_empty() {
        return Err(Error::value(format!(
            "Expected argument `{name}` to have shape {}, a number for each row, but got {}.",
            tuple(rows),
            tuple(&numbers.shape)
        )));
    }
    Ok(())
}

fn class_axis(input: &View, dim: i64) -> Result<usize, Error> {
    let axes = input.shape.len() as i64;
    if axes == 0 {
        return Err(Error::value("Expected argument `input` to have a class dimension, but got shape ()."));
    }
    if !(-axes..axes).contains(&dim) {
        return Err(Error::value(format!(
            "Expected argument `dim` to be in [{}, {}], but got {dim}.",
            -axes,
            axes - 1
        )));
    }
    let axis = dim.rem_euclid(axes) as usize;
    if input.shape[axis] < 2 {
        return Err(Error::value(format!(
            "Expected argument `input` to have at least 2 classes in dimension {dim}, but got shape {}.",
            tuple(&input.shape)
        )));
    }
    Ok(axis)
}

fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    [&shape[..axis], &shape[axis + 1..]].concat()
}
