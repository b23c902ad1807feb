//! One file per idea: its mathematics, its kernel, its unit tests.

pub mod calibration;
pub mod label_relaxation;
mod sum_exp;
