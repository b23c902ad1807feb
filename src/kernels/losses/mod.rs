//! Losses and their gradients, fused: one file per loss, the machinery that they share, and the list of losses.
//!
//! From bottom to top:
//!
//! | file | what it holds |
//! |---|---|
//! | `hyperparameter`, `log_odds` | the range of a loss's number; the probabilities of a class against all others |
//! | `exponentials`, `probabilities` | rows with their exponentials, and sums over the classes |
//! | `batch` | rows, targets, weights and the destination of the gradient; [`NamedLoss`], what every loss provides |
//! | `row_target` | the target of one row |
//! | `binary` | losses that are functions of the log-odds of the class |
//! | `accumulating` | losses that sum something over the classes |
//! | `soft_target` | the same losses of a distribution as target |
//! | `label_relaxation`, `cross_entropy`, ... | the losses |
//! | `compute` | distributes a batch over threads and reduces the losses |
//! | this file | the list of losses |

mod accumulating;
mod batch;
mod binary;
mod compute;
mod exponentials;
mod hyperparameter;
mod log_odds;
mod probabilities;
mod row_target;
mod soft_target;

use crate::rows::Error;
use crate::simd::Element;

use batch::NamedLoss;
use compute::{Dispatch, Task};
use hyperparameter::SoftTargetLoss;

pub use crate::rows::Scores;
pub use batch::{Batch, Target};
pub use compute::Reduction;
pub use hyperparameter::Hyperparameter;

