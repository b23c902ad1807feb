//! The kernels: losses and metrics, and what both share.

pub mod losses;
pub mod metrics;
mod sum_exp;
