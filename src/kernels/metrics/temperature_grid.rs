//! The calibration error at every temperature of a grid, in one pass over the logits: the paper's code chooses the
//! temperature with the smallest one. Each lane holds one temperature, so that no lanes are reduced.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::rows::{AnyRows, Error, Rows, Targets};
use crate::simd::{self, Element, Isa, Kernel, LANES, Lanes, Real, lanes};
use crate::threads::{self, Tiles};

use super::bins::{Accumulator, Bins, Counts, check_n_bins, paper_edges, uniform_bin};
use super::likelihood::{VECTORS, check_type, maximum};
use super::predictions::typed;
use super::temperature::RANGE;

/// The top-label bins of softmax(z / T) for each temperature T, with the bins of the paper's code.
pub fn bin_each(
    logits: &AnyRows<'_>,
    targets: &Targets,
    temperatures: &[f64],
    n_bins: usize,
    isa: Isa,
) -> Result<Vec<Bins>, Error> {
    check_type(logits)?;
    typed!(logits, rows => grid(rows, targets, temperatures, n_bins, isa))
}

fn grid<E: Element>(
    rows: &Rows<'_, E>,
    targets: &Targets,
    temperatures: &[f64],
    n_bins: usize,
    isa: Isa,
) -> Result<Vec<Bins>, Error> {
    targets.check_shape(rows.len(), rows.n_classes())?;
    check_n_bins(n_bins)?;
    if temperatures.is_empty() || temperatures.len() > 4096 || !temperatures.iter().all(|t| RANGE.contains(t))
    {
        return Err(Error::value(
            "Expected argument `temperatures` to hold numbers in [1e-4, 1e4), up to 4096.",
        ));
    }
    let edges = paper_edges(n_bins);
    let tiles = Tiles::new(rows.len(), rows.n_classes());
    let inverse: Vec<Lanes<E::Wide>> = temperatures
        .chunks(LANES)
        .map(|chunk| std::array::from_fn(|lane| E::Wide::from_f64(1.0 / chunk.get(lane).unwrap_or(&1.0))))
        .collect();
    let empty = || temperatures.iter().map(|_| Counts::empty(n_bins)).collect::<Result<Vec<Counts>, Error>>();
    let (total, failure) = (Mutex::new(empty()?), Mutex::new(None::<(usize, Error)>));
    let fail = |row, error| {
        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| row < *first) {
            *failure = Some((row, error));
        }
    };
    threads::parallel_for(tiles.len(), &|range| {
        let range = tiles.rows(range);
        let mut own = match empty() {
            Ok(own) => own,
            Err(error) => return fail(0, error),
        };
        let mut confidence = vec![[0.0_f64; LANES]; inverse.len() * BLOCK];
        let mut correct = [false; BLOCK];
        for start in range.clone().step_by(BLOCK) {
            let block = start..(start + BLOCK).min(range.end);
            let (confidence, correct) = (&mut confidence[..], &mut correct[..]);
            let inverse = &inverse;
            let kernel = GridOfRows { rows, targets, range: block.clone(), inverse, confidence, correct };
            if let Err(error) = simd::run(isa, kernel) {
                return fail(0, error);
            }
            for ((i, confidence), &is_correct) in block.zip(confidence.chunks(inverse.len())).zip(&*correct) {
                if targets.class(i).is_none() {
                    continue;
                }
                for (own, &confidence) in own.iter_mut().zip(confidence.as_flattened()) {
                    if !(confidence > 0.0 && confidence <= 1.0) {
                        return fail(i, no_softmax(i));
                    }
                    own.add(uniform_bin(confidence, &edges), is_correct, confidence, 1.0);
                }
            }
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        for (total, own) in total.iter_mut().zip(&own) {
            total.merge(own);
        }
    });
    if let Some((_, error)) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    total.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().map(Accumulator::finish).collect()
}

/// Rows whose confidences are computed before they are binned.
const BLOCK: usize = 64;

fn no_softmax(row: usize) -> Error {
    let why = "logits that have a softmax (no NaN, no +inf, not all -inf)".into();
    Error::Row { argument: "logits", row, why }
}

struct GridOfRows<'a, E: Element> {
    rows: &'a Rows<'a, E>,
    targets: &'a Targets,
    range: Range<usize>,
    inverse: &'a [Lanes<E::Wide>],
    /// The confidence of each row at each temperature, rounded to the type that softmax returns.
    confidence: &'a mut [Lanes<f64>],
    /// Whether the prediction of each row is correct.
    correct: &'a mut [bool],
}

impl<E: Element> Kernel for GridOfRows<'_, E> {
    type Output = Result<(), Error>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let mut scratch = self.rows.scratch()?;
        let out = self.confidence.chunks_mut(self.inverse.len()).zip(self.correct);
        for (i, (confidence, is_correct)) in self.range.zip(out) {
            let Some(y) = self.targets.class(i) else {
                continue;
            };
            let row = self.rows.row(i, &mut scratch);
            let max = maximum(row);
            for (inverse, confidence) in self.inverse.iter().zip(confidence) {
                let mut sum = [0.0_f64; LANES];
                for block in row.chunks(VECTORS) {
                    let mut part = [E::Wide::ZERO; LANES];
                    for z in block {
                        let d = z.widen().sub(max);
                        part =
                            lanes::zip(&part, inverse, |part, inverse| part.add(d.mul(inverse).exp_biased()));
                    }
                    sum = lanes::add_to(&sum, &part);
                }
                *confidence = lanes::map(&sum, |sum| E::Wide::from_f64(E::Wide::BIAS / sum).to_f64());
            }
            *is_correct = row[y].widen() == max && !row[..y].iter().any(|z| z.widen() == max);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::bins::Binning;
    use super::super::calibration::{Kind, bin};
    use super::super::predictions::Predictions;
    use super::super::temperature::tests::sample;
    use super::*;
    use crate::rows::Scores;

    #[test]
    fn grid_matches_scaled_logits() {
        let grid =
            [0.25, 0.5, 1.0, 1.1, 1.5, 2.0, 3.0, 7.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0];
        for n_classes in [2, 7, 40] {
            let (z, y) = sample(700, n_classes, 2.0);
            let targets = Targets::new(&y, n_classes, -1).unwrap();
            let rows = AnyRows::F64(Rows::from_slice(&z, n_classes).unwrap());
            let got = bin_each(&rows, &targets, &grid, 15, Isa::best()).unwrap();
            for (bins, t) in got.iter().zip(grid) {
                let scaled: Vec<f64> = z.iter().map(|z| z / t).collect();
                let scaled = AnyRows::F64(Rows::from_slice(&scaled, n_classes).unwrap());
                let scaled =
                    Predictions::new(scaled, targets.clone(), None, Scores::Logits, Isa::best()).unwrap();
                let want = bin(&scaled, Kind::TopLabel, &Binning::Paper, 15).unwrap();
                assert_eq!(bins.counts, want.counts);
                let (a, b) = (bins.expected_calibration_error(), want.expected_calibration_error());
                assert!((a - b).abs() < 1e-14, "{t} {a} {b}");
            }
        }
        let rows = AnyRows::F64(Rows::from_slice(&[0.0, 1.0, f64::NAN, 0.0], 2).unwrap());
        let got = bin_each(&rows, &Targets::new(&[0, 0], 2, -1).unwrap(), &grid, 15, Isa::best());
        assert!(matches!(got, Err(Error::Row { row: 1, .. })));
    }
}
