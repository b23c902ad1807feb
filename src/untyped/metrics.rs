//! The metrics of arrays whose element type is known at run time only.

use half::{bf16, f16};

use super::{Dtype, View, tuple};
use crate::metrics::{self, Binning, Bins, Fit, Kind, Predictions};
use crate::rows::{AnyRows, Error, Rows, Scores, Targets};
use crate::simd::Isa;

/// The arguments of a metric, not yet checked.
pub(crate) struct Arguments<'a> {
    /// The name of `preds` in error messages.
    pub name: &'static str,
    /// (..., C), or (N,): the probability of class 1.
    pub preds: &'a View,
    /// (...), or (N,)
    pub target: &'a View,
    /// (...)
    pub weight: Option<&'a View>,
    pub scores: Scores,
    /// Rows with this target are ignored.
    pub ignore_index: Option<i64>,
}

impl Arguments<'_> {
    /// Checks types, shapes, targets and weights.
    pub(crate) fn predictions(&self) -> Result<Predictions<'_>, Error> {
        let (rows, targets) = self.rows()?;
        let weights = match self.weight {
            Some(weight) if weight.shape != self.target.shape => {
                return Err(Error::value(format!(
                    "Expected argument `sample_weight` to have shape {}, that of `target`, but got {}.",
                    tuple(&self.target.shape),
                    tuple(&weight.shape)
                )));
            }
            Some(weight) => Some(weight.to_f64()?),
            None => None,
        };
        Predictions::new(rows, targets, weights, self.scores, Isa::best())
    }

    fn rows(&self) -> Result<(AnyRows<'_>, Targets), Error> {
        let (name, preds, target) = (self.name, self.preds, self.target);
        if !preds.dtype.is_float() {
            return Err(Error::r#type(format!(
                "Expected argument `{name}` to be of a floating-point type, but got {}.",
                preds.type_name()
            )));
        }
        let (n_classes, is_binary) = match preds.shape[..] {
            [_] if preds.shape == target.shape => (2, true),
            [.., n_classes] if preds.shape.len() >= 2 && n_classes > 1 => (n_classes, false),
            [.., 0 | 1] if preds.shape.len() >= 2 => {
                return Err(Error::value(format!(
                    "Expected argument `{name}` to have at least 2 classes, but got shape {}; for binary events, pass \
                     their probabilities with shape (N,).",
                    tuple(&preds.shape)
                )));
            }
            _ => {
                return Err(Error::value(format!(
                    "Expected argument `{name}` to have shape (N, C), or for binary events (N,) like `target`, but got \
                     {}.",
                    tuple(&preds.shape)
                )));
            }
        };
        let rows = if is_binary { &preds.shape[..] } else { &preds.shape[..preds.shape.len() - 1] };
        if target.shape != rows {
            return Err(Error::value(format!(
                "Expected argument `target` to have shape {}, that of `{name}` without its classes, but got {}.",
                tuple(rows),
                tuple(&target.shape)
            )));
        }
        let targets = target.targets("target", n_classes, self.ignore_index)?;
        Ok((any_rows(preds, is_binary), targets))
    }

    /// Bins the predictions.
    pub(crate) fn bin(&self, kind: Kind, binning: &Binning, n_bins: usize) -> Result<Bins, Error> {
        let predictions = self.predictions()?;
        if kind == Kind::Classwise && self.preds.shape == self.target.shape {
            return Err(Error::value(format!(
                "Expected argument `kind` to be 'top_label' for the probability of class 1, which `{}` of the shape \
                 of `target` holds, but got 'classwise'.",
                self.name
            )));
        }
        metrics::bin(&predictions, kind, binning, n_bins).map_err(|error| error.named(self.name))
    }

    /// The temperature of maximum likelihood.
    pub(crate) fn fit_temperature(&self) -> Result<Fit, Error> {
        let (rows, targets) = self.logits()?;
        metrics::fit_likelihood(&rows, &targets, Isa::best()).map_err(|error| error.named(self.name))
    }

    /// The bins of the logits divided by each temperature.
    #[cfg_attr(not(feature = "python"), allow(dead_code))]
    pub(crate) fn bin_each(&self, temperatures: &[f64], n_bins: usize) -> Result<Vec<Bins>, Error> {
        let (rows, targets) = self.logits()?;
        metrics::bin_each(&rows, &targets, temperatures, n_bins, Isa::best())
            .map_err(|error| error.named(self.name))
    }

    fn logits(&self) -> Result<(AnyRows<'_>, Targets), Error> {
        let (rows, targets) = self.rows()?;
        if self.preds.shape == self.target.shape {
            return Err(Error::value(format!(
                "Expected argument `{}` to have shape (N, C), with N classes in `target`, but got {}.",
                self.name,
                tuple(&self.preds.shape)
            )));
        }
        if targets.counted().next().is_none() {
            return Err(Error::value(format!(
                "Expected argument `{}` to hold at least one row that counts, but got none.",
                self.name
            )));
        }
        Ok((rows, targets))
    }
}

fn any_rows(preds: &View, is_binary: bool) -> AnyRows<'_> {
    let (mut shape, mut strides) = (preds.shape.clone(), preds.strides.clone());
    if is_binary {
        shape.push(1);
        strides.push(1);
    }
    let axis = shape.len() - 1;
    macro_rules! rows {
        ($t:ty) => {
            // SAFETY: `$t` is the element type of the view, whose owner vouches for shape and strides.
            unsafe { Rows::<$t>::from_raw(preds.data.cast(), &shape, &strides, axis) }
        };
    }
    match preds.dtype {
        Dtype::F32 => AnyRows::F32(rows!(f32)),
        Dtype::F64 => AnyRows::F64(rows!(f64)),
        Dtype::F16 => AnyRows::F16(rows!(f16)),
        Dtype::Bf16 => AnyRows::Bf16(rows!(bf16)),
        _ => unreachable!("rejected by `Arguments::rows`"),
    }
}
