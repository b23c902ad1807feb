//! Temperature scaling: one number T that makes softmax(z / T) calibrated (Guo et al., "On Calibration of Modern
//! Neural Networks", ICML 2017, section 4.2).
//!
//! By likelihood: with b = 1/T the negative log-likelihood, sum of ln sum_k e^(b z_k) - b z_y, is convex, and its
//! derivative f(b) = sum of E[z] - z_y increases, with f'(b) = sum of Var[z]. We look for its root by Newton's
//! method on ln b, kept inside the bracket that the signs of f make: first in the logits' own precision, then in
//! double precision. By a grid: see [`temperature_grid`](super::temperature_grid).

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::lanes::{self, fold, widen};
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real};
use crate::threads::{self, Tiles};

use super::predictions::typed;

/// The range of temperatures that are looked through.
pub const RANGE: Range<f64> = 1e-4..1e4;

/// The temperature of the greatest likelihood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// T
    pub temperature: f64,
    /// Whether the likelihood grows past the end of [`RANGE`]: no temperature is the best.
    pub at_end: bool,
    /// How many times the logits were read.
    pub passes: usize,
}

/// Finds the temperature of the greatest likelihood, to about 1e-12 of itself.
pub fn fit_likelihood(logits: &AnyRows<'_>, targets: &Targets, isa: Isa) -> Result<Fit, Error> {
    check_type(logits)?;
    typed!(logits, rows => fit(rows, targets, isa))
}

pub(super) fn check_type(logits: &AnyRows<'_>) -> Result<(), Error> {
    if matches!(logits, AnyRows::Bool(_)) {
        return Err(Error::r#type(
            "Expected argument `logits` to be of a floating-point type, but got bool.",
        ));
    }
    Ok(())
}

fn fit<E: Element>(rows: &Rows<'_, E>, targets: &Targets, isa: Isa) -> Result<Fit, Error> {
    targets.check_shape(rows.len(), rows.n_classes())?;
    let mut search = Search::new(0.0);
    let mut is_double = size_of::<E::Wide>() == size_of::<f64>();
    for passes in 1.. {
        let inverse = search.at.exp();
        let slope = if is_double {
            slope::<E, f64>(rows, targets, inverse, isa)?
        } else {
            slope::<E, E::Wide>(rows, targets, inverse, isa)?
        };
        let step = search.step(slope);
        if is_double {
            match step {
                Step::On { .. } => {}
                Step::Found => return Ok(Fit { temperature: (-search.at).exp(), at_end: false, passes }),
                Step::End => return Ok(Fit { temperature: (-search.at).exp(), at_end: true, passes }),
            }
        } else if passes >= 10 || !matches!(step, Step::On { newton } if newton.abs() > 1e-2) {
            // Close enough; but the signs of single precision are not trusted, nor the ends they lead to.
            let at = if matches!(step, Step::End) { 0.0 } else { search.at };
            (is_double, search) = (true, Search::new(at));
        }
    }
    unreachable!("the bracket shrinks with every step")
}

/// Where the derivative is 0, looked for by ln b.
struct Search {
    at: f64,
    /// The greatest argument at which the derivative was seen to be negative, and the least at which it was not.
    below: Option<f64>,
    above: Option<f64>,
    steps: usize,
}

enum Step {
    /// `at` is the next argument; the step that Newton's method asked for.
    On { newton: f64 },
    /// The derivative is 0 at `at`.
    Found,
    /// It does not change its sign up to `at`, an end of the range.
    End,
}

impl Search {
    fn new(at: f64) -> Search {
        Search { at, below: None, above: None, steps: 0 }
    }

