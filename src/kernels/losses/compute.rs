//! Computes a loss over a batch: distributes the rows over threads and reduces their losses.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::rows::Error;
use crate::simd::lanes::fold;
use crate::simd::{self, Element, Kernel, LANES, Real};
use crate::threads::{self, Tiles};

use super::batch::{Batch, GroupLoss, NamedLoss, Scratch, Target};
use super::row_target::{fault, is_invalid, row_weight};

/// How the losses of the rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over the rows that are not ignored, weighted by the weights of their classes.
    Mean,
    /// The sum.
    Sum,
}

/// The choice of a loss at run time.
pub(super) trait Dispatch: Copy + Send + Sync {
    /// Whether the weight of a row with a distribution is the expected weight of its classes. For other losses each
    /// class has its own weight, and as in PyTorch the mean is over the number of rows.
    fn is_credal(self) -> bool;

    /// Calls [`Task::groups`] with the loss.
    fn run<E: Element>(self, task: Task<'_, E>) -> Result<usize, Error>;
}

/// See `Batch::reduce`.
pub(super) fn reduce<E: Element>(
    batch: &Batch<'_, E>,
    loss: impl Dispatch,
    reduction: Reduction,
) -> Result<f64, Error> {
    check_in_place(batch)?;
    let factor = match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / total_weight(batch, loss.is_credal())?,
    };
    let tiles = tiles(batch);
    let batch = Shared(batch.upstream(factor * batch.factor));
    let invalid_row = InvalidRow::default();
    let sums = threads::parallel_collect(tiles.len(), 0.0_f64, &|range, sums| {
        let batch = *batch.get();
        let task = Task { batch, tiles, range, out: Out::Sums(sums) };
        invalid_row.add(simd::run(batch.isa, LossKernel { loss, task }));
    })?;
    check_rows(batch.get(), invalid_row.get()?)?;
    // 0 * inf, where no row counts, is the NaN that 0 / 0 would be.
    Ok((0.0 + sums.iter().sum::<f64>()) * factor) // the sum of nothing is -0
}

/// See `Batch::per_row`.
pub(super) fn per_row<E: Element>(
    batch: &Batch<'_, E>,
    loss: impl Dispatch,
    losses: &mut [E::Wide],
) -> Result<(), Error> {
    check_in_place(batch)?;
    let n_rows = batch.rows.len();
    if losses.len() != n_rows {
        return Err(Error::value(format!("Expected {n_rows} losses, but got {}.", losses.len())));
    }
    let (tiles, invalid_row) = (tiles(batch), InvalidRow::default());
    let (out, batch) = (threads::Disjoint::new(losses), Shared(*batch));
    threads::parallel_for(tiles.len(), &|range| {
        let batch = *batch.get();
        // SAFETY: `parallel_for` gives every tile to one call only, and tiles do not share rows.
        let losses = unsafe { out.part(tiles.rows(range.clone())) };
        let task = Task { batch, tiles, range, out: Out::Each(losses) };
        invalid_row.add(simd::run(batch.isa, LossKernel { loss, task }));
    });
    check_rows(batch.get(), invalid_row.get()?)
}

/// Checks the targets of all rows without computing a loss.
pub(super) fn check_targets<E: Element>(batch: &Batch<'_, E>) -> Result<(), Error> {
    if !matches!(batch.target, Target::Sets(_) | Target::Distributions(_)) {
        return Ok(()); // checked when the batch was made
    }
    let mut scratch = Scratch::new(batch, false)?;
    let invalid = (0..batch.rows.len()).find(|&i| is_invalid(batch, i, &mut scratch));
    check_rows(batch, invalid.unwrap_or(usize::MAX))
}

/// Checks the targets before the first row is overwritten.
fn check_in_place<E: Element>(batch: &Batch<'_, E>) -> Result<(), Error> {
    if batch.in_place { check_targets(batch) } else { Ok(()) }
}

fn check_rows<E: Element>(batch: &Batch<'_, E>, invalid_row: usize) -> Result<(), Error> {
    if invalid_row == usize::MAX {
        return Ok(());
    }
    Err(match batch.target {
        Target::Distributions(rows) => {
            Error::NotADistribution { row: invalid_row, got: fault(rows, invalid_row) }
        }
        _ => Error::Row { argument: "target", row: invalid_row, why: "sets of at least one class".into() },
    })
}

fn tiles<E: Element>(batch: &Batch<'_, E>) -> Tiles {
    Tiles::new(batch.rows.len(), batch.rows.n_classes())
}

/// The denominator of the mean.
fn total_weight<E: Element>(batch: &Batch<'_, E>, is_credal: bool) -> Result<f64, Error> {
    Ok(match (batch.target, batch.weight) {
        (Target::Classes(targets), None) => targets.counted().count() as f64,
        (Target::Classes(targets), Some(weight)) => targets.counted().map(|y| weight[y]).sum(),
        (Target::Sets(_) | Target::Distributions(_), None) => batch.rows.len() as f64,
        (Target::Distributions(_), _) if !is_credal => batch.rows.len() as f64,
        _ => {
            let (tiles, batch, failure) = (tiles(batch), Shared(*batch), InvalidRow::default());
            let sums = threads::parallel_collect(tiles.len(), 0.0_f64, &|range, sums| {
                let batch = *batch.get();
                failure.add(simd::run(batch.isa, WeightKernel { batch, tiles, range, sums }));
            })?;
            failure.get()?;
            sums.iter().sum()
        }
    })
}

