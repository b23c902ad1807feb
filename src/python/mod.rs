//! The border to Python: the extension module `lr_relax._native`.
//!
//! It translates arrays, tensors and errors, and releases the GIL around the kernels; it computes nothing.

mod arrays;
#[cfg(not(feature = "pyo3-tch"))]
mod dlpack;
mod errors;
mod losses;
mod metrics;
#[cfg(feature = "pyo3-tch")]
mod pyo3_tch;
mod threads;

// The two ways to torch's tensors; both have the same functions.
#[cfg(not(feature = "pyo3-tch"))]
use dlpack as tensors;
#[cfg(feature = "pyo3-tch")]
use pyo3_tch as tensors;

use pyo3::prelude::*;

/// The Rust side of lr_relax; `lr_relax.functional` and `lr_relax.metrics` are its public face.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::connect;
    #[pymodule_export]
    use super::empty_cache;
    #[pymodule_export]
    use super::losses::{check_loss, hyperparameters, loss, scalar};
    #[pymodule_export]
    use super::metrics::{
        binned_labels, bootstrap_sums, calibration_bins, calibration_of_temperatures, digits_distance,
        digits_to_float, fit_temperature, row_scores, sum_digits, top_labels,
    };
    #[pymodule_export]
    use super::threads::uses_torch_threads;
}

/// Learns how to read torch's tensors, and to use its threads. Called once, when the package is imported.
#[pyfunction]
fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    tensors::connect(torch)?;
    threads::connect(torch)
}

/// Gives the memory that is kept for the next large gradient back to the system.
#[pyfunction]
fn empty_cache() {
    crate::memory::empty_cache();
}
