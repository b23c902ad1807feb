//! Label relaxation of a set of classes S, with Q = {q : sum over S of q_k >= 1 - a}.
//!
//! Lienen & Hüllermeier, "Mitigating Label Noise through Data Ambiguation", AAAI 2024. The projection scales the two
//! parts, S and the other classes, so the loss is that of a class with p_S in place of p_y.

use crate::rows::Scores;
use crate::simd::lanes::{self, fold};
use crate::simd::log::ln;
use crate::simd::{Element, LANES, Real};

use super::super::batch::{Batch, Scratch};
use super::super::binary::BinaryLoss;
use super::super::exponentials::{BLOCK, exponentials as exponentials_of, larger, store, total};
use super::super::log_odds::Binary;
use super::super::probabilities::{mass, positive};
use super::super::row_target::count;
use super::class::LabelRelaxation;

/// The loss of row `i` against the set of classes in `scratch.target`.
#[inline(always)]
pub(super) fn set<E: Element>(
    loss: &LabelRelaxation,
    batch: &Batch<'_, E>,
    i: usize,
    alpha: f64,
    scratch: &mut Scratch<E>,
) -> f64 {
    let (zero, lowest) = (E::Wide::ZERO, E::Wide::LOWEST);
    let row = batch.rows.row(i, &mut scratch.row);
    let (exponentials, target) = (&mut scratch.exponentials, &scratch.target);
    let n_blocks = target.len().div_ceil(BLOCK);
    // Each part is relative to its own maximum, because either may be far below the other.
    let (mut max_in, mut max_out) = ([zero; LANES], [zero; LANES]);
    let invalid; // NaN if the row has no probabilities, else 0
    if loss.scores == Scores::Logits {
        exponentials.read(row, E::Wide::from_f64(f64::NEG_INFINITY));
        (max_in, max_out) = ([lowest; LANES], [lowest; LANES]);
        for (z, t) in exponentials.x.iter().zip(target) {
            let inside = lanes::zip(z, t, |z, t| if t > zero { z } else { lowest });
            let outside = lanes::zip(z, t, |z, t| if t > zero { lowest } else { z });
            max_in = lanes::max(&max_in, &inside);
            max_out = lanes::max(&max_out, &outside);
        }
        (max_in, max_out) = ([fold(max_in, larger); LANES], [fold(max_out, larger); LANES]);
        // The softmax of an infinite logit is NaN: inf - inf, as in PyTorch.
        invalid = max_in[0].to_f64() * 0.0 + max_out[0].to_f64() * 0.0;
    } else {
        exponentials.read(row, zero);
        invalid = positive(mass(row)) * 0.0;
    }
    if loss.scores == Scores::Logits {
        for ((x, e), t) in exponentials.x.iter().zip(&mut exponentials.e).zip(target) {
            (_, *e) = exponentials_of(x, &lanes::select(t, &max_in, &max_out));
        }
    } else {
        exponentials.e.copy_from_slice(&exponentials.x);
    }
    for (i, (e, t)) in exponentials.e.chunks(BLOCK).zip(target.chunks(BLOCK)).enumerate() {
        let (mut inside, mut outside) = ([zero; LANES], [zero; LANES]);
        for (e, t) in e.iter().zip(t) {
            let own = lanes::zip(e, t, E::Wide::mul); // t is 0 or 1
            inside = lanes::add(&inside, &own);
            outside = lanes::add(&outside, &lanes::zip(e, &own, E::Wide::sub));
        }
        (exponentials.sums[i], exponentials.accumulated[i]) = (inside, outside);
    }
    let (mut inside, outside) =
        (total(&exponentials.sums[..n_blocks]), total(&exponentials.accumulated[..n_blocks]));
    let d = (max_in[0].to_f64() - max_out[0].to_f64()) + ln(inside) - ln(outside) + invalid;
    if inside == 0.0 && loss.scores == Scores::Logits {
        // Every class of the set has underflowed: the projection divides the set evenly.
        for (e, t) in exponentials.e.iter_mut().zip(target) {
            *e = lanes::add(e, t);
        }
        inside = count(target) as f64;
    }
    let (losses, excesses) = loss.losses(&Binary::from_log_odds(&[d; LANES]), &[alpha; LANES]);
    let weight = batch.mean_weight(&scratch.target, &scratch.weight);
    let excess = excesses[0] * weight * batch.factor(i);
    if excess == 0.0 {
        batch.no_gradient(i, scratch);
    } else if let Some(out) = batch.out(i, &mut scratch.grad) {
        let (up, down) = (E::Wide::from_f64(excess / outside), E::Wide::from_f64(-excess / inside));
        let slopes = scratch.target.iter().map(|t| lanes::select(t, &[down; LANES], &[up; LANES]));
        if loss.scores == Scores::Logits {
            for (v, (slope, e)) in slopes.zip(&scratch.exponentials.e).enumerate() {
                store(&lanes::zip(&slope, e, E::Wide::mul), out, v);
            }
        } else {
            // By the chain rule, z = ln p.
            for (v, slope) in slopes.enumerate() {
                store(&slope, out, v);
            }
        }
        batch.finish(i, &scratch.grad);
    }
    losses[0] * weight
}
