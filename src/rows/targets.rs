//! Class targets, validated once so that kernels can index with them.

use std::ops::Range;

use crate::simd::{self, Isa, Kernel, Lanes, lanes};

use super::buffers::with_room;
use super::error::Error;

/// An integer type of class targets.
pub trait Index: Copy + PartialEq + Into<i128> + TryFrom<i64> {
    /// The value as a class index, or `None` if it is not in [0, `n_classes`).
    fn class(self, n_classes: u32) -> Option<u32>;
}

macro_rules! index {
    ($($t:ty)*) => {$(
        impl Index for $t {
            #[inline(always)]
            fn class(self, n_classes: u32) -> Option<u32> {
                let class = self as u64; // a negative number becomes a large one
                (class < u64::from(n_classes)).then_some(class as u32)
            }
        }
    )*};
}

index!(i8 i16 i32 i64 u8 u16 u32 u64);

/// The class index of each row.
///
/// The targets are copied, so that a caller that changes its array later cannot invalidate the check.
#[derive(Clone, Debug)]
pub struct Targets {
    classes: Vec<u32>,
    n_classes: usize,
}

/// Marks an ignored row.
const IGNORED: u32 = u32::MAX;

/// Marks a target that is no class, while targets are read.
const INVALID: u32 = u32::MAX - 1;

impl Targets {
    /// Checks that every target is in [0, `n_classes`) or equals `ignore_index`.
    pub fn new<I: Index>(targets: &[I], n_classes: usize, ignore_index: i64) -> Result<Self, Error> {
        Targets::from_iter(targets.iter().copied(), n_classes, Some(ignore_index))
    }

    /// As [`Targets::new`], from an iterator; without an `ignore_index`, no row is ignored.
    pub fn from_iter<I: Index>(
        targets: impl ExactSizeIterator<Item = I> + Clone,
        n_classes: usize,
        ignore_index: Option<i64>,
    ) -> Result<Self, Error> {
        if n_classes == 0 || n_classes > INVALID as usize {
            return Err(Error::value(format!(
                "Expected between 1 and {} classes, but got {n_classes}.",
                INVALID
            )));
        }
        let ignored = ignore_index.and_then(|index| I::try_from(index).ok());
        let mut classes = with_room(targets.len())?;
        let read =
            Read { targets: targets.clone(), n_classes: n_classes as u32, ignored, classes: &mut classes };
        simd::run(Isa::best(), read);
        // `contains`, unlike `position`, compares whole vectors.
        if classes.contains(&INVALID)
            && let Some(row) = classes.iter().position(|&class| class == INVALID)
        {
            let mut rest = targets.skip(row);
            let class = rest.next().map_or(0, Into::into);
            let others = rest.filter(|&other| other.into() == class).count();
            return Err(Error::TargetOutOfRange { argument: "target", row, class, n_classes, others });
        }
        Ok(Targets { classes, n_classes })
    }

    /// The number of rows, N.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The number of classes, C.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The class of row `i`, or `None` if the row is ignored.
    #[inline(always)]
    pub fn class(&self, i: usize) -> Option<usize> {
        let class = self.classes[i];
        (class != IGNORED).then_some(class as usize)
    }

    /// For up to sixteen rows of two classes: 1 for class 1, -1 for class 0, and 0 for an ignored row.
    #[inline(always)]
    pub(crate) fn signs(&self, rows: Range<usize>) -> Lanes<i32> {
        let classes = lanes::load(&self.classes[rows], IGNORED).map(|class| class as i32);
        lanes::map(&classes, |class| {
            let sign = 2 * class - 1;
            if class < 0 { 0 } else { sign }
        })
    }

    /// The classes of the rows that are not ignored.
    pub fn counted(&self) -> impl Iterator<Item = usize> {
        self.classes.iter().filter(|&&c| c != IGNORED).map(|&c| c as usize)
    }

    /// Checks that there is one target for each of `n_rows` rows of `n_classes` classes.
    pub(crate) fn check_shape(&self, n_rows: usize, n_classes: usize) -> Result<(), Error> {
        if (self.len(), self.n_classes) == (n_rows, n_classes) {
            return Ok(());
        }
        Err(Error::value(format!(
            "Expected {n_rows} targets of {n_classes} classes, but got {} targets of {} classes.",
            self.len(),
            self.n_classes
        )))
    }
}

/// Writes the classes of all targets.
struct Read<'a, T, I> {
    targets: T,
    n_classes: u32,
    ignored: Option<I>,
    classes: &'a mut Vec<u32>,
}

impl<I: Index, T: Iterator<Item = I>> Kernel for Read<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let class = |target: I| target.class(self.n_classes).unwrap_or(INVALID);
        match self.ignored {
            Some(ignored) => {
                self.classes.extend(self.targets.map(|y| if y == ignored { IGNORED } else { class(y) }))
            }
            None => self.classes.extend(self.targets.map(class)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_first_target_out_of_range() {
        let error = Targets::new(&[0_i64, 2, 1 << 40, -1, 1 << 40], 3, -100).unwrap_err();
        assert_eq!(
            error,
            Error::TargetOutOfRange { argument: "target", row: 2, class: 1 << 40, n_classes: 3, others: 1 }
        );
        assert!(Targets::new(&[u64::MAX], 3, -1).is_err());
    }

    #[test]
    fn ignored_rows_have_no_class() {
        let targets = Targets::new(&[-100_i8, 2], 3, -100).unwrap();
        assert_eq!((targets.class(0), targets.class(1)), (None, Some(2)));
        assert_eq!(Targets::new(&[1_u8], 1, 1).unwrap().class(0), None);
    }
}