    fn step(&mut self, Slope { first, second }: Slope) -> Step {
        let (least, most) = (-RANGE.end.ln(), -RANGE.start.ln());
        if first == 0.0 && (second > 0.0 || self.below.or(self.above).is_none()) {
            return Step::Found;
        }
        // Where all underflows, the sign is the one that led there.
        let is_negative = first < 0.0 || first == 0.0 && self.below.is_some();
        if is_negative {
            self.below = Some(self.at)
        } else {
            self.above = Some(self.at)
        }
        if is_negative && self.at >= most || !is_negative && self.at <= least {
            return Step::End;
        }
        let (low, high) = (self.below.unwrap_or(least), self.above.unwrap_or(most));
        let newton = -first / (self.at.exp() * second);
        let newton = if newton.is_finite() {
            newton
        } else if is_negative {
            3.0
        } else {
            -3.0
        };
        if newton.abs() < 1e-7 && second > 0.0 || high - low < 1e-13 {
            // Newton's method squares the error.
            self.at = (self.at + newton).clamp(low, high);
            return Step::Found;
        }
        self.steps += 1;
        let next = self.at + newton.clamp(-3.0, 3.0);
        // Long steps have had their chance; where they go to and fro, the bracket is halved.
        let is_slow = self.steps > 8 && newton.abs() > 0.5 || self.steps > 40;
        self.at = match (self.below, self.above) {
            (Some(_), Some(_)) if is_slow || next <= low || next >= high => (low + high) / 2.0,
            (Some(_), Some(_)) => next,
            // Far away on one side: the end of the range tells whether there is another.
            _ if self.steps > 5 && is_negative => most,
            _ if self.steps > 5 => least,
            _ => next.clamp(least, most),
        };
        Step::On { newton }
    }
}

/// The first two derivatives of the negative log-likelihood by the inverse temperature.
#[derive(Clone, Copy, Default)]
struct Slope {
    first: f64,
    second: f64,
}

fn slope<E: Element, F: Real>(
    rows: &Rows<'_, E>,
    targets: &Targets,
    inverse: f64,
    isa: Isa,
) -> Result<Slope, Error> {
    let tiles = Tiles::new(rows.len(), rows.n_classes());
    let empty = (Slope::default(), usize::MAX);
    // Summed by tiles, in their order: the result does not depend on the threads.
    let parts = threads::collect(tiles.len(), empty, &|range, parts| {
        for (tile, part) in range.zip(parts) {
            let range = tiles.rows(tile..tile + 1);
            *part =
                simd::run(isa, SlopeOfRows::<E, F> { rows, targets, inverse: F::from_f64(inverse), range });
        }
    });
    let mut sum = Slope::default();
    for (part, bad) in parts {
        if bad < usize::MAX {
            return Err(no_logits(bad));
        }
        sum.first += part.first;
        sum.second += part.second;
    }
    Ok(sum)
}

fn no_logits(row: usize) -> Error {
    let why = "logits that have a softmax (no NaN, no +inf), in which the target class is possible".into();
    Error::Row { argument: "logits", row, why }
}

struct SlopeOfRows<'a, E: Element, F> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    inverse: F,
    range: Range<usize>,
}

/// Vectors that are summed in their own type.
pub(super) const VECTORS: usize = 8;

