//! The memory of large gradients, kept from one step to the next.
//!
//! Memory that is new to the process costs more than the gradient that is written to it: the system maps and
//! zeroes it page by page, at several times the cost of the whole computation. malloc gives blocks of this
//! size back to the system at once, so each training step would pay anew. We keep the block of the last
//! large gradient that was freed, one per process, and use it for the next one.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::rows::Error;

/// Smaller blocks stay with malloc anyway (glibc's largest threshold for giving them back).
const LARGE: usize = 32 << 20;
/// Larger ones are not worth keeping from the rest of the machine.
const HUGE: usize = 1 << 30;
/// A cache line.
const ALIGNMENT: usize = 64;

/// Memory of our own.
struct Block {
    data: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory of no one else.
unsafe impl Send for Block {}

impl Block {
    fn new(size: usize) -> Option<Block> {
        let layout = Layout::from_size_align(size, ALIGNMENT).ok()?;
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { alloc(layout) }).map(|data| Block { data, layout })
    }

    /// At most a quarter may go unused.
    fn fits(&self, size: usize) -> bool {
        let own = self.layout.size();
        size <= own && own - size <= own / 4
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and the only owner.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
    }
}

static KEPT: Mutex<Option<Block>> = Mutex::new(None);

/// Never waits: who finds it taken does without (its holder may be a thread that a fork left behind).
fn kept() -> Option<MutexGuard<'static, Option<Block>>> {
    match KEPT.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A block in use; dropped, it is kept for the next one.
pub(crate) struct Lent(Option<Block>);

impl Lent {
    /// Where it begins: a multiple of the size of a cache line.
    pub(crate) fn data(&self) -> *mut u8 {
        self.0.as_ref().expect("taken only by drop").data.as_ptr()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let freed = self.0.take().filter(|block| block.layout.size() <= HUGE);
        if freed.is_some()
            && let Some(mut kept) = kept()
        {
            let before = std::mem::replace(&mut *kept, freed);
            // Giving memory back takes a while; not under the lock.
            drop(kept);
            drop(before);
        }
    }
}

/// Memory for something of `size` bytes that lasts for a step; none where malloc does as well.
pub(crate) fn lend(size: usize) -> Result<Option<Lent>, Error> {
    if size < LARGE {
        return Ok(None);
    }
    let block = kept()
        .and_then(|mut kept| kept.take_if(|block| block.fits(size)))
        .or_else(|| Block::new(size))
        .ok_or(Error::Memory { bytes: size })?;
    Ok(Some(Lent(Some(block))))
}

/// Gives the memory that is kept for the next large gradient back to the system.
pub fn empty_cache() {
    if let Some(mut kept) = kept() {
        drop(kept.take());
    }
}
