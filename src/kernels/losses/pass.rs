//! One pass over a batch: shares the rows out, reduces their losses, hands each group to its loss.
//!
//! A loss takes up to sixteen rows at a time, so that what remains of a row once it has been summed, a few
//! numbers, is computed with a lane for each row.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rows::{AnyRows, Error, Rows, RowsMut, Targets};
use crate::simd::lanes::fold;
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real};
use crate::threads::{self, Tiles};

use super::confidence_penalty::ConfidencePenalty;
use super::credal::{self, Credal};
use super::cross_entropy::CrossEntropy;
use super::focal::Focal;
use super::label_relaxation::LabelRelaxation;
use super::row::{ByRow, Exps};
use crate::rows::Scores;

pub(crate) const ONLY_LABEL_RELAXATION: &str =
    "Only label relaxation takes targets that are no classes, or an alpha for each row.";

/// A loss with its hyperparameters.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Loss {
    /// Label relaxation.
    LabelRelaxation(LabelRelaxation),
    /// Cross-entropy with label smoothing.
    CrossEntropy(CrossEntropy),
    /// The focal loss.
    Focal(Focal),
    /// Cross-entropy with a penalty on confidence.
    ConfidencePenalty(ConfidencePenalty),
}

macro_rules! from {
    ($($loss:ident)*) => {$(
        impl From<$loss> for Loss {
            fn from(loss: $loss) -> Loss {
                Loss::$loss(loss)
            }
        }
    )*};
}

/// Label relaxation without imprecision is cross-entropy, a coin.
fn plain_cross_entropy() -> LabelRelaxation {
    LabelRelaxation::new(0.0, Scores::Logits).expect("0 is in the range")
}

from!(LabelRelaxation CrossEntropy Focal ConfidencePenalty);

/// How the losses of the rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over the rows that count, weighted by the weights of their classes.
    Mean,
    /// The sum.
    Sum,
}

/// What the rows are compared with.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A class for each row.
    Classes(&'a Targets),
    /// A set of classes for each row: those with a number above 0. Label relaxation only.
    Sets(&'a AnyRows<'a>),
    /// A distribution for each row. Label relaxation only.
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

/// Rows with their targets, and where the gradient goes.
#[derive(Debug)]
pub struct Pass<'a, E: Element> {
    pub(super) rows: &'a Rows<'a, E>,
    pub(super) target: Target<'a>,
    pub(super) weight: Option<&'a [f64]>,
    /// The hyperparameter of each row, in place of that of the loss.
    parameters: Option<&'a [f64]>,
    grad: Option<&'a RowsMut<'a, E>>,
    /// Whether the gradient goes where the rows are.
    pub(super) in_place: bool,
    /// What the gradient of every row is multiplied by.
    pub(super) factor: f64,
    isa: Isa,
}

impl<E: Element> Clone for Pass<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E: Element> Copy for Pass<'_, E> {}

