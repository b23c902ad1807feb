//! The error type of the crate.

use std::borrow::Cow;
use std::fmt;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The value of an argument is invalid.
    Value(Cow<'static, str>),
    /// The type of an argument is not supported.
    Type(Cow<'static, str>),
    /// Memory could not be allocated.
    Memory {
        /// The requested size.
        bytes: usize,
    },
    /// A target is not a valid class index.
    TargetOutOfRange {
        /// The name of the argument.
        argument: &'static str,
        /// The index of the row in the flattened targets.
        row: usize,
        /// The invalid class index.
        class: i128,
        /// The number of classes.
        n_classes: usize,
        /// In how many other rows this class occurs.
        others: usize,
    },
    /// A row of an argument is invalid, such as a distribution that does not sum to 1.
    Row {
        /// The name of the argument.
        argument: &'static str,
        /// The index of the row in the flattened rows.
        row: usize,
        /// What every row of the argument must be.
        why: Cow<'static, str>,
    },
    /// A row of a target is not a distribution.
    NotADistribution {
        /// The index of the row in the flattened rows.
        row: usize,
        /// What the row has instead, in words.
        got: String,
    },
    /// An operation of torch failed.
    #[cfg(feature = "tch")]
    Torch(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value(message) | Error::Type(message) => f.write_str(message),
            #[cfg(feature = "tch")]
            Error::Torch(reason) => write!(f, "torch: {reason}"),
            Error::Memory { bytes } => write!(f, "Could not allocate {bytes} bytes."),
            Error::TargetOutOfRange { argument, row, class, n_classes, others } => {
                write!(
                    f,
                    "Expected argument `{argument}` to hold classes in [0, {n_classes}), but got {class} at row {row}"
                )?;
                if *others > 0 {
                    write!(f, " and {others} more")?;
                }
                // The marks of torch and of segmentation data sets, or any value that is no accident.
                let is_mark = [-100, 255].contains(class) || (*others > 0 && i64::try_from(*class).is_ok());
                f.write_str(".")?;
                if is_mark {
                    write!(f, " Pass ignore_index={class} if such rows are to be ignored.")?;
                }
                Ok(())
            }
            Error::NotADistribution { row, got } => write!(
                f,
                "Expected argument `target` to hold distributions, rows without negative numbers that sum to 1, \
                 but row {row} {got}."
            ),
            Error::Row { argument, row, why } => {
                write!(f, "Expected argument `{argument}` to hold {why}, but row {row} does not.")
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// An [`Error::Value`] with this message.
    pub fn value(message: impl Into<Cow<'static, str>>) -> Error {
        Error::Value(message.into())
    }

    /// An [`Error::Type`] with this message.
    pub fn r#type(message: impl Into<Cow<'static, str>>) -> Error {
        Error::Type(message.into())
    }

    /// Replaces the argument name of an error about a row or a target.
    #[cfg(any(feature = "python", feature = "tch"))]
    pub(crate) fn named(mut self, name: &'static str) -> Error {
        if let Error::TargetOutOfRange { argument, .. } | Error::Row { argument, .. } = &mut self {
            *argument = name;
        }
        self
    }
}
