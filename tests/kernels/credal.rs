//! Sets, distributions and mixtures as targets against naive formulas; the same bits for all losses everywhere.

use std::ops::Range;

use half::bf16;
use lr_relax::losses::{
    Batch, ConfidencePenalty, CrossEntropy, DualFocal, Focal, Kernels, LabelRelaxation, Loss, Reduction,
    Scores, Target,
};
use lr_relax::rows::{AnyRows, Error, Rows, RowsMut, Targets};
use lr_relax::simd::{Isa, Real};
use proptest::prelude::*;

/// Class counts around the ends of vectors, of blocks of vectors, and of the columns for few classes.
const SIZES: [usize; 12] = [3, 15, 16, 17, 32, 33, 100, 127, 128, 129, 145, 1000];

fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..n).map(&mut next).collect()
}

fn relaxed(alpha: f64) -> Loss {
    LabelRelaxation::new(alpha, Scores::Logits).unwrap().into()
}

/// Targets of every kind, for the rows of a batch of 50 or one of them; some are ignored, some of one class.
fn cases(n_classes: usize, rows: Range<usize>) -> Vec<(Target<'static>, Loss)> {
    let votes = noise(50 * n_classes, 7).leak();
    let mut sets: Vec<u8> = votes.iter().map(|&t| u8::from(t < 0.3)).collect();
    for (i, (votes, set)) in votes.chunks_mut(n_classes).zip(sets.chunks_mut(n_classes)).enumerate() {
        votes.iter_mut().filter(|t| **t > 0.4 || i % 5 == 0).for_each(|t| *t = 0.0);
        set.iter_mut().filter(|_| i % 5 == 0).for_each(|s| *s = 0);
        (votes[i % n_classes], set[i % n_classes]) = (1.0, 1);
        let sum: f64 = votes.iter().sum();
        votes.iter_mut().for_each(|t| *t /= sum);
    }
    let numbers = rows.start * n_classes..rows.end * n_classes;
    let set_rows = Rows::from_slice(&sets.leak()[numbers.clone()], n_classes).unwrap();
    let vote_rows = Rows::from_slice(&votes[numbers], n_classes).unwrap();
    let [sets, distributions] =
        [AnyRows::Bool(set_rows), AnyRows::F64(vote_rows)].map(|rows| &*Box::leak(Box::new(rows)));
    let [first, second] = [7, 5].map(|step| {
        let y = rows.clone().map(|i| if i % 11 == step { -100 } else { (i * step % n_classes) as i64 });
        &*Box::leak(Box::new(Targets::new(&y.collect::<Vec<_>>(), n_classes, -100).unwrap()))
    });
    let share = rows.map(|i| (i % 7) as f64 / 6.0).collect::<Vec<_>>().leak();
    vec![
        (Target::Sets(sets), relaxed(0.1)),
        (Target::Distributions(distributions), relaxed(0.1)),
        (Target::Mixtures { first, second, share }, relaxed(0.1)),
        (first.into(), CrossEntropy::new(0.1).unwrap().into()),
        (first.into(), ConfidencePenalty::new(0.3).unwrap().into()),
        (first.into(), DualFocal::new(2.0).unwrap().into()),
        (Target::Distributions(distributions), CrossEntropy::new(0.1).unwrap().into()),
        (Target::Distributions(distributions), Focal::new(2.0).unwrap().into()),
        (Target::Distributions(distributions), ConfidencePenalty::new(0.3).unwrap().into()),
    ]
}

