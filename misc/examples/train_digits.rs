//! Trains the paper's dense network on the digits of scikit-learn, with tch and label relaxation.
//!
//! Each argument is a file of misc/examples/export_digits.py with one split of the data. The network and the
//! hyperparameters are those of `lr-relax compare`. To run:
//!
//!     make rust-demo
//!
//! or
//!
//!     cargo run --no-default-features --features tch --example train_digits -- target/digits/*.npz

use std::error::Error;

use lr_relax::metrics::Binning;
use lr_relax::rows::Scores;
use lr_relax::tch::{expected_calibration_error, label_relaxation};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

const ALPHA: f64 = 0.05;
const EPOCHS: usize = 20;
const BATCH_SIZE: i64 = 64;
const LEARNING_RATE: f64 = 0.2;
const SGD: nn::Sgd = nn::Sgd { momentum: 0.9, dampening: 0.0, wd: 0.0, nesterov: true };
const BINS: usize = 15;

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        return Err("usage: train_digits SPLIT.npz ..., with files of misc/examples/export_digits.py".into());
    }
    tch::set_num_threads(1); // the matrices are too small for more threads
    let mut results = Vec::new();
    for (seed, file) in files.iter().enumerate() {
        let split = Split::read(file)?;
        tch::manual_seed(seed as i64);
        let (accuracy, ece) = run(&split)?;
        println!("{file}: accuracy {accuracy:.4}, ECE {ece:.4}");
        results.push((accuracy, ece));
    }
    let (accuracy, ece): (Vec<f64>, Vec<f64>) = results.into_iter().unzip();
    println!("accuracy {:.4} +- {:.4}", mean(&accuracy), deviation(&accuracy));
    println!("ECE {:.4} +- {:.4}", mean(&ece), deviation(&ece));
    Ok(())
}

/// Training and evaluation data.
struct Split {
    train_images: Tensor,
    train_labels: Tensor,
    eval_images: Tensor,
    eval_labels: Tensor,
}

impl Split {
    fn read(file: &str) -> Result<Split, Box<dyn Error>> {
        let arrays = Tensor::read_npz(file).map_err(|error| format!("{file}: {error}"))?;
        let get = |name: &str| match arrays.iter().find(|(key, _)| key == name) {
            Some((_, tensor)) => Ok(tensor.shallow_clone()),
            None => Err(format!("{file} has no array {name}")),
        };
        Ok(Split {
            train_images: get("train_images")?.flatten(1, -1),
            train_labels: get("train_labels")?,
            eval_images: get("eval_images")?.flatten(1, -1),
            eval_labels: get("eval_labels")?,
        })
    }
}

/// Trains a new network; returns its accuracy and expected calibration error.
fn run(split: &Split) -> Result<(f64, f64), Box<dyn Error>> {
    let variables = nn::VarStore::new(Device::Cpu);
    let n_inputs = split.train_images.size()[1];
    let model = dense(&variables.root(), n_inputs, 10);
    let mut optimizer = SGD.build(&variables, LEARNING_RATE)?;
    let n = split.train_labels.size()[0];
    for _ in 0..EPOCHS {
        let order = Tensor::randperm(n, (Kind::Int64, Device::Cpu));
        for rows in order.split(BATCH_SIZE, 0) {
            let images = split.train_images.index_select(0, &rows);
            let labels = split.train_labels.index_select(0, &rows);
            let loss = label_relaxation(&model.forward(&images), &labels, ALPHA, Reduction::Mean)?;
            optimizer.backward_step(&loss);
        }
    }
    let logits = tch::no_grad(|| model.forward(&split.eval_images));
    let accuracy = logits.accuracy_for_logits(&split.eval_labels).double_value(&[]);
    let ece =
        expected_calibration_error(&logits, &split.eval_labels, Scores::Logits, BINS, Binning::Uniform)?;
    Ok((accuracy, ece))
}

/// Two hidden layers of 1024 ReLU units, initialized as in Keras: Glorot-uniform weights and zero biases.
fn dense(path: &nn::Path<'_>, n_inputs: i64, n_classes: i64) -> nn::Sequential {
    let layer = |name: &str, n_in: i64, n_out: i64| {
        let limit = (6.0 / (n_in + n_out) as f64).sqrt();
        let config = nn::LinearConfig {
            ws_init: nn::Init::Uniform { lo: -limit, up: limit },
            bs_init: Some(nn::Init::Const(0.0)),
            bias: true,
        };
        nn::linear(path / name, n_in, n_out, config)
    };
    nn::seq()
        .add(layer("hidden1", n_inputs, 1024))
        .add_fn(Tensor::relu)
        .add(layer("hidden2", 1024, 1024))
        .add_fn(Tensor::relu)
        .add(layer("output", 1024, n_classes))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample standard deviation; NaN for a single value.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}
