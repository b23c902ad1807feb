"""Cases of metrics; their definitions are those of the tests."""

import math
import sys
from pathlib import Path
from typing import Any

import lr_relax.metrics
import numpy as np
import torch
from torch import Tensor

import reference
from choices import CLASSES, FLOATS, INTEGERS, ROWS, SCORES, Case, Skip, numbers
from memory import LAYOUTS, PLACES, placed

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "python" / "metrics"))
import test_calibration_error
import test_scores

METRICS = (
    "brier_score",
    "negative_log_likelihood",
    "accuracy",
    "calibration_error",
    # These without a definition: no error that is not documented, and a number in their range.
    "smooth_calibration_error",
    "soft_calibration_error",
    "area_under_risk_coverage_curve",
    "brier_decomposition",
    "reliability_curve",
    "temperature",
)
FLAWS: dict[str, tuple[str, Any]] = {
    "large class": ("target", lambda p, y: torch.full_like(y, 125)),
    "shape of target": ("target", lambda p, y: torch.zeros((*p.shape, 2, 2), dtype=torch.int64)),
    "no target": ("target", lambda p, y: None),
    "NaN": ("preds", lambda p, y: torch.full_like(p, math.nan)),
    "negative": ("preds", lambda p, y: torch.full_like(p, -0.5)),
    "sum above 1": ("preds", lambda p, y: torch.full_like(p, 3 if p.shape == y.shape else 1)),
    "complex": ("preds", lambda p, y: p.to(torch.complex64)),
    "words": ("preds", lambda p, y: np.full(tuple(p.shape), "a")),
    "task": ("task", lambda p, y: "ranking"),
    "ignore_index": ("ignore_index", lambda p, y: 0.5),
    "from_logits": ("from_logits", lambda p, y: 1),
    "negative weight": ("sample_weight", lambda p, y: torch.full(y.shape, -1.0)),
    "infinite weight": ("sample_weight", lambda p, y: torch.full(y.shape, math.inf)),
    "shape of weight": ("sample_weight", lambda p, y: torch.ones(*y.shape, 2)),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "metric": METRICS,
    "events": (False, True),
    "dtype": FLOATS,
    "rows": ROWS,
    "classes": CLASSES,
    "dim": (None, -1, 0),
    "scores": SCORES,
    "from_logits": (False, True),
    "integer": INTEGERS,
    "ignore_index": (None, 1, -100),
    "weight": (None, *FLOATS, "zeros"),
    "n_bins": (15, 1, 2, 7, 300),
    "norm": ("l1", "l2", "max"),
    "binning": ("uniform", "quantile", "paper"),
    "kind": ("top_label", "classwise"),
    "debias": (False, True),
    "array": (False, True),
    "layout": LAYOUTS,
    "target_layout": LAYOUTS,
    "place": PLACES,
    "threads": (1, 2, 4),
    "flaw": (None, *FLAWS),
}


