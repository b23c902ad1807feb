//! Calibration metrics: one file per idea, with its mathematics, its kernel and its unit tests.

pub mod bootstrap;
pub mod calibration;
pub mod exact;
pub mod predictions;
pub mod quantiles;
pub mod scores;
pub mod temperature;
pub mod temperature_grid;
