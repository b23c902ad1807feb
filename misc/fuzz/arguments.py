"""The arguments of a case of a loss, in guarded memory, and what the reference makes of them."""

import math
from collections.abc import Callable
from typing import Any

import lr_relax
import numpy as np
import torch
from lr_relax import TopK
from torch import Tensor

import reference
from choices import Case, Skip, numbers
from memory import placed

PARAMETERS = {
    "label_relaxation": (0.1, 0.0, 0.5, 0.99, 1e-3, 1e-30, 5e-324, 0, 1 - 2**-53),
    "binary_label_relaxation": (0.1, 0.0, 0.5, 0.99, 1e-3, 1e-30, 5e-324, 0),
    "cross_entropy": (0.0, 0.1, 1.0, 0.5, 1),
    "focal": (2.0, 0.0, 0.5, 1.0, 5.0, 1e-3, 3),
    "dual_focal": (2.0, 0.0, 0.5, 1.0, 5.0, 3),
    "confidence_penalty": (0.1, 0.0, 1.0, 7.5, 1),
}

MODERATE = ("normal", "zero", "ties", "large", "offset")  # scores without infinities

SOFT = ("cross_entropy", "focal", "confidence_penalty")


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
    if case["weight"] == "zeros" and case["scores"] in ("impossible", "special") and case["parameter"] != 0:
        wrong += [loss == "cross_entropy"]  # 0 times infinity, which is NaN as in torch
    if loss == "binary_label_relaxation":
        wrong += [kind != "class", case["inplace"], case["ignored"], is_layer]
        wrong += [case["weight"] == "zeros" and not case["from_logits"]]  # 0 times the slope at probability 0
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
        self.pos_weight = None
        if case["pos_weight"] is not None and is_binary:
            each = torch.from_numpy(rng.uniform(0.25, 2, n)).to(getattr(torch, case["pos_weight"]))
            self.pos_weight = placed("pos_weight", each, case["target_layout"], place, -1)
        self.parameters: Any = self.parameter
        self.of_rows = np.full(math.prod(rows), float(self.parameter))
        if case["parameters"] != "one":
            dtype = getattr(torch, case["parameter_type"])
            each = rng.choice([0.0, 0.1, 0.3, 0.9, 1e-3], () if case["parameters"] == "tensor" else rows)
            self.parameters = placed("alpha", torch.from_numpy(np.asarray(each)).to(dtype), "gaps", place, -1)
            # In the type of the computation.
            wide = self.parameters.to(torch.float64 if case["dtype"] == "float64" else torch.float32)
            self.of_rows = np.broadcast_to(wide.double().numpy(), rows).reshape(-1)
        self.penalty, self.has_alpha_gradient = 0.0, False
        if self.loss == "label_relaxation" and not (case["inplace"] or is_layer):
            # With alpha 0.5, two equal scores are on the border of the set, where the slope jumps.
            has_penalty = case["from_logits"] and case["scores"] in MODERATE and self.parameter != 0.5
            if self.kind == "class" and has_penalty:
                self.penalty = case["uniform_penalty"]
            if case["parameters"] != "one" and self.penalty == 0:
                self.has_alpha_gradient = case["alpha_gradient"]
                self.parameters.requires_grad_(self.has_alpha_gradient)

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
            options |= {"weight": self.weight, "pos_weight": self.pos_weight}
            options["from_logits"] = case["from_logits"]
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
            if self.penalty != 0:
                options["uniform_penalty"] = self.penalty
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
                self.loss,
                self.of_rows,
                self.scores,
                self.matrix,
                weight,
                self.case["from_logits"],
                self.penalty,
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
        if self.pos_weight is not None:
            of_ones = np.broadcast_to(self.pos_weight.double().numpy(), self.scores.shape).reshape(-1)
            each = each * np.where(y[:, 0], of_ones, 1)
        slope = rows.slope[:, 1:] if self.case["from_logits"] else rows.slope[:, 1:] - rows.slope[:, :1]
        terms = rows.terms.max(1, keepdims=True)
        return reference.Rows(
            rows.loss * each, slope * each[:, None], terms * each[:, None], each, rows.by_alpha
        )
