//! Finds torch's thread pool in the running process.

use std::path::PathBuf;

use libloading::Library;
use pyo3::prelude::*;

use crate::threads::{TorchParallelFor, use_torch, uses_torch};

/// Uses torch's pool, if it can be found; rayon's otherwise.
pub(super) fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    let folder: PathBuf = torch.getattr("__path__")?.get_item(0)?.extract()?;
    let file = libloading::library_filename("torch_cpu");
    let Some(library) = loaded(&folder.join("lib").join(&file)).or_else(|| loaded(file.as_ref())) else {
        return Ok(());
    };
    // SAFETY: the type is that of the header, promised for all later versions.
    let function = unsafe { library.get::<TorchParallelFor>(b"torch_parallel_for\0") };
    if let Ok(function) = function {
        // SAFETY: as above; the library is never closed, below.
        unsafe { use_torch(*function) };
    }
    std::mem::forget(library);
    Ok(())
}

/// Whether torch's pool was found.
#[pyfunction]
pub(super) fn uses_torch_threads() -> bool {
    uses_torch()
}

/// A library that the process has loaded already; none is loaded anew.
fn loaded(file: &std::path::Path) -> Option<Library> {
    #[cfg(unix)]
    {
        use libloading::os::unix;
        const NOLOAD: i32 = libc::RTLD_NOLOAD;
        // SAFETY: it is loaded already, so nothing is run.
        unsafe { unix::Library::open(Some(file), unix::RTLD_LAZY | NOLOAD) }.ok().map(Library::from)
    }
    #[cfg(windows)]
    {
        libloading::os::windows::Library::open_already_loaded(file).ok().map(Library::from)
    }
}
