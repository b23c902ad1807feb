//! The losses of arrays.

use half::{bf16, f16};

use super::{Dtype, View, tuple};
use crate::losses::{Batch, Kernels, Loss, ONE_COLUMN, ONLY_LABEL_RELAXATION, Reduction, Target};
use crate::rows::{Error, Rows, Targets};
use crate::simd::{Element, Real};

/// The arguments of a loss, unchecked.
pub(crate) struct Arguments<'a> {
    pub input: View,
    pub target: &'a View,
    /// For label relaxation of a mixture: the second class of each row, and the share of the first.
    pub mixed: Option<(&'a View, Numbers<'a>)>,
    pub weight: Option<&'a View>,
    /// An alpha for each row, in place of the loss's own.
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

/// The arguments of a loss, checked against each other.
pub(crate) struct Inputs {
    input: View,
    class_axis: usize,
    target: CheckedTarget,
    /// A weight for each class.
    weight: Option<Vec<f64>>,
    alpha: Option<Vec<f64>>,
}

enum CheckedTarget {
    Classes(Targets),
    /// Sets, or distributions.
    Dense(View),
    Mixtures {
        first: Targets,
        second: Targets,
        share: Vec<f64>,
    },
}

/// Evaluates an expression with the floating-point type that a checked `Dtype` names.
macro_rules! with_float {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            Dtype::F32 => {
                type $E = f32;
                $body
            }
            Dtype::F64 => {
                type $E = f64;
                $body
            }
            Dtype::Bf16 => {
                type $E = bf16;
                $body
            }
            Dtype::F16 => {
                type $E = f16;
                $body
            }
            _ => unreachable!("the caller has checked it"),
        }
    };
}
pub(super) use with_float;

impl Inputs {
    /// Checks types, shapes, and class indices.
    pub(crate) fn new(loss: Loss, arguments: Arguments<'_>) -> Result<Inputs, Error> {
        let class_axis = check(loss, &arguments)?;
        let Arguments { input, target, mixed, weight, alpha, ignore_index, .. } = arguments;
        let n_classes = if loss.is_binary() { 2 } else { input.shape[class_axis] };
        let target = match mixed {
            Some((second, share)) => CheckedTarget::Mixtures {
                first: target.targets("target_a", n_classes, Some(ignore_index))?,
                second: second.targets("target_b", n_classes, Some(ignore_index))?,
                share: match share {
                    Numbers::Same(share) => vec![share],
                    Numbers::Each(view) => view.to_f64()?,
                },
            },
            None if loss.is_binary() => CheckedTarget::Classes(target.binary_targets("target")?),
            None if target.is_dense() => CheckedTarget::Dense(target.clone()),
            None => CheckedTarget::Classes(target.targets("target", n_classes, Some(ignore_index))?),
        };
        let weight = weight.map(View::to_f64).transpose()?;
        let alpha = alpha.map(View::to_f64).transpose()?;
        Ok(Inputs { input, class_axis, target, weight, alpha })
    }

    pub(crate) fn input(&self) -> &View {
        &self.input
    }

    /// The type of the losses: single precision for half.
    pub(crate) fn loss_type(&self) -> Dtype {
        self.input.dtype.wide()
    }

    /// The shape of the losses, one for each row.
    pub(crate) fn rows(&self) -> Vec<usize> {
        without(&self.input.shape, self.class_axis)
    }

