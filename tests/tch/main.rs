//! Tests of the losses and metrics of `tch::Tensor`, against ATen operators and their autograd.

mod autograd;
mod errors;
mod losses;
mod metrics;

use std::sync::Mutex;

use lr_relax::losses::LabelRelaxation;
use lr_relax::rows::Scores;
use lr_relax::tch::Criterion;
use tch::{Device, Kind, Reduction, Tensor};

const ALPHAS: [f64; 4] = [0.0, 0.05, 0.25, 0.6];
const REDUCTIONS: [Reduction; 3] = [Reduction::Mean, Reduction::Sum, Reduction::None];

/// Draws random numbers with a fixed seed. The lock is necessary because all threads share torch's generator.
fn seeded(draw: impl FnOnce() -> Tensor) -> Tensor {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _guard = GENERATOR.lock();
    tch::manual_seed(1);
    draw()
}

fn logits(shape: &[i64], kind: Kind) -> Tensor {
    seeded(|| (Tensor::randn(shape, (Kind::Double, Device::Cpu)) * 3.0).to_kind(kind))
}

fn classes(shape: &[i64], n: i64) -> Tensor {
    seeded(|| Tensor::randint(n, shape, (Kind::Int64, Device::Cpu)))
}

fn relaxation() -> Criterion {
    Criterion::new(LabelRelaxation::new(0.1, Scores::Logits).unwrap())
}

/// The formula of label relaxation in ATen operators, with the classes in the last dimension.
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

/// The gradient of the weighted sum of `loss` with respect to `input`; the weight of a single loss is 1/2.
fn gradient(loss: &Tensor, input: &Tensor) -> Tensor {
    let weights = Tensor::linspace(0.5, 2.0, loss.numel() as i64, (loss.kind(), Device::Cpu));
    Tensor::run_backward(&[(loss * weights.reshape(loss.size())).sum(None)], &[input], false, false).remove(0)
}

/// Checks that the largest error is at most `tolerance`.
#[track_caller]
fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!((got.size(), got.kind()), (expected.size(), expected.kind()));
    let error = (got - expected).abs().max().double_value(&[]);
    assert!(error <= tolerance, "error {error:e}: {got} {expected}");
}

/// Checks that two losses and their gradients with respect to `input` are close.
#[track_caller]
fn assert_same_loss(got: &Tensor, expected: &Tensor, input: &Tensor, tolerance: f64) {
    assert_close(got, expected, tolerance);
    assert_close(&gradient(got, input), &gradient(expected, input), tolerance);
}
