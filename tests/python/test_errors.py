"""Bad input: the documented error, with the name, what was expected and what came; never a crash."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax import LabelRelaxationLoss, TopK, _dispatch, functional, label_relaxation_loss
from lr_relax.ambiguation import ambiguous_target
from lr_relax.linear import linear_label_relaxation_loss
from torch import Tensor

Z = torch.randn(4, 3)
Y = torch.tensor([0, 1, 2, 0])

# What is wrong, the arguments, the error, and words that its message holds.
WRONG: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    ("alpha 1", {"alpha": 1.0}, ValueError, ["`alpha`", "[0, 1)", "1.0"]),
    ("alpha below 0", {"alpha": -0.1}, ValueError, ["`alpha`", "[0, 1)", "-0.1"]),
    ("alpha nan", {"alpha": math.nan}, ValueError, ["`alpha`", "nan"]),
    ("alpha a word", {"alpha": "0.1"}, TypeError, ["`alpha`", "'0.1'"]),
    ("alpha a tensor", {"alpha": torch.tensor([0.1, 0.2])}, ValueError, ["`alpha`", "(4,)", "(2,)"]),
    ("alpha none", {"alpha": None}, TypeError, ["`alpha`", "None"]),
    (
        "reduction unknown",
        {"reduction": "avg"},
        ValueError,
        ["`reduction`", "'mean', 'sum' or 'none'", "'avg'"],
    ),
    ("reduction none", {"reduction": None}, ValueError, ["`reduction`", "None"]),
    ("dim too large", {"dim": 2}, ValueError, ["`dim`", "[-2, 1]", "2"]),
    ("dim too small", {"dim": -3}, ValueError, ["`dim`", "-3"]),
    ("dim a float", {"dim": 1.0}, TypeError, ["`dim`", "integer", "1.0"]),
    ("dim too long", {"dim": 2**70}, ValueError, ["`dim`", "64 bits", str(2**70)]),
    ("ignore_index none", {"ignore_index": None}, TypeError, ["`ignore_index`", "integer", "None"]),
    ("ignore_index too long", {"ignore_index": 2**63}, ValueError, ["`ignore_index`", "64 bits"]),
    ("from_logits a number", {"from_logits": 1}, TypeError, ["`from_logits`", "bool", "1"]),
    ("reduction no text", {"reduction": "\ud800"}, ValueError, ["`reduction`"]),
    ("float8 input", {"input": Z.to(torch.float8_e4m3fn)}, TypeError, ["`input`", "torch.float8_e4m3fn"]),
    ("integer input", {"input": Z.long()}, TypeError, ["`input`", "floating-point", "torch.int64"]),
    ("complex input", {"input": Z.to(torch.complex64)}, TypeError, ["`input`", "torch.complex64"]),
    ("scalar input", {"input": torch.tensor(1.0)}, ValueError, ["`input`", "class dimension", "()"]),
    ("one class", {"input": Z[:, :1]}, ValueError, ["`input`", "at least 2 classes", "(4, 1)"]),
    ("no classes", {"input": Z[:, :0]}, ValueError, ["`input`", "at least 2 classes", "(4, 0)"]),
    ("float target", {"target": Y.float()}, ValueError, ["`target`", "torch.float32", "(4, 3)", "(4,)"]),
    ("bool target", {"target": Y > 0}, ValueError, ["`target`", "torch.bool", "(4, 3)", "(4,)"]),
    ("complex target", {"target": Y.to(torch.complex64)}, TypeError, ["`target`", "torch.complex64"]),
    ("integer alpha", {"alpha": torch.tensor(0)}, TypeError, ["`alpha`", "torch.int64"]),
    ("short target", {"target": Y[:3]}, ValueError, ["`target`", "(4,)", "(3,)"]),
    ("column target", {"target": Y[:, None]}, ValueError, ["`target`", "(4,)", "(4, 1)"]),
    ("scalar target", {"target": torch.tensor(1)}, ValueError, ["`target`", "(4,)", "()"]),
    ("list target", {"target": [0, 1, 2, 0]}, TypeError, ["`target`", "tensor", "list"]),
    ("meta target", {"target": Y.to("meta")}, TypeError, ["`target`", "cpu", "meta"]),
    ("short weight", {"weight": torch.ones(2)}, ValueError, ["`weight`", "(3,)", "(2,)"]),
    (
        "integer weight",
        {"weight": torch.ones(3).long()},
        TypeError,
        ["`weight`", "floating-point", "torch.int64"],
    ),
    ("meta weight", {"weight": torch.ones(3, device="meta")}, TypeError, ["`weight`", "cpu", "meta"]),
    ("numpy weight", {"weight": np.ones(3)}, TypeError, ["`weight`", "tensor", "ndarray"]),
    ("list weight", {"weight": [1.0, 1.0, 1.0]}, TypeError, ["`weight`", "tensor", "list"]),
    ("learned weight", {"weight": torch.ones(3, requires_grad=True)}, ValueError, ["`weight`", "detach()"]),
]


@pytest.mark.parametrize(("arguments", "error", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_message(
    arguments: dict[str, Any], error: type[Exception], words: list[str], requires_grad: bool
) -> None:
    call: dict[str, Any] = {"input": Z, "target": Y, **arguments}
    if requires_grad and call["input"].is_floating_point():
        call["input"] = call["input"].clone().requires_grad_()
    with pytest.raises(error) as caught:
        label_relaxation_loss(**call)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("arguments", [w[1] for w in WRONG], ids=[w[0] for w in WRONG])
def test_the_kernel_and_the_formulas_say_the_same(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"input": Z, "target": Y, **arguments}
    with pytest.raises((ValueError, TypeError)) as native:
        label_relaxation_loss(**call)
    monkeypatch.setattr(_dispatch, "runs_natively", lambda input: False)
    with pytest.raises((ValueError, TypeError)) as traced:
        label_relaxation_loss(**call)
    assert type(native.value) is type(traced.value)
    assert str(native.value) == str(traced.value)


@pytest.mark.parametrize("is_eager", [True, False])
def test_no_weight_may_require_a_gradient(is_eager: bool) -> None:
    weight, events = torch.ones(3, requires_grad=True), torch.ones(4, 3)
    topk, layer = TopK(Y[:, None], torch.ones(4, 1)), torch.ones(3, 3)
    calls: list[Callable[[], Tensor]] = [
        lambda: functional.cross_entropy_loss(Z, Y, weight=weight),
        lambda: functional.focal_loss(Z, topk, weight=weight),
        lambda: functional.mixup_label_relaxation_loss(Z, Y, Y, 0.5, weight=weight),
        lambda: functional.binary_label_relaxation_loss(Z, events, weight=weight),
        lambda: functional.binary_label_relaxation_loss(Z, events, pos_weight=weight),
        lambda: linear_label_relaxation_loss(Z, layer, Y, weight=weight),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"not to require a gradient.*pass `(pos_)?weight\.detach"):
            call() if is_eager else torch.compile(call, backend="eager")()
        with torch.no_grad():
            call()


@pytest.mark.parametrize(
    "input", [None, 3, "logits", [[1.0, 2.0]], Z.numpy()], ids=lambda i: type(i).__name__
)
def test_input_that_is_no_tensor(input: Any) -> None:
    with pytest.raises(TypeError, match=r"`input` to be a tensor, but got"):
        label_relaxation_loss(input, Y)


@pytest.mark.parametrize("bad", [-1, 3, -101, 2**40, -(2**63), 2**63 - 1])
def test_a_target_out_of_range_is_named_and_never_reads(bad: int) -> None:
    target = torch.tensor([0, 1, bad, 5])
    with pytest.raises(IndexError, match=rf"`target` to hold classes in \[0, 3\), but got {bad} at row 2"):
        label_relaxation_loss(Z, target)


@pytest.mark.parametrize(
    ("target", "ignore_index", "message"),
    [
        ([0, 255, 1, 0], -100, "got 255 at row 1. Pass ignore_index=255 if"),
        ([0, 255, 1, -100], 255, "got -100 at row 3. Pass ignore_index=-100 if"),
        ([0, -1, 1, -1], -100, "got -1 at row 1 and 1 more. Pass ignore_index=-1 if"),
        ([3, 3, 4, 3], -100, "got 3 at row 0 and 2 more. Pass ignore_index=3 if"),
        ([0, 4, 1, -1], -100, "got 4 at row 1."),  # nothing says that it is a mark
    ],
    ids=str,
)
@pytest.mark.parametrize("compute", [label_relaxation_loss, ambiguous_target])
def test_marks_of_ignored_rows_are_recognized(
    compute: Any, target: list[int], ignore_index: int, message: str
) -> None:
    with pytest.raises(IndexError) as caught:
        compute(Z, torch.tensor(target), ignore_index=ignore_index)
    before, _, after = str(caught.value).partition(message)
    assert before.startswith("Expected argument `target` to hold classes in [0, 3), but ")
    assert after == (" such rows are to be ignored." if "Pass" in message else "")


def test_a_large_unsigned_target_is_not_taken_for_a_negative_one() -> None:
    target = torch.tensor([0, 1, 2, -100]).to(torch.uint64)  # wraps around
    with pytest.raises(IndexError, match=str(2**64 - 100)):
        label_relaxation_loss(Z, target)


def test_sparse_and_negated_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"`input` to be a dense tensor"):
        label_relaxation_loss(Z.to_sparse(), Y)
    imaginary = torch.randn(4, 3, dtype=torch.complex64).conj().imag  # minus its memory, lazily
    assert imaginary.is_neg()
    with pytest.raises(TypeError, match="resolve_neg"):
        label_relaxation_loss(imaginary, Y)
    assert label_relaxation_loss(imaginary.resolve_neg(), Y).isfinite()


@pytest.mark.parametrize(("arguments", "error"), [
    ({"alpha": 1.0}, ValueError), ({"alpha": "a"}, TypeError), ({"reduction": "avg"}, ValueError),
])  # fmt: skip
def test_a_module_refuses_hyperparameters_when_it_is_made(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        LabelRelaxationLoss(**arguments)


def test_memory_that_is_not_aligned_is_refused() -> None:
    raw = bytearray(4 * 12 + 1)
    with pytest.raises(TypeError, match="multiple of its element size"):
        label_relaxation_loss(torch.frombuffer(raw, dtype=torch.float32, offset=1).reshape(4, 3), Y)


def test_alpha_of_numpy() -> None:
    expected = label_relaxation_loss(Z, Y, 0.25)
    for alpha in (np.float64(0.25), np.float32(0.25), np.float16(0.25), np.array(0.25)):
        assert label_relaxation_loss(Z, Y, alpha).equal(expected)


def test_more_rows_than_memory() -> None:
    rows = 2**44
    with pytest.raises(MemoryError):
        label_relaxation_loss(Z[:1].expand(rows, 3), Y[:1].expand(rows))


def test_an_error_leaves_nothing_behind() -> None:
    z = Z.clone().requires_grad_()
    with pytest.raises(IndexError):
        label_relaxation_loss(z, Y + 5).backward()
    assert z.grad is None
    assert label_relaxation_loss(z, Y).isfinite()
