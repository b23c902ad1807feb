//! Calibration-aware losses and calibration metrics as fused kernels.
//!
//! The crate is layered, and imports point down only:
//!
//! | layer | what it holds |
//! |---|---|
//! | `python` (feature `python`) | the border to Python: translates, computes nothing |
//! | `tch` (feature `tch`) | the losses and metrics of `tch::Tensor`, with their gradients |
//! | `untyped` | arrays whose element type is known at run time only, as both borders see them |
//! | `kernels` | [`losses`] and [`metrics`]: one file per idea: its mathematics, its kernel, its unit tests |
//! | [`threads`] | shares tiles of rows out to torch's own pool, to rayon, or to nobody |
//! | `memory` | the memory of large gradients, kept from one step to the next |
//! | [`rows`] | a validated view of `(N, C)` data, class targets, and the error type |
//! | [`simd`] | lanes, element types, and the one place that knows instruction sets |
//!
//! ```
//! use lr_relax::rows::Scores;
//! use lr_relax::losses::LabelRelaxation;
//! use lr_relax::losses::{Batch, Reduction};
//! use lr_relax::rows::{Rows, Targets};
//!
//! let logits = [2.0_f32, 0.5, -1.0, /* row 2 */ 0.1, 0.2, 0.3];
//! let rows = Rows::from_slice(&logits, 3)?;
//! let targets = Targets::new(&[0_i64, 2], 3, -100)?;
//! let loss = LabelRelaxation::new(0.1, Scores::Logits)?;
//! let mean = Batch::new(&rows, &targets)?.reduce(loss, Reduction::Mean)?;
//! assert!(mean > 0.0);
//! # Ok::<(), lr_relax::rows::Error>(())
//! ```

mod kernels;
#[cfg(any(feature = "python", feature = "tch"))]
pub mod memory;
#[cfg(feature = "python")]
mod python;
pub mod rows;
pub mod simd;
#[cfg(feature = "tch")]
pub mod tch;
pub mod threads;
#[cfg(any(feature = "python", feature = "tch"))]
mod untyped;

pub use kernels::{losses, metrics};