impl<'a, E: Element> Pass<'a, E> {
    /// A pass over `rows`; those whose class is ignored have loss and gradient 0.
    pub fn new(rows: &'a Rows<'a, E>, target: impl Into<Target<'a>>) -> Result<Self, Error> {
        let (target, shape) = (target.into(), (rows.len(), rows.n_classes()));
        match target {
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
                check_parameters("lam", "[0, 1]", share, shape.0, |x| (0.0..=1.0).contains(&x))?;
            }
        }
        let (weight, parameters, grad) = (None, None, None);
        Ok(Pass { rows, target, weight, parameters, grad, in_place: false, factor: 1.0, isa: Isa::best() })
    }

    /// An `alpha` for each row, or one for all, in place of that of the loss. Label relaxation only.
    pub fn alpha(self, alpha: &'a [f64]) -> Result<Self, Error> {
        check_parameters("alpha", "[0, 1)", alpha, self.rows.len(), |x| (0.0..1.0).contains(&x))?;
        Ok(Pass { parameters: Some(alpha), ..self })
    }

    /// A factor for each class.
    pub fn weight(self, weight: &'a [f64]) -> Result<Self, Error> {
        let n_classes = self.rows.n_classes();
        if weight.len() != n_classes {
            return Err(Error::value(format!(
                "Expected argument `weight` to hold {n_classes} numbers, one for each class, but got {}.",
                weight.len()
            )));
        }
        Ok(Pass { weight: Some(weight), ..self })
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
        Ok(Pass { grad: Some(grad), in_place: false, ..self })
    }

    /// As [`Pass::gradient`], where `grad` is the memory of the rows themselves. No row is written if the call fails.
    ///
    /// # Safety
    ///
    /// `grad` has the layout of the rows and their memory, which nothing else reads or writes meanwhile.
    pub unsafe fn gradient_in_place(self, grad: &'a RowsMut<'a, E>) -> Result<Self, Error> {
        Ok(Pass { in_place: true, ..self.gradient(grad)? })
    }

    /// Multiplies gradients by `upstream` before they are rounded to the type of the scores.
    pub fn upstream(self, upstream: f64) -> Self {
        Pass { factor: upstream, ..self }
    }

    /// Computes with the given instruction set; all give the same bits.
    ///
    /// # Panics
    ///
    /// The computation, if the machine lacks it.
    pub fn isa(self, isa: Isa) -> Self {
        Pass { isa, ..self }
    }

    /// The reduced loss. The mean of no rows is NaN, as PyTorch's is.
    ///
    /// # Errors
    ///
    /// If the loss does not take such targets, or a row of the target is no distribution or an empty set.
    pub fn reduce(&self, loss: impl Into<Loss>, reduction: Reduction) -> Result<f64, Error> {
        let loss = self.check(loss.into())?;
        let factor = match reduction {
            Reduction::Sum => 1.0,
            Reduction::Mean => 1.0 / self.total_weight(),
        };
        let pass = Pass { factor: factor * self.factor, ..*self };
        let (tiles, wrong_row) = (self.tiles(), AtomicUsize::new(usize::MAX));
        let pass = Shared(pass);
        let sums = threads::collect(tiles.len(), 0.0_f64, &|range, sums| {
            let pass = *pass.get();
            let wrong = simd::run(pass.isa, Task { pass, loss, tiles, range, out: Out::Sums(sums) });
            wrong_row.fetch_min(wrong, Ordering::Relaxed);
        });
        self.check_rows(wrong_row)?;
        // 0 * inf, where no row counts, is the NaN that 0 / 0 would be.
        Ok((0.0 + sums.iter().sum::<f64>()) * factor) // the sum of nothing is -0
    }

    /// The loss of each row into `losses`.
    ///
    /// # Errors
    ///
    /// As [`Pass::reduce`], or if there are not as many losses as rows.
    pub fn per_row(&self, loss: impl Into<Loss>, losses: &mut [E::Wide]) -> Result<(), Error> {
        let (loss, n_rows) = (self.check(loss.into())?, self.rows.len());
        if losses.len() != n_rows {
            return Err(Error::value(format!("Expected {n_rows} losses, but got {}.", losses.len())));
        }
        let (tiles, wrong_row) = (self.tiles(), AtomicUsize::new(usize::MAX));
        let (out, pass) = (threads::Disjoint::new(losses), Shared(*self));
        threads::share(tiles.len(), &|range| {
            let pass = *pass.get();
            // SAFETY: `share` gives every tile to one call only, and tiles do not share rows.
            let losses = unsafe { out.part(tiles.rows(range.clone())) };
            let wrong = simd::run(pass.isa, Task { pass, loss, tiles, range, out: Out::Each(losses) });
            wrong_row.fetch_min(wrong, Ordering::Relaxed);
        });
        self.check_rows(wrong_row)
    }

    fn check(&self, loss: Loss) -> Result<Loss, Error> {
        match (loss, self.target, self.parameters) {
            (Loss::LabelRelaxation(_), ..) | (_, Target::Classes(_), None) => {}
            _ => {
                return Err(Error::r#type(ONLY_LABEL_RELAXATION));
            }
        }
        if self.in_place && matches!(self.target, Target::Sets(_) | Target::Distributions(_)) {
            // Before the first row is overwritten.
            let mut scratch = Scratch::new(self);
            let wrong = (0..self.rows.len()).find(|&i| credal::is_wrong(self, i, &mut scratch));
            self.check_rows(AtomicUsize::new(wrong.unwrap_or(usize::MAX)))?;
        }
        Ok(loss)
    }

    fn check_rows(&self, wrong_row: AtomicUsize) -> Result<(), Error> {
        let row = wrong_row.into_inner();
        if row == usize::MAX {
            return Ok(());
        }
        let why = match self.target {
            Target::Sets(_) => "sets of at least one class",
            _ => "distributions, rows without negative numbers that sum to 1",
        };
        Err(Error::Row { argument: "target", row, why: why.into() })
    }

    /// What the mean divides by.
    fn total_weight(&self) -> f64 {
        match (self.target, self.weight) {
            (Target::Classes(targets), None) => targets.counted().count() as f64,
            (Target::Classes(targets), Some(weight)) => targets.counted().map(|y| weight[y]).sum(),
            (Target::Sets(_) | Target::Distributions(_), None) => self.rows.len() as f64,
            _ => {
                let (tiles, pass) = (self.tiles(), Shared(*self));
                let sums = threads::collect(tiles.len(), 0.0_f64, &|range, sums| {
                    let pass = *pass.get();
                    simd::run(pass.isa, Weights { pass, tiles, range, sums });
                });
                sums.iter().sum()
            }
        }
    }

    /// The class of row `i`, if it has one.
    #[inline(always)]
    pub(super) fn class(&self, i: usize) -> Option<usize> {
        match self.target {
            Target::Classes(targets) => targets.class(i),
            _ => None,
        }
    }

    /// The hyperparameters of up to sixteen rows.
    #[inline(always)]
    pub(super) fn parameters(&self, of_all: f64, rows: Range<usize>) -> Lanes<f64> {
        let mut parameters = [of_all; LANES];
        match self.parameters {
            Some(&[of_all]) => parameters = [of_all; LANES],
            Some(each) => parameters[..rows.len()].copy_from_slice(&each[rows]),
            None => {}
        }
        parameters
    }

    #[inline(always)]
    pub(super) fn wants_gradient(&self) -> bool {
        self.grad.is_some()
    }

    /// Where the gradient of row `i` goes, if it is wanted; [`Pass::finish`] ends the writing.
    ///
    /// Not a function that takes a closure: what is not inlined is compiled for the baseline.
    #[inline(always)]
    pub(super) fn out<'s>(&'s self, i: usize, scratch: &'s mut Vec<E>) -> Option<&'s mut [E]> {
        // SAFETY: every row is in one tile, and every tile with one thread.
        self.grad.map(|grad| unsafe { grad.row(i, scratch) })
    }

    #[inline(always)]
    pub(super) fn finish(&self, i: usize, scratch: &[E]) {
        if let Some(grad) = self.grad {
            // SAFETY: as above.
            unsafe { grad.finish(i, scratch) };
        }
    }

    /// Gives row `i` no gradient.
    #[inline(always)]
    pub(super) fn no_gradient(&self, i: usize, scratch: &mut Scratch<E>) {
        if let Some(out) = self.out(i, &mut scratch.grad) {
            out.fill(E::ZERO);
            self.finish(i, &scratch.grad);
        }
    }

    fn tiles(&self) -> Tiles {
        Tiles::new(self.rows.len(), self.rows.n_classes())
    }

    /// What the loss of a row with the distribution (or set) `target` is multiplied by: the mean weight.
    #[inline(always)]
    pub(super) fn row_weight(&self, target: &[Lanes<E::Wide>], weight: &[Lanes<E::Wide>]) -> f64 {
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

    /// What the loss of a row of class `y` is multiplied by.
    #[inline(always)]
    pub(super) fn weight_of(&self, y: usize) -> f64 {
        self.weight.map_or(1.0, |weight| weight[y])
    }
}

/// A pass that the threads of one call share: each writes the rows of its own tiles. [`Pass`] itself is not Sync, so
/// that there is but one call at a time.
struct Shared<'a, E: Element>(Pass<'a, E>);

