//! A cache of one buffer for large gradients.
//!
//! Memory that is new to the process is expensive: the system maps and zeroes it page by page, which takes several
//! times as long as computing a gradient. malloc returns large blocks to the system when they are freed, so that
//! every training step would pay this cost again. This cache keeps the buffer of the last large gradient that was
//! freed, one per process, for the next gradient.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::rows::Error;

/// The smallest size that is cached. glibc's malloc keeps blocks of up to 32 MiB itself, but takes them in turns, so that
/// fewer of them stay in the processor's cache.
const MIN_SIZE: usize = 2 << 20;
/// The largest size that is cached, so that the process does not hold too much memory.
const MAX_SIZE: usize = 1 << 30;
/// The size of a cache line.
const ALIGNMENT: usize = 64;

/// An owned block of memory.
struct Block {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is the only owner of its memory.
unsafe impl Send for Block {}

impl Block {
    fn new(size: usize) -> Option<Block> {
        let layout = Layout::from_size_align(size, ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc(layout) }).map(|data| Block { data, layout })
    }

    /// Whether the block is large enough, and at most a quarter of it would be unused.
    fn fits(&self, size: usize) -> bool {
        let own = self.layout.size();
        size <= own && own - size <= own / 4
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the memory was allocated with this layout, and this is its only owner.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}

static CACHE: Mutex<Option<Block>> = Mutex::new(None);

/// The cache, or `None` if another thread holds the lock. Waiting could block forever in a forked child, where the
/// holder may be a thread that does not exist.
fn try_cache() -> Option<MutexGuard<'static, Option<Block>>> {
    match CACHE.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A buffer that returns to the cache when it is dropped.
pub(crate) struct CachedBuffer(Option<Block>);

impl CachedBuffer {
    /// The start of the buffer, aligned to a cache line.
    pub(crate) fn data(&self) -> *mut u8 {
        self.0.as_ref().expect("only drop takes the block").data.as_ptr()
    }
}

impl Drop for CachedBuffer {
    fn drop(&mut self) {
        let freed = self.0.take().filter(|block| block.layout.size() <= MAX_SIZE);
        if freed.is_some()
            && let Some(mut cache) = try_cache()
        {
            let replaced = std::mem::replace(&mut *cache, freed);
            // Release the lock first: freeing a large block takes time.
            drop(cache);
            drop(replaced);
        }
    }
}

/// A buffer of at least `size` bytes, or `None` if `size` is so small that malloc is as fast.
pub(crate) fn cached_buffer(size: usize) -> Result<Option<CachedBuffer>, Error> {
    if size < MIN_SIZE {
        return Ok(None);
    }
    let block = try_cache()
        .and_then(|mut cache| cache.take_if(|block| block.fits(size)))
        .or_else(|| Block::new(size))
        .ok_or(Error::Memory { bytes: size })?;
    Ok(Some(CachedBuffer(Some(block))))
}

/// Frees the cached buffer.
pub fn empty_cache() {
    if let Some(mut cache) = try_cache() {
        drop(cache.take());
    }
}