    /// Checks that the gradient can overwrite the input: the input's elements do not share memory with each other or
    /// with the target, and the gradient is not needed again to scale a loss in half precision.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn check_in_place(&self) -> Result<(), Error> {
        if self.input.dtype == Dtype::F16 {
            return Err(Error::r#type(
                "Expected argument `inplace` to be False for torch.float16, \
                 whose gradient is computed again where a loss is scaled.",
            ));
        }
        let shared = matches!(&self.target, CheckedTarget::Dense(target) if self.input.overlaps(target));
        if shared || self.input.repeats() {
            return Err(Error::value(
                "Expected argument `inplace` to be False for an `input` that shares memory, \
                 with `target` or with itself (as expanded tensors do).",
            ));
        }
        Ok(())
    }

    /// Checks that the arrays that [`Inputs::compute`] reads are where they were when they were checked.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn check_unmoved(&self, input: &View, target: &View) -> Result<(), Error> {
        let is_same = match &self.target {
            CheckedTarget::Dense(view) => view == target,
            CheckedTarget::Classes(_) | CheckedTarget::Mixtures { .. } => true,
        };
        if *input == self.input && is_same {
            return Ok(());
        }
        Err(Error::value("Expected arguments `input` and `target` not to be resized during the call."))
    }

    /// Checks the values that [`Inputs::compute`] would check: alphas, shares, and the rows of a dense target.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn check_values(&self) -> Result<(), Error> {
        with_float!(self.input.dtype, E => {
            // SAFETY: the type is the one that is named.
            let rows = unsafe { self.input.rows::<E>(self.class_axis) };
            self.with_batch(&rows, |batch| batch.check_targets())
        })
        .map_err(|error| self.in_dimension(error))
    }

    /// Writes the loss into `losses`: reduced, or one per row if `reduction` is `None`. Unless `grad` is
    /// [`Gradient::None`], also computes the gradient, times `upstream`: one number, or one for each row.
    ///
    /// # Safety
    ///
    /// Nothing else uses the memory of `losses` and of the gradient. `losses` is contiguous, has the type
    /// [`Inputs::loss_type`] and the shape of the rows, or is a scalar if it is reduced. The gradient has the type and
    /// the shape of the input.
    pub(crate) unsafe fn compute(
        &self,
        loss: Loss,
        upstream: Numbers<'_>,
        reduction: Option<Reduction>,
        losses: &View,
        grad: Gradient<'_>,
    ) -> Result<(), Error> {
        let (one, each);
        let upstreams: &[f64] = match upstream {
            Numbers::Same(number) => {
                one = [number];
                &one
            }
            Numbers::Each(view) => {
                check_numbers("upstream", view, &self.rows())?;
                each = view.to_f64()?;
                &each
            }
        };
        with_float!(self.input.dtype, E => {
            let axis = self.class_axis;
            // SAFETY: the type is the one that is named; the rest is this function's contract.
            let (rows, grad_rows, losses) = unsafe {
                let grad = match grad {
                    Gradient::None => None,
                    Gradient::To(grad) => Some(grad.rows_mut::<E>(axis)),
                    Gradient::InPlace => Some(self.input.rows_mut::<E>(axis)),
                };
                (self.input.rows::<E>(axis), grad, losses.elements_mut::<<E as Element>::Wide>())
            };
            self.with_batch(&rows, |batch| {
                let batch = match (&grad_rows, grad) {
                    (None, _) => batch,
                    // SAFETY: nothing else uses the memory of the input, by this function's contract.
                    (Some(rows), Gradient::InPlace) => unsafe { batch.gradient_in_place(rows)? },
                    (Some(rows), _) => batch.gradient(rows)?,
                }
                .upstreams(upstreams)?;
                match reduction {
                    Some(reduction) => losses[0] = Real::from_f64(batch.reduce(loss, reduction)?),
                    None => batch.per_row(loss, losses)?,
                }
                Ok(())
            })
        })
        .map_err(|error| self.in_dimension(error))
    }

    /// Names the dimension of the classes where another one may have been meant.
    fn in_dimension(&self, mut error: Error) -> Error {
        if let (Error::NotADistribution { got, .. }, 3..) = (&mut error, self.input.shape.len()) {
            *got += &format!(" in dimension {}; pass `dim` if the classes are in another", self.class_axis);
        }
        error
    }

    /// Calls `compute` with the batch of `rows`, which are those of the input.
    fn with_batch<E: Kernels>(
        &self,
        rows: &Rows<'_, E>,
        compute: impl FnOnce(Batch<'_, E>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dense;
        let target = match &self.target {
            CheckedTarget::Classes(targets) => Target::Classes(targets),
            CheckedTarget::Mixtures { first, second, share } => Target::Mixtures { first, second, share },
            CheckedTarget::Dense(view) => {
                dense = view.any_rows(self.class_axis);
                if view.dtype == Dtype::Bool { Target::Sets(&dense) } else { Target::Distributions(&dense) }
            }
        };
        let mut batch = Batch::new(rows, target)?;
        if let Some(alpha) = &self.alpha {
            batch = batch.alpha(alpha)?;
        }
        if let Some(weight) = &self.weight {
            batch = batch.weight(weight)?;
        }
        compute(batch)
    }
}

/// Where the gradient of a loss goes.
#[derive(Clone, Copy)]
pub(crate) enum Gradient<'a> {
    /// The gradient is not wanted.
    None,
    /// To an array of its own.
    To(&'a View),
    /// Over the input, which [`Inputs::check_in_place`] has accepted.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    InPlace,
}

