//! A batch: the rows, their targets and weights, and where the gradient goes.
//!
//! A loss computes up to sixteen rows at a time ([`GroupLoss`]): what remains of a row after its sums, a few
//! numbers, is computed with one lane per row. [`super::compute`] distributes the rows over threads.

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, RowsMut, Scores, Targets, collected, with_room};
use crate::simd::lanes::{fold, load, store};
use crate::simd::{Element, Isa, LANES, Lanes, Real};

use super::exponentials::{BLOCK, Exponentials};
use super::hyperparameter::{Hyperparameter, SoftTargetLoss};

/// What the rows are compared with.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A class for each row.
    Classes(&'a Targets),
    /// A set of classes for each row: those with a number above 0. Label relaxation only.
    Sets(&'a AnyRows<'a>),
    /// A distribution for each row. Not for the dual focal loss.
    Distributions(&'a AnyRows<'a>),
    /// Two classes for each row, the first with probability `share`. Label relaxation only.
    Mixtures {
        /// The first class.
        first: &'a Targets,
        /// The second class.
        second: &'a Targets,
        /// A number in [0, 1] for each row, or one for all.
        share: &'a [f64],
    },
}

impl<'a> From<&'a Targets> for Target<'a> {
    fn from(targets: &'a Targets) -> Self {
        Target::Classes(targets)
    }
}

/// Rows with their targets, and the destination of the gradient.
#[derive(Debug)]
pub struct Batch<'a, E: Element> {
    pub(super) rows: &'a Rows<'a, E>,
    pub(super) target: Target<'a>,
    pub(super) weight: Option<&'a [f64]>,
    /// An alpha per row, in place of the hyperparameter of the loss.
    pub(super) alpha: Option<&'a [f64]>,
    grad: Option<&'a RowsMut<'a, E>>,
    /// Whether the gradient overwrites the rows.
    pub(super) in_place: bool,
    /// The factor of every row's gradient.
    pub(super) factor: f64,
    /// A further factor of each row's gradient.
    factors: Option<&'a [f64]>,
    pub(super) isa: Isa,
}

impl<E: Element> Clone for Batch<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Batch<'_, E> {}

