"""The smooth calibration error: kernel smoothing instead of bins, with an automatic bandwidth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from torch import Tensor

from lr_relax._arguments import check_number

from ._checks import ArrayLike, Bools, Floats, check_flag, check_not_empty
from ._inputs import Options, read
from ._metric import reads_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Error bounds of smooth_calibration_error, relative to the mean absolute residual; sigma is the bandwidth.
# - The kernel is cut off at 8 sigma, and in frequency at 8 / sigma: 2e-15.
# - Residuals move to the nearest node by a Taylor series of 4 terms. The fifth term is (1/128)^4 / 24 times
#   the mean of d^4 (1/80) times the L1 norm of the kernel's 4th derivative (6): 1e-11.
# - |r| is integrated by parabolas over 2 nodes each. Between zeros of r, sums over nodes are nearly exact.
#   Next to a zero, the error is (1/64)^4 / 384 of the third derivative: 2e-10 of an area of width sigma.
# All errors decrease with the fourth power of the bandwidth relative to the lowest one of the nodes.
_REACH = 8.0  # where the kernel is cut off, in bandwidths
_NODES = 128  # nodes per lowest bandwidth
_MAX_NODES = 2**18  # nodes of one transform: 2 MB, for any bandwidth
_WIDE = 2.0**-9  # from this bandwidth on, one transform covers [0, 1]
_CHUNK = 2**18  # rows that are processed at a time, to fit into caches


@overload
def smooth_calibration_error(
    preds: Tensor,
    target: Tensor | ArrayLike,
    *,
    return_bandwidth: Literal[False] = False,
    bandwidth: float | None = None,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Tensor: ...
@overload
def smooth_calibration_error(
    preds: ArrayLike,
    target: Tensor | ArrayLike,
    *,
    return_bandwidth: Literal[False] = False,
    bandwidth: float | None = None,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> np.float64: ...
@overload
def smooth_calibration_error(
    preds: Tensor,
    target: Tensor | ArrayLike,
    *,
    return_bandwidth: Literal[True],
    bandwidth: float | None = None,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, float]: ...
@overload
def smooth_calibration_error(
    preds: ArrayLike,
    target: Tensor | ArrayLike,
    *,
    return_bandwidth: Literal[True],
    bandwidth: float | None = None,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> tuple[np.float64, float]: ...
@reads_options
def smooth_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    return_bandwidth: bool = False,
    bandwidth: float | None = None,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The smooth calibration error (smooth ECE, smECE), which needs no bins and no parameters.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``correct = preds.argmax(1) == target``::

        r(t) = mean((correct - c) * kernel(c, t))
        integral of abs(r(t)) over t in [0, 1]

    where ``kernel(c, t)`` is the density at t of c plus Gaussian noise of standard deviation `bandwidth`,
    reflected at 0 and 1. By default, the bandwidth is the one that equals the resulting error. It is unique,
    because a wider kernel never gives a larger error. The result is a continuous function of the confidences,
    and 0 only if they are calibrated.

    The integral and the bandwidth are accurate to 1e-10 of ``mean(abs(correct - c))``. The result does not
    depend on the order of the rows, not even in the last bit. The time is about that of sorting the
    confidences a few times; for a given bandwidth far below 1e-3, it increases with the part of [0, 1] that
    is near a confidence.

    Args:
        preds, target, sample_weight, **options: As in `calibration_error`. The confidence of an event is the
            probability of class 1. With weights, means are weighted.
        return_bandwidth: Whether to return the bandwidth as well.
        bandwidth: The standard deviation of the noise, above 0. For 1 and above, the error is nearly the
            difference of mean confidence and accuracy.

    Returns:
        A value in [0, 1]: a float64 scalar tensor on the device of `preds`, or a NumPy float64 for arrays.
        With `return_bandwidth`, a pair of this value and the bandwidth, a Python float.

    Raises:
        ValueError: If there are no rows, if a row is not a distribution (the first one is named), or if a
            shape or `bandwidth` is wrong.
        TypeError: If an argument has a wrong type.
        IndexError: If a target is not in [0, C); the first one is named.

    Source: Błasiok & Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing", ICLR 2024,
    with the reflected Gaussian kernel and the bandwidth at the fixed point.

    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> smooth_calibration_error(preds, np.array([0, 1, 1])).round(6)
    np.float64(0.142036)
    """
    check_flag("return_bandwidth", return_bandwidth)
    if bandwidth is not None:
        check_number("bandwidth", "a finite number above 0", lambda x: 0 < x < math.inf, bandwidth)
    rows = read(preds, target, sample_weight, **options)
    residuals = _Residuals(*rows.top_labels(), rows.weights())
    if bandwidth is None:
        error, width = residuals.fixed_point()
    else:
        width = float(bandwidth)
        error = residuals.smoothed(width, width)(width)
    return (rows.result(error), width) if return_bandwidth else rows.result(error)


