//! The Python bindings: the extension module `lr_relax._native`.
//!
//! The bindings convert arrays, tensors and errors, and release the GIL while a kernel runs.

mod arrays;
#[cfg(not(feature = "pyo3-tch"))]
mod dlpack;
mod errors;
mod losses;
mod metrics;
#[cfg(feature = "pyo3-tch")]
mod pyo3_tch;
mod tensors;
mod threads;

use pyo3::prelude::*;

/// The extension module of lr_relax. The public API is in `lr_relax.functional` and `lr_relax.metrics`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::connect;
    #[pymodule_export]
    use super::empty_cache;
    #[pymodule_export]
    use super::losses::{check_loss, hyperparameters, loss, scalar, scale};
    #[pymodule_export]
    use super::metrics::{
        binned_top_labels, bootstrap_sums, calibration_bins, calibration_errors_of_temperatures,
        exact_distance, exact_sum, exact_to_float, fit_temperature, row_scores, top_labels,
    };
    #[pymodule_export]
    use super::threads::uses_torch_threads;
}

/// Connects the extension to torch's tensors and thread pool. The package calls it once, when it is imported.
#[pyfunction]
fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    tensors::connect(torch)?;
    threads::connect(torch)
}

/// Frees the buffer that is cached for large gradients.
#[pyfunction]
fn empty_cache() {
    crate::memory::empty_cache();
}
