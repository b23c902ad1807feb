//! Temperature scaling: one number T that calibrates softmax(z / T) (Guo et al., "On Calibration of Modern Neural
//! Networks", ICML 2017, section 4.2), fitted by maximum likelihood.
//!
//! The negative log-likelihood is convex in b = 1/T. The root of its derivative is found by Newton's method on ln b,
//! safeguarded by a bracket: first in the precision of the logits, then in double precision.

use std::ops::Range;

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::{Element, Isa};

use super::likelihood::{Derivatives, check_type, derivatives};
use super::predictions::typed;

/// The range of temperatures that is searched.
pub const RANGE: Range<f64> = 1e-4..1e4;

/// The temperature of maximum likelihood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// The temperature.
    pub temperature: f64,
    /// Whether the likelihood increases up to an end of [`RANGE`], so that no temperature maximizes it.
    pub at_end: bool,
    /// The number of passes over the logits.
    pub passes: usize,
}

/// Finds the temperature of maximum likelihood, to a relative precision of about 1e-12.
pub fn fit_likelihood(logits: &AnyRows<'_>, targets: &Targets, isa: Isa) -> Result<Fit, Error> {
    check_type(logits)?;
    typed!(logits, rows => fit(rows, targets, isa))
}

fn fit<E: Element>(rows: &Rows<'_, E>, targets: &Targets, isa: Isa) -> Result<Fit, Error> {
    targets.check_shape(rows.len(), rows.n_classes())?;
    let mut search = Search::new(0.0);
    let mut is_double = size_of::<E::Wide>() == size_of::<f64>();
    for passes in 1.. {
        let inverse = search.at.exp();
        let derivatives = if is_double {
            derivatives::<E, f64>(rows, targets, inverse, isa)?
        } else {
            derivatives::<E, E::Wide>(rows, targets, inverse, isa)?
        };
        let step = search.step(derivatives);
        if is_double {
            match step {
                Step::Continue { .. } => {}
                Step::Found => return Ok(Fit { temperature: (-search.at).exp(), at_end: false, passes }),
                Step::AtEnd => return Ok(Fit { temperature: (-search.at).exp(), at_end: true, passes }),
            }
        } else if passes >= 10 || !matches!(step, Step::Continue { newton } if newton.abs() > 1e-2) {
            // Close enough for double precision. The bracket is found anew: signs in single precision may be
            // wrong, and so may an end of the range that they led to.
            let at = if matches!(step, Step::AtEnd) { 0.0 } else { search.at };
            (is_double, search) = (true, Search::new(at));
        }
    }
    unreachable!("the bracket shrinks with every step")
}

/// The search for the root of the derivative, in ln b.
struct Search {
    at: f64,
    /// The largest argument so far with a negative derivative.
    below: Option<f64>,
    /// The smallest argument so far with a positive one.
    above: Option<f64>,
    steps: usize,
}

enum Step {
    /// The search continues at the new `at`; `newton` is the step of Newton's method before it was limited.
    Continue { newton: f64 },
    /// The derivative is 0 at `at`.
    Found,
    /// The derivative does not change its sign up to `at`, an end of the range.
    AtEnd,
}

impl Search {
    fn new(at: f64) -> Search {
        Search { at, below: None, above: None, steps: 0 }
    }

    fn step(&mut self, Derivatives { first, second }: Derivatives) -> Step {
        let (least, most) = (-RANGE.end.ln(), -RANGE.start.ln());
        if first == 0.0 && (second > 0.0 || self.below.or(self.above).is_none()) {
            return Step::Found;
        }
        // If everything underflows, the sign is that of the last step.
        let is_negative = first < 0.0 || first == 0.0 && self.below.is_some();
        if is_negative {
            self.below = Some(self.at)
        } else {
            self.above = Some(self.at)
        }
        if is_negative && self.at >= most || !is_negative && self.at <= least {
            return Step::AtEnd;
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
            // This last step squares the error.
            self.at = (self.at + newton).clamp(low, high);
            return Step::Found;
        }
        self.steps += 1;
        let next = self.at + newton.clamp(-3.0, 3.0);
        // Bisection, if Newton's method still takes long steps or oscillates.
        let is_slow = self.steps > 8 && newton.abs() > 0.5 || self.steps > 40;
        self.at = match (self.below, self.above) {
            (Some(_), Some(_)) if is_slow || next <= low || next >= high => (low + high) / 2.0,
            (Some(_), Some(_)) => next,
            // All signs agree so far: jump to the end of the range, where the sign shows if there is a root.
            _ if self.steps > 5 && is_negative => most,
            _ if self.steps > 5 => least,
            _ => next.clamp(least, most),
        };
        Step::Continue { newton }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logits, and classes drawn from their softmax; then the logits are multiplied by `sharpness`.
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
    fn derivative_is_zero_at_the_fit() {
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
            // In single precision the logits are rounded, but the fit is as exact.
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
    fn reports_the_end_of_the_range() {
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
    fn finds_distant_optima() {
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
        fn agrees_with_bisection(
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
            // Unless rounding of the sums hides the sign.
            let error = (got.temperature.ln() + low).abs();
            let flat = sign(low - 1e-9).abs().min(sign(low + 1e-9).abs()) < 1e-12 * scale.exp();
            prop_assert!(error < 1e-9 || flat, "{error} {got:?}");
        }
    }

    #[test]
    fn names_rows_without_likelihood() {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        for invalid in [[nan, 0.0], [0.0, nan], [inf, 0.0], [0.0, inf], [-inf, -inf], [-inf, 0.0]] {
            let z = [[1.0, 2.0], invalid, [nan, nan]];
            let got = fit_of(z.as_flattened(), 2, &[0, 0, 0]);
            assert!(matches!(got, Err(Error::Row { row: 1, .. })), "{invalid:?} {got:?}");
        }
        let masked = fit_of(&[0.5, 0.0, -inf, 0.0, 2.0, -inf], 3, &[1, 0]).unwrap();
        let without = fit_of(&[0.5, 0.0, 0.0, 2.0], 2, &[1, 0]).unwrap();
        assert!((masked.temperature / without.temperature - 1.0).abs() < 1e-12 || masked.at_end);
    }
}
