//! One row as a distribution over classes: its validity, its most probable class and its probabilities.

use crate::rows::Scores;
use crate::simd::lanes::{self, fold, widen};
use crate::simd::{Element, LANES, Lanes, Real};

use super::super::sum_exp::sum_exp;

/// The highest score of a row, and its probability: NaN if the row is not a distribution.
pub(super) struct Top<F> {
    pub(super) score: F,
    pub(super) confidence: f64,
}

/// The probability of class 1 of a binary event, rounded to the type that sigmoid returns; NaN if `x` is invalid.
#[inline(always)]
pub(super) fn binary<E: Element>(x: E, scores: Scores) -> f64 {
    let x = x.widen().to_f64();
    match scores {
        Scores::Logits => {
            let e = (-x.abs()).exp_biased() * (1.0 / f64::BIAS);
            let p = if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
            E::Wide::from_f64(p).to_f64()
        }
        Scores::Probabilities => {
            if (-E::SLACK..=1.0 + E::SLACK).contains(&x) {
                x.clamp(0.0, 1.0)
            } else {
                f64::NAN
            }
        }
    }
}

#[inline(always)]
pub(super) fn top_of_logits<E: Element>(row: &[E]) -> Top<E::Wide> {
    let all = sum_exp(row, usize::MAX);
    // Rounded to the type that softmax returns.
    let confidence = E::Wide::from_f64(1.0 / all.sum).to_f64();
    let valid = confidence > 0.0 && confidence <= 1.0;
    Top { score: all.max, confidence: if valid { confidence } else { f64::NAN } }
}

#[inline(always)]
pub(super) fn top_of_probabilities<E: Element>(row: &[E]) -> Top<E::Wide> {
    let scan = scan(row);
    let confidence = scan.score.to_f64() / scan.divisor::<E>();
    Top { score: scan.score, confidence: if confidence > 1.0 { 1.0 } else { confidence } }
}

/// What to divide the probabilities of a row by; NaN if the row is not a distribution.
#[inline(always)]
pub(super) fn divisor<E: Element>(row: &[E]) -> f64 {
    scan(row).divisor::<E>()
}

/// The largest and the smallest of 0 and the probabilities of a row, and their sum.
struct Scan<F> {
    score: F,
    least: F,
    sum: f64,
}

impl<F: Real> Scan<F> {
    /// The sum, if it differs from 1 by more than rounding; otherwise 1. NaN if the row is not a distribution: NaN
    /// and infinities make the sum invalid.
    #[inline(always)]
    fn divisor<E: Element<Wide = F>>(&self) -> f64 {
        let distance = (self.sum - 1.0).abs();
        let valid = distance <= E::SUM_TOLERANCE && self.least.to_f64() >= -E::SLACK;
        if !valid {
            f64::NAN
        } else if distance > E::SUM_ROUNDING {
            self.sum
        } else {
            1.0
        }
    }
}

#[inline(always)]
fn scan<E: Element>(row: &[E]) -> Scan<E::Wide> {
    if row.len() < LANES {
        return scan_few(row);
    }
    let mut of_lanes =
        LaneSums { max: [E::Wide::ZERO; LANES], min: [E::Wide::ZERO; LANES], sum: [0.0; LANES] };
    let (vectors, tail) = row.as_chunks();
    for p in vectors {
        of_lanes.add(p);
    }
    if !tail.is_empty() {
        of_lanes.add(&lanes::load(tail, E::ZERO));
    }
    Scan {
        score: fold(of_lanes.max, |a, b| if b > a { b } else { a }),
        least: fold(of_lanes.min, |a, b| if b < a { b } else { a }),
        sum: fold(of_lanes.sum, |a, b| a + b),
    }
}

/// The sum, the maximum and the minimum of each lane. Maximum and minimum start from 0.
struct LaneSums<F> {
    max: Lanes<F>,
    min: Lanes<F>,
    sum: Lanes<f64>,
}

impl<F: Real> LaneSums<F> {
    // Not a closure: one that is not inlined is compiled for the baseline.
    #[inline(always)]
    fn add<E: Element<Wide = F>>(&mut self, p: &Lanes<E>) {
        let p = widen(p);
        self.max = lanes::max(&self.max, &p);
        self.min = lanes::min(&self.min, &p);
        self.sum = lanes::add_to(&self.sum, &p);
    }
}

/// The same for rows shorter than a vector, for which reducing the lanes takes longer than the row.
#[inline(always)]
fn scan_few<E: Element>(row: &[E]) -> Scan<E::Wide> {
    let (mut score, mut least, mut sum) = (E::Wide::ZERO, E::Wide::ZERO, 0.0);
    for p in row {
        let p = p.widen();
        score = if p > score { p } else { score };
        least = if p < least { p } else { least };
        sum += p.to_f64();
    }
    Scan { score, least, sum }
}

/// Writes the probabilities of a row, in the type that softmax returns; returns whether it is a distribution.
#[inline(always)]
pub(super) fn probabilities<E: Element>(row: &[E], scores: Scores, out: &mut Vec<E::Wide>) -> bool {
    out.resize(row.len(), E::Wide::ZERO);
    match scores {
        Scores::Probabilities => {
            let scan = scan(row);
            let divisor = scan.divisor::<E>();
            let exact = divisor == 1.0 && scan.least >= E::Wide::ZERO;
            for (out, p) in out.iter_mut().zip(row) {
                let p = p.widen();
                *out = if exact { p } else { E::Wide::from_f64((p.to_f64() / divisor).max(0.0)) };
            }
            !divisor.is_nan()
        }
        Scores::Logits => {
            let all = sum_exp(row, usize::MAX);
            let shift = [all.max; LANES];
            let share = E::Wide::from_f64(1.0 / (all.sum * E::Wide::BIAS));
            let (vectors, tail) = row.as_chunks();
            let (out_vectors, out_tail) = out.as_chunks_mut();
            for (out, vector) in out_vectors.iter_mut().zip(vectors) {
                *out = lanes::map(&lanes::exp_biased_sub(&widen(vector), &shift), |e| e.mul(share));
            }
            let last = widen(&lanes::load(tail, E::ZERO));
            let last = lanes::map(&lanes::exp_biased_sub(&last, &shift), |e| e.mul(share));
            out_tail.copy_from_slice(&last[..tail.len()]);
            let confidence = 1.0 / all.sum;
            confidence > 0.0 && confidence <= 1.0
        }
    }
}
