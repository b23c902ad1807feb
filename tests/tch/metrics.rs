//! Values and errors of the metrics.

use lr_relax::metrics::Binning;
use lr_relax::rows::{Error, Scores};
use lr_relax::tch::{
    brier_score, expected_calibration_error, fit_temperature, negative_log_likelihood, reliability_curve,
};
use tch::{Kind, Tensor};

fn predictions() -> (Tensor, Tensor) {
    let preds = Tensor::from_slice(&[0.9_f64, 0.1, 0.8, 0.2, 0.3, 0.7]).reshape([3, 2]);
    (preds, Tensor::from_slice(&[0_u8, 1, 1]))
}

#[test]
fn reliability_curve_counts() {
    let (preds, target) = predictions();
    let bins = reliability_curve(&preds, &target, Scores::Probabilities, 10, Binning::Uniform).unwrap();
    assert_eq!(bins.counts, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
    let correct: Vec<f64> = bins.correct.iter().map(|sum| sum.to_f64()).collect();
    assert_eq!(correct, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]);
}

#[test]
fn metrics_of_probabilities_equal_those_of_logits() {
    let (preds, target) = predictions();
    let close = |a: f64, b: f64| (a - b).abs() < 1e-14;
    for (preds, scores) in [(preds.shallow_clone(), Scores::Probabilities), (preds.log(), Scores::Logits)] {
        let ece = expected_calibration_error(&preds, &target, scores, 15, Binning::Paper).unwrap();
        assert!((ece - 0.4).abs() < 1e-15);
        assert!(close(brier_score(&preds, &target, scores).unwrap(), (0.02 + 1.28 + 0.18) / 3.0));
        let nll = -(0.9_f64.ln() + 0.2_f64.ln() + 0.7_f64.ln()) / 3.0;
        assert!(close(negative_log_likelihood(&preds, &target, scores).unwrap(), nll));
    }
}

#[test]
fn rejects_invalid_predictions() {
    let (preds, target) = predictions();
    let curve = |preds: &Tensor, scores| reliability_curve(preds, &target, scores, 10, Binning::Uniform);
    assert!(matches!(curve(&(&preds * 2.0), Scores::Probabilities), Err(Error::Row { row: 0, .. })));
    assert!(matches!(curve(&preds.to_kind(Kind::Int64), Scores::Logits), Err(Error::Type(_))));
    assert!(matches!(curve(&preds.get(0), Scores::Logits), Err(Error::Value(_))));
    assert!(matches!(curve(&Tensor::new(), Scores::Logits), Err(Error::Type(_))));
    let nan = fit_temperature(&(&preds * f64::NAN), &target);
    assert!(matches!(nan, Err(Error::Row { argument: "logits", .. })));
    let empty = fit_temperature(&preds.narrow(0, 0, 0), &target.narrow(0, 0, 0));
    assert!(matches!(empty, Err(Error::Value(_))));
}
