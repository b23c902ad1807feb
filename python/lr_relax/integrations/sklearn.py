"""scikit-learn: metrics as scorers, and temperature scaling of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import cross_val_predict
from sklearn.utils.validation import check_is_fitted, column_or_1d

from lr_relax.metrics import TemperatureScaling, accuracy
from lr_relax.metrics._checks import as_number


def scorer(metric: Callable[..., Any], **options: Any) -> Callable[[Any, Any, Any], float]:
    """A metric as a scorer: the larger, the better.

    Equivalent to ``-metric(estimator.predict_proba(X), y, labels=estimator.classes_, **options)``, for
    `accuracy` without the minus. It has its own order of arguments; `make_scorer` would exchange predictions
    and targets. Options that make the metric return several values, as ``average=None``, are refused.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> from lr_relax.metrics import brier_score
    >>> X, y = load_iris(return_X_y=True)
    >>> cross_val_score(LogisticRegression(max_iter=500), X, y, scoring=scorer(brier_score)).mean() > -0.1
    np.True_
    """
    if options.get("average", "macro") is None:
        raise ValueError(
            "Expected argument `average` to be 'macro', because a score is one number, but got None."
        )
    return partial(_score, metric, options)


def _score(
    metric: Callable[..., Any],
    options: dict[str, Any],
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
) -> float:
    if sample_weight is not None:
        options = {**options, "sample_weight": sample_weight}
    value = as_number(metric(estimator.predict_proba(X), y, labels=estimator.classes_, **options))
    return value if metric is accuracy else -value


class TemperatureScaledClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose probabilities are scaled with a temperature, fitted on held-out folds.

    Equivalent to, with the out-of-fold probabilities ``p``::

        p = cross_val_predict(estimator, X, y, cv=cv, method="predict_proba")
        temperature = TemperatureScaling().fit(p, y, from_logits=False)
        estimator.fit(X, y)
        predict_proba = softmax(log(estimator.predict_proba(X)) / temperature)

    Args:
        estimator: A classifier with `predict_proba`.
        cv: As in `cross_val_predict`; or "prefit", where `estimator` is fitted and `fit` gets held-out data.
        method: As in `TemperatureScaling.fit`.

    Rows to whose class a fold's classifier gives the probability 0, such as a class that the fold lacks, do
    not count in the fit of the temperature. Other probabilities of 0 count as the smallest normal number.

    Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """

    def __init__(self, estimator: Any, *, cv: Any = None, method: str = "nll") -> None:
        self.estimator, self.cv, self.method = estimator, cv, method

    def fit(self, X: Any, y: Any) -> TemperatureScaledClassifier:
        """Fit the classifier and the temperature."""
        y = column_or_1d(y, warn=True)
        if isinstance(self.cv, str) and self.cv == "prefit":
            self.estimator_ = self.estimator
            p = self.estimator_.predict_proba(X)
        else:
            p = cross_val_predict(self.estimator, X, y, cv=self.cv, method="predict_proba")
            self.estimator_ = clone(self.estimator).fit(X, y)
        self.classes_ = self.estimator_.classes_
        if hasattr(self.estimator_, "n_features_in_"):
            self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        # Where a fold lacks the class of a row, or has rounded its probability to 0, there is no likelihood.
        kept = p[np.arange(len(y)), np.searchsorted(self.classes_, y)] > 0
        scaling = TemperatureScaling().fit(_log(p[kept]), y[kept], method=self.method, labels=self.classes_)
        self.temperature_ = scaling.temperature.item()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The scaled probabilities of the classes, (N, C)."""
        check_is_fitted(self)
        scaled = torch.from_numpy(_log(self.estimator_.predict_proba(X)) / self.temperature_)
        p: NDArray[np.float64] = scaled.softmax(1).numpy()
        return p

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row, (N,)."""
        best = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags, inner = super().__sklearn_tags__(), getattr(self.estimator, "__sklearn_tags__", None)
        if inner is not None:
            tags.input_tags.sparse = inner().input_tags.sparse
        return tags


def _log(p: Any) -> NDArray[np.float64]:
    """The logarithms of probabilities, finite also for those that have been rounded to 0."""
    logs: NDArray[np.float64] = np.log(np.clip(np.asarray(p, np.float64), np.finfo(np.float64).tiny, 1))
    return logs
