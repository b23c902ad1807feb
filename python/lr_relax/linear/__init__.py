"""Losses of a linear layer, as of a classifier with many classes, which never hold all its logits."""

from lr_relax.linear import functional, modules
from lr_relax.linear.functional import *  # noqa: F403
from lr_relax.linear.modules import *  # noqa: F403

__all__ = []
__all__ += functional.__all__
__all__ += modules.__all__
