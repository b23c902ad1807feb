"""The expected calibration error: the paper's values, the edge cases of the field, and properties."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lr_relax.metrics import expected_calibration_error, reliability_curve

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "ece.json").read_text())
Array = np.ndarray[Any, Any]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    p: Array = e / e.sum(1, keepdims=True)
    return p


def oracle_inputs(i: int) -> tuple[Array, Array]:
    """Logits and labels of case i, by the recipe that the oracle was made with."""
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
def test_meets_the_paper(i: int) -> None:
    case = ORACLE["cases"][i]
    z, y = oracle_inputs(i)
    assert y.sum() == case["y_sum"]
    if i == 3:
        c = np.repeat(np.arange(8, 16) / 15, 25)
        p = np.stack([c, 1 - c], 1)  # on the borders of the bins: not by way of the logits
    else:
        p = softmax(z)
    for n_bins in (10, 15):
        got = expected_calibration_error(p, y, n_bins=n_bins, binning="paper")
        assert got == pytest.approx(case[f"ece_{n_bins}"], abs=1e-12 if p.dtype == np.float64 else 1e-7)
    curve = reliability_curve(p, y, binning="paper")
    assert curve.counts.tolist() == case["bin_counts_15"]


def test_every_border_falls_as_in_the_paper() -> None:
    for border in ORACLE["border_bins"]:
        confidence = border["conf"]
        if confidence >= 0.5:
            curve = reliability_curve(
                np.array([[confidence, 1 - confidence]]), np.array([0]), binning="paper"
            )
            assert curve.counts.argmax() == border["bin"], confidence


# The edge cases of the field: rows [c, (1 - c) / 2, (1 - c) / 2].
EDGES = [
    (4, [0.5, 0.6, 0.75, 0.9, 0.45], [0, 1, 1, 0, 2], 0.24, 0.24),
    (15, [0.6, 0.65, 0.55, 0.95, 0.35], [0, 0, 1, 0, 2], 0.34, 0.18),
    (10, [0.5, 0.55, 0.45, 0.95, 0.35], [0, 0, 1, 0, 2], 0.36, 0.18),
    (15, [1, 0.95, 0.97, 0.5], [1, 0, 0, 2], 0.355, 0.355),
]


@pytest.mark.parametrize(("n_bins", "c", "y", "uniform", "paper"), EDGES)
def test_edge_cases(n_bins: int, c: list[float], y: list[int], uniform: float, paper: float) -> None:
    p = np.array([[x, (1 - x) / 2, (1 - x) / 2] for x in c])
    assert expected_calibration_error(p, np.array(y), n_bins=n_bins) == pytest.approx(uniform, abs=1e-12)
    assert expected_calibration_error(p, np.array(y), n_bins=n_bins, binning="paper") == pytest.approx(
        paper, abs=1e-12
    )
    # What prints alike is binned alike.
    single = expected_calibration_error(p.astype(np.float32), np.array(y), n_bins=n_bins)
    assert single == pytest.approx(uniform, abs=1e-6)


def naive(p: Array, y: Array, n_bins: int) -> float:
    confidence, hit = p.max(1), p.argmax(1) == y
    edges = np.arange(n_bins + 1) / n_bins
    which = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, n_bins - 1)
    gaps = [abs(math.fsum(hit[which == b]) - math.fsum(confidence[which == b])) for b in range(n_bins)]
    return math.fsum(gaps) / len(y)


rows = st.integers(2, 40).flatmap(
    lambda c: st.lists(st.lists(st.floats(-20, 20), min_size=c, max_size=c), min_size=1, max_size=60)
)


@given(rows, st.integers(1, 40), st.randoms(use_true_random=False))
def test_is_the_definition_whatever_the_order(z: list[list[float]], n_bins: int, random: Any) -> None:
    p = softmax(np.array(z))
    y = np.array([random.randrange(p.shape[1]) for _ in p])
    got = expected_calibration_error(p, y, n_bins=n_bins)
    assert got == pytest.approx(naive(p, y, n_bins), abs=1e-14)
    shuffled = np.array(random.sample(range(len(y)), len(y)))
    assert expected_calibration_error(p[shuffled], y[shuffled], n_bins=n_bins) == got
    curve = reliability_curve(p, y, n_bins=n_bins)
    assert curve.counts.sum() == len(y)
    assert curve.expected_calibration_error == got


def test_logits_are_what_their_softmax_is() -> None:
    z, y = 3 * torch.randn(500, 30, dtype=torch.float64), torch.randint(30, (500,))
    of_logits = expected_calibration_error(z, y, from_logits=True)
    torch.testing.assert_close(of_logits, expected_calibration_error(z.softmax(1), y), rtol=1e-12, atol=0)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_classes", [2, 10, 300])
def test_every_type_and_kind(dtype: torch.dtype, n_classes: int) -> None:
    p = (2 * torch.randn(300, n_classes)).softmax(1).to(dtype)
    y = torch.randint(n_classes, (300,), dtype=torch.int16)
    got = expected_calibration_error(p, y)
    assert (got.dtype, got.shape) == (torch.float64, ())
    assert got.item() == pytest.approx(naive(p.double().numpy(), y.numpy(), 15), abs=1e-12)
    assert expected_calibration_error(p.t().contiguous().t(), y).equal(got)
    if dtype != torch.bfloat16:
        arrays = expected_calibration_error(p.numpy()[::-1], y.numpy()[::-1])
        assert isinstance(arrays, np.float64)
        assert arrays == got.item()


def test_ten_million_rows_in_one_bin_lose_nothing() -> None:
    """Where float32 sums are off by a third: .97 is 16/15 of nothing that adds up in float32."""
    p = torch.tensor([[0.97, 0.03]]).expand(10_000_000, 2)
    y = (torch.arange(10_000_000) % 2).to(torch.int8)
    exact = float(np.float32(0.97)) - 0.5
    assert expected_calibration_error(p, y).item() == pytest.approx(exact, abs=1e-15)


def test_logits_are_never_guessed() -> None:
    z = torch.tensor([[2.0, -1.0], [0.2, 0.8]])
    with pytest.raises(ValueError, match=r"sum to 1.*from_logits=True.*row 0"):
        expected_calibration_error(z, torch.tensor([0, 1]))


P = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
Y = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("preds", "target", "options", "error", "words"),
    [
        (np.where(P == 0.2, np.nan, P), Y, {}, ValueError, "row 1"),
        (np.where(P == 0.2, -0.2, P), Y, {}, ValueError, "row 1"),
        (P * np.array([[1.0], [1.0], [1.1]]), Y, {}, ValueError, "row 2"),
        (np.where(P == 0.5, np.inf, P), Y, {"from_logits": True}, ValueError, "row 2"),
        (np.where(P == 0.5, -np.inf, P), Y, {"from_logits": True}, ValueError, "row 2"),
        (P, np.array([0, 2, 1]), {}, IndexError, "2 at row 1"),
        (P, np.array([0, 1, -1]), {}, IndexError, "-1 at row 2"),
        (P[:0], Y[:0], {}, ValueError, "at least one row"),
        (P, Y[:2], {}, ValueError, "`target`"),
        (P[0], Y, {}, ValueError, "`preds`"),
        (P.astype(int), Y, {}, TypeError, "`preds`"),
        (P, Y.astype(float), {}, TypeError, "`target`"),
        (P.astype(">f8"), Y, {}, TypeError, "native byte order"),
        (P.tolist(), Y, {}, TypeError, "`preds`.*list"),
        (P, Y.tolist(), {}, TypeError, "`target`.*list"),
        (P, Y, {"n_bins": 0}, ValueError, "`n_bins`.*0"),
        (P, Y, {"n_bins": True}, ValueError, "`n_bins`.*True"),
        (P, Y, {"n_bins": 2**70}, ValueError, "`n_bins`"),
        (P, Y, {"binning": None}, ValueError, "`binning`.*None"),
        (np.ma.masked_array(P), Y, {}, TypeError, "`preds`.*MaskedArray"),
        (P, Y, {"n_bins": 2.5}, ValueError, "`n_bins`.*2.5"),
        (P, Y, {"n_bins": 2**40}, ValueError, "`n_bins`"),
        (P, Y, {"binning": "equal"}, ValueError, "`binning`.*'equal'"),
    ],
)  # fmt: skip
def test_bad_input(preds: Any, target: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        expected_calibration_error(preds, target, **options)


def test_a_number_of_bins_of_numpy() -> None:
    assert expected_calibration_error(P, Y, n_bins=np.int64(15)) == expected_calibration_error(P, Y)  # type: ignore[call-overload]


def test_the_curve() -> None:
    curve = reliability_curve(P, Y, n_bins=2)
    assert curve.edges.tolist() == [0.0, 0.5, 1.0]
    assert curve.counts.tolist() == [0, 3]
    assert curve.confidence[1] == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    assert curve.accuracy[1] == pytest.approx(2 / 3)  # of equal scores the first is the prediction
    assert math.isnan(curve.confidence[0])
    assert math.isnan(curve.accuracy[0])
