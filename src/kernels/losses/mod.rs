//! Losses and their gradients: the shared machinery, and one file per loss.

pub mod coin;
pub mod confidence_penalty;
mod credal;
pub mod cross_entropy;
pub mod focal;
pub mod label_relaxation;
mod mixture;
pub mod pass;
mod row;