class _Residuals:
    """The residuals, outcome minus confidence, at the confidences."""

    def __init__(self, confidence: Floats, is_correct: Bools, weights: Floats | None) -> None:
        # Sorted, so that sums do not depend on the order of the rows. Two separate sorts are faster than one
        # sort of pairs.
        self.weight: Floats | None = None
        if weights is None:
            correct, wrong = np.sort(confidence[is_correct]), np.sort(confidence[~is_correct])
            self.total = float(len(confidence))
        else:
            kept = np.lexsort((weights, confidence))
            kept = kept[weights[kept] > 0]
            check_not_empty(len(kept))
            of_correct, of_wrong = kept[is_correct[kept]], kept[~is_correct[kept]]
            correct, wrong = confidence[of_correct], confidence[of_wrong]
            self.weight = weights[np.concatenate([of_correct, of_wrong])]
            self.total = math.fsum(weights[kept])
        self.at = np.concatenate([correct, wrong])
        self.size = np.concatenate([1.0 - correct, -wrong])
        if self.weight is not None:
            self.size *= self.weight
        self.n_correct = len(correct)
        self.one_sign = not (len(correct) and len(wrong))

    def fixed_point(self) -> tuple[float, float]:
        """The error that equals its own bandwidth, and the bandwidth."""
        if self.one_sign:  # nothing cancels: the integral is the same for all kernels
            return self._mean(), self._mean()
        line = self._line(_WIDE, 1.0)
        for low in (2.0**-3, 2.0**-6, _WIDE):
            error = line.of_at_least(low)
            if error(low) >= low:
                return _fixed_point(error, low, 8 * low)
        # The error without smoothing is an upper bound.
        high = min(_WIDE, self._unsmoothed())
        while high > 1e-15:  # below, the error is rounding noise between 0 and `high`
            low = high / 4
            error = self.smoothed(low, high)
            if error(low) >= low:
                return _fixed_point(error, low, high)
            high = low
        return high, high

    def smoothed(self, low: float, high: float) -> Callable[[float], float]:
        """The error as a function of the bandwidth in [low, high]."""
        if self.one_sign:
            return lambda _: self._mean()
        if low >= _WIDE:
            return self._line(low, high)
        at, size = self._distinct

        # Confidences further apart than the kernel reaches do not interact. So wide gaps are shortened to
        # twice the reach, which keeps the line short.
        gaps = np.minimum(np.concatenate([at[:1], np.diff(at), 1 - at[-1:]]), 2 * _REACH * high)
        # Clusters whose residuals all have the same sign need no smoothing.
        cluster = np.cumsum(gaps[:-1] == 2 * _REACH * high)
        over, under = np.bincount(cluster, np.maximum(size, 0)), np.bincount(cluster, np.maximum(-size, 0))
        mixed = (over > 0) & (under > 0)
        alone = float((over + under)[~mixed].sum())
        if not mixed.any():
            return lambda _: alone
        keep = mixed[cluster]
        # A gap belongs to the row after it, and the last one is kept, so that whole
        # gaps remain.
        end = gaps[-1] if keep[-1] else 2 * _REACH * high
        at = np.cumsum(gaps[:-1][keep])
        line = _Line(at, size[keep], float(at[-1] + end), low, high)
        return lambda bandwidth: alone + line(bandwidth)

    def _mean(self) -> float:
        return float(abs(self.size.sum())) / self.total

    def _unsmoothed(self) -> float:
        return float(np.abs(self._distinct[1]).sum())

    def _line(self, low: float, high: float) -> _Line:
        return _Line(self.at, self.size / self.total, 1.0, low, high)

    @cached_property
    def _distinct(self) -> tuple[Floats, Floats]:
        """The distinct confidences in increasing order, and the mean residual of each."""
        order = np.argsort(self.at, kind="stable")  # a merge of the two sorted parts
        at = self.at[order]
        first = np.flatnonzero(np.diff(at, prepend=-1.0))
        # Computed from counts, so that calibrated confidences give exactly 0: 10 * 0.1 is 1, but the sum of
        # ten 0.1 is not.
        weight = np.ones(len(at)) if self.weight is None else self.weight[order]
        correct = np.add.reduceat(weight * (order < self.n_correct), first)
        return at[first], (correct - np.add.reduceat(weight, first) * at[first]) / self.total


