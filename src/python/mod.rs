//! The border to Python: the extension module `lr_relax._native`.
//!
//! It translates arrays, tensors and errors, and releases the GIL around the kernels; it computes nothing.

mod arrays;
mod dlpack;
mod errors;
mod losses;
mod memory;
mod metrics;
mod threads;
mod view;

use pyo3::prelude::*;

/// The Rust side of lr_relax; `lr_relax.functional` and `lr_relax.metrics` are its public face.
#[pymodule]
mod _native {
    #[pymodule_export]
    use super::connect;
    #[pymodule_export]
    use super::dlpack::scalar;
    #[pymodule_export]
    use super::losses::label_relaxation;
    #[pymodule_export]
    use super::memory::empty_cache;
    #[pymodule_export]
    use super::metrics::calibration_bins;
    #[pymodule_export]
    use super::threads::uses_torch_threads;
}

/// Learns how to read torch's tensors, and to use its threads. Called once, when the package is imported.
#[pyfunction]
fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    dlpack::connect(torch)?;
    threads::connect(torch)
}
