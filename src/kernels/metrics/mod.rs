//! Calibration metrics, one file per idea with its mathematics, its kernel and its unit tests.
//!
//! From the bottom up: [`Exact`] sums, [`Predictions`] with their checks, bins and their edges; above them the
//! calibration errors, the proper scores, temperature scaling and the bootstrap.

mod bins;
mod bootstrap;
mod calibration;
mod distribution;
mod exact;
mod likelihood;
mod predictions;
mod quantiles;
mod scores;
mod temperature;
mod temperature_grid;

pub use bins::{Binning, Bins, MAX_BINS};
pub use bootstrap::{Resampled, bootstrap};
pub use calibration::{BinnedLabels, Kind, bin, bin_labels};
pub use exact::{DIGITS, Exact, MAX_TERM};
pub use predictions::{MAX_WEIGHT, Outcome, Predictions};
pub use quantiles::{ABOVE_ALL, quantile_edges};
pub use scores::Score;
pub use temperature::{Fit, RANGE as TEMPERATURE_RANGE, fit_likelihood};
pub use temperature_grid::bin_each;
