"""Cases of losses and losses of linear layers: options, values, and what is wrong with the arguments."""

import contextlib
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import lr_relax
import numpy as np
import torch
from lr_relax import TopK, _dispatch
from torch import Tensor

import reference
from choices import CLASSES, FLOATS, INTEGERS, ROWS, SCORES, Case, Skip, numbers
from memory import LAYOUTS, PLACES, placed

PARAMETERS = {
    "label_relaxation": (0.1, 0.0, 0.5, 0.99, 1e-3, 1e-30, 5e-324, 0, 1 - 2**-53),
    "binary_label_relaxation": (0.1, 0.0, 0.5, 0.99, 1e-3, 1e-30, 5e-324, 0),
    "cross_entropy": (0.0, 0.1, 1.0, 0.5, 1),
    "focal": (2.0, 0.0, 0.5, 1.0, 5.0, 1e-3, 3),
    "dual_focal": (2.0, 0.0, 0.5, 1.0, 5.0, 3),
    "confidence_penalty": (0.1, 0.0, 1.0, 7.5, 1),
}

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
    "path": ("kernel", "formulas", "layer"),
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
    "weight": (None, *FLOATS, "zeros"),
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


def shares(case: Case, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    t = rng.dirichlet(np.full(shape[-1], 0.5), shape[:-1])
    if case["shares"] == "sparse":
        t = np.where(rng.random(shape) < 0.6, 0.0, t + 1e-3)
        t[..., 0] += 1e-2
    elif case["shares"] == "one":
        t = np.eye(shape[-1])[rng.integers(shape[-1], size=shape[:-1])]
    elif case["shares"] == "tiny":
        t = np.where(rng.random(shape) < 0.3, 10.0 ** rng.uniform(-320, -3, shape), t)
    t = t / t.sum(-1, keepdims=True)
    if abs(t.astype(np.float32).sum(-1) - 1).max(initial=0) > 1e-3:
        raise Skip
    return t


class Layer(torch.autograd.Function):
    """Puts out a tensor that is no leaf, in memory that is given."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, memory: list[Tensor]) -> Tensor:
        return memory[0]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream, None


SOFT = ("cross_entropy", "focal", "confidence_penalty")


def fits(case: Case) -> bool:
    """Whether the choices go together."""
    loss, kind, rows = case["loss"], case["target"], case["rows"]
    is_relaxation, is_layer = loss == "label_relaxation", case["path"] == "layer"
    is_soft, ignores = kind in ("distribution", "topk"), case["ignored"] or case["ignore_index"] != -100
    refuses = {
        "set": not is_relaxation or ignores,
        "mixture": not is_relaxation or not case["from_logits"],
        "distribution": not (is_relaxation or loss in SOFT) or ignores,
        "topk": not (is_relaxation or loss in SOFT) or case["inplace"],
    }
    wrong = [
        refuses.get(kind, False),
        is_soft and loss in SOFT and case["ignore_index"] >= 0,
        not case["from_logits"] and "label_relaxation" not in loss,
        case["parameter"] >= len(PARAMETERS[loss]),
        case["parameters"] != "one" and not is_relaxation,
        case["dim"] in (0, 1) and len(rows) < case["dim"],
        case["dim"] is None and len(rows) > 1,
        math.prod(rows) * case["classes"] > 40_000,
    ]
    if loss == "binary_label_relaxation":
        wrong += [kind != "class", case["inplace"], case["ignored"], is_layer]
    if case["inplace"]:
        wrong += [case["path"] != "kernel", case["dtype"] == "float16", case["layout"].startswith("same")]
    if is_layer:
        wrong += [loss == "dual_focal", case["dim"] in (0, 1), not case["from_logits"]]
        wrong += [case["scores"] not in ("normal", "zero", "ties")]
    return not any(wrong)


class Made:
    """The arguments of a case, and what the reference makes of them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = rng = np.random.default_rng(case["seed"])
        self.loss, self.kind, rows, n = case["loss"], case["target"], case["rows"], case["classes"]
        if not fits(case):
            raise Skip
        is_binary, is_layer = self.loss == "binary_label_relaxation", case["path"] == "layer"
        self.dim = -1 if case["dim"] is None else case["dim"]
        self.parameter = PARAMETERS[self.loss][case["parameter"]]
        place = case["place"]
        values = numbers(case, rng, (*rows, n), case["from_logits"])
        if is_binary and not case["from_logits"]:
            values = values.clamp(-1, 1)
        self.layer: tuple[Tensor, ...] = ()
        if is_layer:
            dtype = getattr(torch, case["dtype"])
            d = int(rng.integers(1, 7))
            x, w, b = (torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((*rows, d), (n, d), (n,)))
            layout = case["layout"]
            self.layer = placed("input", x, layout, place, -1), placed("linear", w, layout, place, -1), b
            x, w, b = (each.double() for each in self.layer)
            self.scores = (x @ w.T + b).reshape(-1, n).numpy()
        else:
            moved = values if is_binary else values.movedim(-1, self.dim)
            self.input = placed("input", moved, case["layout"], place, -1 if is_binary else self.dim)
            values = self.input if is_binary else self.input.movedim(self.dim, -1)
            self.scores = values.double().reshape(-1, n).numpy().copy()
        self.ignored = np.zeros(math.prod(rows), bool)
        self._make_target(rows, n)
        self.weight = None
        if case["weight"] is not None:
            name = "float32" if case["weight"] == "zeros" else case["weight"]
            weight = torch.from_numpy(rng.uniform(0.25, 2, n)).to(getattr(torch, name))
            if case["weight"] == "zeros":
                weight[::2] = 0
            self.weight = placed("weight", weight, case["target_layout"], place, -1)
        self.parameters: Any = self.parameter
        self.of_rows = np.full(math.prod(rows), float(self.parameter))
        if case["parameters"] != "one":
            dtype = getattr(torch, case["parameter_type"])
            each = rng.choice([0.0, 0.1, 0.3, 0.9, 1e-3], () if case["parameters"] == "tensor" else rows)
            self.parameters = placed("alpha", torch.from_numpy(np.asarray(each)).to(dtype), "gaps", place, -1)
            # In the type of the computation.
            wide = self.parameters.to(torch.float64 if case["dtype"] == "float64" else torch.float32)
            self.of_rows = np.broadcast_to(wide.double().numpy(), rows).reshape(-1)

    def _make_target(self, rows: tuple[int, ...], n: int) -> None:
        case, rng, n_rows = self.case, self.rng, math.prod(rows)
        integer = getattr(torch, case["integer"])
        layout, place = case["target_layout"], case["place"]
        least, most = torch.iinfo(integer).min, torch.iinfo(integer).max

        def classes(name: str) -> tuple[Tensor, np.ndarray[Any, Any]]:
            y = rng.integers(min(n, most + 1), size=rows)
            if least <= case["ignore_index"] <= most:
                y = np.where(rng.random(rows) < case["ignored"], case["ignore_index"], y)
            target = torch.from_numpy(np.asarray(y)).to(integer)
            target = placed(name, target, layout, place, -1)
            y = np.array([int(v) for v in target.long().reshape(-1)], dtype=np.int64)
            self.ignored |= y == case["ignore_index"]
            return target, np.where(self.ignored, 0, y)

        self.target_b, self.lam = None, None
        if self.loss == "binary_label_relaxation":
            y = rng.integers(2, size=(*rows, n))
            dtype = integer if case["seed"] % 2 else getattr(torch, case["share_type"])
            self.target: Any = placed("target", torch.from_numpy(y).to(dtype), layout, place, -1)
            self.matrix = self.target.double().reshape(-1, n).numpy() == 1
        elif self.kind == "class":
            self.target, y = classes("target")
            self.matrix = np.arange(n) == y[:, None]
        elif self.kind == "mixture":
            self.target, a = classes("target")
            self.target_b, b = classes("target_b")
            a, b = (np.where(self.ignored, 0, y) for y in (a, b))
            dtype = getattr(torch, case["share_type"])
            lam = torch.from_numpy(np.asarray(rng.choice([0.0, 1.0, 0.3, 0.5, 1e-9, rng.random()], rows))).to(
                dtype
            )
            self.lam = (
                placed("lam", lam, "gaps", place, -1) if case["shares"] == "dense" else float(rng.random())
            )
            known = torch.as_tensor(self.lam, dtype=torch.float64).double().expand(rows).reshape(-1).numpy()
            self.matrix = np.zeros((n_rows, n), reference.Real)
            each = known.astype(reference.Real)
            np.add.at(self.matrix, (np.arange(n_rows), a), each)
            np.add.at(self.matrix, (np.arange(n_rows), b), 1 - each)
        elif self.kind == "set":
            mask = rng.random((*rows, n)) < rng.choice([0.1, 0.5, 0.9])
            mask |= np.eye(n, dtype=bool)[rng.integers(n, size=rows)]
            if layout == "same classes":
                mask[:] = True  # a class less would be the empty set
            target = torch.from_numpy(mask).movedim(-1, self.dim)
            self.target = placed("target", target, layout, place, self.dim)
            self.matrix = self.target.movedim(self.dim, -1).reshape(-1, n).numpy().copy()
        elif self.kind == "distribution":
            target = torch.from_numpy(shares(case, rng, (*rows, n))).to(getattr(torch, case["share_type"]))
            if layout == "same classes":
                target = torch.full_like(target, 1 / n)
            self.target = placed("target", target.movedim(-1, self.dim), layout, place, self.dim)
            self.matrix = self.target.movedim(self.dim, -1).double().reshape(-1, n).numpy().copy()
        else:
            k = int(rng.integers(1, n + 1)) if n < 20 else int(rng.integers(1, 5))
            indices = (
                rng.random((*rows, n)).argsort(-1)[..., :k]
                if n < 200
                else rng.integers(n // k, size=(*rows, k)) * k + np.arange(k)
            )
            t = shares(case, rng, (*rows, k))
            rest = "uniform" if rng.random() < 0.5 else None
            t = t * (0.8 if rest and k < n else 1.0)
            ignored = rng.random(rows) < case["ignored"]
            indices = np.where(ignored[..., None], case["ignore_index"], indices)
            self.ignored |= (indices == case["ignore_index"]).all(-1).reshape(-1)
            self.target = TopK(
                torch.from_numpy(indices), torch.from_numpy(t).to(getattr(torch, case["share_type"])), rest
            )
            wide = self.target.shares.double().reshape(-1, k).numpy()
            others = (1 - wide.sum(1, keepdims=True)).clip(0) / max(n - k, 1) if rest and k < n else 0
            self.matrix = np.zeros((n_rows, n)) + others
            np.put_along_axis(
                self.matrix, np.where(self.ignored[:, None], np.arange(k), indices.reshape(-1, k)), wide, 1
            )
        if self.ignored.any() and self.matrix.dtype != bool:
            self.matrix[self.ignored] = 1 / n

    def call(self, input: Any, changes: dict[str, Any]) -> Any:
        case = self.case
        options: dict[str, Any] = {"reduction": case["reduction"]}
        if self.loss == "binary_label_relaxation":
            options |= {"weight": self.weight, "from_logits": case["from_logits"]}
            function: Callable[..., Any] = lr_relax.binary_label_relaxation_loss
            arguments = (
                {"input": input, "target": self.target, "parameter": self.parameters} | options | changes
            )
            return function(
                arguments.pop("input"), arguments.pop("target"), arguments.pop("parameter"), **arguments
            )
        options |= {"weight": self.weight, "ignore_index": case["ignore_index"]}
        is_layer = case["path"] == "layer"
        prefix = "linear_" if is_layer else ""
        if is_layer:
            options["linear_bias"] = self.layer[2]
            options["chunk_size"] = [None, 1, 2, 7][case["seed"] % 4]
        else:
            options |= {"dim": case["dim"], "inplace": case["inplace"]}
            if self.loss == "label_relaxation" and self.kind != "mixture":
                options["from_logits"] = case["from_logits"]
        arguments = {"input": input, "target": self.target, "parameter": self.parameters} | options | changes
        first = [arguments.pop("input")] + ([self.layer[1]] if is_layer else [])
        target, parameter = arguments.pop("target"), arguments.pop("parameter")
        if self.kind == "mixture":
            lam, other = arguments.pop("lam", self.lam), arguments.pop("target_b", self.target_b)
            function = getattr(lr_relax, f"{prefix}mixup_label_relaxation_loss")
            return function(*first, target, other, lam, parameter, **arguments)
        return getattr(lr_relax, f"{prefix}{self.loss}_loss")(*first, target, parameter, **arguments)

    def reference(self) -> reference.Rows:
        weight = None if self.weight is None else self.weight.double().numpy()
        if self.loss != "binary_label_relaxation":
            return reference.compute(
                self.loss, self.of_rows, self.scores, self.matrix, weight, self.case["from_logits"]
            )
        x = self.scores.reshape(-1, 1).astype(reference.Real)
        y = self.matrix.reshape(-1, 1)
        two = np.concatenate([np.zeros_like(x) if self.case["from_logits"] else 1 - x, x], 1)
        rows = reference.compute(
            "label_relaxation",
            self.parameter,
            two,
            np.concatenate([~y, y], 1),
            None,
            self.case["from_logits"],
        )
        each = np.ones(len(x)) if weight is None else np.broadcast_to(weight, self.scores.shape).reshape(-1)
        slope = rows.slope[:, 1:] if self.case["from_logits"] else rows.slope[:, 1:] - rows.slope[:, :1]
        terms = rows.terms.max(1, keepdims=True)
        return reference.Rows(rows.loss * each, slope * each[:, None], terms * each[:, None], each)


def check(case: Case) -> str | None:
    """What is wrong with the result of a case, or None."""
    made = Made(case)
    is_layer = case["path"] == "layer"
    torch.set_num_threads(1 if is_layer else case["threads"])
    formulas = mock.patch.object(_dispatch, "runs_natively", return_value=False)
    path = formulas if case["path"] == "formulas" else contextlib.nullcontext()
    if case["flaw"] is not None:
        with path:
            return refused(made)
    tensors = [x.detach().requires_grad_() for x in (made.layer if is_layer else (made.input,))]
    made.layer = tuple(tensors) if is_layer else ()
    input = Layer.apply(tensors[0], [made.input]) if case["inplace"] else tensors[0]
    before = None if is_layer or case["inplace"] else made.input.clone()
    with path:
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
    if (
        (name == "lam" and made.kind != "mixture")
        or (name in ("dim", "inplace") and (made.layer or is_binary))
        or (name in ("ignore_index",) and is_binary)
        or (
            name == "from_logits"
            and (made.layer or made.kind == "mixture" or made.loss != "label_relaxation")
        )
        or (name == "weight" and is_binary)
        or (name in ("target", "input") and (case["dim"] in (0, 1) or is_binary))
        or (name == "target" and input.numel() == 0)
        or (case["path"] == "formulas" and case["flaw"] in VALUES)  # which do not read values
        or (case["flaw"] in ("empty set",) and made.loss != "label_relaxation")
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


def compare(made: Made, value: Tensor, grads: tuple[Tensor, ...], upstream: Tensor) -> str | None:
    case, rows = made.case, made.reference()
    dtype = getattr(torch, case["dtype"])
    wide = torch.promote_types(dtype, torch.float32)
    if value.dtype != wide:
        return f"the loss is {value.dtype}"
    eps = torch.finfo(wide).eps
    ignored = made.ignored if len(made.ignored) == len(rows.loss) else np.zeros(len(rows.loss), bool)
    loss, slope, terms, share = (np.where(ignored.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in rows)
    with np.errstate(all="ignore"):
        invalid = np.isnan(loss)
        size = np.abs(terms).max(1)
        size = np.where(np.isfinite(size), size, 0) if case["from_logits"] else np.where(ignored, 0, 1e3)
        budget = 16 * eps * (np.abs(loss) + size)
        up = upstream.double().reshape(-1).numpy().astype(reference.Real)
        total = share.sum() if case["reduction"] == "mean" else reference.Real(1)
        if made.loss == "binary_label_relaxation" and case["reduction"] == "mean":
            total = reference.Real(len(loss))
        if case["reduction"] != "none":
            budget = budget + len(loss) * 2.0**-53 * np.abs(loss)  # of a sum in double precision
            loss, budget = loss.sum(keepdims=True) / total, budget.sum(keepdims=True) / np.abs(total)
        factor = np.where(ignored, 0, up / total)
        # Of logits that are farther apart than the largest number, and of gradients that are larger.
        scores = made.scores.reshape(*rows.slope.shape)
        far = np.ptp(np.where(np.isfinite(scores), scores, 0), axis=1) > torch.finfo(wide).max / (
            4 * scores.shape[1]
        )
        far |= (case["reduction"] != "none") & (np.abs(loss * total) > torch.finfo(wide).max).any()
        budget = np.where(far if case["reduction"] == "none" else far.any(), np.inf, budget)
        slope = slope * np.where(np.abs(slope / total) > torch.finfo(dtype).max, np.inf, 1)
        slope, terms = slope * factor[:, None], np.abs(terms * factor[:, None])
    layer_error = 0.0
    if case["path"] == "layer":  # whose logits are rounded
        x, w, b = (abs(each.detach().double()) for each in made.layer)
        layer_error = (
            2 * torch.finfo(dtype).eps * float((x @ w.T + b).max() if x.numel() else 0.0) * (2 + x.shape[-1])
        )
        worst = np.abs(rows.terms).max(initial=0) * layer_error * 4 * (1 + float(made.of_rows.max(initial=0)))
        budget = budget + worst * (len(rows.loss) if case["reduction"] == "sum" else 1)
    got = value.double().reshape(-1).numpy()
    wrong = _differ(got, loss.astype(reference.Real), budget, wide)
    if wrong.any():
        i = int(wrong.argmax())
        return f"loss {got[i]!r}, expected {loss[i]!r} within {float(budget[i]):.1e}"
    if case["path"] == "layer":
        return _compare_layer(made, grads, slope, terms, invalid, layer_error)
    grad = grads[0]
    if grad.dtype != dtype or grad.shape != made.input.shape:
        return f"the gradient is {grad.dtype} of {tuple(grad.shape)}"
    if made.loss == "binary_label_relaxation":
        got = grad.double().reshape(-1, 1).numpy()
    else:
        got = grad.double().movedim(made.dim, -1).reshape(len(slope), slope.shape[1]).numpy()
    if not math.isfinite(float(total)) or total == 0:  # a mean of nothing is NaN
        return None
    # Of probabilities, the formulas for alpha 0 give such a row the slope 0.
    lost = (
        invalid
        & (case["from_logits"] or case["path"] != "formulas")
        & (np.asarray(factor) != 0)
        & (share != 0)
    )
    if (lost & ~np.isnan(got).any(1)).any():
        return "a row with loss NaN has a gradient without NaN"
    if not case["from_logits"]:  # on the border of the set, a slope from either side is right
        invalid |= (rows.loss == 0) & np.resize(made.of_rows == 0, len(invalid))
    rounding = torch.finfo(dtype).eps * (1 if case["upstream"] == 1.0 else 2)
    with np.errstate(all="ignore"):
        budget = np.where(terms > torch.finfo(wide).max, np.inf, 16 * eps * terms) + rounding * np.abs(slope)
    wrong = _differ(got, slope, budget, dtype) & ~(invalid | far)[:, None]
    if wrong.any():
        i, k = np.argwhere(wrong)[0]
        within = f"within {float(budget[i, k]):.1e}"
        return f"gradient {got[i, k]!r} at row {i}, class {k}, expected {slope[i, k]!r} {within}"
    return None


def _differ(got: Any, expected: Any, budget: Any, dtype: torch.dtype) -> Any:
    """Where numbers differ by more than the budget, after rounding to a type."""
    with np.errstate(all="ignore"):
        info = torch.finfo(dtype)
        rounded = torch.from_numpy(expected.astype(np.float64)).to(dtype).double().numpy()
        same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
        least = info.tiny * info.eps + (info.tiny if dtype != torch.float16 else 0)
        # Near the largest number, rounding decides whether the result is finite.
        edge = ~np.isfinite(got) & (np.abs(expected) >= info.max * (1 - 4 * info.eps))
        return ~(same | edge | (budget > info.max) | (np.abs(got - expected) <= budget + least))


def _compare_layer(
    made: Made, grads: tuple[Tensor, ...], slope: Any, terms: Any, invalid: Any, layer_error: float
) -> str | None:
    if invalid.any() or not np.isfinite(slope).all():
        return None
    dtype = grads[0].dtype
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    x, w, _ = (each.detach().double() for each in made.layer)
    x = x.reshape(-1, x.shape[-1]).numpy()
    w = w.numpy()
    slope, terms = slope.astype(np.float64), terms.astype(np.float64)
    error = terms * (16 * eps + 8 * layer_error * (1 + float(made.of_rows.max(initial=0)))) + 2 * torch.finfo(
        dtype
    ).eps * abs(slope)
    expected = slope @ w, slope.T @ x, slope.sum(0)
    errors = error @ abs(w), error.T @ abs(x), error.sum(0)
    for name, grad, true, budget in zip(("input", "weight", "bias"), grads, expected, errors, strict=True):
        got = grad.double().reshape(true.shape).numpy()
        budget = budget + 4 * torch.finfo(dtype).eps * abs(true)
        wrong = _differ(got, true, budget, dtype)
        if wrong.any():
            at = tuple(np.argwhere(wrong)[0])
            return f"gradient of {name} {got[at]!r} at {at}, expected {true[at]!r} within {budget[at]:.1e}"
    return None
