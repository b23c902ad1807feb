"""What differs by more than rounding between the result of a loss and the reference."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

import reference
from arguments import Made


def compare(made: Made, value: Tensor, grads: tuple[Tensor, ...], upstream: Tensor) -> str | None:
    case, rows = made.case, made.reference()
    dtype = getattr(torch, case["dtype"])
    wide = torch.promote_types(dtype, torch.float32)
    if value.dtype != wide:
        return f"the loss is {value.dtype}"
    eps = torch.finfo(wide).eps
    ignored = made.ignored if len(made.ignored) == len(rows.loss) else np.zeros(len(rows.loss), bool)
    loss, slope, terms, share = (np.where(ignored.reshape(-1, *[1] * (x.ndim - 1)), 0, x) for x in rows[:4])
    scores = made.scores.reshape(*rows.slope.shape)
    with np.errstate(all="ignore"):
        invalid = np.isnan(loss)
        size = np.abs(terms).max(1)
        size = np.where(np.isfinite(size), size, 0) if case["from_logits"] else np.where(ignored, 0, 1e3)
        if made.has_alpha_gradient or case["path"] == "formulas":  # which add t ln(t / p)
            size = size * (1 + math.log(scores.shape[1]))
        budget = 16 * eps * (np.abs(loss) + size)
        up = upstream.double().reshape(-1).numpy().astype(reference.Real)
        total = share.sum() if case["reduction"] == "mean" else reference.Real(1)
        if made.kind == "topk" and 0 < total < torch.finfo(torch.float32).tiny:
            return None  # the weighted losses of its rows are of the type of the loss
        if made.loss == "binary_label_relaxation" and case["reduction"] == "mean":
            total = reference.Real(len(loss))
        if case["reduction"] != "none":
            budget = budget + len(loss) * 2.0**-53 * np.abs(loss)  # of a sum in double precision
            loss, budget = loss.sum(keepdims=True) / total, budget.sum(keepdims=True) / np.abs(total)
        factor = np.where(ignored, 0, up / total)
        # Of logits that are farther apart than the largest number, and of gradients that are larger.
        spread = np.ptp(np.where(np.isfinite(scores), scores, 0), axis=1)
        far = spread > torch.finfo(wide).max / (4 * scores.shape[1])
        far |= (case["reduction"] != "none") & (np.abs(loss * total) > torch.finfo(wide).max).any()
        budget = np.where(far if case["reduction"] == "none" else far.any(), np.inf, budget)
        unscaled = slope if made.kind == "topk" else slope / total  # as it is computed
        slope = slope * np.where(np.abs(unscaled) > torch.finfo(dtype).max, np.inf, 1)
        slope, terms = slope * factor[:, None], np.abs(terms * factor[:, None])
        if not case["from_logits"] and (wide == torch.float64 or case["path"] == "formulas"):
            # By a difference of two logarithms, which the kernels take in float64.
            terms = terms * (1 + np.abs(np.log(np.abs(scores).max(1, keepdims=True))) / 16)
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
    grad, *of_alpha = grads
    if grad.dtype != dtype or grad.shape != made.input.shape:
        return f"the gradient is {grad.dtype} of {tuple(grad.shape)}"
    if made.loss == "binary_label_relaxation":
        got = grad.double().reshape(-1, 1).numpy()
    else:
        got = grad.double().movedim(made.dim, -1).reshape(len(slope), slope.shape[1]).numpy()
    if not math.isfinite(float(total)) or total == 0:  # a mean of nothing is NaN
        return None
    lost = invalid & (np.asarray(factor) != 0) & (share != 0)
    if (lost & ~np.isnan(got).any(1)).any():
        return "a row with loss NaN has a gradient without NaN"
    if not case["from_logits"]:  # on the border of the set, a slope from either side is right
        invalid |= (rows.loss == 0) & np.resize(made.of_rows == 0, len(invalid))
    rounding = torch.finfo(dtype).eps * (1 if case["upstream"] == 1.0 else 2) + len(slope) * 2.0**-53
    if (
        made.kind == "set" and case["path"] == "formulas"
    ):  # which divide a set by the logarithms of its classes
        rounding = rounding + 4 * eps * spread[:, None]
    with np.errstate(all="ignore"):
        budget = np.where(terms > torch.finfo(wide).max, np.inf, 16 * eps * terms) + rounding * np.abs(slope)
    wrong = _differ(got, slope, budget, dtype) & ~(invalid | far)[:, None]
    if wrong.any():
        i, k = np.argwhere(wrong)[0]
        within = f"within {float(budget[i, k]):.1e}"
        return f"gradient {got[i, k]!r} at row {i}, class {k}, expected {slope[i, k]!r} {within}"
    # In float32, the derivative by an alpha of about 0 would need shares that this type does not hold.
    exact = case["shares"] != "tiny" and not (invalid | far).any() and np.isfinite(rows.by_alpha).all()
    if of_alpha and exact:
        return _compare_alpha(of_alpha[0], np.where(factor == 0, 0, rows.by_alpha * factor), eps)
    return None


def _compare_alpha(grad: Tensor, by_alpha: Any, eps: float) -> str | None:
    """Against the derivatives of the rows and the sizes of their terms, of which one alpha gets the sum."""
    true, size = by_alpha[0], np.abs(by_alpha[1])
    if grad.dim() == 0:
        true, size = true.sum(keepdims=True), size.sum(keepdims=True)
    got = grad.double().reshape(-1).numpy()
    budget = 32 * eps * size + 2 * torch.finfo(grad.dtype).eps * np.abs(true)
    wrong = _differ(got, true, budget, grad.dtype)
    if wrong.any():
        i = int(wrong.argmax())
        return f"gradient of alpha {got[i]!r} at {i}, expected {true[i]!r} within {float(budget[i]):.1e}"
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
