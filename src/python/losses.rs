//! The losses: one call computes the loss and, if it is wanted, its gradient.

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyString};

use crate::losses::{Loss, Reduction, Scores};
use crate::memory;
use crate::untyped::losses::{Arguments, Gradient, Inputs, Numbers};
use crate::untyped::scale::scale as multiply;
use crate::untyped::{Dtype, View};

use super::tensors;

/// Below this many scores the GIL is kept, because releasing it takes longer than the computation.
const QUICK: usize = 10_000;

type Tensor<'py> = Bound<'py, PyAny>;

/// Computes the loss that `options` (`lr_relax._options.Options`) describe. Unless `upstream` is `None`, also returns the
/// gradient of the reduced loss (for "none", of the sum) times `upstream`, a number or a tensor with one for each row;
/// with `inplace`, writes it over `input` and returns `None` in its place.
#[pyfunction]
#[pyo3(signature = (input, target, options, upstream))]
pub(super) fn loss<'py>(
    input: &Tensor<'py>,
    target: &Tensor<'py>,
    options: &Bound<'py, PyAny>,
    upstream: Option<Tensor<'py>>,
) -> PyResult<(Tensor<'py>, Option<Tensor<'py>>)> {
    // Extracted here, because pyo3 prefixes the errors of arguments that it extracts itself.
    let options: Options<'_> = options.extract()?;
    let (py, loss) = (input.py(), options.loss);
    let upstream = upstream.map(parse_upstream).transpose()?;
    options.check_tensors(input, target)?;
    let inputs = options.inputs(input, target)?;
    let (grad, grad_view) = match &upstream {
        Some(_) if options.inplace => {
            inputs.check_in_place()?;
            (None, None)
        }
        Some(_) => Some(gradient(input, inputs.input())?).unzip(),
        None => (None, None),
    };
    let to = match &grad_view {
        Some(view) => Gradient::To(view),
        None if upstream.is_some() => Gradient::InPlace,
        None => Gradient::None,
    };
    let (out, losses) = match options.reduction {
        Some(_) => tensors::empty_scalar(py, inputs.loss_type())?,
        None => tensors::allocate(py, inputs.loss_type(), &inputs.rows())?,
    };
    // Making the outputs may have run Python code, too: that of a mode or of a finalizer.
    inputs.check_unmoved(&tensors::borrow(input, "input")?, &tensors::borrow(target, "target")?)?;
    let reduction = options.reduction;
    let (number, tensor) = upstream.unwrap_or((1.0, None));
    let each = tensor.as_ref().map(|tensor| tensors::borrow(tensor, "upstream")).transpose()?;
    let upstream = each.as_ref().map_or(Numbers::Same(number), Numbers::Each);
    // SAFETY: both outputs are new and have the types and shapes that `inputs` asks for. In place, `check_in_place` has
    // accepted the input, whose values the caller gives up.
    let work = || unsafe { inputs.compute(loss, upstream, reduction, &losses, to) };
    if inputs.input().len() < QUICK { work() } else { py.allow_threads(work) }?;
    Ok((out, grad))
}

/// Raises what `loss` would raise, without computing anything.
#[pyfunction]
pub(super) fn check_loss<'py>(
    input: &Tensor<'py>,
    target: &Tensor<'py>,
    options: &Bound<'py, PyAny>,
) -> PyResult<()> {
    let options: Options<'_> = options.extract()?;
    options.check_tensors(input, target)?;
    let inputs = options.inputs(input, target)?;
    input.py().allow_threads(|| inputs.check_values())?;
    Ok(())
}

/// A hyperparameter's name, its range in words, the end of the range, and whether the end belongs to the range.
type Range = (&'static str, String, f64, bool);

/// The names of the losses with their hyperparameters.
#[pyfunction]
pub(super) fn hyperparameters() -> Vec<(&'static str, Range)> {
    Loss::ALL.iter().map(|&(loss, h)| (loss, (h.name, h.expected(), h.end, h.is_closed))).collect()
}

/// The fields of `lr_relax._options.Options`, checked one by one.
pub(super) struct Options<'py> {
    loss: Loss,
    /// An alpha for each row, in place of the loss's own.
    alpha: Option<Tensor<'py>>,
    /// `None` for "none".
    reduction: Option<Reduction>,
    dim: i64,
    ignore_index: i64,
    weight: Option<Tensor<'py>>,
    inplace: bool,
    target_b: Option<Tensor<'py>>,
    share: Option<f64>,
    /// A share for each row.
    shares: Option<Tensor<'py>>,
}

type Any<'py> = Bound<'py, PyAny>;
/// As Python names them: loss, parameter, reduction, dim, ignore_index, weight, from_logits, inplace, target_b, lam.
type Fields<'py> = (
    Any<'py>,
    Any<'py>,
    Any<'py>,
    Any<'py>,
    Any<'py>,
    Option<Any<'py>>,
    Any<'py>,
    Any<'py>,
    Option<Any<'py>>,
    Option<Any<'py>>,
);

