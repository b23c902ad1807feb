//! The losses and metrics of `tch::Tensor`: values and gradients against ATen's own autograd, every way that a
//! backward pass can come, and what is refused.

use lr_relax::losses::confidence_penalty::ConfidencePenalty;
use lr_relax::losses::cross_entropy::CrossEntropy;
use lr_relax::losses::label_relaxation::LabelRelaxation;
use lr_relax::metrics::calibration::Binning;
use lr_relax::rows::Error;
use lr_relax::rows::Scores;
use lr_relax::tch::{
    Criterion, brier_score, cross_entropy, expected_calibration_error, fit_temperature, focal,
    label_relaxation, negative_log_likelihood, reliability_curve,
};
use tch::{Device, Kind, Reduction, Tensor};

const ALPHAS: [f64; 4] = [0.0, 0.05, 0.25, 0.6];
const REDUCTIONS: [Reduction; 3] = [Reduction::Mean, Reduction::Sum, Reduction::None];

fn logits(shape: &[i64], kind: Kind) -> Tensor {
    (Tensor::randn(shape, (Kind::Double, Device::Cpu)) * 3.0).to_kind(kind)
}

fn classes(shape: &[i64], n: i64) -> Tensor {
    Tensor::randint(n, shape, (Kind::Int64, Device::Cpu))
}

/// The paper's formula, composed of ATen operators that autograd knows; classes in the last dimension.
fn composed(logits: &Tensor, target: &Tensor, alpha: f64, reduction: Reduction) -> Tensor {
    let log_p = logits.log_softmax(-1, None);
    let y = target.unsqueeze(-1);
    let own = log_p.gather(-1, &y, false).squeeze_dim(-1);
    let rest = log_p.scatter_value(-1, &y, f64::NEG_INFINITY).logsumexp([-1], false);
    let relaxed = (rest.neg() + alpha.max(f64::MIN_POSITIVE).ln()) * alpha;
    let loss = (own.neg() + (1.0 - alpha).ln()) * (1.0 - alpha) + relaxed;
    let loss = loss.where_scalarother(&own.exp().lt(1.0 - alpha), 0.0);
    match reduction {
        Reduction::Mean => loss.mean(None),
        Reduction::Sum => loss.sum(None),
        _ => loss,
    }
}

fn relaxation() -> Criterion {
    Criterion::new(LabelRelaxation::new(0.1, Scores::Logits).unwrap())
}

/// The gradient of `loss`, weighted where there are several, with respect to `input`.
fn gradient(loss: &Tensor, input: &Tensor) -> Tensor {
    let weights = Tensor::linspace(0.5, 2.0, loss.numel() as i64, (loss.kind(), Device::Cpu));
    Tensor::run_backward(&[(loss * weights.reshape(loss.size())).sum(None)], &[input], false, false).remove(0)
}

#[track_caller]
fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((got.size(), got.kind()), (expected.size(), expected.kind()));
    let far = (got - expected).abs().max().double_value(&[]);
    assert!(far <= tolerance, "{far:e} apart: {got} {expected}");
}

#[test]
fn agrees_with_autograd_on_the_composed_formula() {
    tch::manual_seed(1);
    for shape in [&[40, 2][..], &[40, 10], &[7, 33], &[6, 1000], &[2, 3, 5], &[4]] {
        let n_classes = shape[shape.len() - 1];
        let z = logits(shape, Kind::Double).set_requires_grad(true);
        let y = classes(&shape[..shape.len() - 1], n_classes);
        for alpha in ALPHAS {
            for reduction in REDUCTIONS {
                let ours = label_relaxation(&z, &y, alpha, reduction).unwrap();
                let expected = composed(&z, &y, alpha, reduction);
                assert_close(&ours, &expected, 1e-10);
                assert_close(&gradient(&ours, &z), &gradient(&expected, &z), 1e-10);
            }
        }
    }
}

#[test]
fn alpha_zero_is_the_cross_entropy_of_torch() {
    tch::manual_seed(2);
    for kind in [Kind::Double, Kind::Float] {
        let (z, y) = (logits(&[30, 17], kind).set_requires_grad(true), classes(&[30], 17));
        for reduction in REDUCTIONS {
            let ours = cross_entropy(&z, &y, reduction).unwrap();
            let theirs = z.cross_entropy_loss::<Tensor>(&y, None, reduction, -100, 0.0);
            let tolerance = if kind == Kind::Double { 1e-13 } else { 1e-5 };
            assert_close(&ours, &theirs, tolerance);
            assert_close(&gradient(&ours, &z), &gradient(&theirs, &z), tolerance);
        }
    }
}

