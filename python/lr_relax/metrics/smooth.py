"""The smooth calibration error: no bins, but a kernel whose width is chosen by the error itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
from torch import Tensor

from lr_relax._arguments import check_number

from ._inputs import Array, Bools, Floats, check_flag, scalar_like, top_labels

# The budget of smooth_calibration_error, in parts of the mean absolute residual; sigma is the bandwidth.
# - The kernel is dropped from 8 sigma on, and in frequency from 8 / sigma on: 2e-15.
# - Residuals move to the next node by a Taylor series of 4 terms. The next one, (1/128)^4 / 24 times the mean
#   of d^4 (1/80) times the L1 norm of the kernel's 4th derivative (6), is 1e-11.
# - |r| is integrated by parabolas over 2 nodes each. Between zeros of r, sums over nodes are all but exact.
#   Next to one, (1/64)^4 / 384 of the third derivative is left, 2e-10 of the area one sigma wide there.
# All of it falls with the fourth power where the bandwidth is above the lowest one that the nodes are for.
_REACH = 8.0
_NODES = 128  # per lowest bandwidth
_MAX_NODES = 2**18  # in one transform: 2 MB, whatever the bandwidth
_WIDE = 2.0**-9  # bandwidths from here on need no more nodes than there are in [0, 1], wherever the rows are
_CHUNK = 2**18  # rows, for the sake of caches and memory


@overload
def smooth_calibration_error(
    preds: Tensor,
    target: Tensor,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
    return_bandwidth: Literal[False] = False,
    bandwidth: float | None = None,
) -> Tensor: ...
@overload
def smooth_calibration_error(
    preds: Array,
    target: Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
    return_bandwidth: Literal[False] = False,
    bandwidth: float | None = None,
) -> np.float64: ...
@overload
def smooth_calibration_error(
    preds: Tensor,
    target: Tensor,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
    return_bandwidth: Literal[True],
    bandwidth: float | None = None,
) -> tuple[Tensor, float]: ...
@overload
def smooth_calibration_error(
    preds: Array,
    target: Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
    return_bandwidth: Literal[True],
    bandwidth: float | None = None,
) -> tuple[np.float64, float]: ...
def smooth_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    ignore_index: int | None = None,
    return_bandwidth: bool = False,
    bandwidth: float | None = None,
) -> Any:
    """The calibration error of smoothed predictions (smooth ECE, smECE): no bins, nothing to choose.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``hit = preds.argmax(1) == target``::

        r(t) = mean((hit - c) * kernel(c, t))
        integral of abs(r(t)) over t in [0, 1]

    where ``kernel(c, t)`` is the density at t of c plus Gaussian noise of standard deviation `bandwidth`,
    reflected at 0 and 1 until it is between them. Without a bandwidth, it is the one at which bandwidth and
    error are the same number. There is exactly one, as a wider kernel never gives a larger error. The result
    is a continuous function of the confidences, and 0 only where they are calibrated.

    Both the integral and the bandwidth are exact to 1e-10 of ``mean(abs(hit - c))``, however small they are.
    The order of the rows does not matter, to the last bit. The time is that of sorting the confidences a few
    times; but for a given bandwidth far below 1e-3, it grows with what part of [0, 1] has a row next to it.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`, the highest of which is the
            confidence; or the probability of class 1 (or its logit), of the shape of `target`, which then is
            the confidence itself. A torch tensor or a NumPy array of 16, 32 or 64 bit floats.
        target: Classes in [0, C), of the shape of `preds` without its last dimension; or 0 and 1.
        from_logits: Whether `preds` holds logits. It is never guessed.
        ignore_index: Rows with this target do not count.
        return_bandwidth: Whether to return the bandwidth, too.
        bandwidth: The standard deviation of the noise, above 0. From 1 on, little more is left than the
            difference of mean confidence and accuracy.

    Returns:
        A value in [0, 1]: a float64 scalar tensor on the device of `preds`, or a NumPy float64 for arrays.
        With `return_bandwidth`, a pair of it and the bandwidth, a Python float.

    Raises:
        ValueError: no rows, a row that is no distribution (the first one is named), a wrong shape, or
            `bandwidth`.
        TypeError: an argument is of a wrong type.
        IndexError: a target is no class; names the first one.

    Source: Błasiok & Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing", ICLR 2024,
    with the reflected Gaussian kernel and the bandwidth at the fixed point.

    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> smooth_calibration_error(preds, np.array([0, 1, 1])).round(6)
    np.float64(0.142036)
    """
    check_flag("return_bandwidth", return_bandwidth)
    if bandwidth is not None:
        check_number("bandwidth", "a finite number above 0", lambda x: 0 < x < math.inf, bandwidth)
    confidence, hit = top_labels(preds, target, from_logits=from_logits, ignore_index=ignore_index)
    residuals = _Residuals(confidence, hit)
    if bandwidth is None:
        error, width = residuals.fixed_point()
    else:
        width = float(bandwidth)
        error = residuals.smoothed(width, width)(width)
    return (scalar_like(preds, error), width) if return_bandwidth else scalar_like(preds, error)


class _Residuals:
    """What the predictions are off by, and where."""

    def __init__(self, confidence: Floats, hit: Bools) -> None:
        # Sorted, as sums then do not depend on the order of the rows. Two sorts of half as many numbers are
        # faster than one that takes the hits along.
        hits, misses = np.sort(confidence[hit]), np.sort(confidence[~hit])
        self.at = np.concatenate([hits, misses])
        self.size = np.concatenate([1.0 - hits, -misses])
        self.n_hits = len(hits)
        self.n = len(self.at)
        self.one_sign = not (len(hits) and len(misses))

    def fixed_point(self) -> tuple[float, float]:
        """The error that is the bandwidth that it is of, and that bandwidth."""
        if self.one_sign:  # nothing cancels, and no kernel changes the integral
            return self._mean(), self._mean()
        line = self._line(_WIDE, 1.0)
        for low in (2.0**-3, 2.0**-6, _WIDE):
            error = line.of_at_least(low)
            if error(low) >= low:
                return _fixed_point(error, low, 8 * low)
        # No error is above that of no smoothing at all.
        high = min(_WIDE, self._unsmoothed())
        while high > 1e-15:  # below, it is the rounding of the residuals, and lies between 0 and `high`
            low = high / 4
            error = self.smoothed(low, high)
            if error(low) >= low:
                return _fixed_point(error, low, high)
            high = low
        return high, high

    def smoothed(self, low: float, high: float) -> Callable[[float], float]:
        """The error of any bandwidth in [low, high]."""
        if self.one_sign:
            return lambda _: self._mean()
        if low >= _WIDE:
            return self._line(low, high)
        at, size = self._distinct

        # What is further apart than the kernel reaches does not interact: of wide gaps, only as much stays as
        # keeps it so. Then the line is no longer than the rows need.
        gaps = np.minimum(np.concatenate([at[:1], np.diff(at), 1 - at[-1:]]), 2 * _REACH * high)
        # Nor do whole clusters need smoothing where all residuals are of one sign.
        cluster = np.cumsum(gaps[:-1] == 2 * _REACH * high)
        over, under = np.bincount(cluster, np.maximum(size, 0)), np.bincount(cluster, np.maximum(-size, 0))
        mixed = (over > 0) & (under > 0)
        alone = float((over + under)[~mixed].sum())
        if not mixed.any():
            return lambda _: alone
        keep = mixed[cluster]
        # A gap goes with the row after it, and the last one stays: dropped clusters leave whole gaps behind.
        end = gaps[-1] if keep[-1] else 2 * _REACH * high
        at = np.cumsum(gaps[:-1][keep])
        line = _Line(at, size[keep], float(at[-1] + end), low, high)
        return lambda bandwidth: alone + line(bandwidth)

    def _mean(self) -> float:
        return float(abs(self.size.sum())) / self.n

    def _unsmoothed(self) -> float:
        return float(np.abs(self._distinct[1]).sum())

    def _line(self, low: float, high: float) -> _Line:
        return _Line(self.at, self.size / self.n, 1.0, low, high)

    @cached_property
    def _distinct(self) -> tuple[Floats, Floats]:
        """Each confidence once, rising, and its share of the residual."""
        order = np.argsort(self.at, kind="stable")  # merges the two sorted parts
        at = self.at[order]
        first = np.flatnonzero(np.diff(at, prepend=-1.0))
        hits = np.add.reduceat((order < self.n_hits).astype(np.float64), first)
        # From the counts, so that what is exactly right gives 0: 10 * 0.1 is 1, and ten times 0.1 is not.
        return at[first], (hits - np.diff(first, append=self.n) * at[first]) / self.n


class _Line:
    """The integral of |r|, where r is point masses on [0, length] smoothed by a bandwidth in [low, high].

    The reflected Gaussian kernel is that of heat on a rod with insulated ends, and cosines are its
    eigenfunctions: that of cos(pi k t / length) is damped by exp(-(bandwidth pi k / length)^2 / 2). So
    coefficients are computed once, by a fast Fourier transform of what the masses leave on nodes, and another
    one gives r for each bandwidth.
    """

    def __init__(self, at: Floats, size: Floats, length: float, low: float, high: float) -> None:
        # The kernel is flat already, and beyond, squares would overflow.
        low, high = min(low, 10 * length), min(high, 10 * length)
        n = max(4096, _NODES * length / low)
        n = 2 ** math.ceil(math.log2(n)) if n <= _MAX_NODES else 2 * math.ceil(n / 2)
        self.length, self.step = length, length / n
        self.windows = list(self._windows(at / self.step, size, n, low, high))

    def _windows(
        self, at: Floats, size: Floats, n: int, low: float, high: float
    ) -> Iterator[tuple[int, int, int, Floats]]:
        """For parts of the line, with what is around them in reach: the first and the last node that count,
        the number of nodes, and the coefficients."""
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
        # cos(x + d) = sum_p d^p / p! cos^(p)(x) for the nearest node x: the nodes hold moments of d.
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
    """How many cosines on [0, 1] a bandwidth of at least `low` leaves."""
    return min(n, math.ceil(_REACH / (math.pi * low)) + 1)


def _integral(first: int, last: int, n: int, coefficients: Floats, bandwidth: float) -> float:
    """Of a damped sum of cosines on [0, 1]: the integral of its absolute value between two of n + 1 nodes."""
    frequency = math.pi * min(bandwidth, 10.0) * np.arange(len(coefficients))
    r = np.fft.irfft(coefficients * np.exp(-(frequency**2) / 2), 2 * n)[first : last + 1]  # over 2 n
    return 2 * float(_absolute_parabolas(r[:-1:2], r[1::2], r[2::2]).sum())  # in units of 1 / n


def _absolute_parabolas(left: Floats, middle: Floats, right: Floats) -> Floats:
    """The integrals of |parabola| through three values each, two units wide."""
    integrals = np.abs(left + 4 * middle + right) / 3
    # middle + slope s + bend s^2 for s in [-1, 1] has a zero at most here.
    some = np.flatnonzero(np.abs(middle) <= (np.abs(right - left) + np.abs(left - 2 * middle + right)) / 2)
    left, middle, right = left[some], middle[some], right[some]
    slope, bend = (right - left) / 2, (left - 2 * middle + right) / 2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # NaN stands for no zero. None of the two quotients cancels.
        q = -(slope + np.copysign(np.sqrt(slope**2 - 4 * bend * middle), slope)) / 2
        zeros = np.stack([q / bend, middle / q])
    zeros = np.sort(np.clip(np.nan_to_num(zeros, nan=1.0), -1, 1), axis=0)
    s = np.concatenate([np.full((1, len(some)), -1.0), zeros, np.ones((1, len(some)))])
    antiderivative = s * (middle + s * (slope / 2 + s * (bend / 3)))
    integrals[some] = np.abs(np.diff(antiderivative, axis=0)).sum(0)
    return integrals


def _fixed_point(error: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """The bandwidth that is its own error and that error, where error(low) >= low and error(high) <= high."""
    # error(x) - x falls at least as fast as -x: the difference bounds the distance from the fixed point.
    at_low, at_high = error(low) - low, error(high) - high
    x, at_x = (low, at_low) if at_low < -at_high else (high, at_high)
    kept = ""
    for _ in range(100):
        if abs(at_x) <= 1e-13 * x or not at_high < 0 < at_low:
            break
        # The Illinois algorithm: the secant, but for an end that stays put, whose value is halved.
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
