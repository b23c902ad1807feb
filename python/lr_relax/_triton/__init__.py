"""Kernels for CUDA and ROCm in Triton, which comes with torch on Linux and is imported with the first call.

One file per idea, as in src/kernels/losses: what is exact there is exact here, up to the rounding of
float32.
"""

import importlib.util

import torch
from torch import Tensor

from lr_relax._options import SOFT, Options

IS_AVAILABLE = importlib.util.find_spec("triton") is not None


def supports(input: Tensor, options: Options) -> bool:
    """Whether there is a kernel.

    There is none for probabilities, one logit per event, and float64 on ROCm, whose assembler refuses 64-bit
    constants that its compiler emits.
    """
    is_known = options.loss in ("label_relaxation", "dual_focal", *SOFT) and options.from_logits
    is_exotic = torch.version.hip is not None and input.dtype == torch.float64
    return is_known and input.is_cuda and not is_exotic and IS_AVAILABLE


def loss(
    input: Tensor, target: Tensor, options: Options, upstream: float | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The loss, and its gradient times `upstream`, as `lr_relax._native.loss` computes them.

    Takes arguments that `lr_relax._arguments.check` has accepted and `supports` says there is a kernel for.
    `upstream` may also be a tensor of one number on the device. Nothing waits for the device: a row whose
    target is invalid has loss and gradient NaN.
    """
    from lr_relax._triton import launch

    return launch.loss(input, target, options, upstream)


def scale(grad: Tensor, upstream: Tensor) -> Tensor:
    """`grad.mul_(upstream)`; if that is one number and it is 1, the gradient is not even read."""
    from lr_relax._triton import launch

    return launch.scale(grad, upstream)
