//! Connects the kernels to torch's thread pool, if it can be found in the running process.

use std::path::PathBuf;

use libloading::Library;
use pyo3::prelude::*;

use crate::threads::{TorchParallelFor, use_torch, uses_torch};

/// Looks up `torch_parallel_for`; without it, the kernels use rayon's thread pool.
pub(super) fn connect(torch: &Bound<'_, PyModule>) -> PyResult<()> {
    let folder: PathBuf = torch.getattr("__path__")?.get_item(0)?.extract()?;
    let file = libloading::library_filename("torch_cpu");
    let Some(library) = loaded(&folder.join("lib").join(&file)).or_else(|| loaded(file.as_ref())) else {
        return Ok(());
    };
    // SAFETY: the type is that of torch's stable C ABI.
    let function = unsafe { library.get::<TorchParallelFor>(b"torch_parallel_for\0") };
    if let Ok(function) = function {
        // SAFETY: as above; the library is never closed, because it is forgotten below.
        unsafe { use_torch(*function) };
    }
    std::mem::forget(library);
    Ok(())
}

/// Whether kernels run on torch's thread pool.
#[pyfunction]
pub(super) fn uses_torch_threads() -> bool {
    uses_torch()
}

/// The library, if the process has already loaded it.
fn loaded(file: &std::path::Path) -> Option<Library> {
    #[cfg(unix)]
    {
        use libloading::os::unix;
        const NOLOAD: i32 = libc::RTLD_NOLOAD;
        // SAFETY: only a loaded library is opened, so no initializer runs.
        unsafe { unix::Library::open(Some(file), unix::RTLD_LAZY | NOLOAD) }.ok().map(Library::from)
    }
    #[cfg(windows)]
    {
        libloading::os::windows::Library::open_already_loaded(file).ok().map(Library::from)
    }
}