#[test]
fn every_option_counts() {
    tch::manual_seed(3);
    let z = logits(&[2, 5, 3, 4], Kind::Double).set_requires_grad(true);
    let y = classes(&[2, 3, 4], 5);
    let _ = y.get(0).get(0).fill_(7);
    let weight = Tensor::from_slice(&[0.2_f64, 1.0, 3.0, 0.0, 1.5]);
    let criterion = relaxation().dim(1).ignore_index(7).weight(weight.shallow_clone());
    let ours = criterion.forward(&z, &y).unwrap();

    let rows = z.permute([0, 2, 3, 1]);
    let counted = y.ne(7).to_kind(Kind::Double);
    let class = y.where_scalarother(&y.ne(7), 0);
    let factor = weight.index(&[Some(&class)]) * counted;
    let expected = (composed(&rows, &class, 0.1, Reduction::None) * &factor).sum(None) / factor.sum(None);
    assert_close(&ours, &expected, 1e-12);
    assert_close(&gradient(&ours, &z), &gradient(&expected, &z), 1e-12);

    let p = rows.softmax(-1, None).detach().set_requires_grad(true);
    let probabilities = Criterion::new(LabelRelaxation::new(0.1, Scores::Probabilities).unwrap());
    let ours = probabilities.forward(&p, &class).unwrap();
    let expected = composed(&p.log(), &class, 0.1, Reduction::Mean);
    assert_close(&ours, &expected, 1e-12);
    assert_close(&gradient(&ours, &p), &gradient(&expected, &p), 1e-10);
}

#[test]
fn the_other_losses_are_their_formulas() {
    tch::manual_seed(8);
    let z = logits(&[20, 30], Kind::Double).set_requires_grad(true);
    let y = classes(&[20], 30);
    let ln_p = || z.log_softmax(-1, None);
    let own = || ln_p().gather(-1, &y.unsqueeze(-1), false).squeeze_dim(-1);
    let focused = -(own().exp().neg() + 1.0).square() * own();
    let smoothed = z.cross_entropy_loss::<Tensor>(&y, None, Reduction::Mean, -100, 0.1);
    let penalised = (ln_p().exp() * ln_p()).sum_dim_intlist(-1, false, None) * 0.3 - own();
    let criterion = |criterion: Criterion| criterion.forward(&z, &y).unwrap();
    for (ours, expected) in [
        (focal(&z, &y, 2.0, Reduction::Mean).unwrap(), focused.mean(None)),
        (criterion(Criterion::new(CrossEntropy::new(0.1).unwrap())), smoothed),
        (criterion(Criterion::new(ConfidencePenalty::new(0.3).unwrap())), penalised.mean(None)),
    ] {
        assert_close(&ours, &expected, 1e-12);
        assert_close(&gradient(&ours, &z), &gradient(&expected, &z), 1e-12);
    }
    for wrong in [CrossEntropy::new(1.5).err(), ConfidencePenalty::new(-1.0).err()] {
        assert!(matches!(wrong, Some(Error::Value(_))));
    }
}

#[test]
fn half_precision_is_computed_in_single() {
    tch::manual_seed(4);
    let y = classes(&[16], 130);
    for kind in [Kind::Half, Kind::BFloat16] {
        let z = logits(&[16, 130], kind).set_requires_grad(true);
        let wide = z.detach().to_kind(Kind::Float).set_requires_grad(true);
        for reduction in REDUCTIONS {
            let half = label_relaxation(&z, &y, 0.1, reduction).unwrap();
            let single = label_relaxation(&wide, &y, 0.1, reduction).unwrap();
            assert!(half.equal(&single), "the loss is of kind {:?}", half.kind());
        }
        let loss = |z: &Tensor| label_relaxation(z, &y, 0.1, Reduction::Sum).unwrap();
        loss(&z).backward();
        loss(&wide).backward();
        assert!(z.grad().equal(&wide.grad().to_kind(kind)));
    }
}

