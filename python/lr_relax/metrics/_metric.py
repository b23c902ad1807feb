"""What makes a function a metric: its options in the signature, its types, its place in compiled code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from ._checks import ArrayLike
from ._inputs import Options, read

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")


class Metric(Protocol[P]):
    """A metric with one value: a tensor for tensors, a NumPy number for arrays."""

    @overload
    def __call__(
        self, preds: Tensor, target: Tensor | ArrayLike, *args: P.args, **kwargs: P.kwargs
    ) -> Tensor: ...
    @overload
    def __call__(
        self, preds: ArrayLike, target: Tensor | ArrayLike, *args: P.args, **kwargs: P.kwargs
    ) -> np.float64: ...


def metric(function: Callable[Concatenate[Any, Any, P], Any]) -> Metric[P]:
    """`reads_options` for a metric with one value."""
    return cast("Metric[P]", reads_options(function))


def reads_options(function: F) -> F:
    """List `Options` in the signature of a function, and break the graph of `torch.compile` at its calls."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return torch._dynamo.disable(call)(*args, **kwargs)  # type: ignore[no-untyped-call]
        unknown = kwargs.keys() - names
        if unknown:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {min(unknown)!r}.")
        return function(*args, **kwargs)

    signature, options = inspect.signature(function), inspect.signature(read).parameters
    *own, _ = signature.parameters.values()
    shared = [options[name] for name in Options.__annotations__ if name not in signature.parameters]
    call.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    names = {parameter.name for parameter in (*own, *shared)}
    return cast("F", call)
