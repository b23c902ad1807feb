"""Calibration errors over bins of confidence: expected, root mean square, maximum, adaptive, classwise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._bins import Bins, bin_digits, check_norm, error
from ._inputs import Array, scalar_like


def calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    norm: str = "l1",
    binning: str = "uniform",
    kind: str = "top_label",
    debias: bool = False,
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The difference of confidence and accuracy over bins of confidence.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``correct = preds.argmax(1) == target``::

        gap[b] = abs(correct[in_bin[b]].mean() - c[in_bin[b]].mean())
        share[b] = in_bin[b].sum() / N
        {"l1": (share * gap).sum(), "l2": (share * gap**2).sum() ** 0.5, "max": gap.max()}[norm]

    Confidences are summed without rounding: the result does not depend on the order of the rows or the number
    of threads, not even in the last bit. Empty bins contribute 0.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`; a torch tensor or a NumPy array
            of 16, 32 or 64 bit floats, with any strides. If it has the shape of `target`, it holds the
            probability (or logit) of class 1 of binary events; then this probability is binned, and the
            prediction is correct if the target is 1.
        target: Classes in [0, C), of the shape of `preds` without its last dimension and any integer type.
        from_logits: Whether `preds` holds logits.
        n_bins: The number of bins, at least 1.
        norm: "l1" (the expected calibration error), "l2" (root mean square) or "max".
        binning: "uniform": bins of equal width, [k/n, (k+1)/n), the last one closed; k/n is rounded to the
            type of `preds`. "quantile": bins of equal mass; each ends after the smallest confidence up to
            which k/n of the rows lie, so that equal confidences share a bin. "paper": the bins of the code of
            Lienen & Hüllermeier (2021), ``min(int(c // (1/n)), n - 1)`` with its rounding.
        kind: "top_label", or "classwise": the mean over the classes k of the error of ``preds[:, k]`` as the
            probability of the event ``target == k``, with separate bins for each class.
        debias: For "l2": subtract the sampling bias ``acc (1 - acc) / (n - 1)`` from each squared gap, skip
            bins of a single row, and clip a negative result to 0. Not defined with weights.
        sample_weight: A number in [0, 2^32] for each row, of the shape of `target`; digits below 2^-128 are
            dropped.
        ignore_index: Rows with this target are ignored, whatever they hold.

    Returns:
        A value in [0, 1]: a float64 scalar tensor on the device of `preds`, or a NumPy float64 for arrays.

    Raises:
        ValueError: If all rows are ignored or have weight 0, if a row is not a distribution (the first one is
            named), or if a shape, weight or option is wrong.
        TypeError: If an argument has a wrong type.
        IndexError: If a target is not in [0, C); the first one is named.

    Source: Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3 and 5; classwise and
    adaptive: Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019; `debias`: Kumar,
    Liang & Ma, "Verified Uncertainty Calibration", NeurIPS 2019, definition 4.1.

    >>> import numpy as np
    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(calibration_error(preds, np.array([0, 1, 1]))), 6)
    0.4
    """
    check_norm(norm, debias)
    if debias and sample_weight is not None:
        raise ValueError("Expected argument `sample_weight` to be None with `debias`, but got weights.")
    _, counts, digits = bin_digits(
        preds,
        target,
        sample_weight,
        from_logits=from_logits,
        n_bins=n_bins,
        binning=binning,
        kind=kind,
        ignore_index=ignore_index,
    )
    return scalar_like(preds, error(Bins.from_digits(counts, digits, int(n_bins)), norm, debias))


def expected_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The expected calibration error (ECE): `calibration_error` with norm "l1".

    >>> import numpy as np
    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(expected_calibration_error(preds, np.array([0, 1, 1]))), 6)
    0.4
    """
    return calibration_error(
        preds,
        target,
        from_logits=from_logits,
        n_bins=n_bins,
        binning=binning,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )


def maximum_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    binning: str = "uniform",
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The maximum calibration error (MCE): `calibration_error` with norm "max"."""
    return calibration_error(
        preds,
        target,
        from_logits=from_logits,
        n_bins=n_bins,
        norm="max",
        binning=binning,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )


def adaptive_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    norm: str = "l1",
    kind: str = "top_label",
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The adaptive calibration error: `calibration_error` with bins of equal mass, binning "quantile".

    The metric of that name by Nixon et al. (2019) has the kind "classwise".
    """
    return calibration_error(
        preds,
        target,
        from_logits=from_logits,
        n_bins=n_bins,
        norm=norm,
        binning="quantile",
        kind=kind,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )


def classwise_calibration_error(
    preds: Tensor | Array,
    target: Tensor | Array,
    *,
    from_logits: bool = False,
    n_bins: int = 15,
    norm: str = "l1",
    binning: str = "uniform",
    sample_weight: Tensor | Array | None = None,
    ignore_index: int | None = None,
) -> Any:
    """The mean calibration error over the classes: `calibration_error` with kind "classwise".

    Classes that do not occur in `target` are included: their accuracy is 0.
    """
    return calibration_error(
        preds,
        target,
        from_logits=from_logits,
        n_bins=n_bins,
        norm=norm,
        binning=binning,
        kind="classwise",
        sample_weight=sample_weight,
        ignore_index=ignore_index,
    )
