//! The edges of bins of equal mass: quantiles of the confidences.

use crate::rows::{Error, collected, with_room};
use crate::threads;

use super::bins::check_n_bins;
use super::exact::Exact;
use super::predictions::{MAX_WEIGHT, Predictions, zeros};

/// The edges of bins of the confidences; ignored rows do not count.
pub(super) fn of_confidences(
    predictions: &Predictions<'_>,
    confidence: &[f64],
    n_bins: usize,
) -> Result<Vec<f64>, Error> {
    let rows = Counted::new(predictions)?;
    let confidence = collected(rows.rows.iter().map(|&i| confidence[i]))?;
    quantile_edges(&confidence, rows.weights.as_deref(), n_bins)
}

/// The edges of bins of the probabilities of each class, one class after another.
pub(super) fn of_classes(predictions: &Predictions<'_>, n_bins: usize) -> Result<Vec<f64>, Error> {
    let rows = Counted::new(predictions)?;
    let (p, n_classes) = (predictions.probabilities()?, predictions.n_classes());
    let of_classes = threads::parallel_collect(n_classes, Ok(Vec::new()), &|classes, out| {
        for (k, out) in classes.zip(out) {
            let column = collected(rows.rows.iter().map(|&i| p[i * n_classes + k]));
            *out = column.and_then(|column| quantile_edges(&column, rows.weights.as_deref(), n_bins));
        }
    })?;
    Ok(of_classes.into_iter().collect::<Result<Vec<Vec<f64>>, Error>>()?.concat())
}

/// The rows that are not ignored, with their weights.
struct Counted {
    rows: Vec<usize>,
    weights: Option<Vec<f64>>,
}

impl Counted {
    fn new(predictions: &Predictions<'_>) -> Result<Counted, Error> {
        let mut rows = with_room(predictions.len())?;
        rows.extend((0..predictions.len()).filter(|&i| predictions.targets().class(i).is_some()));
        let weights = predictions.weights().map(|weights| collected(rows.iter().map(|&i| weights[i])));
        Ok(Counted { weights: weights.transpose()?, rows })
    }
}

/// The edge of empty bins at the end: above every confidence.
pub const ABOVE_ALL: f64 = 1.0_f64.next_up();

/// The n + 1 edges of bins of equal mass.
///
/// The j-th bin ends after the least confidence up to which at least j/n of the weight lies, so that equal
/// confidences share a bin. An edge is the midpoint of the two confidences that it separates. Bins may be empty; at
/// the end, their edges are [`ABOVE_ALL`].
pub fn quantile_edges(confidence: &[f64], weights: Option<&[f64]>, n_bins: usize) -> Result<Vec<f64>, Error> {
    check_n_bins(n_bins)?;
    if weights.is_some_and(|weights| weights.len() != confidence.len()) {
        return Err(Error::value("Expected a weight for each confidence."));
    }
    let mut order: Vec<(f64, u32)> = zeros(confidence.len())?;
    for (i, (slot, &c)) in order.iter_mut().zip(confidence).enumerate() {
        let in_range = (0.0..=1.0).contains(&c) && weights.is_none_or(|w| (0.0..=MAX_WEIGHT).contains(&w[i]));
        let (true, Ok(index)) = (in_range, u32::try_from(i)) else {
            return Err(Error::value(
                "Expected up to 2^32 rows with confidences in [0, 1] and weights in [0, 2^32].",
            ));
        };
        *slot = (c, index);
    }
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let weight = |&(_, i): &(f64, u32)| weights.map_or(1.0, |weights| weights[i as usize]);
    let mut total = Exact::default();
    order.iter().for_each(|row| total.add(weight(row)));
    let mut edges = vec![0.0];
    let mut mass = Exact::default();
    let mut groups = order.chunk_by(|a, b| a.0 == b.0).peekable();
    while let Some(group) = groups.next() {
        group.iter().for_each(|row| mass.add(weight(row)));
        let Some(next) = groups.peek() else { break };
        let (here, there) = (group[0].0, next[0].0);
        let middle = here + (there - here) / 2.0;
        let edge = if middle > here { middle } else { there };
        let reached = mass.times(n_bins as u32);
        while edges.len() < n_bins && reached >= total.times(edges.len() as u32) {
            edges.push(edge);
        }
    }
    edges.resize(n_bins + 1, ABOVE_ALL);
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_confidences_share_a_bin() {
        let edges = quantile_edges(&[0.1, 0.2, 0.2, 0.2, 0.2, 0.9], None, 3).unwrap();
        assert_eq!(edges, [0.0, 0.55, 0.55, ABOVE_ALL]);
        assert_eq!(quantile_edges(&[0.5; 4], None, 2).unwrap(), [0.0, ABOVE_ALL, ABOVE_ALL]);
        assert_eq!(
            quantile_edges(&[0.0, 1.0], Some(&[3.0, 1.0]), 4).unwrap(),
            [0.0, 0.5, 0.5, 0.5, ABOVE_ALL]
        );
        let next = 0.5_f64.next_up();
        assert_eq!(quantile_edges(&[0.5, next], None, 2).unwrap(), [0.0, next, ABOVE_ALL]);
        assert!(quantile_edges(&[0.5, f64::NAN], None, 2).is_err());
        assert!(quantile_edges(&[0.5], Some(&[-1.0]), 2).is_err());
    }

    proptest! {
        #[test]
        fn bins_have_equal_mass(
            rows in prop::collection::vec((0..50_u8, 0..4_u8), 1..80),
            n_bins in 1..9_usize,
        ) {
            let c: Vec<f64> = rows.iter().map(|r| f64::from(r.0) / 49.0).collect();
            let w: Vec<f64> = rows.iter().map(|r| f64::from(r.1)).collect();
            let total: f64 = w.iter().sum();
            let edges = quantile_edges(&c, Some(&w), n_bins).unwrap();
            prop_assert!(edges.is_sorted() && edges.len() == n_bins + 1);
            for (j, &edge) in edges.iter().enumerate().take(n_bins).skip(1) {
                let below = |x: f64| -> f64 { c.iter().zip(&w).filter(|&(&c, _)| c < x).map(|(_, w)| w).sum() };
                let share = j as f64 * total / n_bins as f64;
                prop_assert!(edge == ABOVE_ALL || below(edge) >= share - 1e-9);
                // Ending one confidence earlier is not enough.
                let last = c.iter().copied().filter(|&c| c < edge).fold(0.0, f64::max);
                prop_assert!(below(last) < share + 1e-9);
            }
            // A row of weight n equals n rows.
            let repeated: Vec<f64> = rows.iter().zip(&c).flat_map(|(r, &c)| vec![c; r.1.into()]).collect();
            if w.iter().all(|&w| w > 0.0) {
                prop_assert_eq!(quantile_edges(&repeated, None, n_bins).unwrap(), edges);
            }
        }
    }
}
