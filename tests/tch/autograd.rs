//! Backward passes: loss scales, retained graphs, higher-order gradients, cached buffers and threads.

use lr_relax::tch::label_relaxation;
use tch::{Device, Kind, Reduction, Tensor};

use super::{ALPHAS, REDUCTIONS, assert_close, classes, composed, gradient, logits};

#[test]
fn loss_scale_preserves_small_half_gradients() {
    // The gradients of the mean over 4096 rows are about 1e-8, less than the smallest positive half.
    // Rounded before it is scaled, a gradient of one row would be off by more than half a unit, too.
    let (z, y) = (logits(&[4096, 1000], Kind::Half).set_requires_grad(true), classes(&[4096], 1000));
    let wide = z.detach().to_kind(Kind::Float).set_requires_grad(true);
    for (reduction, scale) in [(Reduction::Mean, 65536.0), (Reduction::None, 100.3)] {
        let scaled = |z: &Tensor, keep: bool| {
            let loss = (label_relaxation(z, &y, 0.1, reduction).unwrap() * scale).sum(Kind::Float);
            Tensor::run_backward(&[&loss], &[z], keep, false).remove(0)
        };
        let (expected, grad) = (scaled(&wide, false), scaled(&z, false));
        let error = (grad.to_kind(Kind::Float) - &expected).abs();
        // Half a unit in the last place of a half; the unit is 2^-24 below 2^-14.
        let bound = expected.abs() * 2.0_f64.powi(-11) + 2.0_f64.powi(-25);
        assert!(error.le_tensor(&(bound * 1.001)).all().int64_value(&[]) == 1);
        assert!(grad.ne(0).to_kind(Kind::Double).mean(None).double_value(&[]) > 0.9);
        assert!(scaled(&z, true).equal(&grad));
    }
}

#[test]
fn gradient_propagates_to_weights() {
    let weight = logits(&[7, 5], Kind::Double).set_requires_grad(true);
    let (x, y) = (logits(&[20, 7], Kind::Double), classes(&[20], 5));
    let ours = label_relaxation(&x.matmul(&weight), &y, 0.2, Reduction::Mean).unwrap();
    (ours * 3.0).backward();
    let expected = gradient(&composed(&x.matmul(&weight), &y, 0.2, Reduction::Sum), &weight);
    assert_close(&weight.grad(), &(expected * (2.0 * 3.0 / 20.0)), 1e-12); // `gradient` halves a single loss
}

#[test]
fn second_backward_needs_retained_graph() {
    let (z, y) = (logits(&[9, 6], Kind::Double).set_requires_grad(true), classes(&[9], 6));
    let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap() * 2.0;
    let first = Tensor::run_backward(&[&loss], &[&z], true, false).remove(0);
    let second = Tensor::run_backward(&[&loss], &[&z], true, false).remove(0);
    assert!(first.equal(&second));
    loss.backward();
    assert!(z.grad().equal(&first));
    let error = Tensor::f_run_backward(&[&loss], &[&z], false, false).unwrap_err().to_string();
    assert!(error.contains("second time"), "{error}");
}

#[test]
fn second_order_gradient_equals_formula() {
    for alpha in ALPHAS {
        for reduction in REDUCTIONS {
            let (z, y) = (logits(&[12, 6], Kind::Double).set_requires_grad(true), classes(&[12], 6));
            let second_order = |loss: Tensor| {
                let grad = Tensor::run_backward(&[loss.square().sum(None)], &[&z], true, true).remove(0);
                Tensor::run_backward(&[grad.square().sum(None)], &[&z], false, false).remove(0)
            };
            let ours = second_order(label_relaxation(&z, &y, alpha, reduction).unwrap());
            let expected = second_order(composed(&z, &y, alpha, reduction));
            assert!(expected.abs().max().double_value(&[]) > 1e-4, "the gradient is not zero");
            assert_close(&ours, &expected, 1e-10);
        }
    }
}

#[test]
fn requires_grad_follows_the_input() {
    let (z, y) = (logits(&[3, 4], Kind::Float), classes(&[3], 4));
    let requires_grad = |z: &Tensor| label_relaxation(z, &y, 0.1, Reduction::Mean).unwrap().requires_grad();
    assert!(!requires_grad(&z));
    let z = z.set_requires_grad(true);
    assert!(requires_grad(&z));
    assert!(!tch::no_grad(|| requires_grad(&z)));
}

#[test]
fn rejects_logits_modified_before_backward() {
    let (z, y) = (logits(&[3, 4], Kind::Float).set_requires_grad(true), classes(&[3], 4));
    let mut hidden = &z * 1.0;
    let loss = label_relaxation(&hidden, &y, 0.1, Reduction::Mean).unwrap();
    let _ = tch::no_grad(|| hidden.fill_(0.0));
    let error = loss.f_backward().unwrap_err().to_string();
    assert!(error.contains("inplace"), "{error}");
}

#[test]
fn large_gradients_reuse_the_cached_buffer() {
    let (z, y) = (logits(&[300, 30_000], Kind::Float).set_requires_grad(true), classes(&[300], 30_000));
    let mut first = None;
    for _ in 0..3 {
        let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap();
        let grad = Tensor::run_backward(&[loss], &[&z], false, false).remove(0);
        let (address, expected) = first.get_or_insert_with(|| (grad.data_ptr(), grad.copy()));
        assert!(grad.equal(expected));
        assert_eq!(grad.data_ptr(), *address);
    }
    lr_relax::memory::empty_cache();
}

#[test]
fn losses_of_several_threads_equal_those_of_one() {
    let run = |seed: i64| {
        let y = Tensor::arange(100, (Kind::Int64, Device::Cpu));
        let z = Tensor::arange(100 * 1000, (Kind::Float, Device::Cpu)).reshape([100, 1000]);
        let z = (z * (0.001 * (seed + 1) as f64)).sin().set_requires_grad(true);
        let loss = label_relaxation(&z, &y, 0.1, Reduction::Mean).unwrap();
        loss.backward();
        (loss.double_value(&[]), z.grad().double_value(&[3, 3]))
    };
    let sequential: Vec<_> = (0..4).map(run).collect();
    let parallel: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(parallel, sequential);
    assert!(lr_relax::threads::uses_torch());
}

#[test]
fn backward_on_another_thread() {
    let z = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let loss = label_relaxation(&z, &classes(&[2], 3), 0.1, Reduction::Mean).unwrap();
    std::thread::scope(|scope| scope.spawn(move || loss.backward()).join()).unwrap();
    assert!(z.grad().defined());
}
