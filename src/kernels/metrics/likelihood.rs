//! The derivatives of the likelihood with respect to the temperature.
//!
//! With b = 1/T, the negative log-likelihood of a row is ln sum_k e^(b z_k) - b z_y. Its first derivative is
//! E[z] - z_y, and its second derivative is Var[z], both under softmax(b z).

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::lanes::{self, fold, widen};
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real};
use crate::threads::{self, Tiles};

pub(super) fn check_type(logits: &AnyRows<'_>) -> Result<(), Error> {
    if matches!(logits, AnyRows::Bool(_)) {
        return Err(Error::r#type(
            "Expected argument `logits` to be of a floating-point type, but got bool.",
        ));
    }
    Ok(())
}

/// The first two derivatives of the negative log-likelihood with respect to the inverse temperature.
#[derive(Clone, Copy, Default)]
pub(super) struct Derivatives {
    pub(super) first: f64,
    pub(super) second: f64,
}

/// The derivatives at an inverse temperature, summed over the rows; exponentials are computed in the type `F`.
pub(super) fn derivatives<E: Element, F: Real>(
    rows: &Rows<'_, E>,
    targets: &Targets,
    inverse: f64,
    isa: Isa,
) -> Result<Derivatives, Error> {
    let tiles = Tiles::new(rows.len(), rows.n_classes());
    let empty = Ok((Derivatives::default(), usize::MAX));
    // Tiles are summed in their order, so that the result does not depend on the number of threads.
    let parts = threads::parallel_collect(tiles.len(), empty, &|range, parts| {
        for (tile, part) in range.zip(parts) {
            let range = tiles.rows(tile..tile + 1);
            *part = simd::run(
                isa,
                DerivativesOfRows::<E, F> { rows, targets, inverse: F::from_f64(inverse), range },
            );
        }
    })?;
    let mut sum = Derivatives::default();
    for part in parts {
        let (part, invalid) = part?;
        if invalid < usize::MAX {
            return Err(invalid_logits(invalid));
        }
        sum.first += part.first;
        sum.second += part.second;
    }
    Ok(sum)
}

fn invalid_logits(row: usize) -> Error {
    let why = "logits that have a softmax (no NaN, no +inf), in which the target class is possible".into();
    Error::Row { argument: "logits", row, why }
}

struct DerivativesOfRows<'a, E: Element, F> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    inverse: F,
    range: Range<usize>,
}

/// The number of vectors that are summed in their own type before they are added to a sum in `f64`.
pub(super) const VECTORS: usize = 8;

impl<E: Element, F: Real> Kernel for DerivativesOfRows<'_, E, F> {
    /// The sums, and the first row that has no likelihood.
    type Output = Result<(Derivatives, usize), Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut total = Derivatives::default();
        let mut scratch = self.rows.scratch()?;
        for i in self.range {
            let Some(y) = self.targets.class(i) else {
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let max = maximum(row);
            let z = row[y].widen().to_f64();
            if z == f64::NEG_INFINITY {
                return Ok((total, i));
            }
            let distance = (z - max.to_f64()).max(f64::MIN);
            // sum of e^(b d) d^n, n = 0, 1, 2, with d = z - max.
            let mut sums = [[0.0_f64; LANES]; 3];
            let (vectors, tail) = row.as_chunks::<LANES>();
            for chunk in vectors.chunks(VECTORS) {
                add_powers(&mut sums, chunk, max, self.inverse);
            }
            let mut added = 0.0;
            if !tail.is_empty() {
                // Padded with the maximum, which only adds to the first sum: d is 0.
                add_powers(&mut sums, &[lanes::load(tail, E::narrow(max))], max, self.inverse);
                added = (LANES - tail.len()) as f64;
            }
            let [sum, weighted, squares] = sums.map(|sum| fold(sum, |a, b| a + b) * (1.0 / F::BIAS));
            let (mean, square) = (weighted / (sum - added), squares / (sum - added));
            let first = mean - distance;
            if first.is_nan() || max.to_f64() == f64::INFINITY {
                return Ok((total, i));
            }
            total.first += first;
            total.second += (square - mean * mean).max(0.0);
        }
        Ok((total, usize::MAX))
    }
}

/// Adds e^(b d) d^n, n = 0, 1, 2, with d = z - max, to three sums.
#[inline(always)]
fn add_powers<E: Element, F: Real>(
    sums: &mut [Lanes<f64>; 3],
    vectors: &[Lanes<E>],
    max: E::Wide,
    inverse: F,
) {
    let (mut part, max) = ([[F::ZERO; LANES]; 3], F::from_f64(max.to_f64()));
    for z in vectors {
        let z = widen(z);
        let mut d = [F::ZERO; LANES];
        for lane in 0..LANES {
            let distance = F::from_f64(z[lane].to_f64()).sub(max);
            // e^(b d) d must be 0 for d = -inf, not NaN.
            d[lane] = if distance < F::LOWEST { F::LOWEST } else { distance };
        }
        let e = lanes::map(&d, |d| d.mul(inverse).exp_biased());
        let ed = lanes::zip(&e, &d, |e, d| e.mul(d));
        part[0] = lanes::add(&part[0], &e);
        part[1] = lanes::add(&part[1], &ed);
        part[2] = lanes::add(&part[2], &lanes::zip(&ed, &d, |ed, d| ed.mul(d)));
    }
    for (sum, part) in sums.iter_mut().zip(&part) {
        *sum = lanes::add_to(sum, part);
    }
}

/// The maximum of a row. NaN is skipped; it shows up in the sums.
#[inline(always)]
pub(super) fn maximum<E: Element>(row: &[E]) -> E::Wide {
    let (vectors, tail) = row.as_chunks::<LANES>();
    let mut max = [E::Wide::LOWEST; LANES];
    for vector in vectors {
        max = lanes::max(&max, &widen(vector));
    }
    let mut most =
        if vectors.is_empty() { E::Wide::LOWEST } else { fold(max, |a, b| if b > a { b } else { a }) };
    for z in tail {
        let z = z.widen();
        most = if z > most { z } else { most };
    }
    most
}
