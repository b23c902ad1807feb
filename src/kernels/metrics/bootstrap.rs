//! The bootstrap of sums over groups, by Poisson weights.
//!
//! In a sample of N out of N rows with replacement, the number of times that a row is drawn is close to an
//! independent Poisson variable of mean 1 (Hanley & MacGibbon, "Creating non-parametric bootstrap samples using
//! Poisson frequencies", 2006). So the rows, sorted by group, are not moved: a resample is a weighted sum over them,
//! divided by the sum of the weights.
//!
//! Each resample has its own random sequence, seeded by its number: results do not depend on the number of threads.

use crate::rows::{Error, with_room};
use crate::simd::lanes::{self, fold};
use crate::simd::{self, Isa, Kernel, LANES, Lanes};
use crate::threads;

use super::predictions::zeros;

/// The sums of one group in one resample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resampled {
    /// The number of drawn rows.
    pub weight: f64,
    /// The sum of their values, whose differences from the mean of the group are rounded to single precision.
    pub value: f64,
}

/// The sums of all groups in each of `n_resamples` resamples; `values[i]` belongs to group `groups[i]`.
pub fn bootstrap(
    values: &[f64],
    groups: &[u32],
    n_groups: usize,
    n_resamples: usize,
    seed: u64,
    isa: Isa,
) -> Result<Vec<Resampled>, Error> {
    if values.len() != groups.len() || groups.iter().any(|&g| g as usize >= n_groups) {
        return Err(Error::value("Expected a group below the number of groups for each value."));
    }
    let sorted = Sorted::new(values, groups, n_groups)?;
    let n = n_groups.saturating_mul(n_resamples);
    let mut out: Vec<Resampled> = zeros(n)?;
    let parts = threads::Disjoint::new(&mut out);
    threads::parallel_for(n_resamples, &|range| {
        for resample in range {
            // SAFETY: `parallel_for` passes every resample to one call only.
            let out = unsafe { parts.part(resample * n_groups..(resample + 1) * n_groups) };
            let random = &mut Random::new(seed, resample as u64);
            // With few rows, a resample may be empty; it is drawn again.
            loop {
                simd::run(isa, Resample { sorted: &sorted, random, out });
                if values.is_empty() || out.iter().any(|group| group.weight > 0.0) {
                    break;
                }
            }
        }
    });
    Ok(out)
}

/// Values sorted by group; each group is padded to whole pairs of vectors.
struct Sorted {
    /// Centered by group, so that rounding to single precision is small relative to the spread.
    values: Vec<f32>,
    /// The number of rows of each group.
    counts: Vec<usize>,
    means: Vec<f64>,
}

/// Sixteen random numbers of 32 bits give 32 weights.
const PAIR: usize = 2 * LANES;

impl Sorted {
    fn new(values: &[f64], groups: &[u32], n_groups: usize) -> Result<Sorted, Error> {
        let mut counts: Vec<usize> = zeros(n_groups)?;
        let mut means: Vec<f64> = zeros(n_groups)?;
        for (&value, &g) in values.iter().zip(groups) {
            counts[g as usize] += 1;
            means[g as usize] += (value - means[g as usize]) / counts[g as usize] as f64;
        }
        let (mut next, mut end) = (with_room(n_groups)?, 0);
        for n in &counts {
            next.push(end);
            end += n.next_multiple_of(PAIR);
        }
        let mut sorted: Vec<f32> = zeros(end)?;
        for (&value, &g) in values.iter().zip(groups) {
            sorted[next[g as usize]] = (value - means[g as usize]) as f32;
            next[g as usize] += 1;
        }
        Ok(Sorted { values: sorted, counts, means })
    }
}

/// Sixteen generators side by side: xoshiro128++ (Blackman & Vigna, "Scrambled linear pseudorandom number
/// generators", 2021).
struct Random {
    state: [Lanes<u32>; 4],
}

impl Random {
    /// The states come from splitmix64, which starts at a different point for each stream.
    fn new(seed: u64, stream: u64) -> Random {
        let mix = |mut z: u64| {
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ z >> 31
        };
        let mut at = mix(seed) ^ mix(!stream).rotate_left(32);
        let mut state = [[0; LANES]; 4];
        for lane in 0..LANES {
            for half in 0..2 {
                at = at.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let bits = mix(at);
                state[2 * half][lane] = bits as u32;
                state[2 * half + 1][lane] = (bits >> 32) as u32 | 1; // never all zero
            }
        }
        Random { state }
    }

    #[inline(always)]
    fn next(&mut self) -> Lanes<u32> {
        let [a, b, c, d] = &mut self.state;
        let sum = lanes::zip(a, d, u32::wrapping_add);
        let out = lanes::zip(&lanes::map(&sum, |x| x.rotate_left(7)), a, u32::wrapping_add);
        let shifted = lanes::map(b, |x| x << 9);
        *c = lanes::zip(c, a, |x, y| x ^ y);
        *d = lanes::zip(d, b, |x, y| x ^ y);
        *b = lanes::zip(b, c, |x, y| x ^ y);
        *a = lanes::zip(a, d, |x, y| x ^ y);
        *c = lanes::zip(c, &shifted, |x, y| x ^ y);
        *d = lanes::map(d, |x| x.rotate_left(11));
        out
    }
}

/// P(w > k), k = 0, 1, ..., for a Poisson variable w of mean 1, in units of 2^-16; the next one is below half a
/// unit.
const EXCEEDS: [u16; 8] = [41_427, 17_317, 5_262, 1_244, 240, 39, 5, 1];

/// The same for every lane. The black box keeps the compiler from vectorizing over the constants instead of the lanes.
fn thresholds() -> [[u16; PAIR]; EXCEEDS.len()] {
    std::hint::black_box(EXCEEDS.map(|exceeds| [exceeds; PAIR]))
}