def check(case: Case) -> str | None:
    """What is wrong with the result of a case, or None."""
    rng = np.random.default_rng(case["seed"])
    rows, n, metric = case["rows"], case["classes"], case["metric"]
    of_errors = metric in (
        "calibration_error",
        "smooth_calibration_error",
        "soft_calibration_error",
        "reliability_curve",
    )
    is_event, from_logits = case["events"], case["from_logits"]
    if (
        (is_event and case["dim"] is not None)
        or (not rows and not is_event)
        or (len(rows) > 1 and case["dim"] is None and not is_event)
        or (case["debias"] and (case["norm"] != "l2" or case["weight"] or metric != "calibration_error"))
        or (
            case["weight"] and metric in ("smooth_calibration_error", "soft_calibration_error", "temperature")
        )
        or (case["weight"] and metric == "area_under_risk_coverage_curve")
        or (metric == "temperature" and (is_event or not from_logits))
        or (is_event and case["kind"] == "classwise")
        or math.prod(rows) * n > 40_000
        or (case["array"] and case["dtype"] == "bfloat16")
    ):
        raise Skip
    torch.set_num_threads(case["threads"])
    values = numbers(case, rng, (*rows, 2) if is_event else (*rows, n), from_logits)
    values = values[..., 0] if is_event else values
    dim = -1 if case["dim"] is None else case["dim"]
    place, least = case["place"], case["ignore_index"]
    moved = values if is_event else values.movedim(-1, dim)
    preds = placed("input", moved, case["layout"], place, dim if not is_event else -1)
    integer = getattr(torch, case["integer"])
    y = rng.integers(2 if is_event else min(n, torch.iinfo(integer).max + 1), size=rows)
    if least is not None and least >= torch.iinfo(integer).min:
        y = np.where(rng.random(rows) < 0.3, least, y)
    target = placed("target", torch.from_numpy(np.asarray(y)).to(integer), case["target_layout"], place, -1)
    options: dict[str, Any] = {"from_logits": from_logits, "dim": case["dim"], "ignore_index": least}
    if is_event:
        options["task"] = "binary"
    if case["weight"]:
        name = "float32" if case["weight"] == "zeros" else case["weight"]
        weight = torch.from_numpy(np.asarray(rng.gamma(1, size=rows))).to(getattr(torch, name))
        if case["weight"] == "zeros":
            weight = weight * torch.from_numpy(np.asarray(rng.random(rows) < 0.5))
        options["sample_weight"] = placed("weight", weight, case["target_layout"], place, -1)
    if metric in ("calibration_error", "reliability_curve", "brier_decomposition", "soft_calibration_error"):
        options["n_bins"] = case["n_bins"]
    if metric in ("calibration_error", "reliability_curve", "brier_decomposition"):
        options["binning"] = case["binning"]
    if metric == "calibration_error":
        options |= {"norm": case["norm"], "kind": case["kind"], "debias": case["debias"]}
    if case["flaw"] is not None:
        return _refused(case, preds, target, options)
    expected = _expected(case, preds, target, options)
    given = [x.numpy() if case["array"] else x for x in (preds, target)]
    try:
        got = _call(metric, *given, options)
    except (ValueError, TypeError, IndexError) as error:
        if expected is None and str(error).startswith("Expected argument"):
            return None
        raise
    if expected is None or got is None:
        return None if got is None or not got < 0 else f"{metric} gives {got!r}"
    value, budget = expected
    if math.isnan(value):
        return None if 0 <= got <= (1 if of_errors else math.inf) else f"{metric} gives {got!r}"
    ok = got == value or abs(got - value) <= budget
    return None if ok else f"{metric} gives {got!r}, expected {value!r} within {budget:.1e}"


def _call(metric: str, preds: Any, target: Any, options: dict[str, Any]) -> float | None:
    if metric == "temperature":
        del options["from_logits"]
        scaling = lr_relax.metrics.TemperatureScaling()
        return float(scaling.fit(preds, target, **options).temperature)
    got = getattr(lr_relax.metrics, metric)(preds, target, **options)
    if metric == "brier_decomposition":
        return float(got.brier_score)
    return None if metric == "reliability_curve" else float(got)


def _refused(case: Case, preds: Tensor, target: Tensor, options: dict[str, Any]) -> str | None:
    name, make = FLAWS[case["flaw"]]
    given: dict[str, Any] = {"preds": preds, "target": target}
    if (
        (preds.numel() == 0)
        or (case["flaw"] in ("negative", "sum above 1") and case["from_logits"])
        or (name in ("sample_weight", "from_logits", "task") and case["metric"] in ("temperature",))
        or (name == "sample_weight" and case["metric"].startswith(("smooth", "soft", "area")))
        or (case["flaw"] == "large class" and case["classes"] > 100)
    ):
        raise Skip
    (given if name in given else options)[name] = make(preds, target)
    try:
        got = _call(case["metric"], given.pop("preds"), given.pop("target"), options)
    except (TypeError, ValueError, IndexError) as error:
        if str(error).startswith("Expected argument"):
            return None
        raise
    return f"{case['flaw']} gives {got!r}"