impl<'py> FromPyObject<'py> for Options<'py> {
    fn extract_bound(options: &Bound<'py, PyAny>) -> PyResult<Self> {
        let fields: Fields<'py> = options.extract()?;
        let (loss, parameter, reduction, dim, ignore_index, weight, from_logits, inplace, target_b, lam) =
            fields;
        let (loss, alpha) = parse_loss(&loss, parameter, &from_logits)?;
        let (share, shares) = lam.map_or(Ok((None, None)), parse_share)?;
        Ok(Options {
            loss,
            alpha,
            reduction: parse_reduction(&reduction)?,
            dim: integer(&dim, "dim")?,
            ignore_index: integer(&ignore_index, "ignore_index")?,
            weight,
            inplace: boolean(&inplace, "inplace")?,
            target_b,
            share,
            shares,
        })
    }
}

impl Options<'_> {
    fn target_name(&self) -> &'static str {
        if self.target_b.is_some() { "target_a" } else { "target" }
    }

    /// See [`tensors::check`].
    fn check_tensors(&self, input: &Tensor<'_>, target: &Tensor<'_>) -> PyResult<()> {
        tensors::check(input, "input")?;
        tensors::check(target, self.target_name())?;
        let others = [&self.weight, &self.alpha, &self.target_b, &self.shares];
        for (tensor, name) in others.into_iter().zip(["weight", "alpha", "target_b", "lam"]) {
            tensor.as_ref().map_or(Ok(()), |tensor| tensors::check(tensor, name))?;
        }
        Ok(())
    }

    /// The tensors of a loss, checked against each other.
    fn inputs(&self, input: &Tensor<'_>, target: &Tensor<'_>) -> PyResult<Inputs> {
        let view = tensors::borrow(input, "input")?;
        let target = tensors::borrow(target, self.target_name())?;
        let borrow = |tensor: &Option<Tensor<'_>>, name| {
            tensor.as_ref().map(|tensor| tensors::borrow(tensor, name)).transpose()
        };
        let weight = borrow(&self.weight, "weight")?;
        let alpha = borrow(&self.alpha, "alpha")?;
        let second = borrow(&self.target_b, "target_b")?;
        let shares = borrow(&self.shares, "lam")?;
        let share = shares.as_ref().map(Numbers::Each).or(self.share.map(Numbers::Same));
        let arguments = Arguments {
            input: view,
            target: &target,
            mixed: second.as_ref().zip(share),
            weight: weight.as_ref(),
            alpha: alpha.as_ref(),
            dim: self.dim,
            ignore_index: self.ignore_index,
        };
        Ok(Inputs::new(self.loss, arguments)?)
    }
}

/// The gradient `grad` times `upstream`, a number or a tensor of one per row. Overwrites `grad` unless `keeps`.
#[pyfunction]
pub(super) fn scale<'py>(
    grad: &Tensor<'py>,
    upstream: Tensor<'py>,
    dim: i64,
    keeps: bool,
) -> PyResult<Tensor<'py>> {
    let (number, tensor) = parse_upstream(upstream)?;
    tensors::check(grad, "grad")?;
    let from = tensors::borrow(grad, "grad")?;
    let (out, to) =
        if keeps || from.repeats() { gradient(grad, &from)? } else { (grad.clone(), from.clone()) };
    // Making the output may have run Python code, as in `loss`.
    if tensors::borrow(grad, "grad")? != from {
        return Err(PyValueError::new_err("Expected argument `grad` not to be resized during the call."));
    }
    let each = tensor.as_ref().map(|tensor| tensors::borrow(tensor, "upstream")).transpose()?;
    let upstream = each.as_ref().map_or(Numbers::Same(number), Numbers::Each);
    // SAFETY: the product has the type and shape of the gradient; it is new, or the caller gives up the gradient.
    let work = || unsafe { multiply(&from, &to, upstream, dim) };
    if from.len() < QUICK { work() } else { grad.py().allow_threads(work) }?;
    Ok(out)
}

/// The gradient from above: a number for all rows, or a tensor with one for each.
fn parse_upstream(upstream: Tensor<'_>) -> PyResult<(f64, Option<Tensor<'_>>)> {
    if let Ok(number) = upstream.downcast::<PyFloat>() {
        return Ok((number.value(), None));
    }
    tensors::check(&upstream, "upstream")?;
    Ok((1.0, Some(upstream)))
}

/// A new tensor for the gradient with respect to `input`, which `view` describes; not initialized.
fn gradient<'py>(input: &Tensor<'py>, view: &View) -> PyResult<(Tensor<'py>, View)> {
    match memory::cached_buffer(view.len().saturating_mul(view.dtype.size()))? {
        Some(block) => tensors::adopt(input.py(), block, view.dtype, &view.shape),
        None => tensors::empty_like(input, view.dtype, &view.shape),
    }
}