/// The mean, the losses, and the gradient of their sum, one after the other.
fn compute<E: Kernels>(isa: Isa, z: &[E], (target, loss): (Target<'_>, Loss), weight: &[f64]) -> Vec<f64> {
    let rows = Rows::from_slice(z, weight.len()).unwrap();
    let (mut grad, mut losses) = (z.to_vec(), vec![E::ZERO.widen(); rows.len()]);
    let out = RowsMut::from_slice(&mut grad, weight.len()).unwrap();
    let batch = Batch::new(&rows, target).unwrap().weight(weight).unwrap().isa(isa);
    let mean = batch.reduce(loss, Reduction::Mean).unwrap();
    batch.gradient(&out).unwrap().per_row(loss, &mut losses).unwrap();
    losses.extend(grad.iter().map(|g| g.widen()));
    [mean].into_iter().chain(losses.iter().map(|x| x.to_f64())).collect()
}

fn same_bits_everywhere<E: Kernels>() {
    for n_classes in SIZES {
        let (z, weight) = (noise(50 * n_classes, 3), noise(n_classes, 4));
        let z: Vec<E> = z.iter().map(|x| E::narrow(E::Wide::from_f64(9.0 * x))).collect();
        for (k, case) in cases(n_classes, 0..50).into_iter().enumerate() {
            let compute = |isa| compute(isa, &z, case, &weight).into_iter().map(f64::to_bits);
            let first: Vec<u64> = compute(Isa::Portable).collect();
            for isa in Isa::available() {
                for threads in [1, 2, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let same = pool.install(|| compute(isa).eq(first.iter().copied()));
                    assert!(same, "case {k} {isa:?} {threads} {n_classes}");
                }
            }
        }
    }
}

#[test]
fn same_bits() {
    same_bits_everywhere::<f32>();
    same_bits_everywhere::<f64>();
    same_bits_everywhere::<bf16>();
}

/// Loss and gradient for the lower bounds (1 - alpha) t: the water level by bisection.
fn water_filling(z: &[f64], t: &[f64], alpha: f64) -> (f64, Vec<f64>) {
    let max = z.iter().copied().fold(f64::MIN, f64::max);
    let (sum, total): (f64, f64) = (z.iter().map(|z| (z - max).exp()).sum(), t.iter().sum());
    let p: Vec<f64> = z.iter().map(|z| (z - max).exp() / sum).collect();
    let bound = |t: &f64| (1.0 - alpha) * t / total;
    let fill = |c: f64| -> Vec<f64> { p.iter().zip(t).map(|(p, t)| bound(t).max(c * p)).collect() };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..1100 {
        let c = 0.5 * (low + high);
        if fill(c).iter().sum::<f64>() > 1.0 { high = c } else { low = c }
    }
    let q = fill(high);
    let loss = q.iter().zip(&p).map(|(q, p)| if *q > 0.0 { q * (q / p).ln() } else { 0.0 }).sum();
    (loss, p.iter().zip(&q).map(|(p, q)| p - q).collect())
}

fn assert_row(got: &[f64], (value, grad): (f64, Vec<f64>)) {
    assert!((got[1] - value).abs() <= 1e-12 * (1.0 + value.abs()), "{} {value}", got[1]);
    for (k, (got, grad)) in got[2..].iter().zip(&grad).enumerate() {
        assert!((got - grad).abs() <= 1e-12, "class {k}: {got} {grad}");
    }
}

/// A mixture equals its dense target, for classes at the ends of vectors and blocks.
fn mixtures_of(n_classes: usize, share: f64, z: &[f64]) {
    let ends = [0, 1, 15, 16, 127, 128, n_classes - 2, n_classes - 1].into_iter().filter(|&k| k < n_classes);
    for (a, b) in ends.clone().flat_map(|a| ends.clone().map(move |b| (a, b))) {
        let [first, second] = [a, b].map(|y| Targets::new(&[y as i64], n_classes, -100).unwrap());
        let mut t = vec![0.0; n_classes];
        t[a] += share;
        t[b] += 1.0 - share;
        let target = Target::Mixtures { first: &first, second: &second, share: &[share] };
        let got = compute(Isa::best(), z, (target, relaxed(0.1)), &vec![1.0; n_classes]);
        assert_row(&got, water_filling(z, &t, 0.1));
    }
}

#[test]
fn mixtures_are_dense_targets() {
    for n_classes in SIZES {
        let z: Vec<f64> = noise(n_classes, 5).iter().map(|x| 8.0 * x).collect();
        for share in [0.0, 0.3, 1.0] {
            mixtures_of(n_classes, share, &z);
        }
    }
}

#[test]
fn mixtures_without_other_classes() {
    mixtures_of(2, 0.7, &[1.0, 2.0]);
    mixtures_of(3, 0.7, &[1.0, 2.0, -1e9]);
}

#[test]
fn rows_are_independent() {
    // Buffers that an earlier row or another row of the group has used must not matter.
    for n_classes in SIZES {
        let z: Vec<f32> = noise(50 * n_classes, 6).iter().map(|&x| 20.0 * x as f32).collect();
        let weight = noise(n_classes, 4);
        let all = cases(n_classes, 0..50).into_iter().map(|case| compute(Isa::best(), &z, case, &weight));
        let all: Vec<_> = all.collect();
        for (i, z) in z.chunks(n_classes).enumerate() {
            for (k, case) in cases(n_classes, i..i + 1).into_iter().enumerate() {
                let alone = compute(Isa::best(), z, case, &weight);
                let grad = &all[k][51 + i * n_classes..][..n_classes];
                assert!(alone[1] == all[k][1 + i] && alone[2..] == *grad, "case {k}, row {i} of {n_classes}");
            }
        }
    }
}

#[test]
fn sets_hold_positive_classes() {
    let z = noise(40, 3);
    let (rows, numbers) = (Rows::from_slice(&z, 40).unwrap(), noise(40, 4));
    let sparse: Vec<f32> = numbers.iter().map(|&x| if x < 0.3 { x as f32 } else { 0.0 }).collect();
    let flags: Vec<u8> = sparse.iter().map(|&x| u8::from(x > 0.0)).collect();
    let numbers = AnyRows::F32(Rows::from_slice(&sparse, 40).unwrap());
    let flags = AnyRows::Bool(Rows::from_slice(&flags, 40).unwrap());
    let loss = |target| Batch::new(&rows, target).unwrap().reduce(relaxed(0.1), Reduction::Sum).unwrap();
    assert_eq!(loss(Target::Sets(&numbers)), loss(Target::Sets(&flags)));
    assert!(matches!(Batch::new(&rows, Target::Distributions(&flags)), Err(Error::Type(_))));
}

#[test]
fn names_first_invalid_row() {
    let z = [0.0_f64; 60_000];
    let rows = Rows::from_slice(&z, 3).unwrap();
    for bad in [[0.0, 1.0, 1.0], [1.2, -0.2, 0.0], [f64::NAN, 0.5, 0.5]] {
        let mut t = [[0.2, 0.3, 0.5]; 20_000];
        (t[12_345], t[19_999]) = (bad, bad);
        let t = AnyRows::F64(Rows::from_slice(t.as_flattened(), 3).unwrap());
        let batch = Batch::new(&rows, Target::Distributions(&t)).unwrap();
        let error = batch.reduce(relaxed(0.1), Reduction::Mean).unwrap_err();
        assert!(matches!(error, Error::NotADistribution { row: 12_345, .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn distributions_are_filled_up(
        (z, t) in (2..300_usize).prop_flat_map(|c| {
            (prop::collection::vec(-20.0..20.0_f64, c), prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0_f64], c))
        }),
        alpha in prop_oneof![Just(0.0), 0.0..0.9_f64],
    ) {
        let (n_classes, sum) = (z.len(), t.iter().sum::<f64>());
        prop_assume!(sum > 0.0);
        let t: Vec<f64> = t.iter().map(|t| t / sum).collect();
        let target = AnyRows::F64(Rows::from_slice(&t, n_classes).unwrap());
        let got = compute(Isa::best(), &z, (Target::Distributions(&target), relaxed(alpha)), &vec![1.0; n_classes]);
        assert_row(&got, water_filling(&z, &t, alpha));
    }
}
