"""Calibration errors over bins of confidence: expected, root mean square, maximum, adaptive, classwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from ._bins import Binning, Bins, Kind, Norm, bin_digits, check_bins, check_norm, errors, mean
from ._checks import Array, ArrayLike, Floats
from ._inputs import Options, read
from ._metric import metric, reads_options
from ._predictions import Predictions

if TYPE_CHECKING:
    from typing_extensions import Unpack


@metric
def calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    norm: Norm = "l1",
    binning: Binning = "uniform",
    kind: Kind = "top_label",
    debias: bool = False,
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The difference of confidence and accuracy over bins of confidence.

    Equivalent to, with the confidence ``c = preds.max(1)`` and ``correct = preds.argmax(1) == target``::

        gap[b] = abs(correct[in_bin[b]].mean() - c[in_bin[b]].mean())
        share[b] = in_bin[b].sum() / N
        {"l1": (share * gap).sum(), "l2": (share * gap**2).sum() ** 0.5, "max": gap.max()}[norm]

    Confidences are summed without rounding: the result does not depend on the order of the rows or the number
    of threads, not even in the last bit. Empty bins contribute 0.

    Args:
        preds: Probabilities of shape (..., C), or logits with `from_logits`: a torch tensor, a NumPy array,
            or what NumPy makes an array of, of 16, 32 or 64 bit floats. For events, see `task`. The sum of a
            row may differ from 1 by 0.005 (0.01 for 16 bit floats); if it differs by more than 0.001 (0.01),
            the row is divided by it. Numbers outside of [0, 1] by rounding, up to 1e-6, are clipped.
        target: Classes in [0, C), of the shape of `preds` without its classes: integers, whole numbers in
            floats, bools of two classes, or with `labels` anything.
        n_bins: The number of bins, at least 1; or their edges, which increase from 0 to 1.
        norm: "l1" (the expected calibration error), "l2" (root mean square) or "max".
        binning: "uniform": bins of equal width, [k/n, (k+1)/n), the last one closed; k/n is rounded to the
            type of `preds`, as are given edges. "quantile": bins of equal mass; each ends after the smallest
            confidence up to which k/n of the rows lie, or of their weight, so that equal confidences share a
            bin. "paper": the bins of the code of Lienen & Hüllermeier (2021),
            ``min(int(c // (1/n)), n - 1)``, as it rounds.
        kind: "top_label", or "classwise": the mean over the classes k of the error of ``preds[:, k]`` as the
            probability of the event ``target == k``, with separate bins for each class.
        debias: For "l2": subtract the sampling bias ``acc (1 - acc) / (n - 1)`` from each squared gap, skip
            bins of a single row, and clip a negative result to 0. Not defined with weights.
        sample_weight: A number in [0, 2^32] for each row, of the shape of `target`; digits below 2^-128 are
            dropped.
        task: "multiclass"; "binary": `preds` has the shape of `target` and holds the probability (or logit)
            of class 1, which is binned, and the prediction is correct if the target is 1; "multilabel": the
            same for K labels, in the last dimension or `dim`, with the mean over the labels of the error of
            each. Default: "multiclass", or "binary" if both have shape (N,). A one-hot `target` of the shape
            of `preds` needs task="multiclass".
        from_logits: Whether `preds` holds logits. A :class:`ProbabilitiesWarning` says if it seems not to.
        dim: The dimension of the classes. Default: the last one, if `target` fits no other.
        labels: The label of each class, as `classes_` of a scikit-learn classifier, for other targets than
            0 to C - 1.
        normalize: Whether to divide each row of probabilities by its sum, however much it differs from 1.
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
    rows, values = _errors(preds, target, n_bins, norm, binning, kind, debias, sample_weight, **options)
    return rows.result(mean(values))


def _errors(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    n_bins: int | Sequence[float] | Array,
    norm: Norm,
    binning: Binning,
    kind: Kind,
    debias: bool,
    sample_weight: Tensor | ArrayLike | None,
    **options: Unpack[Options],
) -> tuple[Predictions, Floats]:
    """The predictions, and the error of each group of bins."""
    check_norm(norm, debias)
    if debias and sample_weight is not None:
        raise ValueError("Expected argument `sample_weight` to be None with `debias`, but got weights.")
    n, name_or_edges = check_bins(n_bins, binning)
    rows = read(preds, target, sample_weight, **options)
    _, counts, digits = bin_digits(rows, n, name_or_edges, kind)
    return rows, errors(Bins.from_digits(counts, digits, n), norm, debias)


@metric
def expected_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The expected calibration error (ECE): `calibration_error` with norm "l1".

    >>> import numpy as np
    >>> preds = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    >>> round(float(expected_calibration_error(preds, np.array([0, 1, 1]))), 6)
    0.4
    """
    return calibration_error(
        preds, target, n_bins=n_bins, binning=binning, sample_weight=sample_weight, **options
    )


@metric
def maximum_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    binning: Binning = "uniform",
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The maximum calibration error (MCE): `calibration_error` with norm "max"."""
    return calibration_error(
        preds, target, n_bins=n_bins, norm="max", binning=binning, sample_weight=sample_weight, **options
    )


@metric
def adaptive_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int = 15,
    norm: Norm = "l1",
    kind: Kind = "top_label",
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The adaptive calibration error: `calibration_error` with bins of equal mass, binning "quantile".

    The metric of that name by Nixon et al. (2019) has the kind "classwise".
    """
    return calibration_error(
        preds,
        target,
        n_bins=n_bins,
        norm=norm,
        binning="quantile",
        kind=kind,
        sample_weight=sample_weight,
        **options,
    )


@reads_options
def classwise_calibration_error(
    preds: Tensor | ArrayLike,
    target: Tensor | ArrayLike,
    *,
    n_bins: int | Sequence[float] | Array = 15,
    norm: Norm = "l1",
    binning: Binning = "uniform",
    average: Literal["macro"] | None = "macro",
    sample_weight: Tensor | ArrayLike | None = None,
    **options: Unpack[Options],
) -> Any:
    """The mean calibration error over the classes: `calibration_error` with kind "classwise".

    Classes that do not occur in `target` are included: their accuracy is 0. With the task "multilabel", the
    labels take the place of the classes.

    Args:
        average: "macro" for the mean; None for the error of each class, of shape (C,). The error of a label
            whose rows are all ignored is NaN, and the mean leaves it out.
    """
    if average not in ("macro", None):
        raise ValueError(f"Expected argument `average` to be 'macro' or None, but got {average!r}.")
    kind: Kind = "top_label" if options.get("task") == "multilabel" else "classwise"
    rows, values = _errors(preds, target, n_bins, norm, binning, kind, False, sample_weight, **options)
    return rows.result(values if average is None else mean(values))
