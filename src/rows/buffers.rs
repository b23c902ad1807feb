//! Vectors whose length the caller decides.
//!
//! An expanded array may have more rows or more classes than fit into memory, or the process a limit: an error, where
//! `Vec` itself would abort the process.

use super::error::Error;

/// An empty vector with room for `n` elements.
pub(crate) fn with_room<T>(n: usize) -> Result<Vec<T>, Error> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(n).map_err(|_| Error::Memory { bytes: n.saturating_mul(size_of::<T>()) })?;
    Ok(buffer)
}

/// `n` copies of a value.
pub(crate) fn filled<T: Clone>(value: T, n: usize) -> Result<Vec<T>, Error> {
    let mut buffer = with_room(n)?;
    buffer.resize(n, value);
    Ok(buffer)
}

/// The elements of an iterator.
pub(crate) fn collected<T>(elements: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut buffer = with_room(elements.len())?;
    buffer.extend(elements);
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert_eq!(filled(1.0_f64, 1 << 50), Err(Error::Memory { bytes: 1 << 53 }));
        assert_eq!(with_room::<f64>(usize::MAX), Err(Error::Memory { bytes: usize::MAX }));
        assert_eq!(collected([1, 2].iter().map(|x| x + 1)), Ok(vec![2, 3]));
    }
}