impl<E: Element, F: Real> Kernel for SlopeOfRows<'_, E, F> {
    /// And the first row that has no likelihood.
    type Output = (Slope, usize);

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut total = Slope::default();
        let mut scratch = Vec::new();
        for i in self.range {
            let Some(y) = self.targets.class(i) else {
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let max = maximum(row);
            let z = row[y].widen().to_f64();
            if z == f64::NEG_INFINITY {
                return (total, i);
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
                // Filled up with the maximum, which adds to the first sum alone.
                let mut padded = [E::narrow(max); LANES];
                padded[..tail.len()].copy_from_slice(tail);
                add_powers(&mut sums, &[padded], max, self.inverse);
                added = (LANES - tail.len()) as f64;
            }
            let [sum, first, second] = sums.map(|sum| fold(sum, |a, b| a + b) * (1.0 / F::BIAS));
            let (mean, square) = (first / (sum - added), second / (sum - added));
            let slope = mean - distance;
            if slope.is_nan() || max.to_f64() == f64::INFINITY {
                return (total, i);
            }
            total.first += slope;
            total.second += (square - mean * mean).max(0.0);
        }
        (total, usize::MAX)
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
            // Where the exponential is 0, nothing may be infinite.
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

/// NaN does not count; it shows in the sums.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logits of classes drawn from their softmax, then sharpened.
    pub(crate) fn sample(n: usize, n_classes: usize, sharpness: f64) -> (Vec<f64>, Vec<i64>) {
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let (mut z, mut y) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let row: Vec<f64> = (0..n_classes).map(|_| 4.0 * uniform()).collect();
            let mut left = uniform() * row.iter().map(|z| z.exp()).sum::<f64>();
            let class = row.iter().position(|z| {
                left -= z.exp();
                left <= 0.0
            });
            y.push(class.unwrap_or(n_classes - 1) as i64);
            z.extend(row.iter().map(|z| z * sharpness));
        }
        (z, y)
    }

    fn derivative(z: &[f64], y: &[i64], n_classes: usize, b: f64) -> f64 {
        z.chunks(n_classes)
            .zip(y)
            .map(|(z, &y)| {
                let max = z.iter().copied().fold(f64::MIN, f64::max);
                let e: Vec<f64> = z.iter().map(|z| ((z - max) * b).exp()).collect();
                let mean = e.iter().zip(z).map(|(e, z)| e * z).sum::<f64>() / e.iter().sum::<f64>();
                mean - z[y as usize]
            })
            .sum()
    }

    #[test]
    fn the_derivative_is_0_at_the_fit() {
        for (n_classes, sharpness) in [(2, 0.01), (3, 1.0), (10, 30.0), (16, 0.3), (100, 3.0), (300, 1.0)] {
            let (z, y) = sample(3000, n_classes, sharpness);
            let targets = Targets::new(&y, n_classes, -1).unwrap();
            let rows = AnyRows::F64(Rows::from_slice(&z, n_classes).unwrap());
            let got = fit_likelihood(&rows, &targets, Isa::best()).unwrap();
            let b = 1.0 / got.temperature;
            let signs = [0.999_999_999, 1.000_000_001].map(|f| derivative(&z, &y, n_classes, f * b));
            assert!(signs[0] < 0.0 && signs[1] > 0.0, "{got:?} {signs:?}");
            assert!(
                (got.temperature / sharpness - 1.0).abs() < 0.2 && !got.at_end && got.passes <= 12,
                "{got:?}"
            );
            // Single precision has other logits, and as exact a fit of these.
            let single: Vec<f32> = z.iter().map(|&z| z as f32).collect();
            let rows = AnyRows::F32(Rows::from_slice(&single, n_classes).unwrap());
            let close = fit_likelihood(&rows, &targets, Isa::best()).unwrap();
            assert!((close.temperature / got.temperature - 1.0).abs() < 1e-6, "{close:?}");
            for isa in Isa::available() {
                assert_eq!(fit_likelihood(&rows, &targets, isa).unwrap(), close);
            }
        }
    }

    fn fit_of(z: &[f64], n_classes: usize, y: &[i64]) -> Result<Fit, Error> {
        let targets = Targets::new(y, n_classes, -1).unwrap();
        fit_likelihood(&AnyRows::F64(Rows::from_slice(z, n_classes).unwrap()), &targets, Isa::best())
    }

    #[test]
    fn where_no_temperature_is_the_best() {
        let ends = [1.0 / 1e-4_f64, 1.0 / 1e4].map(|b| 1.0 / b);
        for (z, y, end) in [
            (vec![1.0, 0.0, 0.0, 2.0], vec![0, 1], ends[0]),
            (vec![1.0, 0.0], vec![0], ends[0]),
            (vec![1e-4, 0.0], vec![0], ends[0]),
            (vec![1.0, 0.0, 0.0, 2.0], vec![1, 0], ends[1]),
            (vec![1e30, 0.0, 0.0, 1e30], vec![1, 0], ends[1]),
        ] {
            let got = fit_of(&z, 2, &y).unwrap();
            assert!(
                got.at_end && (got.temperature / end - 1.0).abs() < 1e-12 && got.passes < 20,
                "{z:?} {got:?}"
            );
        }
        let same = fit_of(&[3.0, 3.0], 2, &[0]).unwrap();
        assert_eq!((same.temperature, same.at_end), (1.0, false));
    }

    #[test]
    fn far_optima_are_found() {
        for d in [1e-3, 1.0, 100.0, 200.0, 800.0, 20_000.0] {
            // One of ten rows is wrong: softmax gives .9 at the optimum, d / ln 9.
            let z: Vec<f64> = (0..10).flat_map(|_| [d, 0.0]).collect();
            let y: Vec<i64> = (0..10).map(|i| i64::from(i == 0)).collect();
            let exact = d / 9.0_f64.ln();
            let got = fit_of(&z, 2, &y).unwrap();
            assert!((got.temperature / exact - 1.0).abs() < 1e-11 && !got.at_end, "{d} {got:?}");
            let single: Vec<f32> = z.iter().map(|&z| z as f32).collect();
            let targets = Targets::new(&y, 2, -1).unwrap();
            let rows = AnyRows::F32(Rows::from_slice(&single, 2).unwrap());
            let got = fit_likelihood(&rows, &targets, Isa::best()).unwrap();
            assert!((got.temperature / exact - 1.0).abs() < 1e-6, "{d} {got:?}");
        }
        let huge = [[1e308, -1e308]; 4];
        assert!(fit_of(huge.as_flattened(), 2, &[0, 0, 0, 1]).unwrap().at_end);
    }

    proptest! {
        #[test]
        fn is_where_bisection_ends(
            rows in prop::collection::vec((prop::array::uniform3(-9.0..9.0_f64), 0..3_i64), 1..40),
            scale in -6.0..6.0_f64,
        ) {
            let z: Vec<f64> = rows.iter().flat_map(|r| r.0.map(|z| z * scale.exp())).collect();
            let y: Vec<i64> = rows.iter().map(|r| r.1).collect();
            let got = fit_of(&z, 3, &y).unwrap();
            prop_assert!(got.passes < 60, "{got:?}");
            let (mut low, mut high) = (-1e4_f64.ln(), 1e4_f64.ln());
            let sign = |at: f64| derivative(&z, &y, 3, at.exp());
            if sign(high) <= 0.0 || sign(low) >= 0.0 {
                prop_assert!(got.at_end || got.temperature == 1.0, "{got:?}");
                return Ok(());
            }
            while high - low > 1e-12 {
                let middle = (low + high) / 2.0;
                if sign(middle) < 0.0 { low = middle } else { high = middle }
            }
            // As far as the signs of sums in double precision tell.
            let error = (got.temperature.ln() + low).abs();
            let flat = sign(low - 1e-9).abs().min(sign(low + 1e-9).abs()) < 1e-12 * scale.exp();
            prop_assert!(error < 1e-9 || flat, "{error} {got:?}");
        }
    }

    #[test]
    fn rows_without_a_likelihood_are_named() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for bad in [[nan, 0.0], [0.0, nan], [inf, 0.0], [0.0, inf], [-inf, -inf], [-inf, 0.0]] {
            let z = [[1.0, 2.0], bad, [nan, nan]];
            let got = fit_of(z.as_flattened(), 2, &[0, 0, 0]);
            assert!(matches!(got, Err(Error::Row { row: 1, .. })), "{bad:?} {got:?}");
        }
        let masked = fit_of(&[0.5, 0.0, -inf, 0.0, 2.0, -inf], 3, &[1, 0]).unwrap();
        let without = fit_of(&[0.5, 0.0, 0.0, 2.0], 2, &[1, 0]).unwrap();
        assert!((masked.temperature / without.temperature - 1.0).abs() < 1e-12 || masked.at_end);
    }
}
