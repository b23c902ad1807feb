"""The expected calibration error of the paper's code, and known edge cases."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.metrics import expected_calibration_error, reliability_curve

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "ece.json").read_text())
Array = np.ndarray[Any, Any]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    p: Array = e / e.sum(1, keepdims=True)
    return p


def oracle_inputs(i: int) -> tuple[Array, Array]:
    """Logits and labels of case i, as used to create the oracle."""
    rs = np.random.RandomState(1000 + i)
    if i == 0:
        return 3 * rs.randn(1000, 10), rs.randint(0, 10, 1000)
    if i == 1:
        y = rs.randint(0, 3, 500)
        return np.float32(rs.randn(500, 3) + 2.5 * np.eye(3)[y]), y
    if i == 2:
        z, _ = 4 * rs.randn(4000, 10), rs.randn(3000, 10)
        cumulated = np.cumsum(softmax(z / 1.7), 1)
        y = np.array([np.searchsorted(c, u) for c, u in zip(cumulated, rs.rand(4000), strict=True)])
        return z, np.minimum(y, 9)
    c = np.repeat(np.arange(8, 16) / 15, 25)
    p = np.stack([c, 1 - c], 1)
    return np.log(np.clip(p, 1e-12, 1)), rs.randint(0, 2, 200)


@pytest.mark.parametrize("i", range(4))
def test_matches_the_paper(i: int) -> None:
    case = ORACLE["cases"][i]
    z, y = oracle_inputs(i)
    assert y.sum() == case["y_sum"]
    if i == 3:
        c = np.repeat(np.arange(8, 16) / 15, 25)
        p = np.stack([c, 1 - c], 1)  # on the edges of the bins: softmax would round it
    else:
        p = softmax(z)
    for n_bins in (10, 15):
        got = expected_calibration_error(p, y, n_bins=n_bins, binning="paper")
        assert got == pytest.approx(case[f"ece_{n_bins}"], abs=1e-12 if p.dtype == np.float64 else 1e-7)
    curve = reliability_curve(p, y, binning="paper")
    assert curve.counts.tolist() == case["bin_counts_15"]


def test_edges_match_the_paper() -> None:
    for case in ORACLE["border_bins"]:
        confidence = case["conf"]
        if confidence >= 0.5:
            curve = reliability_curve(
                np.array([[confidence, 1 - confidence]]), np.array([0]), binning="paper"
            )
            assert curve.counts.argmax() == case["bin"], confidence


# Edge cases, with rows [c, (1 - c) / 2, (1 - c) / 2].
EDGES = [
    (4, [0.5, 0.6, 0.75, 0.9, 0.45], [0, 1, 1, 0, 2], 0.24, 0.24),
    (15, [0.6, 0.65, 0.55, 0.95, 0.35], [0, 0, 1, 0, 2], 0.34, 0.18),
    (10, [0.5, 0.55, 0.45, 0.95, 0.35], [0, 0, 1, 0, 2], 0.36, 0.18),
    (15, [1, 0.95, 0.97, 0.5], [1, 0, 0, 2], 0.355, 0.355),
]


@pytest.mark.parametrize(("n_bins", "c", "y", "uniform", "paper"), EDGES)
def test_known_edge_cases(n_bins: int, c: list[float], y: list[int], uniform: float, paper: float) -> None:
    p = np.array([[x, (1 - x) / 2, (1 - x) / 2] for x in c])
    assert expected_calibration_error(p, np.array(y), n_bins=n_bins) == pytest.approx(uniform, abs=1e-12)
    assert expected_calibration_error(p, np.array(y), n_bins=n_bins, binning="paper") == pytest.approx(
        paper, abs=1e-12
    )
    # The edges are rounded to the type of the predictions.
    single = expected_calibration_error(p.astype(np.float32), np.array(y), n_bins=n_bins)
    assert single == pytest.approx(uniform, abs=1e-6)


def test_ten_million_rows_are_exact() -> None:
    """Sums in float32 would be off by a third."""
    p = torch.tensor([[0.97, 0.03]]).expand(10_000_000, 2)
    y = (torch.arange(10_000_000) % 2).to(torch.int8)
    exact = float(np.float32(0.97)) - 0.5
    assert expected_calibration_error(p, y).item() == pytest.approx(exact, abs=1e-15)
