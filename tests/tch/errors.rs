//! The errors of invalid arguments.

use lr_relax::losses::ConfidencePenalty;
use lr_relax::losses::CrossEntropy;
use lr_relax::rows::Error;
use lr_relax::tch::{Criterion, focal, label_relaxation};
use tch::{Device, Kind, Reduction, Tensor};

use super::{classes, logits, relaxation};

#[test]
fn messages_name_the_argument() {
    let (z, y) = (logits(&[4, 3], Kind::Float), classes(&[4], 3));
    let with_alpha = |alpha: f64| label_relaxation(&z, &y, alpha, Reduction::Mean);
    let with_input = |input: &Tensor| label_relaxation(input, &y, 0.1, Reduction::Mean);
    let with_target = |target: &Tensor| label_relaxation(&z, target, 0.1, Reduction::Mean);
    let with_weight = |weight: Tensor| relaxation().weight(weight).forward(&z, &y);
    let penalty = || Criterion::new(ConfidencePenalty::new(0.1).unwrap());
    let complex = Tensor::zeros([4, 3], (Kind::ComplexFloat, Device::Cpu));
    let not_distributions = Tensor::from_slice(&[0.5_f32, 0.5, 0.5]).expand([4, 3], false);
    let rows = 1 << 44;
    let cases: Vec<(Result<Tensor, Error>, &[&str])> = vec![
        (with_alpha(-0.1), &["`alpha`", "[0, 1)"]),
        (with_alpha(1.0), &["`alpha`", "[0, 1)"]),
        (with_alpha(f64::NAN), &["`alpha`", "[0, 1)"]),
        (label_relaxation(&z, &y, 0.1, Reduction::Other(7)), &["`reduction`", "Other(7)"]),
        (relaxation().dim(2).forward(&z, &y), &["`dim`", "[-2, 1]", "2"]),
        (relaxation().dim(0).forward(&z, &y), &["`target`", "(3,)", "(4,)"]),
        (with_input(&y), &["`input`", "floating-point", "torch.int64"]),
        (with_input(&z.gt(0)), &["`input`", "torch.bool"]),
        (with_input(&z.narrow(1, 0, 1)), &["`input`", "at least 2 classes", "(4, 1)"]),
        (with_input(&z.get(0).get(0)), &["`input`", "class dimension", "()"]),
        (with_input(&z.to_sparse_sparse_dim(2)), &["`input`", "dense"]),
        (with_input(&Tensor::new()), &["`input`", "undefined"]),
        (with_input(&complex), &["`input`", "torch.complex64"]),
        (with_input(&complex.conj().imag()), &["`input`", "resolve_neg"]),
        (with_input(&z.quantize_per_tensor(0.1, 0, Kind::QInt8)), &["`input`", "quantized"]),
        (with_target(&z.get(0)), &["`target`", "(4, 3)", "(3,)"]),
        (with_target(&y.narrow(0, 0, 3)), &["`target`", "(4,)", "(3,)"]),
        (with_target(&z.gt(1e9)), &["`target`", "at least one class", "row 0"]),
        (with_target(&not_distributions), &["distributions", "row 0"]),
        (with_target(&(&y + 3)), &["`target`", "[0, 3)", "row 0"]),
        (with_target(&Tensor::new()), &["`target`", "undefined"]),
        (focal(&z, &z, 2.0, Reduction::Mean), &["`target`", "distributions", "row 0 sums to"]),
        (with_weight(Tensor::from_slice(&[1.0_f32])), &["`weight`", "(3,)", "(1,)"]),
        (with_weight(Tensor::from_slice(&[1_i64, 1, 1])), &["`weight`", "floating-point", "torch.int64"]),
        (penalty().forward_mixed(&z, &y, &y, &Tensor::from(0.5)), &["Only label relaxation"]),
        (penalty().alpha(Tensor::from(0.5)).forward(&z, &y), &["Only label relaxation"]),
        (
            relaxation().forward(&z.get(0).expand([rows, 3], false), &y.get(0).expand([rows], false)),
            &["allocate"],
        ),
    ];
    for (result, words) in cases {
        let message = result.unwrap_err().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn errors_hold_the_row() {
    let (z, y) = (logits(&[4, 3], Kind::Float), classes(&[4], 3));
    let error = |target: &Tensor| label_relaxation(&z, target, 0.1, Reduction::Mean).unwrap_err();
    assert!(matches!(error(&(y + 3)), Error::TargetOutOfRange { row: 0, .. }));
    assert!(matches!(error(&z.full_like(0.5)), Error::NotADistribution { row: 0, .. }));
}

#[test]
fn asks_for_the_class_dimension() {
    let z = logits(&[2, 3, 3], Kind::Float);
    let refused = relaxation().forward(&z, &classes(&[2, 3], 3)).unwrap_err().to_string();
    assert!(refused.contains("`dim` to be given"), "{refused}");
    assert!(relaxation().dim(-1).forward(&z, &classes(&[2, 3], 3)).is_ok());
    let refused =
        relaxation().forward(&logits(&[2, 3, 4], Kind::Float), &classes(&[2, 4], 3)).unwrap_err().to_string();
    assert!(refused.contains("pass `dim` 1"), "{refused}");
}

#[test]
fn rejects_hyperparameters_out_of_range() {
    for error in [CrossEntropy::new(1.5).err(), ConfidencePenalty::new(-1.0).err()] {
        assert!(matches!(error, Some(Error::Value(_))));
    }
}
