"""The runs recorded in misc/results: each one is there once, complete, and agrees with its bins."""

import re
from pathlib import Path

import pytest
from lr_relax.study.folder import load_results

RESULTS = Path(__file__).parents[2] / "misc" / "results"
DIRTY = "d628bac[0-9a-f]{33}-dirty"  # only the records themselves had changed


@pytest.mark.parametrize(("dataset", "n_test"), [("digits", 899), ("fashion_mnist", 10_000)])
def test_records_agree_with_their_bins(dataset: str, n_test: int) -> None:
    runs = load_results(RESULTS / f"{dataset}.jsonl")
    assert len({run.config for run in runs}) == len(runs) > 100
    for run in runs:
        bins = zip(run.bin_counts, run.bin_confidence, run.bin_accuracy, strict=True)
        filled = [(count, c, a) for count, c, a in bins if c is not None and a is not None]
        assert sum(count for count, _, _ in filled) == sum(run.bin_counts) == run.n_eval
        assert run.ece == pytest.approx(sum(n * abs(a - c) for n, c, a in filled) / run.n_eval, rel=1e-9)
        assert run.accuracy == pytest.approx(sum(n * a for n, _, a in filled) / run.n_eval, rel=1e-9)
        assert run.n_eval == n_test or not run.config.test_run
        assert run.nll > 0
        assert run.seconds > 0
        assert run.command.startswith("lr-relax grid ")
        assert re.fullmatch(f"[0-9a-f]{{40}}|{DIRTY}", run.environment["commit"])
        assert len(run.history) == (run.config.epochs if run.config.test_run else 0)


def test_each_seed_has_the_runs_of_the_protocol() -> None:
    """A validation run for every alpha, and test runs of those with the best accuracy and ECE."""
    runs = load_results(RESULTS / "digits.jsonl")
    for seed in range(10):
        for loss in ("cross_entropy", "label_relaxation", "focal", "confidence_penalty"):
            of_loss = [r for r in runs if (r.config.seed, r.config.loss_name) == (seed, loss)]
            tried = [r for r in of_loss if not r.config.test_run and r.config.alpha > 0]
            assert len(tried) == 7
            best = max(tried, key=lambda r: r.accuracy), min(tried, key=lambda r: r.ece)
            tested = {r.config.alpha for r in of_loss if r.config.test_run}
            assert {r.config.alpha for r in best} <= tested