impl<'a, E: Element> Batch<'a, E> {
    /// A batch of `rows`. Rows whose class is ignored have loss and gradient 0.
    pub fn new(rows: &'a Rows<'a, E>, target: impl Into<Target<'a>>) -> Result<Self, Error> {
        let (target, shape) = (target.into(), (rows.len(), rows.n_classes()));
        match target {
            // A binary loss has two classes in one column; `Batch::check` tells.
            Target::Classes(targets) if shape.1 == 1 => {
                targets.check_shape(shape.0, targets.n_classes().min(2))?
            }
            Target::Classes(targets) => targets.check_shape(shape.0, shape.1)?,
            Target::Distributions(AnyRows::Bool(_)) => {
                return Err(Error::r#type("Expected distributions of a floating-point type, but got sets."));
            }
            Target::Sets(targets) | Target::Distributions(targets) => {
                if targets.shape() != shape {
                    return Err(Error::value(format!(
                        "Expected a target of {shape:?}, but got {:?}.",
                        targets.shape()
                    )));
                }
            }
            Target::Mixtures { first, second, share } => {
                first.check_shape(shape.0, shape.1)?;
                second.check_shape(shape.0, shape.1)?;
                check_numbers("lam", "[0, 1]", share, shape.0, |x| (0.0..=1.0).contains(&x))?;
            }
        }
        let (weight, alpha, grad) = (None, None, None);
        let (in_place, factor, factors) = (false, 1.0, None);
        Ok(Batch { rows, target, weight, alpha, grad, in_place, factor, factors, isa: Isa::best() })
    }

    /// An `alpha` for each row, or one for all, in place of the loss's own. Label relaxation only.
    pub fn alpha(self, alpha: &'a [f64]) -> Result<Self, Error> {
        check_numbers("alpha", "[0, 1)", alpha, self.rows.len(), |x| (0.0..1.0).contains(&x))?;
        Ok(Batch { alpha: Some(alpha), ..self })
    }

    /// A weight for each class.
    pub fn weight(self, weight: &'a [f64]) -> Result<Self, Error> {
        let n_classes = self.rows.n_classes();
        if weight.len() != n_classes {
            return Err(Error::value(format!(
                "Expected argument `weight` to hold {n_classes} numbers, one for each class, but got {}.",
                weight.len()
            )));
        }
        Ok(Batch { weight: Some(weight), ..self })
    }

    /// Where to put the gradient of the reduced loss, or of the sum of the losses.
    pub fn gradient(self, grad: &'a RowsMut<'a, E>) -> Result<Self, Error> {
        let shape = (self.rows.len(), self.rows.n_classes());
        if grad.shape() != shape {
            return Err(Error::value(format!(
                "Expected a gradient of {shape:?}, but got {:?}.",
                grad.shape()
            )));
        }
        Ok(Batch { grad: Some(grad), in_place: false, ..self })
    }

    /// As [`Batch::gradient`], where `grad` is the memory of the rows themselves. No row is written if the call fails.
    ///
    /// # Safety
    ///
    /// `grad` has the layout of the rows and their memory, and nothing else reads or writes it meanwhile.
    pub unsafe fn gradient_in_place(self, grad: &'a RowsMut<'a, E>) -> Result<Self, Error> {
        Ok(Batch { in_place: true, ..self.gradient(grad)? })
    }

    /// Multiplies gradients by `upstream` before they are rounded to the type of the scores.
    pub fn upstream(self, upstream: f64) -> Self {
        Batch { factor: upstream, ..self }
    }

    /// As [`Batch::upstream`], with a number for each row, or one for all.
    pub fn upstreams(self, upstreams: &'a [f64]) -> Result<Self, Error> {
        check_numbers("upstream", "R", upstreams, self.rows.len(), |_| true)?;
        Ok(match upstreams {
            &[upstream] => self.upstream(upstream),
            _ => Batch { factors: Some(upstreams), ..self },
        })
    }

    /// Computes with the given instruction set. All of them give the same bits.
    ///
    /// # Panics
    ///
    /// The computation panics if the machine lacks it.
    pub fn isa(self, isa: Isa) -> Self {
        Batch { isa, ..self }
    }

    /// The class of row `i`; `None` if the row is ignored or its target is no class.
    #[inline(always)]
    pub(super) fn class(&self, i: usize) -> Option<usize> {
        match self.target {
            Target::Classes(targets) => targets.class(i),
            _ => None,
        }
    }

    /// For a binary loss, of up to sixteen rows: see [`Targets::signs`].
    #[inline(always)]
    pub(super) fn signs(&self, rows: Range<usize>) -> Lanes<i32> {
        match self.target {
            Target::Classes(targets) => targets.signs(rows),
            _ => [0; LANES],
        }
    }

    /// The hyperparameter of each of up to sixteen rows: `default`, unless the batch has an alpha per row.
    #[inline(always)]
    pub(super) fn parameters(&self, default: f64, rows: Range<usize>) -> Lanes<f64> {
        match self.alpha {
            Some(&[alpha]) => [alpha; LANES],
            Some(alphas) => load(&alphas[rows], default),
            None => [default; LANES],
        }
    }

    /// The factor of the gradient of row `i`.
    #[inline(always)]
    pub(super) fn factor(&self, i: usize) -> f64 {
        self.factors.map_or(self.factor, |factors| self.factor * factors[i])
    }

    /// Multiplies the slopes of up to sixteen rows, which have the factor of all rows, by the factor of each row.
    #[inline(always)]
    pub(super) fn multiply<F: Real>(&self, rows: Range<usize>, slopes: &mut Lanes<F>) {
        let Some(factors) = self.factors else { return };
        for (slope, &factor) in slopes.iter_mut().zip(&factors[rows]) {
            *slope = slope.mul(F::from_f64(factor));
        }
    }

    #[inline(always)]
    pub(super) fn wants_gradient(&self) -> bool {
        self.grad.is_some()
    }

    /// The destination of the gradient of row `i`, if there is one. Call [`Batch::finish`] after writing.
    ///
    /// This function takes no closure, because a closure that is not inlined is compiled for the baseline.
    #[inline(always)]
    pub(super) fn out<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> Option<&'s mut [E]> {
        // SAFETY: every row is in one tile, and every tile belongs to one thread.
        self.grad.map(|grad| unsafe { grad.row(i, scratch) })
    }

