//! Losses and metrics of `tch::Tensor`, for Rust programs that train with tch.
//!
//! The losses are differentiable. CPU tensors use the Rust kernels, on torch's threads. Tensors on other devices and
//! higher-order gradients use ATen operators for the losses; the metrics copy tensors to the CPU.
//!
//! ```
//! use lr_relax::tch::label_relaxation;
//! use tch::{Device, Kind, Reduction, nn, nn::{Module, OptimizerConfig}, Tensor};
//!
//! let variables = nn::VarStore::new(Device::Cpu);
//! let model = nn::linear(variables.root(), 4, 3, Default::default());
//! let mut optimizer = nn::Sgd::default().build(&variables, 0.1)?;
//! let images = Tensor::randn([8, 4], (Kind::Float, Device::Cpu));
//! let labels = Tensor::randint(3, [8], (Kind::Int64, Device::Cpu));
//! let loss = label_relaxation(&model.forward(&images), &labels, 0.1, Reduction::Mean)?;
//! optimizer.backward_step(&loss);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arguments;
mod formulas;
mod losses;
mod metrics;
pub(crate) mod torch;

pub use losses::{Criterion, cross_entropy, focal, label_relaxation};
pub use metrics::{
    brier_score, expected_calibration_error, fit_temperature, negative_log_likelihood, reliability_curve,
};