/// Declares the files of the losses and the enum of all losses.
macro_rules! losses {
    ($($file:ident::$Loss:ident,)*) => {
        $(
            mod $file;
            pub use $file::$Loss;

            impl From<$Loss> for Loss {
                fn from(loss: $Loss) -> Loss {
                    Loss::$Loss(loss)
                }
            }
        )*

        /// A loss with its hyperparameter.
        #[derive(Clone, Copy, Debug)]
        #[non_exhaustive]
        pub enum Loss {
            $(#[doc = concat!("See [`", stringify!($Loss), "`].")] $Loss($Loss),)*
        }

        impl Loss {
            /// The names of all losses, with their hyperparameters.
            pub const ALL: &[(&str, Hyperparameter)] =
                &[$((stringify!($file), <$Loss as NamedLoss>::PARAMETER),)*];

            /// Whether the loss takes sets, distributions and mixtures as targets, and an alpha per row.
            pub fn is_credal(self) -> bool {
                match self {
                    $(Loss::$Loss(_) => $Loss::IS_CREDAL,)*
                }
            }

            /// Whether the rows are one score for an event, in one column, and the classes are 0 and 1.
            pub fn is_binary(self) -> bool {
                match self {
                    $(Loss::$Loss(_) => $Loss::IS_BINARY,)*
                }
            }

            /// Whether the loss takes distributions as targets.
            pub fn takes_distributions(self) -> bool {
                self.is_credal() || self.of_distributions().is_some()
            }

            fn of_distributions(self) -> Option<SoftTargetLoss> {
                match self {
                    $(Loss::$Loss(loss) => loss.of_distributions(),)*
                }
            }

            /// The loss with this name and hyperparameter, of rows that hold `scores`; `None` if there is none.
            pub fn named(name: &str, parameter: f64, scores: Scores) -> Option<Result<Loss, Error>> {
                match name {
                    $(stringify!($file) => Some($Loss::with(parameter, scores).map(Loss::$Loss)),)*
                    _ => None,
                }
            }
        }

        impl Dispatch for Loss {
            fn is_credal(self) -> bool {
                Loss::is_credal(self)
            }

            #[inline(always)]
            fn run<E: Element>(self, task: Task<'_, E>) -> Result<usize, Error> {
                match (self, self.of_distributions()) {
                    (_, Some(loss)) if task.is_soft() => task.soft_groups(&loss),
                    $((Loss::$Loss(loss), _) => task.groups(&loss),)*
                }
            }
        }
    };
}

pub(crate) const ONLY_LABEL_RELAXATION: &str =
    "Only label relaxation takes sets or mixtures as targets, or an alpha for each row.";

pub(crate) const ONE_COLUMN: &str =
    "Expected one score in the dimension of the classes and no class weights.";

// Every loss, by its file and its type. The name of the file is the name of the loss.
losses! {
    label_relaxation::LabelRelaxation,
    cross_entropy::CrossEntropy,
    focal::Focal,
    dual_focal::DualFocal,
    confidence_penalty::ConfidencePenalty,
    binary_label_relaxation::BinaryLabelRelaxation,
}

/// The kernels of an element type. They are not generic, so that only this crate compiles them.
pub trait Kernels: Element {
    /// See [`Batch::reduce`].
    #[doc(hidden)]
    fn reduce(batch: &Batch<'_, Self>, loss: Loss, reduction: Reduction) -> Result<f64, Error>;

    /// See [`Batch::per_row`].
    #[doc(hidden)]
    fn per_row(batch: &Batch<'_, Self>, loss: Loss, losses: &mut [Self::Wide]) -> Result<(), Error>;

    /// See [`Batch::check_targets`].
    #[doc(hidden)]
    fn check_targets(batch: &Batch<'_, Self>) -> Result<(), Error>;
}

macro_rules! kernels {
    ($($t:ty)*) => {$(
        impl Kernels for $t {
            fn reduce(batch: &Batch<'_, $t>, loss: Loss, reduction: Reduction) -> Result<f64, Error> {
                compute::reduce(batch, loss, reduction)
            }

            fn per_row(batch: &Batch<'_, $t>, loss: Loss, losses: &mut [<$t as Element>::Wide]) -> Result<(), Error> {
                compute::per_row(batch, loss, losses)
            }

            fn check_targets(batch: &Batch<'_, $t>) -> Result<(), Error> {
                compute::check_targets(batch)
            }
        }
    )*};
}

kernels!(f32 f64 half::f16 half::bf16);

impl<E: Kernels> Batch<'_, E> {
    /// The reduced loss. The mean of no rows is NaN, as PyTorch's is.
    ///
    /// # Errors
    ///
    /// If the loss does not take such targets, or a row of the target is no distribution or an empty set.
    pub fn reduce(&self, loss: impl Into<Loss>, reduction: Reduction) -> Result<f64, Error> {
        let loss = loss.into();
        self.check(loss)?;
        E::reduce(self, loss, reduction)
    }

    /// The loss of each row into `losses`.
    ///
    /// # Errors
    ///
    /// As [`Batch::reduce`], or if there are not as many losses as rows.
    pub fn per_row(&self, loss: impl Into<Loss>, losses: &mut [E::Wide]) -> Result<(), Error> {
        let loss = loss.into();
        self.check(loss)?;
        E::per_row(self, loss, losses)
    }

    /// Checks the targets of all rows, without computing a loss.
    ///
    /// # Errors
    ///
    /// As [`Batch::reduce`].
    pub fn check_targets(&self) -> Result<(), Error> {
        E::check_targets(self)
    }

    fn check(&self, loss: Loss) -> Result<(), Error> {
        if let Target::Classes(targets) = self.target {
            let n_classes = if loss.is_binary() { 2 } else { self.rows.n_classes() };
            targets.check_shape(self.rows.len(), n_classes)?;
        }
        if loss.is_binary() && (self.rows.n_classes() != 1 || self.weight.is_some()) {
            return Err(Error::value(ONE_COLUMN));
        }
        match (self.target, self.alpha) {
            (Target::Classes(_), None) => Ok(()),
            (Target::Distributions(_), None) if loss.takes_distributions() => Ok(()),
            _ if loss.is_credal() => Ok(()),
            _ => Err(Error::r#type(ONLY_LABEL_RELAXATION)),
        }
    }
}
