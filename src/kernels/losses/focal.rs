//! The focal loss, and its gradient.
//!
//! Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4, of a softmax over classes:
//!
//! ```text
//! L = -(1 - p_y)^g ln p_y,
//! ```
//!
//! cross-entropy that counts a row the less the surer it is of its class. With q = 1 - p_y and the log-odds d
//! of y, of which p' = p q,
//!
//! ```text
//! -dL/dd = q^(g + 1) - g q^g p ln p.
//! ```

use crate::rows::Error;
use crate::simd::{LANES, Lanes, Real};

use super::coin::{Coin, Coins};
use crate::rows::Scores;

/// The loss with its hyperparameter.
#[derive(Clone, Copy, Debug)]
pub struct Focal {
    pub(crate) gamma: f64,
}

impl Focal {
    /// `gamma`, at least 0: how much the rows that are sure of their class are discounted; 0 is cross-entropy.
    pub fn new(gamma: f64) -> Result<Self, Error> {
        if !(0.0..f64::INFINITY).contains(&gamma) {
            return Err(Error::value(format!(
                "Expected argument `gamma` to be a finite number of at least 0, but got {gamma:?}."
            )));
        }
        Ok(Focal { gamma })
    }
}

impl Coin for Focal {
    fn scores(&self) -> Scores {
        Scores::Logits
    }

    fn parameter(&self) -> f64 {
        self.gamma
    }

    #[inline(always)]
    fn losses(&self, coins: &Coins, gammas: &Lanes<f64>) -> (Lanes<f64>, Lanes<f64>) {
        let (mut losses, mut slopes) = ([0.0; LANES], [0.0; LANES]);
        let mut power = [0.0; LANES];
        for i in 0..LANES {
            let exponent = if gammas[i] == 0.0 { 0.0 } else { gammas[i] * coins.ln_q[i] }; // 0^0 is 1
            power[i] = exponent.exp_biased() * (1.0 / f64::BIAS); // q^g
        }
        for i in 0..LANES {
            let (q, ln_p) = (coins.q[i], coins.ln_p[i]);
            let p = 1.0 - q; // where p is small its rounding is that of q, and the term is small beside q
            // Of a class that is impossible, p ln p is 0.
            let p_ln_p = if p == 0.0 { 0.0 } else { p * ln_p };
            losses[i] = -power[i] * ln_p;
            slopes[i] = power[i] * (q - gammas[i] * p_ln_p);
        }
        (losses, slopes)
    }
}
