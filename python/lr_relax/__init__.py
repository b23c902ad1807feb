"""Calibration-aware losses and calibration metrics for PyTorch, on fused Rust kernels.

Label relaxation (Lienen & Hüllermeier, "From Label Smoothing to Label Relaxation", AAAI 2021) trains a
classifier against a set of distributions instead of a single smoothed one, and so yields calibrated
probabilities without scaling them afterward.

>>> import torch
>>> from lr_relax import LabelRelaxationLoss
>>> criterion = LabelRelaxationLoss(alpha=0.1)
>>> logits = torch.randn(8, 10, requires_grad=True)
>>> criterion(logits, torch.randint(10, (8,))).backward()
"""

import importlib.metadata

import torch

from lr_relax import _torch_release

_torch_release.check()  # before the extension is loaded

from lr_relax import _native  # noqa: E402

_native.connect(torch)  # before it is used

from lr_relax import functional, linear, losses  # noqa: E402
from lr_relax._native import empty_cache  # noqa: E402
from lr_relax.ambiguation import RobustDataAmbiguationLoss  # noqa: E402
from lr_relax.functional import *  # noqa: E402, F403
from lr_relax.linear import *  # noqa: E402, F403
from lr_relax.losses import *  # noqa: E402, F403
from lr_relax.topk import TopK  # noqa: E402

__version__ = importlib.metadata.version("lr-relax")

__all__ = ["RobustDataAmbiguationLoss", "TopK", "__version__", "empty_cache"]
__all__ += functional.__all__
__all__ += losses.__all__
__all__ += linear.__all__
