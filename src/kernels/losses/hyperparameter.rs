//! The one number that a loss takes: its name and its range, which begins at 0; and what it means for soft targets.

use crate::rows::Error;

/// A hyperparameter and its range.
#[derive(Clone, Copy, Debug)]
pub struct Hyperparameter {
    /// As callers name it.
    pub name: &'static str,
    /// The end of the range; infinite if every finite number is allowed.
    pub end: f64,
    /// Whether the end belongs to the range.
    pub is_closed: bool,
}

impl Hyperparameter {
    /// One in [0, `end`).
    pub(super) const fn below(name: &'static str, end: f64) -> Self {
        Hyperparameter { name, end, is_closed: false }
    }

    /// One in [0, `end`].
    pub(super) const fn up_to(name: &'static str, end: f64) -> Self {
        Hyperparameter { name, end, is_closed: true }
    }

    /// Whether `value` is in the range. NaN never is.
    pub fn contains(&self, value: f64) -> bool {
        0.0 <= value && (value < self.end || (self.is_closed && value == self.end))
    }

    /// The range in words.
    pub fn expected(&self) -> String {
        match self {
            Hyperparameter { end: f64::INFINITY, .. } => "a finite number of at least 0".into(),
            Hyperparameter { end, is_closed: true, .. } => format!("a number in [0, {end}]"),
            Hyperparameter { end, .. } => format!("a number in [0, {end})"),
        }
    }

    /// The error message for a value that is written as `got`.
    pub fn message(&self, got: &str) -> String {
        format!("Expected argument `{}` to be {}, but got {got}.", self.name, self.expected())
    }

    /// Returns `value` if it is in the range.
    pub(super) fn check(&self, value: f64) -> Result<f64, Error> {
        if self.contains(value) { Ok(value) } else { Err(Error::value(self.message(&format!("{value:?}")))) }
    }
}

/// The loss of a distribution as target, see `soft_target`: every hyperparameter in its own place.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftTargetLoss {
    /// The part of the target that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// The exponent of 1 - p.
    pub gamma: f64,
    /// The factor of the entropy of the prediction.
    pub beta: f64,
}