// SAFETY: as just said.
unsafe impl<E: Element> Sync for Shared<'_, E> {}

impl<'a, E: Element> Shared<'a, E> {
    fn get(&self) -> &Pass<'a, E> {
        &self.0
    }
}

/// That there is a number in the range for each of `n` rows, or one for all.
fn check_parameters(
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

/// What a pass asks of a loss.
pub(super) trait Group {
    /// How many numbers the rows of a group may have, if there is more than one.
    const CLASSES: usize;

    /// The weighted losses of up to sixteen rows; their gradients, times the factor, go to their places.
    fn group<E: Element>(
        &self,
        pass: &Pass<'_, E>,
        rows: Range<usize>,
        scratch: &mut Scratch<E>,
    ) -> Lanes<f64>;
}

/// Room for one row, in several forms: rows whose classes are not neighbours are gathered here.
pub(super) struct Scratch<E: Element> {
    pub row: Vec<E>,
    pub grad: Vec<E>,
    /// Rows with their exponentials.
    pub exps: Exps<E::Wide>,
    /// The factors of the classes, as vectors.
    pub weight: Vec<Lanes<E::Wide>>,
    /// The target of a row, as vectors.
    pub target: Vec<Lanes<E::Wide>>,
    pub sums: Vec<Lanes<E::Wide>>,
    /// The sum of the factors of the classes, or their number.
    pub weight_sum: f64,
    /// The first row whose target is no target; else `usize::MAX`.
    pub wrong_row: usize,
}

impl<E: Element> Scratch<E> {
    fn new(pass: &Pass<'_, E>) -> Self {
        let (vectors, tail) = pass.weight.unwrap_or_default().as_chunks();
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        let weight = vectors.iter().chain([&last]).map(|w| w.map(E::Wide::from_f64)).collect();
        let (row, grad, exps) = (Vec::new(), Vec::new(), Exps::new());
        let weight_sum = pass.weight.map_or(pass.rows.n_classes() as f64, |weight| weight.iter().sum());
        let (target, sums, wrong_row) = (Vec::new(), Vec::new(), usize::MAX);
        Scratch { row, grad, exps, weight, target, sums, weight_sum, wrong_row }
    }
}

/// A range of tiles, and where their losses go.
struct Task<'a, E: Element> {
    pass: Pass<'a, E>,
    loss: Loss,
    tiles: Tiles,
    range: Range<usize>,
    out: Out<'a, E::Wide>,
}

