"""The study's runs, and the results file that keeps them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lr_relax.metrics import reliability_curve
from lr_relax.study import compare, data, models, splits
from lr_relax.study.atomic import replaced
from lr_relax.study.config import RunConfig
from lr_relax.study.results import Result, pooled_curve
from lr_relax.study.run import run
from lr_relax.study.training import Training, predict
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_plan(**changes: float) -> list[RunConfig]:
    options = {
        "seeds": 1,
        "epochs": 1,
        "batch_size": 64,
        "learning_rate": 0.1,
        "alpha": 0.1,
        "smoothing": 0.1,
    }
    return compare.plan("digits", **{**options, **changes})


@pytest.fixture(scope="module")
def three_runs(digits: data.Dataset) -> list[Result]:
    return [run(config, digits) for config in tiny_plan()]


def without_time(result: Result) -> Result:
    return replace(result, seconds=0, history=[replace(epoch, seconds=0) for epoch in result.history])


def test_a_plan_is_every_loss_for_every_seed_with_its_own_alpha() -> None:
    configs = tiny_plan(seeds=2, alpha=0.2, smoothing=0.3)
    losses = [("cross_entropy", 0.0), ("cross_entropy", 0.3), ("label_relaxation", 0.2)]
    assert [(each.seed, each.loss_name, each.alpha) for each in configs] == [
        (seed, *loss) for seed in (0, 1) for loss in losses
    ]
    assert all(each.test_run and not each.data_augmentation and each.decay == 0 for each in configs)


def test_a_run_repeats_exactly(digits: data.Dataset, three_runs: list[Result]) -> None:
    torch.manual_seed(12345)  # what happened before does not matter
    assert without_time(run(three_runs[2].config, digits)) == without_time(three_runs[2])


def test_losses_differ_in_nothing_but_the_loss(digits: data.Dataset) -> None:
    """With alpha 0 all three losses are cross-entropy: split, initial weights and batches are the same."""
    plain, *others = [run(config, digits) for config in tiny_plan(alpha=0.0, smoothing=0.0)]
    for other in others:
        assert other.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-4)
        assert other.nll == pytest.approx(plain.nll, rel=1e-3)


def test_the_losses_are_what_their_names_say(three_runs: list[Result]) -> None:
    """Relaxation forgives what cross-entropy does not; smoothing pays the entropy of its target on top."""
    cross_entropy, smoothing, relaxation = (each.history[0].loss for each in three_runs)
    assert relaxation < cross_entropy < smoothing


def test_metrics_are_those_of_the_trained_network(digits: data.Dataset, three_runs: list[Result]) -> None:
    """Trained again by hand, step by step."""
    got = three_runs[0]
    torch.manual_seed(0)
    model, split = models.simple_dense(64, 10), splits.split(digits, 0)
    Training(got.config, split, model, device=torch.device("cpu")).epoch()
    logits = predict(model, split.eval_images).double()
    curve = reliability_curve(logits, split.eval_labels, from_logits=True, n_bins=15, binning="paper")
    assert (got.n_train, got.n_eval) == (898, 899)
    assert got.accuracy == (logits.argmax(1) == split.eval_labels).double().mean().item()
    assert got.nll == F.cross_entropy(logits, split.eval_labels).item()
    assert got.ece == curve.expected_calibration_error
    assert got.bin_counts == curve.counts.tolist()
    assert [np.nan if mean is None else mean for mean in got.bin_accuracy] == pytest.approx(
        curve.accuracy, nan_ok=True
    )


def test_pooling_runs_is_pooling_their_predictions_but_for_the_mean_of_their_errors(
    three_runs: list[Result],
) -> None:
    """Six predictions in four bins, of two runs, and by hand: the third bin is filled by both."""
    some = replace(
        three_runs[0],
        bin_counts=[0, 0, 3, 1],
        bin_confidence=[None, None, 0.6, 0.9],
        bin_accuracy=[None, None, 1.0, 1.0],
        ece=0.25,
    )
    more = replace(
        three_runs[0],
        bin_counts=[0, 1, 1, 0],
        bin_confidence=[None, 0.4, 0.7, None],
        bin_accuracy=[None, 0.0, 0.0, None],
        ece=0.5,
    )
    curve = pooled_curve([some, more])
    assert curve.counts.tolist() == [0, 1, 4, 1]
    assert curve.confidence == pytest.approx([np.nan, 0.4, 0.625, 0.9], nan_ok=True)
    assert curve.accuracy == pytest.approx([np.nan, 0.0, 0.75, 1.0], nan_ok=True)
    assert curve.edges == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert curve.expected_calibration_error == 0.375


def test_the_summary_is_mean_and_sample_deviation(three_runs: list[Result]) -> None:
    runs = [replace(three_runs[0], ece=ece) for ece in (0.01, 0.02, 0.06)]
    summary = compare.summarize(runs)
    assert list(summary) == ["accuracy", "ece", "nll"]
    assert summary["ece"] == pytest.approx((0.03, 0.0264575), rel=1e-5)
    assert compare.summarize(runs[:1])["ece"].deviation is None


def test_results_survive_the_file_and_equal_settings_replace(
    three_runs: list[Result], tmp_path: Path
) -> None:
    results = compare.Results(tmp_path / "results.json")
    for each in three_runs:
        results.add(each)
    assert compare.Results(results.path).runs == three_runs
    newer = replace(three_runs[1], seconds=123.0)
    results.add(newer)
    results.add(replace(newer, config=replace(newer.config, seed=1)))
    read = compare.Results(results.path)
    assert len(read.runs) == 4
    assert read.find(newer.config) == newer
    assert read.find(replace(newer.config, epochs=7)) is None


def test_a_failed_write_leaves_the_results_as_they_were(three_runs: list[Result], tmp_path: Path) -> None:
    results = compare.Results(tmp_path / "results.json")
    results.add(three_runs[0])
    before = results.path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        results.add(replace(three_runs[1], nll=float("nan")))
    assert results.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [results.path]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(then: Exception | None) -> None:
        with replaced(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            if then:
                raise then

    with pytest.raises(RuntimeError):
        write(then=RuntimeError())
    assert path.read_text() == "old"
    write(then=None)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
