//! One file per idea: its mathematics, its kernel, its unit tests.

pub mod bootstrap;
pub mod calibration;
pub mod coin;
pub mod confidence_penalty;
mod credal;
pub mod cross_entropy;
pub mod exact;
pub mod focal;
pub mod label_relaxation;
mod mixture;
pub mod pass;
pub mod predictions;
pub mod quantiles;
mod row;
pub mod scores;
mod sum_exp;
pub mod temperature;
pub mod temperature_grid;
