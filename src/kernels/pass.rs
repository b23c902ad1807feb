//! One pass over a batch: shares the rows out, reduces their losses, hands each group to its loss.
//!
//! A loss takes up to sixteen rows at a time, so that what remains of a row once it has been summed, a few
//! numbers, is computed with a lane for each row.

use std::ops::Range;

use crate::rows::{Error, Rows, RowsMut, Targets};
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real};
use crate::threads::{self, Tiles};

use super::coin::Scores;
use super::confidence_penalty::ConfidencePenalty;
use super::cross_entropy::CrossEntropy;
use super::focal::Focal;
use super::label_relaxation::LabelRelaxation;
use super::row::{ByRow, Row};

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

/// Rows with their targets, and where the gradient goes.
#[derive(Debug)]
pub struct Pass<'a, E: Element> {
    pub(super) rows: &'a Rows<'a, E>,
    pub(super) targets: &'a Targets,
    pub(super) weight: Option<&'a [f64]>,
    pub(super) grad: Option<&'a RowsMut<'a, E>>,
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
    /// A pass over `rows`; those that `targets` ignore have loss and gradient 0.
    pub fn new(rows: &'a Rows<'a, E>, targets: &'a Targets) -> Result<Self, Error> {
        targets.check_shape(rows.len(), rows.n_classes())?;
        Ok(Pass { rows, targets, weight: None, grad: None, factor: 1.0, isa: Isa::best() })
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
        Ok(Pass { grad: Some(grad), ..self })
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
    pub fn reduce(&self, loss: impl Into<Loss>, reduction: Reduction) -> f64 {
        let factor = match (reduction, self.weight) {
            (Reduction::Sum, _) => 1.0,
            (Reduction::Mean, None) => 1.0 / self.targets.counted().count() as f64,
            (Reduction::Mean, Some(weight)) => 1.0 / self.targets.counted().map(|y| weight[y]).sum::<f64>(),
        };
        let pass = Pass { factor: factor * self.factor, ..*self };
        let (loss, tiles) = (loss.into(), self.tiles());
        let sums = threads::collect(tiles.len(), 0.0_f64, &|range, sums| {
            simd::run(self.isa, Task { pass, loss, tiles, range, out: Out::Sums(sums) });
        });
        // 0 * inf, where no row counts, is the NaN that 0 / 0 would be.
        sums.iter().sum::<f64>() * factor
    }

    /// The loss of each row into `losses`.
    pub fn per_row(&self, loss: impl Into<Loss>, losses: &mut [E::Wide]) -> Result<(), Error> {
        let n_rows = self.rows.len();
        if losses.len() != n_rows {
            return Err(Error::value(format!("Expected {n_rows} losses, but got {}.", losses.len())));
        }
        let (loss, tiles) = (loss.into(), self.tiles());
        let out = threads::Disjoint::new(losses);
        threads::share(tiles.len(), &|range| {
            // SAFETY: `share` gives every tile to one call only, and tiles do not share rows.
            let losses = unsafe { out.part(tiles.rows(range.clone())) };
            simd::run(self.isa, Task { pass: *self, loss, tiles, range, out: Out::Each(losses) });
        });
        Ok(())
    }

    fn tiles(&self) -> Tiles {
        Tiles::new(self.rows.len(), self.rows.n_classes())
    }

    /// What the loss of a row of class `y` is multiplied by.
    #[inline(always)]
    pub(super) fn weight_of(&self, y: usize) -> f64 {
        self.weight.map_or(1.0, |weight| weight[y])
    }
}

/// What a pass asks of a loss.
pub(super) trait Group {
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
    /// A row with its exponentials.
    pub exps: Row<E::Wide>,
    /// The factors of the classes, as vectors.
    pub weight: Vec<Lanes<E::Wide>>,
}

impl<E: Element> Scratch<E> {
    fn new(pass: &Pass<'_, E>) -> Self {
        let (vectors, tail) = pass.weight.unwrap_or_default().as_chunks();
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        let weight = vectors.iter().chain([&last]).map(|w| w.map(E::Wide::from_f64)).collect();
        Scratch { row: Vec::new(), grad: Vec::new(), exps: Row::new(), weight }
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
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.loss {
            Loss::LabelRelaxation(loss) => self.groups(&loss),
            Loss::CrossEntropy(loss) if loss.label_smoothing == 0.0 => self.groups(&plain_cross_entropy()),
            Loss::CrossEntropy(loss) => self.groups(&ByRow(loss)),
            Loss::Focal(loss) => self.groups(&loss),
            Loss::ConfidencePenalty(loss) => self.groups(&ByRow(loss)),
        }
    }
}

impl<E: Element> Task<'_, E> {
    #[inline(always)]
    fn groups(mut self, loss: &impl Group) {
        let mut scratch = Scratch::new(&self.pass);
        // A group of rows is read twice; it should still be in the second-level cache.
        let step = (32_768 / self.pass.rows.n_classes()).clamp(1, LANES);
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
    }
}
