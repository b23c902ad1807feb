"""Sums of exponentials of scores, relative to a maximum; see src/kernels/losses/exponentials.rs."""

import triton
import triton.language as tl


@triton.jit
def without_infinity(top):
    """The maximum of no or only impossible classes becomes 0, so that their exponentials are 0."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def add_exponentials(maxima, sums, z):
    """The maxima of lanes and their sums of e^(score - maximum), with the scores of one more block."""
    raised = tl.maximum(maxima, tl.max(z, 2))
    shift = without_infinity(raised)
    return raised, sums * tl.exp(maxima - shift) + tl.sum(tl.exp(z - shift[:, :, None]), 2)
