//! Label relaxation: values, gradients, and what holds for all inputs.

use half::{bf16, f16};
use lr_relax::losses::{Batch, Kernels, LabelRelaxation, Reduction, Scores};
use lr_relax::rows::{Rows, RowsMut, Targets};
use lr_relax::simd::{Element, Isa};
use proptest::prelude::*;

/// Reproducible numbers in [-1, 1).
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// The paper's formula as it stands, for one row of logits: loss and gradient.
fn formula(z: &[f64], y: usize, alpha: f64) -> (f64, Vec<f64>) {
    let max = z.iter().copied().fold(f64::MIN, f64::max);
    let e: Vec<f64> = z.iter().map(|z| (z - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    let others: f64 = e.iter().enumerate().filter(|&(k, _)| k != y).map(|(_, e)| e).sum();
    let (p_y, rest) = (e[y] / sum, others / sum);
    if p_y >= 1.0 - alpha {
        return (0.0, vec![0.0; z.len()]);
    }
    let ln_p = z[y] - max - sum.ln();
    let mut loss = (1.0 - alpha) * ((1.0 - alpha).ln() - ln_p);
    if alpha > 0.0 {
        loss += alpha * (alpha / rest).ln();
    }
    let grad = e.iter().enumerate().map(|(k, e)| {
        let projection = if k == y { 1.0 - alpha } else { alpha * (e / others) };
        e / sum - projection
    });
    (loss, grad.collect())
}

struct Output<E: Element> {
    mean: f64,
    losses: Vec<E::Wide>,
    grad: Vec<E>,
}

fn compute<E: Kernels>(z: &[E], y: &[i64], n_classes: usize, loss: LabelRelaxation) -> Output<E> {
    compute_with(Isa::best(), z, y, n_classes, loss)
}

fn compute_with<E: Kernels>(
    isa: Isa,
    z: &[E],
    y: &[i64],
    n_classes: usize,
    loss: LabelRelaxation,
) -> Output<E> {
    let rows = Rows::from_slice(z, n_classes).unwrap();
    let targets = Targets::new(y, n_classes, -100).unwrap();
    let mut grad = z.to_vec();
    let out = RowsMut::from_slice(&mut grad, n_classes).unwrap();
    let batch = Batch::new(&rows, &targets).unwrap().isa(isa);
    let mean = batch.reduce(loss, Reduction::Mean).unwrap();
    let mut losses = vec![E::ZERO.widen(); y.len()];
    batch.gradient(&out).unwrap().per_row(loss, &mut losses).unwrap();
    Output { mean, losses, grad }
}

fn loss(alpha: f64) -> LabelRelaxation {
    LabelRelaxation::new(alpha, Scores::Logits).unwrap()
}

#[test]
fn agrees_with_the_formula() {
    for (n_classes, scale) in [(2, 1.0), (3, 8.0), (10, 4.0), (17, 1e4), (128, 20.0), (1000, 5.0)] {
        let z: Vec<f64> = noise(40 * n_classes, n_classes as u64).iter().map(|x| scale * x).collect();
        let y: Vec<i64> = (0..40).map(|i| (i * 7 % n_classes) as i64).collect();
        for alpha in [0.0, 0.01, 0.1, 0.25, 0.6] {
            let got = compute(&z, &y, n_classes, loss(alpha));
            for (i, z) in z.chunks(n_classes).enumerate() {
                let (value, grad) = formula(z, y[i] as usize, alpha);
                assert!((got.losses[i] - value).abs() <= 1e-12 * value + 1e-15, "{} {value}", got.losses[i]);
                for (got, grad) in got.grad[i * n_classes..].iter().zip(&grad) {
                    assert!((got - grad).abs() <= 1e-12 * grad.abs() + 1e-15, "{got} {grad}");
                }
            }
            let mean = got.losses.iter().sum::<f64>() / 40.0;
            assert!((got.mean - mean).abs() <= 1e-14 * mean);
        }
    }
}

#[test]
fn no_cancellation_near_the_boundary() {
    // Two classes with log-odds ln((1 - a) / a) - h. The loss is what softplus leaves above its tangent:
    // a (1 - a) h^2 / 2 + a (1 - a) (1 - 2a) h^3 / 6 + O(h^4).
    let alpha: f64 = 0.1;
    for h in [1e-3, 1e-4, 1e-5, 1e-6] {
        let d = ((1.0 - alpha) / alpha).ln() - h;
        let got = compute(&[d, 0.0], &[0], 2, loss(alpha)).losses[0];
        let (second, third) = (0.09 * h * h / 2.0, 0.09 * 0.8 * h * h * h / 6.0);
        // The input itself is rounded: d carries an error of 2^-53, so h one of 2e-16 / h relative.
        let budget = 1e-15 / h + 10.0 * h * h;
        assert!((got - (second + third)).abs() <= budget * second, "{h}: {got} {}", second + third);
    }
}

fn bits<E: Element>(values: &[E]) -> Vec<u64> {
    values.iter().map(|x| lr_relax::simd::Real::to_f64(x.widen()).to_bits()).collect()
}

fn same_bits_everywhere<E: Kernels>() {
    for n_classes in [2, 10, 16, 100, 129, 1000, 5003] {
        let z: Vec<E> = noise(50 * n_classes, 3)
            .iter()
            .map(|x| E::narrow(lr_relax::simd::Real::from_f64(9.0 * x)))
            .collect();
        let y: Vec<i64> = (0..50).map(|i| if i == 9 { -100 } else { i % n_classes as i64 }).collect();
        let first = compute_with(Isa::Portable, &z, &y, n_classes, loss(0.1));
        for isa in Isa::available() {
            for threads in [1, 2, 5] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(|| compute_with(isa, &z, &y, n_classes, loss(0.1)));
                assert_eq!(got.mean.to_bits(), first.mean.to_bits(), "{isa:?} {threads} {n_classes}");
                assert_eq!(bits(&got.grad), bits(&first.grad), "{isa:?} {threads} {n_classes}");
            }
        }
    }
}

#[test]
fn same_bits_f32() {
    same_bits_everywhere::<f32>();
}

#[test]
fn same_bits_f64() {
    same_bits_everywhere::<f64>();
}

#[test]
fn same_bits_bf16() {
    same_bits_everywhere::<bf16>();
}

#[test]
fn same_bits_f16() {
    same_bits_everywhere::<f16>();
}

#[test]
fn half_precision_is_computed_in_f32() {
    let z: Vec<bf16> = noise(8 * 130, 5).iter().map(|&x| bf16::from_f64(6.0 * x)).collect();
    let wide: Vec<f32> = z.iter().map(|z| z.to_f32()).collect();
    let y: Vec<i64> = (0..8).collect();
    let (half, single) = (compute(&z, &y, 130, loss(0.2)), compute(&wide, &y, 130, loss(0.2)));
    assert_eq!(half.losses, single.losses);
    let rounded: Vec<bf16> = single.grad.iter().map(|&g| bf16::from_f32(g)).collect();
    assert_eq!(half.grad, rounded);
}

#[test]
fn the_largest_class_count_works() {
    let n_classes = 200_000;
    let z: Vec<f32> = noise(2 * n_classes, 11).iter().map(|&x| 3.0 * x as f32).collect();
    let wide: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
    let y = [n_classes as i64 - 1, 0];
    let got = compute(&z, &y, n_classes, loss(0.1));
    for i in 0..2 {
        let (value, grad) = formula(&wide[i * n_classes..][..n_classes], y[i] as usize, 0.1);
        assert!((f64::from(got.losses[i]) - value).abs() <= 1e-6 * value);
        for (got, grad) in got.grad[i * n_classes..].iter().zip(&grad) {
            assert!((f64::from(*got) - grad).abs() <= 1e-6 * grad.abs() + 1e-12);
        }
    }
}

#[test]
fn non_finite_logits_stay_in_their_row() {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let z = [
        [1.0, 2.0, nan],
        [inf, 0.0, 0.0],
        [0.0, inf, 0.0],
        [-inf, -inf, -inf],
        [0.5, -inf, 0.0],
        [-inf, 0.5, 0.0],
    ];
    let got = compute(z.as_flattened(), &[0; 6], 3, loss(0.1));
    for i in 0..4 {
        assert!(got.losses[i].is_nan(), "row {i}: {}", got.losses[i]);
        assert!(got.grad[3 * i..][..3].iter().all(|g| g.is_nan()), "row {i}");
    }
    // A masked class has no gradient; a masked target has infinite loss and a finite gradient.
    assert!(got.losses[4].is_finite() && got.grad[13] == 0.0 && got.grad[12] < 0.0);
    assert_eq!((got.losses[5], got.grad[15]), (inf, -0.9));
}

#[test]
fn nothing_is_nothing() {
    let empty: [f32; 0] = [];
    assert!(compute(&empty, &[], 3, loss(0.1)).mean.is_nan());
    let ignored = compute(&[1.0_f32, 2.0], &[-100], 2, loss(0.1));
    assert!(ignored.mean.is_nan() && ignored.grad == [0.0, 0.0] && ignored.losses == [0.0]);
    // One class has all the probability.
    assert_eq!(compute(&[3.0_f32], &[0], 1, loss(0.0)).losses, [0.0]);
}

#[test]
fn hyperparameters_are_checked() {
    for alpha in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
        let message = LabelRelaxation::new(alpha, Scores::Logits).unwrap_err().to_string();
        assert!(message.contains("`alpha`") && message.contains("[0, 1)"), "{message}");
    }
    let z = [0.0_f32; 6];
    let rows = Rows::from_slice(&z, 3).unwrap();
    let targets = Targets::new(&[0_i64, 1], 3, -100).unwrap();
    let wrong = Targets::new(&[0_i64], 3, -100).unwrap();
    assert!(Batch::new(&rows, &wrong).is_err());
    let batch = Batch::new(&rows, &targets).unwrap();
    assert!(batch.weight(&[1.0]).is_err());
    assert!(batch.per_row(loss(0.1), &mut [0.0]).is_err());
}