#[test]
fn a_loss_scale_saves_small_gradients_of_half_precision() {
    tch::manual_seed(5);
    // The mean over 4096 rows: gradients of 1e-8, below the smallest half.
    let (z, y) = (logits(&[4096, 1000], Kind::Half).set_requires_grad(true), classes(&[4096], 1000));
    let scale = 65536.0;
    (label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap() * scale).backward();
    let wide = z.detach().to_kind(Kind::Float).set_requires_grad(true);
    (label_relaxation(&wide, &y, 0.1, Reduction::Mean).unwrap() * scale).backward();
    let expected = wide.grad();
    let error = (z.grad().to_kind(Kind::Float) - &expected).abs();
    // Half a unit in the last place of a half, which below 2^-14 is 2^-24.
    let bound = expected.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25);
    assert!(error.le_tensor(&(bound * 1.001)).all().int64_value(&[]) == 1);
    assert!(z.grad().ne(0).to_kind(Kind::Double).mean(None).double_value(&[]) > 0.9);
}

#[test]
fn the_gradient_flows_on_through_a_network() {
    tch::manual_seed(6);
    let weight = logits(&[7, 5], Kind::Double).set_requires_grad(true);
    let (x, y) = (logits(&[20, 7], Kind::Double), classes(&[20], 5));
    let ours = label_relaxation(&x.matmul(&weight), &y, 0.2, Reduction::Mean).unwrap();
    (ours * 3.0).backward();
    let expected = gradient(&composed(&x.matmul(&weight), &y, 0.2, Reduction::Sum), &weight);
    // `gradient` weights a single loss by 1/2.
    assert_close(&weight.grad(), &(expected * (2.0 * 3.0 / 20.0)), 1e-12);
}

#[test]
fn backward_comes_twice_over_a_kept_graph_and_once_otherwise() {
    tch::manual_seed(7);
    let (z, y) = (logits(&[9, 6], Kind::Double).set_requires_grad(true), classes(&[9], 6));
    let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap() * 2.0;
    let first = Tensor::run_backward(&[&loss], &[&z], true, false).remove(0);
    let second = Tensor::run_backward(&[&loss], &[&z], true, false).remove(0);
    assert!(first.equal(&second));
    loss.backward();
    assert!(z.grad().equal(&first));
    let again = Tensor::f_run_backward(&[&loss], &[&z], false, false).unwrap_err().to_string();
    assert!(again.contains("second time"), "{again}");
}

#[test]
fn the_gradient_has_a_gradient() {
    tch::manual_seed(8);
    for alpha in ALPHAS {
        for reduction in REDUCTIONS {
            let (z, y) = (logits(&[12, 6], Kind::Double).set_requires_grad(true), classes(&[12], 6));
            let penalty = |loss: Tensor| {
                let grad = Tensor::run_backward(&[loss.square().sum(None)], &[&z], true, true).remove(0);
                Tensor::run_backward(&[grad.square().sum(None)], &[&z], false, false).remove(0)
            };
            let ours = penalty(label_relaxation(&z, &y, alpha, reduction).unwrap());
            let expected = penalty(composed(&z, &y, alpha, reduction));
            assert!(expected.abs().max().double_value(&[]) > 1e-4, "there is something to tell");
            assert_close(&ours, &expected, 1e-10);
        }
    }
}

#[test]
fn a_single_row_may_come_alone() {
    let z = logits(&[5], Kind::Half).set_requires_grad(true);
    let loss = label_relaxation(&z, &Tensor::from(3_i64), 0.1, Reduction::None).unwrap();
    assert_eq!((loss.size(), loss.kind()), (vec![], Kind::Float));
    (loss * 1024.0).backward();
    let row = z.detach().unsqueeze(0).set_requires_grad(true);
    (label_relaxation(&row, &Tensor::from_slice(&[3_i64]), 0.1, Reduction::Mean).unwrap() * 1024.0)
        .backward();
    assert!(z.grad().equal(&row.grad().squeeze()));
}

#[test]
fn no_gradient_where_none_is_wanted() {
    let (z, y) = (logits(&[3, 4], Kind::Float), classes(&[3], 4));
    assert!(!label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap().requires_grad());
    let z = z.set_requires_grad(true);
    assert!(label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap().requires_grad());
    let without = tch::no_grad(|| label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap());
    assert!(!without.requires_grad());
}

#[test]
fn logits_that_change_before_backward_are_noticed() {
    let (z, y) = (logits(&[3, 4], Kind::Float).set_requires_grad(true), classes(&[3], 4));
    let mut hidden = &z * 1.0;
    let loss = label_relaxation(&hidden, &y, 0.1, Reduction::Mean).unwrap();
    let _ = tch::no_grad(|| hidden.fill_(0.0));
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("inplace"), "{error}");
}

