"""Soft targets that name a few classes of each row, as the best of a teacher's predictions."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lr_relax._options import Options

__all__ = ["TopK"]


class TopK:
    r"""Distributions over the classes that are given by the shares of k classes, without a dense target.

    Takes the place of a dense target in `label_relaxation_loss`, `cross_entropy_loss`, `focal_loss`,
    `confidence_penalty_loss` and the losses of linear layers. Equivalent to, for indices of shape (N, k)::

        others = 0 if rest is None else (1 - shares.sum(1, keepdim=True)) / (C - k)
        target = (torch.zeros(N, C) + others).scatter(1, indices, shares)

    The dense target exists for a few rows at a time only; in compiled graphs, and for gradients of gradients,
    for all.

    Args:
        indices: Classes in [0, C), different ones in each row, of shape (..., k) and an integer type. Rows
            with only `ignore_index` are ignored by the loss.
        shares: Their probabilities, of the same shape, floating-point. No gradient flows to them.
        rest: What happens to the probability that the shares of a row leave: "uniform" spreads it evenly over
            the other classes; None expects that none is left, with a tolerance of 5e-3 as for distributions.

    Raises:
        TypeError, ValueError: If a type or a shape is wrong, or `rest` is unknown. The loss raises ValueError
            for shares that are negative or have a wrong sum, and for classes that are named twice, and
            IndexError for classes out of range; on the CPU only.

    >>> target = TopK(torch.tensor([[2, 0]]), torch.tensor([[0.7, 0.2]]), rest="uniform")
    >>> target.dense(4)
    tensor([[0.2000, 0.0500, 0.7000, 0.0500]])
    """

    def __init__(self, indices: Tensor, shares: Tensor, rest: Literal["uniform"] | None = None) -> None:
        for name, x in (("indices", indices), ("shares", shares)):
            if not isinstance(x, Tensor):
                raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(x).__name__}.")
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"Expected argument `indices` to be of an integer type, but got {indices.dtype}.")
        if not shares.is_floating_point():
            raise TypeError(
                f"Expected argument `shares` to be of a floating-point type, but got {shares.dtype}."
            )
        if indices.shape != shares.shape or indices.dim() < 1 or indices.shape[-1] < 1:
            raise ValueError(
                "Expected arguments `indices` and `shares` to have the same shape (..., k), k >= 1, "
                f"but got {tuple(indices.shape)} and {tuple(shares.shape)}."
            )
        if rest not in ("uniform", None):
            raise ValueError(f"Expected argument `rest` to be 'uniform' or None, but got {rest!r}.")
        self.indices, self.shares, self.rest = indices.long(), shares.detach(), rest

    def __repr__(self) -> str:
        return f"TopK(shape={tuple(self.indices.shape)}, rest={self.rest!r})"

    def __getitem__(self, rows: Any) -> "TopK":
        """The target of some rows: the index may not reach the last dimension."""
        dims = rows if isinstance(rows, tuple) else (rows,)
        if len(dims) >= self.indices.dim() and Ellipsis not in dims:
            raise IndexError(f"Expected an index of rows, of at most {self.indices.dim() - 1} dimensions.")
        return TopK(self.indices[rows], self.shares[rows], self.rest)

    def to(self, *arguments: Any, **options: Any) -> "TopK":
        """On another device, as `torch.Tensor.to`; a type applies to the shares."""
        shares = self.shares.to(*arguments, **options)
        return TopK(self.indices.to(shares.device), shares, self.rest)

    def dense(self, n_classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The distributions, (..., C)."""
        shares, indices = self.shares.to(dtype), self.indices
        others = self._others(shares, n_classes)
        return others.expand(*shares.shape[:-1], n_classes).scatter(-1, indices, shares)

    def _others(self, shares: Tensor, n_classes: int) -> Tensor:
        """The probability of each class that is not named, (..., 1)."""
        n_others = n_classes - shares.shape[-1]
        if self.rest is None or n_others == 0:
            return shares.new_zeros(*shares.shape[:-1], 1)
        return (1 - shares.sum(-1, keepdim=True)).clamp_min(0.0) / n_others

    def row_weights(self, options: Options, dtype: torch.dtype) -> Tensor:
        """The expected weight of a class, (...); 0 of rows that are ignored."""
        assert options.weight is not None
        weight, ignored = options.weight.detach().to(dtype), self.ignored(options.ignore_index)
        shares, named = self.shares.to(dtype), weight[self.filled(ignored).indices]
        each = self._others(shares, len(weight)).squeeze(-1)
        others = each * (weight.sum() - named.sum(-1))
        total = shares.sum(-1) + each * (len(weight) - shares.shape[-1])  # as dense targets are divided by
        return (((named * shares).sum(-1) + others) / total).masked_fill(ignored, 0.0)

    def filled(self, ignored: Tensor) -> "TopK":
        """With some distribution in rows that are ignored."""
        k, rows = self.indices.shape[-1], ignored.unsqueeze(-1)
        indices = torch.where(rows, torch.arange(k, device=rows.device), self.indices)
        return TopK(indices, self.shares.masked_fill(rows, 1 / k), self.rest)

    def ignored(self, ignore_index: int) -> Tensor:
        """Marks the rows that are ignored, (...)."""
        return (self.indices == ignore_index).all(-1)

    def check(self, rows: Sequence[int], n_classes: int, ignore_index: int, device: torch.device) -> None:
        """Raise if these are not distributions over the classes, for rows in this shape."""
        shape = tuple(self.indices.shape)
        if shape[:-1] != tuple(rows):
            raise ValueError(
                f"Expected argument `target` to name classes for rows of shape {tuple(rows)}, those of "
                f"`input`, but got indices of shape {shape}."
            )
        if self.indices.device != device or self.shares.device != device:
            raise TypeError(
                f"Expected argument `target` to be on {device}, the device of `input`, but got indices on "
                f"{self.indices.device} and shares on {self.shares.device}."
            )
        if self.indices.shape[-1] > n_classes:
            raise ValueError(
                f"Expected argument `target` to name at most {n_classes} classes of a row, "
                f"but got {self.indices.shape[-1]}."
            )
        is_plain = type(self.indices) in (Tensor, torch.nn.Parameter) and self.indices.is_cpu
        is_plain = is_plain and not torch._C._are_functorch_transforms_active()
        if not is_plain or torch.compiler.is_compiling():  # as elsewhere, the values are not read
            return
        counted = ~self.ignored(ignore_index)
        indices, shares = self.indices[counted], self.shares[counted].double()
        wrong = (indices < 0) | (indices >= n_classes)
        if wrong.any():
            raise IndexError(
                f"Expected argument `target` to name classes in [0, {n_classes}), "
                f"but got {int(indices[wrong][0])}."
            )
        ordered = indices.sort(-1).values
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise ValueError("Expected argument `target` to name different classes in each row.")
        if not (shares >= 0).all():
            raise ValueError("Expected argument `target` to have shares of at least 0, and no NaN.")
        total, tolerance = shares.sum(-1), 5e-3
        least = 1 - tolerance if self.rest is None or self.indices.shape[-1] == n_classes else 0.0
        wrong = (total < least) | (total > 1 + tolerance)
        if wrong.any():
            remedy = " Pass rest='uniform', or divide the shares by their sum." if least else ""
            raise ValueError(
                "Expected argument `target` to have shares that sum to "
                f"{'1' if least else 'at most 1'} in each row, but got the sum {float(total[wrong][0]):.4g}."
                f"{remedy}"
            )
