//! The losses of arrays.

use half::{bf16, f16};

use super::{Dtype, View, tuple};
use crate::kernels::pass::{Loss, Pass, Reduction};
use crate::rows::{Error, Targets};
use crate::simd::{Element, Real};

/// Predictions and their targets, checked against each other.
pub(crate) struct Batch {
    input: View,
    class_axis: usize,
    targets: Targets,
    /// A factor for each class.
    weight: Option<Vec<f64>>,
}

impl Batch {
    /// Checks types, shapes, and every target.
    pub(crate) fn new(
        input: View,
        target: &View,
        weight: Option<&View>,
        dim: i64,
        ignore_index: i64,
    ) -> Result<Batch, Error> {
        let class_axis = check(&input, target, weight, dim)?;
        let targets = target.targets(input.shape[class_axis], Some(ignore_index))?;
        let weight = weight.map(View::to_f64).transpose()?;
        Ok(Batch { input, class_axis, targets, weight })
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

    /// The loss into `losses`, reduced or (`None`) one for each row; with `grad`, also its gradient, times
    /// `upstream`.
    ///
    /// # Safety
    ///
    /// `losses` and `grad` are memory of no one else; `losses` is contiguous, of the type that
    /// [`Batch::loss_type`] tells and of the shape of the rows, or a scalar if it is reduced; `grad` has type
    /// and shape of the input.
    pub(crate) unsafe fn compute(
        &self,
        loss: Loss,
        upstream: f64,
        reduction: Option<Reduction>,
        losses: &View,
        grad: Option<&View>,
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

/// The arguments of [`Batch::compute`].
struct Call<'a> {
    batch: &'a Batch,
    loss: Loss,
    upstream: f64,
    reduction: Option<Reduction>,
    losses: &'a View,
    grad: Option<&'a View>,
}

impl Call<'_> {
    /// # Safety
    ///
    /// As for [`Batch::compute`], and `E` is the type of the input.
    unsafe fn typed<E: Element>(self) -> Result<(), Error> {
        let batch = self.batch;
        // SAFETY: by this function's contract.
        let (rows, grad, losses) = unsafe {
            let grad = self.grad.map(|grad| grad.rows_mut::<E>(batch.class_axis));
            (batch.input.rows::<E>(batch.class_axis), grad, self.losses.elements_mut::<E::Wide>())
        };
        let mut pass = Pass::new(&rows, &batch.targets)?.upstream(self.upstream);
        if let Some(weight) = &batch.weight {
            pass = pass.weight(weight)?;
        }
        if let Some(grad) = &grad {
            pass = pass.gradient(grad)?;
        }
        match self.reduction {
            Some(reduction) => losses[0] = E::Wide::from_f64(pass.reduce(self.loss, reduction)?),
            None => pass.per_row(self.loss, losses)?,
        }
        Ok(())
    }
}

/// Checks types and shapes, not reading any memory; returns the class axis.
pub(crate) fn check(input: &View, target: &View, weight: Option<&View>, dim: i64) -> Result<usize, Error> {
    if !input.dtype.is_float() {
        return Err(Error::r#type(format!(
            "Expected argument `input` to be of a floating-point type, but got {}.",
            input.type_name()
        )));
    }
    let class_axis = class_axis(input, dim)?;
    if target.dtype.is_float() || target.dtype == Dtype::Other {
        return Err(Error::r#type(format!(
            "Expected argument `target` to hold class indices of an integer type, but got {}.",
            target.type_name()
        )));
    }
    let rows = without(&input.shape, class_axis);
    if target.shape != rows {
        return Err(Error::value(format!(
            "Expected argument `target` to have shape {}, that of `input` {} without its classes, but got {}.",
            tuple(&rows),
            tuple(&input.shape),
            tuple(&target.shape)
        )));
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
