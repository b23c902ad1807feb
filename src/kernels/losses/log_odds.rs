//! The probabilities of one class against all others, from their log-odds.

use crate::simd::log::ln_1p;
use crate::simd::{LANES, Lanes, Real};

/// Sixteen rows in the binary view, class y against all others. Of two numbers that add up to 1, the smaller one
/// is never computed by subtraction from 1.
pub(super) struct Binary {
    /// The probability of the other classes, q = 1 - p.
    pub q: Lanes<f64>,
    /// ln p, p the probability of class y.
    pub ln_p: Lanes<f64>,
    pub ln_q: Lanes<f64>,
}

impl Binary {
    /// From the log-odds d = ln(p / q).
    #[inline(always)]
    pub(super) fn from_log_odds(d: &Lanes<f64>) -> Binary {
        let mut binary = Binary { q: [0.0; LANES], ln_p: [0.0; LANES], ln_q: [0.0; LANES] };
        let mut small = [0.0; LANES]; // e^-|d|, which does not overflow
        for i in 0..LANES {
            small[i] = (-d[i].abs()).exp_biased() * (1.0 / f64::BIAS);
        }
        for i in 0..LANES {
            let positive = d[i] > 0.0;
            binary.q[i] = if positive { small[i] } else { 1.0 } / (1.0 + small[i]);
            // ln p and ln q, each from whichever of the two is not close to 1.
            let ln_large = -ln_1p(small[i]);
            let ln_small = ln_large - d[i].abs();
            (binary.ln_p[i], binary.ln_q[i]) =
                if positive { (ln_large, ln_small) } else { (ln_small, ln_large) };
        }
        binary
    }
}
