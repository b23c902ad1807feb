//! The public kernels against the paper's formula, on every instruction set by name.

mod credal;
mod label_relaxation;
