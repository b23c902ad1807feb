"""What cases of all areas choose from, and their scores."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

Case = dict[str, Any]
FLOATS = ("float32", "float64", "bfloat16", "float16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
ROWS = ((3,), (), (1,), (2, 3), (17,), (0,), (2, 0), (5, 1, 2), (64,), (300,))
CLASSES = (3, 2, 5, 16, 17, 33, 64, 100, 129, 300, 1030)
SCORES = ("normal", "zero", "ties", "large", "offset", "extreme", "impossible", "special")


class Skip(Exception):
    """The choices do not go together."""


def numbers(case: Case, rng: np.random.Generator, shape: tuple[int, ...], logits: bool) -> Tensor:
    """Scores of the kind that the case names; rounded to its type, in float64."""
    kind, dtype = case["scores"], getattr(torch, case["dtype"])
    largest = torch.finfo(dtype).max
    z = 3 * rng.standard_normal(shape)
    if kind == "zero":
        z = np.zeros(shape)
    elif kind == "ties":
        z = np.round(z / 2)
    elif kind == "large":
        z *= rng.choice([10.0, 100.0, 1000.0])
    elif kind == "offset":
        z += rng.choice([-1e4, 1e3, 3e4])
    elif kind == "extreme":
        z = np.where(rng.random(shape) < 0.3, largest * rng.choice([-1, -0.5, 0.5, 1], shape), z)
    elif kind == "impossible":
        z = np.where(rng.random(shape) < 0.3, -math.inf, z)
    elif kind == "special":
        values = [math.inf, -math.inf, math.nan, 0.0, -0.0, 5e-324, 1e-40, largest, -largest]
        z = np.where(rng.random(shape) < 0.1, rng.choice(values, shape), z)
    if logits:
        return torch.from_numpy(z).to(dtype)
    with np.errstate(all="ignore"):
        p = np.exp(z.clip(-40, 40))  # quotients that the single type holds
        if kind == "large":  # probabilities need not sum to 1
            return torch.from_numpy(p * 2.0 ** rng.choice([-20, 3, 20])).to(dtype)
        p = p / p.sum(-1, keepdims=True)
    if kind == "extreme":
        p = np.where(rng.random(shape) < 0.3, rng.choice([0.0, -0.0, 1e-300, 1e-40, 1e-7], shape), p)
    if kind == "special":
        p = np.where(rng.random(shape) < 0.1, rng.choice([math.nan, math.inf, -1.0, 1e-30, 0.0], shape), p)
    return torch.from_numpy(p).to(dtype)
