//! Converts the errors of the crate to Python exceptions.

use pyo3::exceptions::{PyIndexError, PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::rows::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let message = error.to_string();
        match error {
            Error::Type(_) => PyTypeError::new_err(message),
            #[cfg(feature = "tch")]
            Error::Torch(_) => pyo3::exceptions::PyRuntimeError::new_err(message),
            Error::Memory { .. } => PyMemoryError::new_err(message),
            Error::TargetOutOfRange { .. } => PyIndexError::new_err(message),
            Error::Value(_) | Error::Row { .. } | Error::NotADistribution { .. } => {
                PyValueError::new_err(message)
            }
        }
    }
}
