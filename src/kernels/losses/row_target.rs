//! The target of one row: a class, a set, a distribution or a mixture of two classes.

use crate::rows::AnyRows;
use crate::simd::lanes::{self, fold};
use crate::simd::{Element, LANES, Lanes, Real};

use super::batch::{Batch, Scratch, Target};
use super::exponentials::{BLOCK, larger, total};

/// Negative numbers of this size in a distribution are errors of rounding, and count as 0.
const ROUNDING: f64 = 1e-6;

/// The target of one row.
pub(super) enum RowTarget {
    /// One class. Targets of other types that mean one class are computed as such, to the bit.
    Class(usize),
    /// Two classes.
    Mixture(Mixture),
    /// A set of some classes, in `scratch.target`.
    Set,
    /// The set of all classes.
    AllClasses,
    /// A distribution with this sum, in `scratch.target`.
    Distribution(f64),
    /// An empty set, or no distribution.
    Invalid,
    /// The row is ignored.
    Ignored,
}

/// Two different classes, and their shares, both above 0.
#[derive(Clone, Copy)]
pub(super) struct Mixture {
    pub classes: [usize; 2],
    pub shares: [f64; 2],
}

impl Mixture {
    /// The weight of the row: the mean of the weights of the classes.
    #[inline(always)]
    pub(super) fn weight<E: Element>(&self, batch: &Batch<'_, E>) -> f64 {
        let [a, b] = self.classes.map(|y| batch.class_weight(y));
        self.shares[0] * a + self.shares[1] * b
    }
}

/// Reads the target of row `i`. A set or a distribution goes to `scratch.target`.
#[inline(always)]
pub(super) fn read<E: Element>(batch: &Batch<'_, E>, i: usize, scratch: &mut Scratch<E>) -> RowTarget {
    let (rows, is_set) = match batch.target {
        Target::Sets(rows) => (rows, true),
        Target::Distributions(rows) => (rows, false),
        Target::Classes(targets) => return targets.class(i).map_or(RowTarget::Ignored, RowTarget::Class),
        Target::Mixtures { first, second, share } => {
            let (Some(a), Some(b)) = (first.class(i), second.class(i)) else { return RowTarget::Ignored };
            let share = if share.len() == 1 { share[0] } else { share[i] };
            return if a == b || share == 1.0 {
                RowTarget::Class(a)
            } else if share == 0.0 {
                RowTarget::Class(b)
            } else {
                RowTarget::Mixture(Mixture { classes: [a, b], shares: [share, 1.0 - share] })
            };
        }
    };
    let n_classes = batch.rows.n_classes();
    let (target, zero) = (&mut scratch.target, E::Wide::ZERO);
    target.resize(n_classes.div_ceil(LANES), [zero; LANES]);
    if is_set {
        rows.read(i, 0, &mut target.as_flattened_mut()[..n_classes]);
        if !matches!(rows, AnyRows::Bool(_)) {
            for t in target.iter_mut() {
                *t = lanes::map(t, |t| E::Wide::from_f64(if t > zero { 1.0 } else { 0.0 }));
            }
        }
        return match count(target) {
            0 => RowTarget::Invalid,
            1 => only(target),
            n if n == n_classes => RowTarget::AllClasses,
            _ => RowTarget::Set,
        };
    }
    let (mut least, mut most) = ([zero; LANES], [zero; LANES]);
    scratch.target_sums.resize(target.len().div_ceil(BLOCK), [zero; LANES]);
    for (j, (block, sums)) in target.chunks_mut(BLOCK).zip(&mut scratch.target_sums).enumerate() {
        // Read and sum by blocks, so that reading and summing overlap.
        let first = j * BLOCK * LANES;
        let n = (n_classes - first).min(BLOCK * LANES);
        rows.read(i, first, &mut block.as_flattened_mut()[..n]);
        let mut sum = [zero; LANES];
        for t in &*block {
            sum = lanes::add(&sum, t);
            least = lanes::min(&least, t);
            most = lanes::max(&most, t);
        }
        *sums = sum;
    }
    let least = fold(least, |a, b| if b < a { b } else { a });
    let negative = least < E::Wide::from_f64(-ROUNDING);
    if least < zero && !negative {
        clip(target, &mut scratch.target_sums);
    }
    let sum = total(&scratch.target_sums);
    let is_whole = (sum - 1.0).abs() <= rows.sum_tolerance(); // false for NaN
    if negative || !is_whole {
        RowTarget::Invalid
    } else if fold(most, larger) == E::Wide::from_f64(1.0) && count(target) == 1 {
        only(target)
    } else {
        RowTarget::Distribution(sum)
    }
}

/// Replaces negative numbers by 0, and sums the blocks again.
#[inline(always)]
fn clip<F: Real>(target: &mut [Lanes<F>], sums: &mut [Lanes<F>]) {
    for (block, block_sum) in target.chunks_mut(BLOCK).zip(sums) {
        let mut sum = [F::ZERO; LANES];
        for t in block {
            *t = lanes::max(&[F::ZERO; LANES], t);
            sum = lanes::add(&sum, t);
        }
        *block_sum = sum;
    }
}

/// What the row of a target has that no distribution has.
pub(super) fn fault(rows: &AnyRows<'_>, i: usize) -> String {
    let numbers = (0..rows.shape().1).map(|k| {
        let mut t = [0.0_f64];
        rows.read(i, k, &mut t);
        t[0]
    });
    match numbers.clone().find(|&t| t.is_nan() || t < -ROUNDING) {
        Some(t) => format!("holds {}", rounded(t)),
        None => format!("sums to {}", rounded(numbers.sum())),
    }
}

/// To six places after the point, without the digits that conversion to double precision adds.
fn rounded(x: f64) -> f64 {
    let rounded = (x * 1e6).round() / 1e6;
    if rounded.is_finite() { rounded } else { x }
}

/// The number of classes with a number above 0.
#[inline(always)]
pub(super) fn count<F: Real>(target: &[Lanes<F>]) -> usize {
    let (zero, one) = (F::ZERO, F::from_f64(1.0));
    let mut positive = [zero; LANES]; // exact up to 2^24 per lane
    for t in target {
        positive = lanes::zip(&positive, t, |n, t| if t > zero { n.add(one) } else { n });
    }
    fold(positive, F::add).to_f64() as usize
}

/// The only class with a number above 0.
#[inline(always)]
fn only<F: Real>(target: &[Lanes<F>]) -> RowTarget {
    target.as_flattened().iter().position(|&t| t > F::ZERO).map_or(RowTarget::Invalid, RowTarget::Class)
}

/// Whether the target of row `i` is an empty set or no distribution.
pub(super) fn is_invalid<E: Element>(batch: &Batch<'_, E>, i: usize, scratch: &mut Scratch<E>) -> bool {
    matches!(read(batch, i, scratch), RowTarget::Invalid)
}

/// The weight of row `i`; 0 if it is ignored.
#[inline(always)]
pub(super) fn row_weight<E: Element>(batch: &Batch<'_, E>, i: usize, scratch: &mut Scratch<E>) -> f64 {
    match read(batch, i, scratch) {
        RowTarget::Class(y) => batch.class_weight(y),
        RowTarget::Mixture(mixture) => mixture.weight(batch),
        RowTarget::Invalid | RowTarget::Ignored => 0.0,
        _ => batch.mean_weight(&scratch.target, &scratch.weight),
    }
}
