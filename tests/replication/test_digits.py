"""Relaxation and cross-entropy on real digits, as `lr-relax compare` trains them, and recorded runs again.

Trains both losses with ten seeds, which takes most of a minute, and three runs of the paper's protocol.
"""

from pathlib import Path

import pytest
from lr_relax.study import compare, data
from lr_relax.study.folder import Result, Statistic, load_results
from lr_relax.study.run import run

Summaries = dict[str, dict[str, Statistic]]


@pytest.fixture(scope="module")
def summaries(one_thread: None) -> Summaries:
    configs = compare.plan("digits")
    digits = data.load("digits", Path("unused"))
    results = [
        run(config, digits)
        for config in configs
        if not (config.loss_name == "cross_entropy" and config.alpha)
    ]
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.config.loss_name, []).append(result)
    assert [len(runs) for runs in groups.values()] == [10, 10]
    return {loss: compare.summarize(runs) for loss, runs in groups.items()}


def test_relaxation_has_the_lower_mean_error(summaries: Summaries) -> None:
    cross_entropy, relaxation = summaries["cross_entropy"], summaries["label_relaxation"]
    assert relaxation["ece"].mean < cross_entropy["ece"].mean
    assert relaxation["nll"].mean < cross_entropy["nll"].mean


def test_relaxation_is_as_accurate_within_a_standard_deviation(summaries: Summaries) -> None:
    cross_entropy, relaxation = (
        summaries["cross_entropy"]["accuracy"],
        summaries["label_relaxation"]["accuracy"],
    )
    assert cross_entropy.mean > 0.95  # both have learnt
    assert cross_entropy.deviation is not None
    assert abs(relaxation.mean - cross_entropy.mean) <= cross_entropy.deviation


@pytest.mark.parametrize(
    ("loss", "least_alpha"), [("label_relaxation", 0), ("cross_entropy", 0.01), ("focal", 0)]
)
def test_a_recorded_run_is_repeated(loss: str, least_alpha: float, one_thread: None) -> None:
    """With the same bits on the machine of the record; on others, training magnifies rounding errors."""
    record = Path(__file__).parents[2] / "misc" / "results" / "digits.jsonl"
    former = next(
        each
        for each in load_results(record)
        if each.config.test_run and each.config.loss_name == loss and each.config.alpha >= least_alpha
    )
    again = run(former.config, data.load("digits", Path("unused")))
    for epoch, other in zip(again.history[:5], former.history, strict=False):
        assert epoch.loss == pytest.approx(other.loss, rel=0.02)
    for metric in ("accuracy", "ece", "nll"):
        assert getattr(again, metric) == pytest.approx(getattr(former, metric), abs=0.01)