#[test]
fn any_strides_give_the_same() {
    tch::manual_seed(9);
    let z = logits(&[6, 8], Kind::Float);
    let y = classes(&[12], 8).slice(0, 0, None, 2);
    let expected = label_relaxation(&z, &y.contiguous(), 0.1, Reduction::None).unwrap();
    let turned = z.transpose(0, 1).contiguous().transpose(0, 1);
    assert!(label_relaxation(&turned, &y, 0.1, Reduction::None).unwrap().equal(&expected));
    let expanded = z.get(0).expand([6, 8], false);
    let repeated = label_relaxation(&expanded, &y.zeros_like(), 0.1, Reduction::None).unwrap();
    assert!(repeated.equal(&repeated.get(0).expand([6], false)));
    let nothing = label_relaxation(&z.narrow(0, 0, 0), &y.narrow(0, 0, 0), 0.1, Reduction::Sum).unwrap();
    assert_eq!(nothing.double_value(&[]), 0.0);
}

#[test]
fn large_gradients_come_from_kept_memory() {
    tch::manual_seed(10);
    let (z, y) = (logits(&[300, 30_000], Kind::Float).set_requires_grad(true), classes(&[300], 30_000));
    let mut first = None;
    for _ in 0..3 {
        let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap();
        let grad = Tensor::run_backward(&[loss], &[&z], false, false).remove(0);
        let first = first.get_or_insert_with(|| grad.copy());
        assert!(grad.equal(first));
    }
    lr_relax::memory::empty_cache();
}

#[test]
fn threads_run_at_once() {
    let run = |seed: i64| {
        let y = Tensor::arange(100, (Kind::Int64, Device::Cpu));
        let z = Tensor::arange(100 * 1000, (Kind::Float, Device::Cpu)).reshape([100, 1000]);
        let z = (z * (0.001 * (seed + 1) as f64)).sin().set_requires_grad(true);
        let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap();
        loss.backward();
        (loss.double_value(&[]), z.grad().double_value(&[3, 3]))
    };
    let alone: Vec<_> = (0..4).map(run).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let z = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let loss = label_relaxation(&z, &classes(&[2], 3), 0.1, Reduction::Mean).unwrap();
    std::thread::scope(|scope| scope.spawn(move || loss.backward()).join()).unwrap();
    assert!(z.grad().defined());
    assert!(lr_relax::threads::uses_torch());
}

#[test]
fn wrong_arguments_are_named() {
    let (z, y) = (logits(&[4, 3], Kind::Float), classes(&[4], 3));
    let on = |dim: i64| relaxation().dim(dim);
    let refused = |result: Result<Tensor, Error>, words: &[&str]| {
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        error
    };
    let mean = Reduction::Mean;
    for alpha in [-0.1, 1.0, f64::NAN] {
        refused(label_relaxation(&z, &y, alpha, mean), &["`alpha`", "[0, 1)"]);
    }
    refused(label_relaxation(&z, &y, 0.1, Reduction::Other(7)), &["`reduction`", "Other(7)"]);
    refused(on(2).forward(&z, &y), &["`dim`", "[-2, 1]", "2"]);
    refused(on(0).forward(&z, &y), &["`target`", "(3,)", "(4,)"]);
    refused(label_relaxation(&y, &y, 0.1, mean), &["`input`", "floating-point", "torch.int64"]);
    refused(label_relaxation(&z.gt(0), &y, 0.1, mean), &["`input`", "torch.bool"]);
    refused(
        label_relaxation(&z.narrow(1, 0, 1), &y, 0.1, mean),
        &["`input`", "at least 2 classes", "(4, 1)"],
    );
    refused(label_relaxation(&z.get(0).get(0), &y, 0.1, mean), &["`input`", "class dimension", "()"]);
    let penalty = || Criterion::new(ConfidencePenalty::new(0.1).unwrap());
    refused(penalty().forward_mixed(&z, &y, &y, &Tensor::from(0.5)), &["Only label relaxation"]);
    refused(penalty().alpha(Tensor::from(0.5)).forward(&z, &y), &["Only label relaxation"]);
    refused(focal(&z, &z, 2.0, mean), &["`target`", "integer", "torch.float32"]);
    refused(label_relaxation(&z, &z.get(0), 0.1, mean), &["`target`", "(4, 3)", "(3,)"]);
    let no_distribution = Tensor::from_slice(&[0.5_f32, 0.5, 0.5]).expand([4, 3], false);
    let error = refused(label_relaxation(&z, &no_distribution, 0.1, mean), &["distributions", "row 0"]);
    assert!(matches!(error, Error::Row { row: 0, .. }));
    refused(label_relaxation(&z, &z.gt(1e9), 0.1, mean), &["`target`", "at least one class", "row 0"]);
    refused(label_relaxation(&z, &y.narrow(0, 0, 3), 0.1, mean), &["`target`", "(4,)", "(3,)"]);
    refused(label_relaxation(&z.to_sparse_sparse_dim(2), &y, 0.1, mean), &["`input`", "dense"]);
    refused(label_relaxation(&Tensor::new(), &y, 0.1, mean), &["`input`", "undefined"]);
    refused(label_relaxation(&z, &Tensor::new(), 0.1, mean), &["`target`", "undefined"]);
    let complex = Tensor::randn([4, 3], (Kind::ComplexFloat, Device::Cpu));
    refused(label_relaxation(&complex, &y, 0.1, mean), &["`input`", "torch.complex64"]);
    refused(label_relaxation(&complex.conj().imag(), &y, 0.1, mean), &["`input`", "resolve_neg"]);
    refused(
        label_relaxation(&z.quantize_per_tensor(0.1, 0, Kind::QInt8), &y, 0.1, mean),
        &["`input`", "quantized"],
    );
    let (rows, no_memory) = (1 << 44, "allocate");
    refused(
        label_relaxation(&z.get(0).expand([rows, 3], false), &y.get(0).expand([rows], false), 0.1, mean),
        &[no_memory],
    );
    let weighted = |weight: Tensor| relaxation().weight(weight).forward(&z, &y);
    refused(weighted(Tensor::from_slice(&[1.0_f32])), &["`weight`", "(3,)", "(1,)"]);
    refused(weighted(Tensor::from_slice(&[1_i64, 1, 1])), &["`weight`", "floating-point", "torch.int64"]);
    let error = refused(label_relaxation(&z, &(&y + 3), 0.1, mean), &["`target`", "[0, 3)", "row 0"]);
    assert!(matches!(error, Error::TargetOutOfRange { row: 0, .. }));
}