class _Line:
    """The integral of |r|, where r is a sum of point masses on [0, length], smoothed by a bandwidth.

    The reflected Gaussian kernel is the heat kernel of a rod with insulated ends. Cosines are its
    eigenfunctions: cos(pi k t / length) is damped by exp(-(bandwidth pi k / length)^2 / 2). So the
    coefficients are computed once, by a fast Fourier transform of the masses on nodes, and a second transform
    gives r for each bandwidth.
    """

    def __init__(self, at: Floats, size: Floats, length: float, low: float, high: float) -> None:
        # The kernel is already flat there; larger squares would overflow.
        low, high = min(low, 10 * length), min(high, 10 * length)
        n = max(4096, _NODES * length / low)
        n = 2 ** math.ceil(math.log2(n)) if n <= _MAX_NODES else 2 * math.ceil(n / 2)
        self.length, self.step = length, length / n
        self.windows = list(self._windows(at / self.step, size, n, low, high))

    def _windows(
        self, at: Floats, size: Floats, n: int, low: float, high: float
    ) -> Iterator[tuple[int, int, int, Floats]]:
        """Split the line into overlapping parts. For each: the first and the last node that it integrates,
        the number of its nodes, and the coefficients."""
        if n <= _MAX_NODES:
            yield 0, n, n, self._coefficients(at, size, n, low)
            return
        around = 2 * math.ceil(_REACH * high / self.step / 2)
        for first in range(0, n, _MAX_NODES - 2 * around):
            last = min(n, first + _MAX_NODES - 2 * around)
            start, stop = max(0, first - around), min(n, last + around)
            i, j = np.searchsorted(at, [start, stop])
            j = j if stop < n else len(at)
            if i < j:
                coefficients = self._coefficients(at[i:j] - start, size[i:j], stop - start, low)
                yield first - start, last - start, stop - start, coefficients

    def _coefficients(self, at: Floats, size: Floats, n: int, low: float) -> Floats:
        # With the nearest node x, cos(x + d) = sum_p d^p / p! cos^(p)(x): the nodes hold moments of d.
        moments = np.zeros((4, n + 1))
        for i in range(0, len(at), _CHUNK):
            near = np.rint(at[i : i + _CHUNK])
            distance = at[i : i + _CHUNK] - near
            node = near.astype(np.intp)
            term = size[i : i + _CHUNK]
            for moment in moments:
                moment += np.bincount(node, term, n + 1)
                term = term * distance
        modes = _modes(n, low / (n * self.step))
        frequency = np.pi * np.arange(modes) / n
        c0, c1, c2, c3 = np.fft.rfft(moments, 2 * n)[:, :modes]
        coefficients: Floats = (
            c0.real + frequency * c1.imag - frequency**2 / 2 * c2.real - frequency**3 / 6 * c3.imag
        )
        return coefficients

    def __call__(self, bandwidth: float) -> float:
        return sum(
            _integral(first, last, n, coefficients, bandwidth / (n * self.step))
            for first, last, n, coefficients in self.windows
        )

    def of_at_least(self, low: float) -> Callable[[float], float]:
        """The same for bandwidths in [low, high] only, which need fewer nodes."""
        ((_, _, n, coefficients),) = self.windows
        n = min(n, 2 ** math.ceil(math.log2(_NODES * self.length / low)))
        coefficients = coefficients[: _modes(n, low / self.length)]
        return lambda bandwidth: _integral(0, n, n, coefficients, bandwidth / self.length)


