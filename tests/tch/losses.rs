//! Values and first gradients of the losses.

use lr_relax::losses::ConfidencePenalty;
use lr_relax::losses::CrossEntropy;
use lr_relax::losses::LabelRelaxation;
use lr_relax::rows::Scores;
use lr_relax::tch::{Criterion, cross_entropy, focal, label_relaxation};
use tch::{Kind, Reduction, Tensor};

use super::{ALPHAS, REDUCTIONS, assert_same_loss, classes, composed, logits, relaxation};

#[test]
fn label_relaxation_equals_formula() {
    for shape in [&[40, 2][..], &[40, 10], &[7, 33], &[6, 1000], &[2, 3, 5], &[4]] {
        let n_classes = shape[shape.len() - 1];
        let z = logits(shape, Kind::Double).set_requires_grad(true);
        let y = classes(&shape[..shape.len() - 1], n_classes);
        for alpha in ALPHAS {
            for reduction in REDUCTIONS {
                let ours = label_relaxation(&z, &y, alpha, reduction).unwrap();
                assert_same_loss(&ours, &composed(&z, &y, alpha, reduction), &z, 1e-10);
            }
        }
    }
}

#[test]
fn cross_entropy_equals_torch() {
    for (kind, tolerance) in [(Kind::Double, 1e-13), (Kind::Float, 1e-5)] {
        let (z, y) = (logits(&[30, 17], kind).set_requires_grad(true), classes(&[30], 17));
        for reduction in REDUCTIONS {
            let ours = cross_entropy(&z, &y, reduction).unwrap();
            // In double precision, because torch's own sum in single precision has errors above 1e-5.
            let exact = z.to_kind(Kind::Double).cross_entropy_loss::<Tensor>(&y, None, reduction, -100, 0.0);
            assert_same_loss(&ours, &exact.to_kind(kind), &z, tolerance);
        }
    }
}

#[test]
fn dim_ignore_index_and_weight() {
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
    assert_same_loss(&ours, &expected, &z, 1e-12);
}

#[test]
fn probabilities() {
    let p = logits(&[24, 5], Kind::Double).softmax(-1, None).set_requires_grad(true);
    let y = classes(&[24], 5);
    let criterion = Criterion::new(LabelRelaxation::new(0.1, Scores::Probabilities).unwrap());
    let ours = criterion.forward(&p, &y).unwrap();
    assert_same_loss(&ours, &composed(&p.log(), &y, 0.1, Reduction::Mean), &p, 1e-10);
}

#[test]
fn other_losses_equal_formulas() {
    let z = logits(&[20, 30], Kind::Double).set_requires_grad(true);
    let y = classes(&[20], 30);
    let ln_p = || z.log_softmax(-1, None);
    let own = || ln_p().gather(-1, &y.unsqueeze(-1), false).squeeze_dim(-1);
    let focused = -(own().exp().neg() + 1.0).square() * own();
    let smoothed = z.cross_entropy_loss::<Tensor>(&y, None, Reduction::Mean, -100, 0.1);
    let penalized = (ln_p().exp() * ln_p()).sum_dim_intlist(-1, false, None) * 0.3 - own();
    let criterion = |criterion: Criterion| criterion.forward(&z, &y).unwrap();
    for (ours, expected) in [
        (focal(&z, &y, 2.0, Reduction::Mean).unwrap(), focused.mean(None)),
        (criterion(Criterion::new(CrossEntropy::new(0.1).unwrap())), smoothed),
        (criterion(Criterion::new(ConfidencePenalty::new(0.3).unwrap())), penalized.mean(None)),
    ] {
        assert_same_loss(&ours, &expected, &z, 1e-12);
    }
}

#[test]
fn half_precision_is_computed_in_float() {
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
fn one_dimensional_logits() {
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
fn strides_do_not_change_the_result() {
    let z = logits(&[6, 8], Kind::Float);
    let y = classes(&[12], 8).slice(0, 0, None, 2);
    let expected = label_relaxation(&z, &y.contiguous(), 0.1, Reduction::None).unwrap();
    let transposed = z.transpose(0, 1).contiguous().transpose(0, 1);
    assert!(label_relaxation(&transposed, &y, 0.1, Reduction::None).unwrap().equal(&expected));
    let expanded = z.get(0).expand([6, 8], false);
    let repeated = label_relaxation(&expanded, &y.zeros_like(), 0.1, Reduction::None).unwrap();
    assert!(repeated.equal(&repeated.get(0).expand([6], false)));
}

#[test]
fn sum_of_no_rows_is_zero() {
    let (z, y) = (logits(&[0, 8], Kind::Float), classes(&[0], 8));
    assert_eq!(label_relaxation(&z, &y, 0.1, Reduction::Sum).unwrap().double_value(&[]), 0.0);
}