/// Poisson variables of mean 1 from 16 random bits each, by inversion.
#[inline(always)]
fn poisson(bits: &Lanes<u32>, thresholds: &[[u16; PAIR]; EXCEEDS.len()]) -> [u16; PAIR] {
    let mut halves = [0; PAIR];
    for lane in 0..LANES {
        halves[2 * lane] = bits[lane] as u16;
        halves[2 * lane + 1] = (bits[lane] >> 16) as u16;
    }
    let mut weights = [0; PAIR];
    for (k, exceeds) in thresholds.iter().enumerate() {
        for lane in 0..PAIR {
            let (less, more) = (weights[lane], k as u16 + 1);
            weights[lane] = if halves[lane] < exceeds[lane] { more } else { less };
        }
    }
    weights
}

struct Resample<'a> {
    sorted: &'a Sorted,
    random: &'a mut Random,
    out: &'a mut [Resampled],
}

impl Kernel for Resample<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (mut rest, thresholds) = (&self.sorted.values[..], thresholds());
        let groups = self.sorted.counts.iter().zip(&self.sorted.means);
        for ((&count, &mean), out) in groups.zip(self.out) {
            let (group, after) = rest.split_at(count.next_multiple_of(PAIR));
            rest = after;
            let (mut weight, mut value) = ([0.0_f64; LANES], [0.0_f64; LANES]);
            let (vectors, _) = group.as_chunks::<LANES>();
            // The sums of a block are small integers, or as exact as the values.
            for (block, vectors) in vectors.chunks(2 * BLOCK).enumerate() {
                let mut part = ([0.0_f32; LANES], [0.0_f32; LANES]);
                for (pair, values) in vectors.chunks_exact(2).enumerate() {
                    let mut weights = poisson(&self.random.next(), &thresholds);
                    let first = (block * BLOCK + pair) * PAIR;
                    if first + PAIR > count {
                        weights[count - first..].fill(0);
                    }
                    for (half, values) in values.iter().enumerate() {
                        let mut w = [0.0_f32; LANES];
                        for lane in 0..LANES {
                            w[lane] = f32::from(weights[half * LANES + lane]);
                        }
                        part.0 = lanes::zip(&part.0, &w, |sum, w| sum + w);
                        for lane in 0..LANES {
                            part.1[lane] = w[lane].mul_add(values[lane], part.1[lane]);
                        }
                    }
                }
                weight = lanes::add_to(&weight, &part.0);
                value = lanes::add_to(&value, &part.1);
            }
            let weight = fold(weight, |a, b| a + b);
            *out = Resampled { weight, value: mean.mul_add(weight, fold(value, |a, b| a + b)) };
        }
    }
}

/// The number of pairs of vectors that are summed in single precision.
const BLOCK: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_poisson() {
        let mut probability = [0.0_f64; 9];
        for bits in 0..1_u32 << 16 {
            let weights = poisson(&[bits << 16 | 0xFFFF; LANES], &thresholds());
            assert_eq!(weights[..2], [0, weights[31]]);
            probability[usize::from(weights[31])] += 1.0 / 65_536.0;
        }
        let mut exact = (-1.0_f64).exp();
        for (k, p) in probability.iter().enumerate() {
            assert!((p - exact).abs() <= 1.0 / 65_536.0, "{k} {p} {exact}");
            exact /= (k + 1) as f64;
        }
        let moment =
            |n: i32| -> f64 { probability.iter().enumerate().map(|(k, p)| (k as f64).powi(n) * p).sum() };
        assert!(
            (moment(1) - 1.0).abs() < 2e-5 && (moment(2) - 2.0).abs() < 2e-4,
            "{} {}",
            moment(1),
            moment(2)
        );
    }

    #[test]
    fn sums_match_mean_and_variance() {
        let n = 1000;
        let values: Vec<f64> = (0..n).map(|i| f64::from(i % 10)).collect();
        let groups: Vec<u32> = (0..n as u32).map(|i| [0, 0, 0, 2][i as usize % 4]).collect();
        let got = bootstrap(&values, &groups, 3, 4000, 7, Isa::best()).unwrap();
        for (g, size) in [750.0, 0.0, 250.0].into_iter().enumerate() {
            let (mut sum, mut squares) = (0.0, 0.0);
            let rows = || values.iter().zip(&groups).filter(|r| *r.1 as usize == g).map(|r| r.0);
            let (total, variance) = (rows().sum::<f64>(), rows().map(|x| x * x).sum::<f64>());
            for r in got.iter().skip(g).step_by(3) {
                sum += r.value;
                squares += (r.value - total).powi(2);
                assert!((r.weight - size).abs() <= 6.0 * f64::sqrt(size));
            }
            let error = (variance / 4000.0_f64).sqrt();
            assert!((sum / 4000.0 - total).abs() <= 5.0 * error, "{sum} {total}");
            assert!((squares / 4000.0 / variance.max(1e-9) - 1.0).abs() < 0.15 || size == 0.0, "{squares}");
        }
    }

    #[test]
    fn seed_matters_and_isa_does_not() {
        let values: Vec<f64> = (0..777).map(|i| f64::from(i).sin()).collect();
        let groups: Vec<u32> = (0..777).map(|i| i % 5).collect();
        let of = |seed, isa| bootstrap(&values, &groups, 5, 20, seed, isa).unwrap();
        for isa in Isa::available() {
            assert_eq!(of(3, isa), of(3, Isa::Portable));
        }
        assert_ne!(of(3, Isa::best()), of(4, Isa::best()));
        let all = of(3, Isa::best());
        assert!(all[..5] != all[5..10]);
        assert!(bootstrap(&values, &groups, 4, 1, 0, Isa::best()).is_err());
    }
}