#[test]
fn weights_scale_rows_and_their_mean() {
    let z = [0.3_f64, -0.2, 0.1, 0.9, 0.0, -1.0];
    let rows = Rows::from_slice(&z, 3).unwrap();
    let targets = Targets::new(&[2_i64, 0], 3, -100).unwrap();
    let weight = [0.5, 7.0, 2.0];
    let plain = compute(&z, &[2, 0], 3, loss(0.1));
    let (a, b) = (2.0 * plain.losses[0], 0.5 * plain.losses[1]);
    let mut grad = [0.0; 6];
    let out = RowsMut::from_slice(&mut grad, 3).unwrap();
    let batch = Batch::new(&rows, &targets).unwrap().weight(&weight).unwrap();
    let mean = batch.gradient(&out).unwrap().reduce(loss(0.1), Reduction::Mean).unwrap();
    assert!((mean - (a + b) / 2.5).abs() < 1e-15);
    assert!((grad[0] - plain.grad[0] * 2.0 / 2.5).abs() < 1e-15);
    let sum = batch.reduce(loss(0.1), Reduction::Sum).unwrap();
    assert!((sum - (a + b)).abs() < 1e-15);
}

/// p, and the derivative with respect to it of the formula on p / sum(p), by central differences.
#[test]
fn probabilities_are_divided_by_their_sum() {
    let rows = [[0.7, 0.1, 0.15, 0.05], [0.5, 0.2, 0.1, 0.1], [0.02, 0.9, 0.03, 0.05]];
    let loss = LabelRelaxation::new(0.1, Scores::Probabilities).unwrap();
    let value = |p: &[f64]| {
        let logs: Vec<f64> = p.iter().map(|p| p.ln()).collect();
        formula(&logs, 0, 0.1).0
    };
    let got = compute(rows.as_flattened(), &[0; 3], 4, loss);
    for (i, row) in rows.iter().enumerate() {
        assert!((got.losses[i] - value(row)).abs() < 1e-14);
        for k in 0..4 {
            let h = 1e-6;
            let (mut above, mut below) = (*row, *row);
            (above[k], below[k]) = (row[k] + h, row[k] - h);
            let slope = (value(&above) - value(&below)) / (2.0 * h);
            assert!((got.grad[4 * i + k] - slope).abs() < 1e-6 * slope.abs().max(1.0));
        }
    }
}

proptest! {
    #[test]
    fn gradients_sum_to_zero_and_vanish_inside(
        (z, y) in (2..40_usize).prop_flat_map(|c| (prop::collection::vec(-30.0..30.0_f64, c), 0..c)),
        alpha in 0.0..0.95_f64,
    ) {
        let got = compute(&z, &[y as i64], z.len(), loss(alpha));
        let sum: f64 = got.grad.iter().sum();
        prop_assert!(sum.abs() <= 1e-14);
        prop_assert!(got.losses[0] >= 0.0);
        let inside = got.losses[0] == 0.0;
        prop_assert_eq!(inside, got.grad.iter().all(|&g| g == 0.0));
    }

    #[test]
    fn permuting_classes_commutes(z in prop::collection::vec(-9.0..9.0_f64, 2..40), alpha in 0.0..0.9_f64) {
        let reversed: Vec<f64> = z.iter().rev().copied().collect();
        let (a, b) = (compute(&z, &[0], z.len(), loss(alpha)),
                      compute(&reversed, &[z.len() as i64 - 1], z.len(), loss(alpha)));
        prop_assert!((a.losses[0] - b.losses[0]).abs() <= 1e-13 * a.losses[0].max(1e-2));
    }
}