    #[inline(always)]
    pub(super) fn finish(&self, i: usize, scratch: &[E]) {
        if let Some(grad) = self.grad {
            // SAFETY: as above.
            unsafe { grad.finish(i, scratch) };
        }
    }

    /// The scores of a tile of one column, and where their gradients go, if these are two slices, and the rows have
    /// no factors of their own.
    ///
    /// # Safety
    ///
    /// Nothing else may use the gradients of these rows meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // safe by the contract
    pub(super) unsafe fn column(&self, rows: Range<usize>) -> Option<(&[E], Option<&mut [E]>)> {
        if self.in_place || self.factors.is_some() {
            return None;
        }
        let scores = self.rows.column(rows.clone())?;
        let Some(grad) = self.grad else { return Some((scores, None)) };
        // SAFETY: by the contract of this function.
        Some((scores, Some(unsafe { grad.column(rows) }?)))
    }

    /// Stores the gradients of up to sixteen rows of one column.
    #[inline(always)]
    pub(super) fn store_column(&self, rows: Range<usize>, grads: &Lanes<E>, scratch: &mut Vec<E>) {
        let Some(grad) = self.grad else { return };
        // SAFETY: as in `out`.
        if let Some(column) = unsafe { grad.column(rows.clone()) } {
            return store(grads, column);
        }
        for (&g, i) in grads.iter().zip(rows) {
            // SAFETY: as in `out`.
            let row = unsafe { grad.row(i, scratch) };
            row[0] = g;
            self.finish(i, scratch);
        }
    }

    /// Sets the gradient of row `i` to 0.
    #[inline(always)]
    pub(super) fn no_gradient(&self, i: usize, scratch: &mut Scratch<E>) {
        if let Some(out) = self.out(i, &mut scratch.grad) {
            out.fill(E::ZERO);
            self.finish(i, &scratch.grad);
        }
    }

    /// The weight of a row of class `y`.
    #[inline(always)]
    pub(super) fn class_weight(&self, y: usize) -> f64 {
        self.weight.map_or(1.0, |weight| weight[y])
    }

    /// The weight of a row whose target is a distribution or a set: the mean of its classes' weights.
    #[inline(always)]
    pub(super) fn mean_weight(&self, target: &[Lanes<E::Wide>], weight: &[Lanes<E::Wide>]) -> f64 {
        if self.weight.is_none() {
            return 1.0;
        }
        let (mut sum, mut total) = ([0.0; LANES], [0.0; LANES]);
        for (t, w) in target.iter().zip(weight) {
            for k in 0..LANES {
                sum[k] += t[k].to_f64();
                total[k] += t[k].to_f64() * w[k].to_f64();
            }
        }
        fold(total, |a, b| a + b) / fold(sum, |a, b| a + b)
    }
}

/// Checks that there is a number in the range for each of `n` rows, or one for all.
fn check_numbers(
    name: &str,
    range: &str,
    numbers: &[f64],
    n: usize,
    in_range: impl Fn(f64) -> bool,
) -> Result<(), Error> {
    if numbers.len() != n && numbers.len() != 1 {
        return Err(Error::value(format!(
            "Expected argument `{name}` to hold {n} numbers, one for each row, but got {}.",
            numbers.len()
        )));
    }
    match numbers.iter().position(|&x| !in_range(x)) {
        Some(row) => {
            let place = if numbers.len() > 1 { format!(" at row {row}") } else { String::new() };
            let got = numbers[row];
            let expected = format!("Expected argument `{name}` to hold numbers in {range}");
            Err(Error::value(format!("{expected}, but got {got:?}{place}.")))
        }
        None => Ok(()),
    }
}

