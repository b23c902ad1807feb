"""Metrics of tensors on another device: the values of the CPU, without a copy of the block.

Where there is no such device, tensors that say they are on one take its place. They compute on the CPU; what
leaves the device is counted, and how often the host waits for it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lr_relax import metrics
from lr_relax.metrics import TemperatureScaling
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

torchmetrics = pytest.importorskip("torchmetrics")


class Remote(torch.Tensor):
    """A tensor that says it is on another device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "Remote":
        remote = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=device
        )
        remote.inner = inner
        return remote

    def __repr__(self, **_: Any) -> str:
        return f"Remote({self.inner!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # These ask torch for the device before they call the operator.
        if func is Tensor.__invert__:
            return torch.bitwise_not(args[0])
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        if func is Tensor.__getitem__ and not isinstance(args[1], Tensor):
            return cls(args[0].inner[args[1]], args[0].device)
        if func is Tensor.__setitem__ and not isinstance(args[1], Tensor):
            args[0].inner[args[1]] = args[2].inner
            return None
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        raise AssertionError("only inside the mode")


class StandIn(TorchDispatchMode):
    """A device that computes on the CPU; one for each type of double precision it has or lacks."""

    WAITS = ("_local_scalar_dense", "nonzero", "index", "masked_select", "bincount", "equal", "_unique2")

    def __init__(self, has_doubles: bool) -> None:
        super().__init__()
        self.device, self.has_doubles = torch.device("xla", int(has_doubles)), has_doubles
        self.forget()

    def forget(self) -> None:
        self.bytes = self.waits = self.blocking_uploads = 0

    def send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        remotes: list[Remote] = []

        def inner(x: Any) -> Any:
            if not isinstance(x, Remote):
                return x
            remotes.append(x)
            return x.inner

        name, options = func.name().removeprefix("aten::").split(".")[0], dict(kwargs or {})
        device = options.get("device")
        if device is not None:
            options["device"] = torch.device("cpu")
        result = func(*tree_map(inner, args), **tree_map(inner, options))
        to_cpu = remotes and (device is not None and device.type == "cpu")
        if to_cpu:
            self.bytes += result.numel() * result.element_size()
        if to_cpu or (remotes and name in self.WAITS):
            self.waits += 1
        if device == self.device and name == "_to_copy" and not (remotes or options.get("non_blocking")):
            self.blocking_uploads += 1
        if to_cpu or not (remotes or device == self.device):
            return result

        def remote(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if x.dtype == torch.float64 and not self.has_doubles:
                raise TypeError("the device has no float64")
            known = [known for known in remotes if known.inner is x]
            return known[0] if known else Remote(x, self.device)

        return tree_map(remote, result)


class Cuda:
    """A device that is there; nothing is counted."""

    device, has_doubles, bytes, waits, blocking_uploads = torch.device("cuda"), True, 0, 0, 0

    def forget(self) -> None:
        pass

    def send(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["doubles", "singles", pytest.param("cuda", marks=NO_CUDA)])
def far(request: Any) -> Iterator[Any]:
    device = Cuda() if request.param == "cuda" else StandIn(request.param == "doubles")
    with device if isinstance(device, StandIn) else contextlib.nullcontext():
        yield device


N, C = 1000, 7
torch.manual_seed(0)
Z, Y, W = 2 * torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,)), torch.rand(N)
Z[::50, 3] = Z[::50, 1]  # of equal classes, the first is predicted
# Confidences at the edges of bins, beside them, and above 1 by rounding.
EDGES = torch.cat([torch.arange(3, 16).float() / 15, torch.arange(2, 10).float() / 10])
EDGES = torch.cat([EDGES, EDGES.nextafter(torch.zeros(1)), EDGES.nextafter(torch.ones(1))])
P = Z.softmax(1)
P[: len(EDGES)] = torch.cat([EDGES[:, None], (1 - EDGES[:, None]).expand(-1, C - 1) / (C - 1)], 1).double()
P[99] = torch.eye(C)[0] * 1.0005
Y[P[:, 0] >= 1] = 0  # so that the likelihood is finite
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def same(got: Tensor, want: Any, far: Any, tolerance: float = 0.0) -> None:
    assert got.device.type == far.device.type
    want = torch.as_tensor(want)
    if not far.has_doubles:
        want = want.float()
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=tolerance, equal_nan=True)