def _modes(n: int, low: float) -> int:
    """The number of cosines on [0, 1] that are not damped to 0 by a bandwidth of at least `low`."""
    return min(n, math.ceil(_REACH / (math.pi * low)) + 1)


def _integral(first: int, last: int, n: int, coefficients: Floats, bandwidth: float) -> float:
    """The integral of the absolute value of a damped cosine series on [0, 1], between two of n + 1 nodes."""
    frequency = math.pi * min(bandwidth, 10.0) * np.arange(len(coefficients))
    r = np.fft.irfft(coefficients * np.exp(-(frequency**2) / 2), 2 * n)[first : last + 1]
    return 2 * float(_absolute_parabolas(r[:-1:2], r[1::2], r[2::2]).sum())  # in units of 1 / n


def _absolute_parabolas(left: Floats, middle: Floats, right: Floats) -> Floats:
    """The integrals of |parabola| through three values each, over two units."""
    integrals = np.abs(left + 4 * middle + right) / 3
    # Only these parabolas, middle + slope s + bend s^2 for s in [-1, 1], can have a zero.
    some = np.flatnonzero(np.abs(middle) <= (np.abs(right - left) + np.abs(left - 2 * middle + right)) / 2)
    left, middle, right = left[some], middle[some], right[some]
    slope, bend = (right - left) / 2, (left - 2 * middle + right) / 2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # NaN means no zero. Neither quotient suffers from cancellation.
        q = -(slope + np.copysign(np.sqrt(slope**2 - 4 * bend * middle), slope)) / 2
        zeros = np.stack([q / bend, middle / q])
    zeros = np.sort(np.clip(np.nan_to_num(zeros, nan=1.0), -1, 1), axis=0)
    s = np.concatenate([np.full((1, len(some)), -1.0), zeros, np.ones((1, len(some)))])
    antiderivative = s * (middle + s * (slope / 2 + s * (bend / 3)))
    integrals[some] = np.abs(np.diff(antiderivative, axis=0)).sum(0)
    return integrals


def _fixed_point(error: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """The fixed point of `error` in [low, high], and the error; error(low) >= low and error(high) <= high."""
    # error(x) - x decreases at least as fast as -x, so that it bounds the distance from the fixed point.
    at_low, at_high = error(low) - low, error(high) - high
    x, at_x = (low, at_low) if at_low < -at_high else (high, at_high)
    kept = ""
    for _ in range(100):
        if abs(at_x) <= 1e-13 * x or not at_high < 0 < at_low:
            break
        # The Illinois algorithm: the secant method, which halves the value of an end that is kept twice.
        x = min(max(high - at_high * (high - low) / (at_high - at_low), low), high)
        at_x = error(x) - x
        if at_x < 0:
            if kept == "low":
                at_low /= 2
            high, at_high, kept = x, at_x, "low"
        else:
            if kept == "high":
                at_high /= 2
            low, at_low, kept = x, at_x, "high"
    return x + at_x, x