/// A loss as one of the list of losses.
pub(super) trait NamedLoss: GroupLoss {
    /// The loss's hyperparameter.
    const PARAMETER: Hyperparameter;
    /// Whether the loss takes sets, distributions and mixtures as targets, an alpha per row, and probabilities.
    const IS_CREDAL: bool = false;
    /// Whether a row is one score for an event, so that the two classes have one column.
    const IS_BINARY: bool = false;

    /// The loss with this hyperparameter, of rows that hold `scores`.
    fn with(parameter: f64, scores: Scores) -> Result<Self, Error>;

    /// What the loss is for distributions, if it takes them and is not credal.
    fn of_distributions(&self) -> Option<SoftTargetLoss> {
        None
    }
}

/// What computes a loss.
pub(super) trait GroupLoss: Copy {
    /// Whether rows with a class keep their exponentials; rows with other targets do.
    #[inline(always)]
    fn keeps_exponentials(&self) -> bool {
        false
    }

    /// The largest number of scores in a group of more than one row.
    fn group_size(&self) -> usize;

    /// Computes a whole tile, as [`GroupLoss::group`] does sixteen rows: adds the losses to `sum` by lane, and stores
    /// them in `each` if it is given. False, with nothing done, if the tile must be computed by groups.
    #[inline(always)]
    fn tile<E: Element>(
        &self,
        _batch: &Batch<'_, E>,
        _rows: Range<usize>,
        _sum: &mut Lanes<f64>,
        _each: Option<&mut [E::Wide]>,
    ) -> bool {
        false
    }

    /// Computes the weighted losses of up to sixteen rows, and writes their gradients, times the batch's factor.
    /// `CLASSES` is true for targets that are class indices, and always if the loss takes no others.
    fn group<E: Element, const CLASSES: bool>(
        &self,
        batch: &Batch<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64>;
}

/// Buffers for the rows of one thread. A row with strides is copied here first.
pub(super) struct Scratch<E: Element> {
    pub row: Vec<E>,
    pub grad: Vec<E>,
    pub exponentials: Exponentials<E::Wide>,
    /// The weights of the classes, as vectors.
    pub weight: Vec<Lanes<E::Wide>>,
    /// The target of a row, as vectors.
    pub target: Vec<Lanes<E::Wide>>,
    /// The sums of the blocks of the target.
    pub target_sums: Vec<Lanes<E::Wide>>,
    /// The sum of the weights of the classes; without weights, the number of classes.
    pub weight_sum: f64,
    /// The first row whose target is an empty set or no distribution; `usize::MAX` if there is none.
    pub invalid_row: usize,
}

impl<E: Element> Scratch<E> {
    /// With room for a row of the batch in each buffer that its rows need.
    pub(super) fn new(batch: &Batch<'_, E>, keeps_exponentials: bool) -> Result<Self, Error> {
        let weight = batch.weight.unwrap_or_default().chunks(LANES).map(|chunk| {
            let mut vector = [E::Wide::ZERO; LANES];
            for (element, &w) in vector.iter_mut().zip(chunk) {
                *element = E::Wide::from_f64(w);
            }
            vector
        });
        let n_vectors = batch.rows.n_classes().div_ceil(LANES);
        let is_dense = matches!(batch.target, Target::Sets(_) | Target::Distributions(_));
        let room = |is_used: bool| if is_used { n_vectors } else { 0 };
        let weight_sum = batch.weight.map_or(batch.rows.n_classes() as f64, |weight| weight.iter().sum());
        Ok(Scratch {
            row: batch.rows.scratch()?,
            grad: batch.grad.map_or(Ok(Vec::new()), RowsMut::scratch)?,
            exponentials: Exponentials::with_room(room(keeps_exponentials))?,
            weight: collected(weight)?,
            target: with_room(room(is_dense))?,
            target_sums: with_room(room(is_dense).div_ceil(BLOCK))?,
            weight_sum,
            invalid_row: usize::MAX,
        })
    }
}