#[test]
fn metrics_count_what_the_kernels_count() {
    let preds = Tensor::from_slice(&[0.9_f64, 0.1, 0.8, 0.2, 0.3, 0.7]).reshape([3, 2]);
    let target = Tensor::from_slice(&[0_u8, 1, 1]);
    let curve = |preds: &Tensor, scores| reliability_curve(preds, &target, scores, 10, Binning::Uniform);
    let bins = curve(&preds, Scores::Probabilities).unwrap();
    assert_eq!(bins.counts, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    let correct: Vec<f64> = bins.correct.iter().map(|sum| sum.to_f64()).collect();
    assert_eq!(correct, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
    let ece = |preds: &Tensor, scores| {
        expected_calibration_error(preds, &target, scores, 15, Binning::Paper).unwrap()
    };
    assert!((ece(&preds, Scores::Probabilities) - 0.4).abs() < 1e-15);
    assert!((ece(&preds.log(), Scores::Logits) - 0.4).abs() < 1e-15);
    assert!(matches!(curve(&(&preds * 2.0), Scores::Probabilities), Err(Error::Row { row: 0, .. })));
    assert!(matches!(curve(&preds.to_kind(Kind::Int64), Scores::Logits), Err(Error::Type(_))));
    assert!(matches!(curve(&preds.get(0), Scores::Logits), Err(Error::Value(_))));
    assert!(matches!(curve(&Tensor::new(), Scores::Logits), Err(Error::Type(_))));
    let close = |a: f64, b: f64| (a - b).abs() < 1e-14;
    for (preds, scores) in [(preds.shallow_clone(), Scores::Probabilities), (preds.log(), Scores::Logits)] {
        assert!(close(brier_score(&preds, &target, scores).unwrap(), (0.02 + 1.28 + 0.18) / 3.0));
        let nll = -(0.9_f64.ln() + 0.2_f64.ln() + 0.7_f64.ln()) / 3.0;
        assert!(close(negative_log_likelihood(&preds, &target, scores).unwrap(), nll));
    }
    assert!(matches!(
        fit_temperature(&(&preds * f64::NAN), &target),
        Err(Error::Row { argument: "logits", .. })
    ));
    assert!(matches!(
        fit_temperature(&preds.slice(0, 0, 0, 1), &target.slice(0, 0, 0, 1)),
        Err(Error::Value(_))
    ));
}
