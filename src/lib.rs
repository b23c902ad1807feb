//! Calibration-aware losses and calibration metrics as fused kernels.
//!
//! The crate is layered, and imports point down only:
//!
//! | layer | what it holds |
//! |---|---|
//! | `python` (feature `python`) | the bindings to Python: translate arguments and errors, compute nothing |
//! | `tch` (feature `tch`) | the losses and metrics of `tch::Tensor`, with their gradients |
//! | `untyped` | arrays whose element type is known at run time only; both bindings use them |
//! | `kernels` | [`losses`] and [`metrics`]; each file has the formula, the kernel and the unit tests of one idea |
//! | [`threads`] | distributes tiles of rows over torch's thread pool or rayon, or runs them serially |
//! | `memory` | a cached buffer for large gradients |
//! | [`rows`] | a validated view of `(N, C)` data, class targets, and the error type |
//! | [`simd`] | lanes, element types, and the only code that depends on the instruction set |
//!
//! ```
//! use lr_relax::losses::{Batch, LabelRelaxation, Reduction, Scores};
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