/// The value of a scalar, faster than `item()`; `None` for other tensors.
#[pyfunction]
pub(super) fn scalar(tensor: &Tensor<'_>) -> Option<f64> {
    tensors::check(tensor, "tensor").ok()?;
    let view = tensors::borrow(tensor, "tensor").ok().filter(|view| view.shape.is_empty())?;
    match view.dtype {
        // SAFETY: one number of the type that is named.
        Dtype::F32 => Some(f64::from(unsafe { *view.data.cast::<f32>() })),
        // SAFETY: as above.
        Dtype::F64 => Some(unsafe { *view.data.cast::<f64>() }),
        _ => None,
    }
}

/// The share of the first class: a number, or a tensor with one for each row.
fn parse_share(lam: Tensor<'_>) -> PyResult<(Option<f64>, Option<Tensor<'_>>)> {
    if is_tensor(&lam)? {
        return Ok((None, Some(lam)));
    }
    let expected = || format!("Expected argument `lam` to be a number in [0, 1], but got {}.", shown(&lam));
    let share = number(&lam).map_err(|error| error(expected()))?;
    if (0.0..=1.0).contains(&share) {
        Ok((Some(share), None))
    } else {
        Err(PyValueError::new_err(expected()))
    }
}

fn is_tensor(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!value.is_instance_of::<PyFloat>() && value.hasattr("requires_grad")?)
}

/// The loss, and the alphas if the parameter is a tensor with an alpha for each row.
fn parse_loss<'py>(
    name: &Bound<'py, PyAny>,
    parameter: Bound<'py, PyAny>,
    from_logits: &Bound<'py, PyAny>,
) -> PyResult<(Loss, Option<Tensor<'py>>)> {
    let name = name.downcast::<PyString>()?.to_cow()?;
    let scores = if boolean(from_logits, "from_logits")? { Scores::Logits } else { Scores::Probabilities };
    let Some(&(_, hyperparameter)) = Loss::ALL.iter().find(|(loss, _)| *loss == name) else {
        return Err(PyValueError::new_err(format!("There is no loss {name:?}.")));
    };
    let build = |value| -> PyResult<Loss> { Ok(Loss::named(&name, value, scores).expect("found above")?) };
    if is_tensor(&parameter)? {
        let loss = build(0.0)?;
        if loss.is_credal() {
            return Ok((loss, Some(parameter)));
        }
        return Err(PyTypeError::new_err(hyperparameter.message(&shown(&parameter))));
    }
    let error: fn(String) -> PyErr = match number(&parameter) {
        Ok(value) if hyperparameter.contains(value) => return Ok((build(value)?, None)),
        Ok(_) => PyValueError::new_err,
        Err(error) => error,
    };
    Err(error(hyperparameter.message(&shown(&parameter))))
}

/// A number, which a bool is not; else what makes the error.
fn number(value: &Bound<'_, PyAny>) -> Result<f64, fn(String) -> PyErr> {
    match value.extract::<f64>() {
        Ok(number) if !value.is_instance_of::<PyBool>() => Ok(number),
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => Err(PyValueError::new_err),
        _ => Err(PyTypeError::new_err),
    }
}

fn boolean(value: &Bound<'_, PyAny>, name: &str) -> PyResult<bool> {
    let boolean = value.downcast::<PyBool>().map_err(|_| {
        let got = shown(value);
        PyTypeError::new_err(format!("Expected argument `{name}` to be a bool, but got {got}."))
    });
    Ok(boolean?.is_true())
}

fn integer(value: &Bound<'_, PyAny>, name: &str) -> PyResult<i64> {
    let error = match value.extract::<i64>() {
        Ok(integer) => return Ok(integer),
        Err(error) => error,
    };
    let got = shown(value);
    Err(if error.is_instance_of::<PyOverflowError>(value.py()) {
        PyValueError::new_err(format!("Expected argument `{name}` to fit in 64 bits, but got {got}."))
    } else {
        PyTypeError::new_err(format!("Expected argument `{name}` to be an integer, but got {got}."))
    })
}

/// As Python prints it.
fn shown(value: &Bound<'_, PyAny>) -> String {
    value.repr().map(|repr| repr.to_string()).unwrap_or_default()
}

/// `None` is "none".
fn parse_reduction(reduction: &Bound<'_, PyAny>) -> PyResult<Option<Reduction>> {
    let name = reduction.downcast::<PyString>().ok().and_then(|name| name.to_cow().ok());
    match name.as_deref() {
        Some("mean") => Ok(Some(Reduction::Mean)),
        Some("sum") => Ok(Some(Reduction::Sum)),
        Some("none") => Ok(None),
        _ => Err(PyValueError::new_err(format!(
            "Expected argument `reduction` to be 'mean', 'sum' or 'none', but got {}.",
            shown(reduction)
        ))),
    }
}
