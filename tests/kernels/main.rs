//! The public kernels against the paper's formula, on every instruction set by name.

mod label_relaxation;