enum Out<'a, F> {
    /// The sum of each tile.
    Sums(&'a mut [f64]),
    /// The loss of each row.
    Each(&'a mut [F]),
}

impl<E: Element> Kernel for Task<'_, E> {
    /// [`Scratch::wrong_row`]
    type Output = usize;

    #[inline(always)]
    fn run(self) -> usize {
        match self.loss {
            Loss::LabelRelaxation(loss) if !matches!(self.pass.target, Target::Classes(_)) => {
                self.groups(&Credal(loss))
            }
            Loss::LabelRelaxation(loss) => self.groups(&loss),
            Loss::CrossEntropy(loss) if loss.label_smoothing == 0.0 => self.groups(&plain_cross_entropy()),
            Loss::CrossEntropy(loss) => self.groups(&ByRow(loss)),
            Loss::Focal(loss) => self.groups(&loss),
            Loss::ConfidencePenalty(loss) => self.groups(&ByRow(loss)),
        }
    }
}

/// The sums of the weights of the rows of a range of tiles.
struct Weights<'a, E: Element> {
    pass: Pass<'a, E>,
    tiles: Tiles,
    range: Range<usize>,
    sums: &'a mut [f64],
}

impl<E: Element> Kernel for Weights<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mut scratch = Scratch::new(&self.pass);
        for (sum, tile) in self.sums.iter_mut().zip(self.range) {
            for i in self.tiles.rows(tile..tile + 1) {
                *sum += credal::weight_of_row(&self.pass, i, &mut scratch);
            }
        }
    }
}

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    fn groups<G: Group>(mut self, loss: &G) -> usize {
        let mut scratch = Scratch::new(&self.pass);
        let step = (G::CLASSES / self.pass.rows.n_classes().max(1)).clamp(1, LANES);
        let first_row = self.tiles.rows(self.range.clone()).start;
        for tile in self.range.clone() {
            let rows = self.tiles.rows(tile..tile + 1);
            for first in rows.clone().step_by(step) {
                let group = first..rows.end.min(first + step);
                let losses = loss.group(&self.pass, group.clone(), &mut scratch);
                let losses = &losses[..group.len()];
                match &mut self.out {
                    Out::Sums(sums) => {
                        for loss in losses {
                            sums[tile - self.range.start] += loss;
                        }
                    }
                    Out::Each(out) => {
                        for (out, &loss) in out[first - first_row..].iter_mut().zip(losses) {
                            *out = E::Wide::from_f64(loss);
                        }
                    }
                }
            }
        }
        scratch.wrong_row
    }
}
