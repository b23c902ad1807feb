//! One file per idea: its mathematics, its kernel, its unit tests.

pub mod calibration;
pub mod coin;
pub mod confidence_penalty;
mod credal;
pub mod cross_entropy;
pub mod focal;
pub mod label_relaxation;
mod mixture;
pub mod pass;
mod row;
mod sum_exp;