METRICS: dict[str, Callable[..., Any]] = {
    "uniform": metrics.expected_calibration_error,
    "quantile": metrics.adaptive_calibration_error,
    "paper": lambda *x, **o: metrics.calibration_error(*x, n_bins=10, binning="paper", norm="l2", **o),
    "edges": lambda *x, **o: metrics.maximum_calibration_error(*x, n_bins=[0, 0.3, 0.6, 0.61, 1], **o),
    "many bins": lambda *x, **o: metrics.expected_calibration_error(*x, n_bins=700, **o),
    "smooth": metrics.smooth_calibration_error,
    "accuracy": metrics.accuracy,
    "top 3": lambda *x, **o: metrics.accuracy(*x, top_k=3, **o),
    "likelihood": metrics.negative_log_likelihood,
    "brier": metrics.brier_score,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("from_logits", [False, True])
def test_values_are_those_of_the_cpu(far: Any, dtype: torch.dtype, metric: str, from_logits: bool) -> None:
    if dtype == torch.float64 and not far.has_doubles:
        pytest.skip("the device has no float64")
    preds = (Z if from_logits else P).to(dtype)
    function, options = METRICS[metric], {"from_logits": from_logits}
    remote = far.send(preds), far.send(Y.int())
    far.forget()
    got = function(*remote, **options)
    # The digits of 700 bins are more than those of the rows.
    assert far.waits <= 1
    assert far.bytes <= 16 * N + 2 or metric == "many bins"
    # Logits and sums of squares are rounded elsewhere in another order; without float64, to float32.
    exact = not from_logits and metric != "brier"
    same(got, function(preds, Y, **options), far, 0.0 if exact else 1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("option", ["dim", "ignore_index", "sample_weight"])
def test_options(far: Any, metric: str, option: str) -> None:
    preds, target = P.float().view(10, 4, 25, C).clone(), Y.view(10, 4, 25)
    options: dict[str, Any] = {"sample_weight": W.view(10, 4, 25)} if option == "sample_weight" else {}
    if option == "ignore_index":
        preds[target == 2] = torch.nan  # whatever ignored rows hold
        options = {"ignore_index": 2}
    preds = preds.movedim(-1, 1)
    want = METRICS[metric](preds, target, dim=1, **options)
    moved = {name: far.send(value) if isinstance(value, Tensor) else value for name, value in options.items()}
    remote = far.send(preds), far.send(target)
    far.forget()
    got = METRICS[metric](*remote, dim=1, **moved)
    assert far.bytes <= 16 * N + 2 or metric == "many bins"
    same(got, want, far, 1e-6 if metric == "brier" else 0.0)


COPIED: dict[str, Callable[..., Any]] = {
    "divided": lambda p, y: metrics.negative_log_likelihood(p * 1.003, y),
    "half logits with weights": lambda p, y: metrics.expected_calibration_error(
        (3 * p).bfloat16(), y, sample_weight=torch.ones(N), from_logits=True
    ),
    "normalize": lambda p, y: metrics.expected_calibration_error(3 * p, y, normalize=True),
    "labels": lambda p, y: metrics.accuracy(p, y, labels=list(range(C))),
    "one-hot": lambda p, y: metrics.accuracy(p, torch.nn.functional.one_hot(y, C), task="multiclass"),
    "classwise": metrics.classwise_calibration_error,
    "events": lambda p, y: metrics.brier_score(p[:, 0], (y == 0).int()),
    "whole floats": lambda p, y: metrics.negative_log_likelihood(p, y.float()),
    "target on the CPU": lambda p, y: metrics.accuracy(p, y.cpu()),
}


@pytest.mark.parametrize("case", COPIED)
def test_other_predictions_are_copied(far: Any, case: str) -> None:
    preds = Z.float().softmax(1)
    same(COPIED[case](far.send(preds), far.send(Y)), COPIED[case](preds, Y), far)


def test_reliability_curve(far: Any) -> None:
    preds = P.float()
    got, want = metrics.reliability_curve(far.send(preds), far.send(Y)), metrics.reliability_curve(preds, Y)
    assert (got.edges.tolist(), got.counts.tolist()) == (want.edges.tolist(), want.counts.tolist())
    assert got.expected_calibration_error == want.expected_calibration_error


WRONG = {
    "nan": (lambda z, y: z[3].fill_(torch.nan), ValueError),
    "negative": (lambda z, y: z[7].sub_(9.0), ValueError),
    "sum": (lambda z, y: z[9].mul_(1.5), ValueError),
    "class": (lambda z, y: y[5:7].fill_(C), IndexError),
    "negative class": (lambda z, y: y[5].fill_(-1), IndexError),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("metric", ["uniform", "quantile", "top 3", "likelihood", "brier"])
def test_errors_are_those_of_the_cpu(far: Any, metric: str, wrong: str) -> None:
    preds, target = P.float(), Y.clone()
    change, error = WRONG[wrong]
    change(preds, target)
    with pytest.raises(error) as expected:
        METRICS[metric](preds, target)
    with pytest.raises(error) as got:
        METRICS[metric](far.send(preds), far.send(target))
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("metric", ["uniform", "quantile", "top 3", "likelihood", "brier"])
def test_probabilities_warning(far: Any, metric: str) -> None:
    preds = far.send(P.float())
    with pytest.warns(metrics.ProbabilitiesWarning):
        METRICS[metric](preds, far.send(Y), from_logits=True)


@pytest.mark.parametrize("scale", [0.02, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_temperature(far: Any, scale: float, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and not far.has_doubles:
        pytest.skip("the device has no float64")
    logits, target = (scale * Z).to(dtype), torch.distributions.Categorical(logits=0.7 * Z).sample()
    target[::7] = -100
    logits[::7] = torch.nan
    want = TemperatureScaling().fit(logits, target, ignore_index=-100).temperature.item()
    remote = far.send(logits), far.send(target)
    far.forget()
    got = TemperatureScaling().fit(*remote, ignore_index=-100).temperature.item()
    assert got == pytest.approx(want, rel=1e-6)
    assert far.waits <= 1
    assert far.bytes <= 16


@pytest.mark.parametrize("method", ["nll", "grid"])
def test_temperature_without_a_maximum(far: Any, method: str) -> None:
    logits, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    with pytest.warns(RuntimeWarning) if method == "nll" else contextlib.nullcontext():
        got = TemperatureScaling().fit(far.send(logits), far.send(target), method=method)
    assert got.temperature.item() == pytest.approx({"nll": 1e-4, "grid": 0.25}[method])
    for wrong in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="row 1 does not"):
            TemperatureScaling().fit(far.send(torch.tensor([[1.0, 0.0], [0.0, wrong]])), far.send(target))
    with pytest.raises(IndexError):
        TemperatureScaling().fit(far.send(Z.float()), far.send(Y + 1))


STREAMS: dict[str, Callable[..., Any]] = {
    "uniform": metrics.CalibrationError,
    "paper": lambda **o: metrics.CalibrationError(binning="paper", norm="max", **o),
    "edges": lambda **o: metrics.CalibrationError(n_bins=[0, 0.3, 0.6, 0.61, 1], norm="l2", **o),
    "brier": metrics.BrierScore,
    "likelihood": metrics.NegativeLogLikelihood,
}


@contextlib.contextmanager
def no_waiting(far: Any) -> Iterator[None]:
    far.forget()
    if far.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if far.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert (far.bytes, far.waits, far.blocking_uploads) == (0, 0, 0)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_do_not_wait(far: Any, name: str, from_logits: bool) -> None:
    options = {"from_logits": from_logits, "ignore_index": 2}
    stream, want = STREAMS[name](**options).to(far.device), STREAMS[name](**options)
    preds = Z.float() if from_logits else P.float()
    preds[len(EDGES) :: 3] *= 1.0 if from_logits else 1.002  # divided by their sum
    batches = [(far.send(z), far.send(y)) for z, y in zip(preds.split(300), Y.split(300), strict=True)]
    with no_waiting(far):
        for batch in batches:
            stream.update(*batch)
    want.update(preds, Y)
    exact = not from_logits and name not in ("brier", "likelihood") and far.has_doubles
    same(stream.compute(), want.compute(), far, 1e-15 if exact else 1e-6)
    assert stream.sums.max().cpu() < 2**36  # digits do not overflow


def test_streams_raise_errors_of_rows_in_compute(far: Any) -> None:
    for name, make in STREAMS.items():
        for wrong, (change, _) in WRONG.items():
            preds, target = P.float(), Y.clone()
            change(preds, target)
            stream = make().to(far.device)
            stream.update(far.send(preds), far.send(target))
            with pytest.raises(ValueError, match=f"got {2 if wrong == 'class' else 1} other rows"):
                stream.compute()
            stream.reset()
            stream.update(far.send(preds[10:]), far.send(target[10:]))
            assert stream.compute().isfinite(), name


def test_streams_of_both_devices_add(far: Any) -> None:
    preds = P.float()
    here, there, all_rows = (metrics.CalibrationError() for _ in range(3))
    there = there.to(far.device)
    here.update(preds[:400], Y[:400])
    there.update(far.send(preds[400:]), far.send(Y[400:]))
    all_rows.update(preds, Y)
    here.sums.add_(there.sums.cpu())
    assert here.compute() == all_rows.compute()


def test_forward(far: Any) -> None:
    preds = P.float()
    stream = metrics.CalibrationError().to(far.device)
    same(
        stream(far.send(preds[:500]), far.send(Y[:500])),
        metrics.expected_calibration_error(preds[:500], Y[:500]),
        far,
    )
    with pytest.raises(ValueError, match="500 other rows"):
        stream(far.send(2 * preds[:500]), far.send(Y[:500]))
    with pytest.raises(ValueError, match="`num_classes`"):
        metrics.CalibrationError(num_classes=3).to(far.device)(far.send(preds), far.send(Y))
    stream(far.send(preds[500:]), far.send(Y[500:]))
    same(stream.compute(), metrics.expected_calibration_error(preds, Y), far)


@pytest.mark.parametrize("metric", ["uniform", "quantile", "top 3", "likelihood", "brier"])
def test_no_row_counts(far: Any, metric: str) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        METRICS[metric](far.send(Z.float()), far.send(torch.full((N,), -100)), ignore_index=-100)