def _expected(
    case: Case, preds: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[float, float] | None:
    """The value and an error budget; NaN if no definition is at hand; None if an error is right, too."""
    is_event, from_logits, metric = case["events"], case["from_logits"], case["metric"]
    y = np.array([int(v) for v in target.long().reshape(-1)], dtype=np.int64)
    x = preds if is_event else preds.movedim(-1 if case["dim"] is None else case["dim"], -1)
    x = x.double().reshape(-1) if is_event else x.double().reshape(-1, x.shape[-1])
    p = x.numpy()
    counted = np.ones(len(y), bool) if options["ignore_index"] is None else y != options["ignore_index"]
    w = (
        np.ones(len(y))
        if "sample_weight" not in options
        else options["sample_weight"].double().reshape(-1).numpy()
    )
    p, y, w = p[counted], y[counted], w[counted]
    if not len(y) or not w.any() or case["scores"] in ("special", "extreme"):
        return None
    if not from_logits and (((p < 0) | (p > 1)).any() or (not is_event and (abs(p.sum(1) - 1) > 4e-3).any())):
        return None
    eps = torch.finfo(torch.promote_types(preds.dtype, torch.float32)).eps
    if not from_logits and not is_event and eps == torch.finfo(preds.dtype).eps:
        sums = p.sum(1, keepdims=True)
        p = p / np.where(abs(sums - 1) > 1e-3, sums, 1)
    if metric == "temperature" or (from_logits and np.isinf(p).any()):
        return None
    if metric in METRICS[:3]:
        if from_logits:
            two = np.stack([np.zeros_like(p), p], -1) if is_event else p
            ln_p, ln_rest = reference._softmax(two.astype(reference.Real))
            own = np.arange(ln_p.shape[1]) == y[:, None]
            of_rows = {
                "negative_log_likelihood": -np.where(own, ln_p, 0).sum(1),
                "brier_score": np.where(own, np.exp(ln_rest), np.exp(ln_p)) ** 2
                @ np.ones(ln_p.shape[1])
                / (2 if is_event else 1),
                "accuracy": (p > 0) == y if is_event else p.argmax(1) == y,
            }[metric]
            value = float((of_rows * w).sum() / w.sum())
            return value, 16 * eps * (value + 1)
        with np.errstate(divide="ignore"):
            score = getattr(lr_relax.metrics, metric)
            if metric == "negative_log_likelihood":
                own = np.where(y == 1, p, 1 - p) if is_event else p[np.arange(len(y)), y]
                if (own == 0).any():
                    return (math.inf if (w[own == 0] > 0).any() else math.nan), 0.0
            value = test_scores.definition(score, p, y, w)
            return value, 1e-14 * (abs(value) + 1)
    if metric != "calibration_error" or case["scores"] != "normal":
        return math.nan, 0.0
    if from_logits:
        p = 1 / (1 + np.exp(-p)) if is_event else test_calibration_error.softmax(p)
        edges = test_calibration_error.uniform_edges(case["n_bins"], preds.dtype)
        if (
            case["binning"] == "quantile"
            or (abs(p.reshape(-1, 1) - edges) < 1e-6).any()
            or case["n_bins"] > 100
        ):
            return math.nan, 0.0
    keys = ("n_bins", "norm", "binning", "kind", "debias")
    value = test_calibration_error.definition(
        p, y, **{key: options[key] for key in keys}, sample_weight=w, dtype=preds.dtype
    )
    # The root of a square is as precise as the square.
    budget = 1e-14 if not from_logits else 16 * eps
    return value, budget if case["norm"] != "l2" else max(
        budget, min(math.sqrt(budget), budget / max(value, 1e-300))
    )
