//! Access to torch's tensors: through DLPack or, in the build with pyo3-tch, through tch. Both have the same functions.

#[cfg(not(feature = "pyo3-tch"))]
pub(super) use super::dlpack::*;
#[cfg(feature = "pyo3-tch")]
pub(super) use super::pyo3_tch::*;
