//! Distributes tiles of rows over threads.
//!
//! If the process uses torch, the work runs on torch's own thread pool: its OpenMP threads spin for a while after
//! each operator, and a second pool would compete with them for the cores. Otherwise it runs on rayon's pool. In a
//! forked child both pools have lost their threads, and waiting for them would hang, so the calling thread does all
//! the work.
//!
//! The number of rows in a tile depends on the shape only. Sums are computed per tile and added in the order of the
//! tiles, so that results do not depend on the number of threads.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use crate::rows::{Error, filled};
use crate::simd::LANES;

/// The number of elements in a tile: a few microseconds of work, so that small inputs stay on the calling thread,
/// and enough for sixteen rows (one per lane) of a thousand classes.
const TILE_ELEMENTS: usize = 16_384;

/// A division of rows into tiles.
#[derive(Clone, Copy, Debug)]
pub struct Tiles {
    n_rows: usize,
    rows_per_tile: usize,
}

impl Tiles {
    /// Divides `n_rows` rows of `n_classes` elements.
    pub fn new(n_rows: usize, n_classes: usize) -> Tiles {
        let rows = TILE_ELEMENTS / n_classes.max(1);
        // A multiple of the lanes, because kernels process rows of few classes in groups of this size.
        let rows = if rows > LANES { rows - rows % LANES } else { rows.max(1) };
        Tiles { n_rows, rows_per_tile: rows }
    }

    /// The number of tiles.
    pub fn len(&self) -> usize {
        self.n_rows.div_ceil(self.rows_per_tile)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.n_rows == 0
    }

    /// The rows of a range of tiles.
    #[inline(always)]
    pub fn rows(&self, tiles: Range<usize>) -> Range<usize> {
        tiles.start * self.rows_per_tile..(tiles.end * self.rows_per_tile).min(self.n_rows)
    }
}

/// Calls `work`, on several threads if possible, with disjoint ranges that cover `0..n`.
pub fn parallel_for(n: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
    if n <= 1 || forked() {
        work(0..n);
    } else if let Some(torch) = TORCH.get() {
        torch.share(n, work);
    } else {
        let threads = rayon::current_num_threads();
        if threads == 1 {
            return work(0..n);
        }
        // Several ranges per thread balance rows of different cost.
        let length = n.div_ceil(4 * threads);
        (0..n.div_ceil(length)).into_par_iter().for_each(|i| work(i * length..((i + 1) * length).min(n)));
    }
}

/// As [`parallel_for`], where `work` also gets the slots of its range in the returned vector, initially `empty`.
pub fn parallel_collect<T: Send + Clone>(
    n: usize,
    empty: T,
    work: &(dyn Fn(Range<usize>, &mut [T]) + Sync),
) -> Result<Vec<T>, Error> {
    let mut out = filled(empty, n)?;
    let parts = Disjoint::new(&mut out);
    parallel_for(n, &|range| {
        // SAFETY: the ranges of `parallel_for` are disjoint.
        work(range.clone(), unsafe { parts.part(range) });
    });
    Ok(out)
}

/// A mutable slice, of which several threads may write disjoint parts.
pub(crate) struct Disjoint<'a, T> {
    data: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: by the contract of `part`, threads access disjoint parts.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { data: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// The elements in `range`.
    ///
    /// # Safety
    ///
    /// Parts that are in use at the same time must not overlap.
    #[allow(clippy::mut_from_ref)] // safe by the contract
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range is inside the slice, as checked above, and nothing else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(range.start), range.len()) }
    }
}

/// The type of `torch_parallel_for`, part of torch's stable C ABI since 2.10 (torch/csrc/stable/c/shim.h).
pub type TorchParallelFor = unsafe extern "C" fn(
    begin: i64,
    end: i64,
    grain: i64,
    work: unsafe extern "C" fn(begin: i64, end: i64, context: *mut c_void),
    context: *mut c_void,
) -> i32;

struct Torch(TorchParallelFor);

static TORCH: OnceLock<Torch> = OnceLock::new();

/// Makes torch's thread pool do the work from now on, with the number of threads that torch is set to.
///
/// # Safety
///
/// `parallel_for` must be torch's function, and torch must never be unloaded.
pub unsafe fn use_torch(parallel_for: TorchParallelFor) {
    watch_forks();
    let _ = TORCH.set(Torch(parallel_for));
}

/// Whether torch's thread pool does the work.
pub fn uses_torch() -> bool {
    TORCH.get().is_some()
}

/// The context pointer of torch's C function: the work, and a panic in it, which must not unwind through C.
struct Context<'a> {
    work: &'a (dyn Fn(Range<usize>) + Sync),
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

unsafe extern "C" fn call(begin: i64, end: i64, context: *mut c_void) {
    // SAFETY: `Torch::share` passes this context, which outlives the call.
    let context = unsafe { &*context.cast::<Context<'_>>() };
    let range = begin as usize..end as usize;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (context.work)(range))) {
        *context.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
}

impl Torch {
    fn share(&self, n: usize, work: &(dyn Fn(Range<usize>) + Sync)) {
        let mut context = Context { work, panic: Mutex::new(None) };
        let pointer = (&raw mut context).cast::<c_void>();
        // SAFETY: this is torch's function, by the contract of `use_torch`; it returns after all work is done.
        let status = unsafe { (self.0)(0, n as i64, 1, call, pointer) };
        if let Some(panic) = context.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        assert_eq!(status, 0, "torch_parallel_for failed");
    }
}

#[cfg(unix)]
mod fork {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering};

    static FORKED: AtomicBool = AtomicBool::new(false);

    extern "C" fn in_child() {
        FORKED.store(true, Ordering::Relaxed);
    }

    /// Registers the handler that detects forks.
    pub(super) fn watch_forks() {
        static ONCE: Once = Once::new();
        // SAFETY: the handler only stores a flag.
        ONCE.call_once(|| unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        });
    }

    /// Whether this process was forked from one that may have used its thread pool.
    pub(super) fn forked() -> bool {
        watch_forks();
        FORKED.load(Ordering::Relaxed)
    }
}

#[cfg(not(unix))]
mod fork {
    pub(super) fn watch_forks() {}

    pub(super) fn forked() -> bool {
        false
    }
}

use fork::{forked, watch_forks};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        for (n_rows, n_classes) in [(0, 10), (1, 1), (1632, 10), (1633, 10), (9999, 5), (7, 200_000)] {
            let tiles = Tiles::new(n_rows, n_classes);
            let rows: Vec<usize> = (0..tiles.len()).flat_map(|t| tiles.rows(t..t + 1)).collect();
            assert_eq!(rows, (0..n_rows).collect::<Vec<_>>());
        }
    }

    #[test]
    fn parallel_collect_visits_every_index_once() {
        for n in [0, 1, 2, 63, 1000] {
            let out = parallel_collect(n, 0, &|range, part: &mut [usize]| {
                for (i, slot) in range.zip(part) {
                    *slot += i + 1;
                }
            });
            assert_eq!(out.unwrap(), (1..=n).collect::<Vec<_>>());
        }
    }

    unsafe extern "C" fn serial(
        begin: i64,
        end: i64,
        _grain: i64,
        work: unsafe extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32 {
        // SAFETY: these are the arguments of `Torch::share`.
        unsafe { work(begin, end, context) };
        0
    }

    #[test]
    fn panics_do_not_unwind_through_c() {
        let caught = catch_unwind(|| Torch(serial).share(3, &|_| panic!("inside")));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "inside");
    }
}