/// The first invalid row of all that threads find, or `usize::MAX`; or an error of one of them.
struct InvalidRow(Mutex<Result<usize, Error>>);

impl Default for InvalidRow {
    fn default() -> Self {
        InvalidRow(Mutex::new(Ok(usize::MAX)))
    }
}

impl InvalidRow {
    fn add(&self, found: Result<usize, Error>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *all, found) {
            (Ok(first), Ok(row)) => *first = row.min(*first),
            (Ok(_), error) => *all = error,
            (Err(_), _) => {}
        }
    }

    fn get(self) -> Result<usize, Error> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch that the threads of one call share; each writes the rows of its own tiles. [`Batch`] itself is not Sync, so
/// that there is only one call at a time.
struct Shared<'a, E: Element>(Batch<'a, E>);

// SAFETY: every thread writes other rows, see above.
unsafe impl<E: Element> Sync for Shared<'_, E> {}

impl<'a, E: Element> Shared<'a, E> {
    fn get(&self) -> &Batch<'a, E> {
        &self.0
    }
}

/// A range of tiles, and where their losses go.
pub(super) struct Task<'a, E: Element> {
    batch: Batch<'a, E>,
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

impl<E: Element> Task<'_, E> {
    /// Computes the losses, group by group; returns [`Scratch::invalid_row`].
    #[inline(always)]
    pub(super) fn groups<L: NamedLoss>(self, loss: &L) -> Result<usize, Error> {
        match self.batch.target {
            Target::Classes(_) => self.groups_of::<L, true>(loss),
            _ if L::IS_CREDAL => self.groups_of::<L, false>(loss),
            _ => unreachable!("checked by `Batch::reduce` and `Batch::per_row`"),
        }
    }

    /// Whether the targets are distributions.
    #[inline(always)]
    pub(super) fn is_soft(&self) -> bool {
        matches!(self.batch.target, Target::Distributions(_))
    }

    /// As [`Task::groups`], for distributions as targets of a loss that is not credal.
    #[inline(always)]
    pub(super) fn soft_groups(self, loss: &impl GroupLoss) -> Result<usize, Error> {
        self.groups_of::<_, false>(loss)
    }

    #[inline(always)]
    fn groups_of<L: GroupLoss, const CLASSES: bool>(mut self, loss: &L) -> Result<usize, Error> {
        let mut scratch = Scratch::new(&self.batch, !CLASSES || loss.keeps_exponentials())?;
        let step = (loss.group_size() / self.batch.rows.n_classes().max(1)).clamp(1, LANES);
        let first_row = self.tiles.rows(self.range.clone()).start;
        for tile in self.range.clone() {
            let rows = self.tiles.rows(tile..tile + 1);
            let mut each = match &mut self.out {
                Out::Each(out) => Some(&mut out[rows.start - first_row..rows.end - first_row]),
                Out::Sums(_) => None,
            };
            let mut sum = [0.0; LANES];
            if !loss.tile(&self.batch, rows.clone(), &mut sum, each.as_deref_mut()) {
                for first in rows.clone().step_by(step) {
                    let group = first..rows.end.min(first + step);
                    let losses = loss.group::<E, CLASSES>(&self.batch, group.clone(), &mut scratch);
                    if let Some(each) = &mut each {
                        for (out, &loss) in each[first - rows.start..].iter_mut().zip(&losses[..group.len()])
                        {
                            *out = E::Wide::from_f64(loss);
                        }
                    } else {
                        for i in 0..LANES {
                            // The losses of lanes without a row are unspecified.
                            sum[i] += if i < group.len() { losses[i] } else { 0.0 };
                        }
                    }
                }
            }
            if let Out::Sums(sums) = &mut self.out {
                sums[tile - self.range.start] = fold(sum, |a, b| a + b);
            }
        }
        Ok(scratch.invalid_row)
    }
}

/// A task and its loss, compiled for each instruction set.
struct LossKernel<'a, E: Element, D> {
    loss: D,
    task: Task<'a, E>,
}

impl<E: Element, D: Dispatch> Kernel for LossKernel<'_, E, D> {
    /// [`Scratch::invalid_row`]
    type Output = Result<usize, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        self.loss.run(self.task)
    }
}

/// Sums the weights of the rows of each tile.
struct WeightKernel<'a, E: Element> {
    batch: Batch<'a, E>,
    tiles: Tiles,
    range: Range<usize>,
    sums: &'a mut [f64],
}

impl<E: Element> Kernel for WeightKernel<'_, E> {
    /// No row is invalid.
    type Output = Result<usize, Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut scratch = Scratch::new(&self.batch, false)?;
        for (sum, tile) in self.sums.iter_mut().zip(self.range) {
            for i in self.tiles.rows(tile..tile + 1) {
                *sum += row_weight(&self.batch, i, &mut scratch);
            }
        }
        Ok(usize::MAX)
    }
}
