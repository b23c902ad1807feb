"""Cases of losses and losses of linear layers: what they choose from, and what is wrong with one."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from lr_relax import _dispatch
from torch import Tensor

from arguments import PARAMETERS, Made
from choices import CLASSES, FLOATS, INTEGERS, ROWS, SCORES, Case, Skip
from comparison import compare
from memory import LAYOUTS, PLACES

NUMBER = (-0.5, math.nan, 10**400, True, "0.1", [0.1])
# Arguments that are wrong for any case, or for those that have the argument.
FLAWS: dict[str, tuple[str, Any]] = {
    **{f"parameter {x!r:.9}": ("parameter", x) for x in (*NUMBER, None)},
    **{f"lam {x!r:.9}": ("lam", x) for x in (*NUMBER, 1.5)},
    "reduction": ("reduction", "max"),
    "no reduction": ("reduction", None),
    "dim": ("dim", 7),
    "float dim": ("dim", 0.5),
    "large dim": ("dim", 2**70),
    "ignore_index": ("ignore_index", 2**63),
    "no ignore_index": ("ignore_index", None),
    "from_logits": ("from_logits", 1),
    "inplace": ("inplace", 0),
    "short weight": ("weight", torch.ones(1)),
    "weight of integers": ("weight", lambda x: torch.ones(x.shape[-1], dtype=torch.int64)),
    "weight elsewhere": ("weight", lambda x: torch.ones(x.shape[-1], device="meta")),
    "no weight": ("weight", 1.0),
    "no target": ("target", None),
    "array as target": ("target", np.zeros(3, np.int64)),
    "complex target": ("target", torch.zeros(3, dtype=torch.complex64)),
    "target elsewhere": ("target", lambda x: torch.zeros(x.shape[:-1], dtype=torch.int64, device="meta")),
    "shape of target": ("target", lambda x: torch.zeros((*x.shape, 2, 2), dtype=torch.int64)),
    "large class": ("target", lambda x: torch.full(x.shape[:-1], x.shape[-1])),
    "negative class": ("target", lambda x: torch.full(x.shape[:-1], -1)),
    "far class": ("target", lambda x: torch.full(x.shape[:-1], 2**62)),
    "empty set": ("target", lambda x: torch.zeros(x.shape, dtype=torch.bool)),
    "sum of 2": ("target", lambda x: torch.full(x.shape, 2 / x.shape[-1])),
    "NaN share": ("target", lambda x: torch.full(x.shape, math.nan)),
    "negative share": (
        "target",
        lambda x: torch.eye(x.shape[-1])[0].mul(2).sub(1 / x.shape[-1]).expand(x.shape),
    ),
    "no input": ("input", None),
    "input of integers": ("input", lambda x: x.nan_to_num().clamp(-9, 9).long()),
    "complex input": ("input", lambda x: x.to(torch.complex64)),
    "number": ("input", torch.tensor(1.0)),
    "one class": ("input", lambda x: x[..., :1]),
}

VALUES = (
    "large class",
    "negative class",
    "far class",
    "empty set",
    "sum of 2",
    "NaN share",
    "negative share",
)

# What a case chooses from, the simplest first: what a failure does not need is set to it.
CHOICES: dict[str, tuple[Any, ...]] = {
    "loss": tuple(PARAMETERS),
    "target": ("class", "set", "distribution", "topk", "mixture"),
    "path": ("kernel", "formulas", "layer", "operator"),
    "dtype": FLOATS,
    "rows": ROWS,
    "classes": CLASSES,
    "dim": (-1, 0, 1, None),
    "scores": SCORES,
    "from_logits": (True, False),
    "reduction": ("none", "mean", "sum"),
    "parameter": (0, 1, 2, 3, 4, 5, 6, 7, 8),
    "parameters": ("one", "tensor", "rows"),
    "parameter_type": FLOATS,
    "alpha_gradient": (False, True),
    "uniform_penalty": (0.0, 1.0, 0.3),
    "weight": (None, *FLOATS, "zeros"),
    "pos_weight": (None, *FLOATS),
    "upstream": (1.0, -0.5, 3.0, 65536.0, 1e-6, "normal"),
    "inplace": (False, True),
    "ignore_index": (-100, 1, 2**40, -(2**63)),
    "ignored": (0.0, 0.3, 1.0),
    "integer": INTEGERS,
    "shares": ("dense", "sparse", "one", "tiny"),
    "share_type": FLOATS,
    "layout": LAYOUTS,
    "target_layout": LAYOUTS,
    "place": PLACES,
    "threads": (1, 2, 4),
    "flaw": (None, *FLAWS),
}


class Layer(torch.autograd.Function):
    """Puts out a tensor that is no leaf, in memory that is given."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, memory: list[Tensor]) -> Tensor:
        return memory[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream, None


@contextlib.contextmanager
def path(case: Case) -> Iterator[None]:
    """Calls in here take the path that the case names; compiled graphs of many logits call the operators."""
    is_compiled = case["path"] == "operator"
    with contextlib.ExitStack() as patches:
        if is_compiled or case["path"] == "formulas":
            patches.enter_context(mock.patch.object(_dispatch, "runs_natively", return_value=False))
            patches.enter_context(mock.patch.object(_dispatch, "is_compiled", return_value=is_compiled))
            patches.enter_context(mock.patch.object(_dispatch, "FEW", 0))
        yield


def check(case: Case) -> str | None:
    """What is wrong with the result of a case, or None."""
    made = Made(case)
    is_layer = case["path"] == "layer"
    torch.set_num_threads(1 if is_layer else case["threads"])
    if case["flaw"] is not None:
        with path(case):
            return refused(made)
    tensors = [x.detach().requires_grad_() for x in (made.layer if is_layer else (made.input,))]
    made.layer = tuple(tensors) if is_layer else ()
    tensors += [made.parameters] if made.has_alpha_gradient else []
    input = Layer.apply(tensors[0], [made.input]) if case["inplace"] else tensors[0]
    before = None if is_layer or case["inplace"] else made.input.clone()
    with path(case):
        value = made.call(input, {})
        if value.numel():
            upstream = torch.full_like(value, 1.0 if case["upstream"] == "normal" else case["upstream"])
            if case["upstream"] == "normal":
                upstream = torch.from_numpy(made.rng.standard_normal(value.shape)).to(value.dtype)
        else:
            upstream = torch.zeros_like(value)
        grads = torch.autograd.grad(value, tensors, upstream)
    if before is not None and not torch.equal(before.nan_to_num(), made.input.nan_to_num()):
        return "the input has changed"
    return compare(made, value.detach(), grads, upstream)


def refused(made: Made) -> str | None:
    """Whether a wrong argument raises an error that names an argument and what was expected."""
    case = made.case
    name, value = FLAWS[case["flaw"]]
    is_binary = made.loss == "binary_label_relaxation"
    input = made.layer[0] if made.layer else made.input
    is_formula = case["path"] == "formulas" or (case["path"] == "operator" and made.has_alpha_gradient)
    if (
        (name == "lam" and made.kind != "mixture")
        or (name in ("dim", "inplace") and (made.layer or is_binary))
        or (name == "ignore_index" and is_binary)
        or (
            name == "from_logits"
            and (made.layer or made.kind == "mixture" or made.loss != "label_relaxation")
        )
        or (name == "weight" and is_binary)
        or (name in ("target", "input") and (case["dim"] in (0, 1) or is_binary))
        or (name == "target" and input.numel() == 0)
        or (is_formula and case["flaw"] in VALUES)  # which do not read values
        or (case["flaw"] == "empty set" and made.loss != "label_relaxation")
        or (name == "input" and made.layer)
        or (case["flaw"] == "one class" and case["rows"] == ())
    ):
        raise Skip
    if callable(value):
        like = input if not made.layer else torch.empty(*case["rows"], case["classes"])
        value = value(like)
    try:
        result = made.call(value if name == "input" else input, {} if name == "input" else {name: value})
    except (TypeError, ValueError, IndexError) as error:
        if str(error).startswith("Expected argument"):
            return None
        raise
    return f"{name}={value!r:.60} gives {result}"
