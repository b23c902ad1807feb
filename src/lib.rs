//! Calibration-aware losses and calibration metrics as fused kernels.
//!
//! The crate is layered, and imports point down only:
//!
//! | layer | what it holds |
//! |---|---|
//! | `python` (feature `python`) | the border to Python: translates, computes nothing |
//! | [`kernels`] | one file per idea: its mathematics, its kernel, its unit tests |
//! | [`threads`] | shares tiles of rows out to torch's own pool, to rayon, or to nobody |
//! | [`rows`] | a validated view of `(N, C)` data, class targets, and the error type |
//! | [`simd`] | lanes, element types, and the one place that knows instruction sets |
//!
//! ```
//! use lr_relax::kernels::label_relaxation::{LabelRelaxation, Reduction, Scores};
//! use lr_relax::rows::{Rows, Targets};
//!
//! let logits = [2.0_f32, 0.5, -1.0, /* row 2 */ 0.1, 0.2, 0.3];
//! let rows = Rows::from_slice(&logits, 3)?;
//! let targets = Targets::new(&[0_i64, 2], 3, -100)?;
//! let loss = LabelRelaxation::new(0.1, Scores::Logits)?;
//! let mean = loss.reduce(&rows, &targets, None, Reduction::Mean, None)?;
//! assert!(mean > 0.0);
//! # Ok::<(), lr_relax::rows::Error>(())
//! ```

pub mod kernels;
#[cfg(feature = "python")]
mod python;
pub mod rows;
pub mod simd;
pub mod threads;
