"""Losses that are functions of the log-odds of a class, see src/kernels/losses/log_odds.rs and binary.rs.

Functions of a few numbers per row, in the type of the scores' sums. On GPUs the fast logarithm of float32
has an absolute error, so logarithms of numbers near 1 are series.
"""

import triton
import triton.language as tl


@triton.jit
def atanh_tail(square, TERMS: tl.constexpr):
    """1/3 + x / 5 + x^2 / 7 + ... of x, a square."""
    sum = square * 0.0
    for i in tl.static_range(TERMS):
        sum = sum * square + 1.0 / (2 * (TERMS - 1 - i) + 3)
    return sum


@triton.jit
def ln_1p(x):
    """ln(1 + x) for x in [0, 1]."""
    TERMS: tl.constexpr = 18 if x.dtype == tl.float64 else 8
    w = x / (2.0 + x)
    return 2.0 * w + 2.0 * w * (w * w) * atanh_tail(w * w, TERMS)


@triton.jit
def ln_add(a, b):
    """ln(e^a + e^b)"""
    high = tl.where(b > a, b, a)
    low = tl.where(b > a, a, b)
    return tl.where(high == -float("inf"), high, high + ln_1p(tl.exp(low - high)))


@triton.jit
def above_tangent(x, ln):
    """x - ln(1 + x) for x > -1, given the rounded ln(1 + x)."""
    TERMS: tl.constexpr = 10 if x.dtype == tl.float64 else 5
    w = x / (2.0 + x)
    near = x * w - 2.0 * w * (w * w) * atanh_tail(w * w, TERMS)
    return tl.where(tl.abs(x) > 0.25, x - ln, near)


@triton.jit
def binary_view(d):
    """q = 1 - p, ln p and ln q from the log-odds d = ln(p / q), without a difference from 1."""
    small = tl.exp(-tl.abs(d))
    q = tl.where(d > 0, small, 1.0) / (1.0 + small)
    ln_large = -ln_1p(small)
    ln_small = ln_large - tl.abs(d)
    return q, tl.where(d > 0, ln_large, ln_small), tl.where(d > 0, ln_small, ln_large)


@triton.jit
def relaxed_loss(q, ln_p, ln_q, alpha):
    """Label relaxation of a class or a set: the loss, and the excess of q over alpha, which is -dL/dd."""
    excess = q - alpha
    # Near the boundary rounded logarithms would cancel; the linear terms of the two parts cancel exactly.
    tiny = alpha < 1e-30  # its inverse may be infinite, and it does not change the loss
    some = tl.where(tiny, 1.0, alpha)
    above_u = above_tangent(-excess / (1.0 - alpha), ln_p - tl.log(1.0 - alpha))
    above_v = above_tangent(excess / some, ln_q - tl.log(some))
    loss = tl.where(tiny, -ln_p, (1.0 - alpha) * above_u + alpha * above_v)
    inside = excess <= 0  # NaN counts as outside
    return tl.where(inside, 0.0, loss), tl.where(inside, 0.0, excess)


@triton.jit
def focal_loss(q, ln_p, ln_q, gamma):
    """The focal loss, and -dL/dd."""
    power = tl.exp(tl.where(gamma == 0, 0.0, gamma * ln_q))  # 0^0 is 1
    p = 1.0 - q
    p_ln_p = tl.where(p == 0, 0.0, p * ln_p)
    return -power * ln_p, power * (q - gamma * p_ln_p)