/// Checks types and shapes without reading any memory; returns the class axis.
pub(crate) fn check(loss: Loss, arguments: &Arguments<'_>) -> Result<usize, Error> {
    let Arguments { input, target, mixed, weight, alpha, dim, ignore_index } = arguments;
    if !input.dtype.is_float() {
        return Err(Error::r#type(format!(
            "Expected argument `input` to be of a floating-point type, but got {}.",
            input.type_name()
        )));
    }
    if !loss.is_credal() && (mixed.is_some() || alpha.is_some()) {
        return Err(Error::r#type(ONLY_LABEL_RELAXATION));
    }
    let class_axis = class_axis(loss, input, *dim)?;
    let rows = without(&input.shape, class_axis);
    match mixed {
        Some((second, share)) => {
            check_classes("target_a", target, input, &rows)?;
            check_classes("target_b", second, input, &rows)?;
            if let Numbers::Each(share) = share {
                check_numbers("lam", share, &rows)?;
            }
        }
        None if loss.is_binary() && target.dtype != Dtype::Other => {
            check_shape("target", target, input, &rows)?
        }
        None if takes_dense(loss, target.dtype) => {
            if !loss.is_credal() && *ignore_index >= 0 {
                return Err(Error::value(format!(
                    "Expected argument `ignore_index` to be negative for distributions as `target`, \
                     which have no class to ignore, but got {ignore_index}."
                )));
            }
            if target.shape != input.shape {
                return Err(Error::value(format!(
                    "Expected argument `target` of type {} to have shape {}, that of `input`, but got {}.",
                    target.type_name(),
                    tuple(&input.shape),
                    tuple(&target.shape)
                )));
            }
        }
        None if target.is_dense() && loss.takes_distributions() => {
            return Err(Error::r#type(format!(
                "Expected argument `target` to hold class indices of an integer type, or distributions of a \
                 floating-point type, but got {}.",
                target.type_name()
            )));
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

/// Whether the loss takes targets of this type with a value for each class.
fn takes_dense(loss: Loss, dtype: Dtype) -> bool {
    if dtype.is_float() { loss.takes_distributions() } else { dtype == Dtype::Bool && loss.is_credal() }
}

fn check_classes(name: &str, target: &View, input: &View, rows: &[usize]) -> Result<(), Error> {
    if target.is_dense() || target.dtype == Dtype::Other {
        return Err(Error::r#type(format!(
            "Expected argument `{name}` to hold class indices of an integer type, but got {}.",
            target.type_name()
        )));
    }
    check_shape(name, target, input, rows)
}

fn check_shape(name: &str, target: &View, input: &View, rows: &[usize]) -> Result<(), Error> {
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

pub(super) fn check_numbers(name: &str, numbers: &View, rows: &[usize]) -> Result<(), Error> {
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

/// Refuses the last dimension as that of the classes, where nobody has chosen it and the shape of class indices also
/// fits the layout of PyTorch, with the classes in dimension 1.
#[cfg(feature = "tch")]
pub(crate) fn check_default_dim(input: &View, target: &View) -> Result<(), Error> {
    let (shape, axes) = (&input.shape, input.shape.len());
    if axes < 3 || target.is_dense() || target.shape != without(shape, 1) {
        return Ok(());
    }
    let (shape, got) = (tuple(shape), tuple(&target.shape));
    Err(Error::value(if target.shape == without(&input.shape, axes - 1) {
        format!(
            "Expected argument `dim` to be given for an `input` of shape {shape} and a target of shape {got}, whose \
             classes may be in dimension 1 or the last one: pass 1 for the layout of PyTorch, (N, C, d1, ...), or -1."
        )
    } else {
        let expected = tuple(&without(&input.shape, axes - 1));
        format!(
            "Expected the target to have shape {expected}, that of `input` {shape} without its classes in the last \
             dimension, but got {got}. If the classes are in dimension 1, pass `dim` 1."
        )
    }))
}

fn class_axis(loss: Loss, input: &View, dim: i64) -> Result<usize, Error> {
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
    if loss.is_binary() {
        return if input.shape[axis] == 1 { Ok(axis) } else { Err(Error::value(ONE_COLUMN)) };
    }
    if input.shape[axis] < 2 {
        return Err(Error::value(format!(
            "Expected argument `input` to have at least 2 classes in dimension {dim}, but got shape {}.",
            tuple(&input.shape)
        )));
    }
    Ok(axis)
}

pub(super) fn without(shape: &[usize], axis: usize) -> Vec<usize> {
    [&shape[..axis], &shape[axis + 1..]].concat()
}
