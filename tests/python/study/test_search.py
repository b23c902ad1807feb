"""The search for an alpha: the paper's grids, and what is best."""

from dataclasses import replace

import pytest
from lr_relax.study import search
from lr_relax.study.config import RunConfig
from lr_relax.study.results import Result
from tracked_runs import result

WEIGHTS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4)


def test_the_grids_are_the_papers() -> None:
    expected = {
        "label_relaxation": WEIGHTS,
        "cross_entropy": WEIGHTS,
        "focal": (0.1, 0.2, 0.5, 1, 2, 3.5, 5),
        "confidence_penalty": (0.1, 0.3, 0.5, 1, 2, 4, 8),
    }
    assert expected == search.LEGACY_GRIDS
    assert expected | {"cross_entropy": (0, *WEIGHTS)} == search.GRIDS  # plain cross-entropy, too


@pytest.mark.parametrize("loss", search.GRIDS)
def test_candidates_are_validation_runs_of_every_alpha(loss: str) -> None:
    config = RunConfig("simple_dense", "digits", loss, seed=7, epochs=3, test_run=True)
    candidates = search.candidates(config, search.GRIDS[loss])
    assert [each.alpha for each in candidates] == list(search.GRIDS[loss])
    assert {replace(each, alpha=0) for each in candidates} == {replace(config, alpha=0, test_run=False)}
    assert len({each.key for each in candidates}) == len(candidates)


def test_an_alpha_that_the_loss_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`alpha` .* for label_relaxation, but got 1\.5"):
        search.candidates(RunConfig(), (0.1, 1.5))


def of(alpha: float, accuracy: float, ece: float) -> Result:
    return replace(result([1], [0.5], [1.0], alpha=alpha), accuracy=accuracy, ece=ece)


@pytest.mark.parametrize(
    ("runs", "by_accuracy", "by_ece"),
    [
        ([(0.1, 0.9, 0.05)], 0.1, 0.1),
        ([(0.1, 0.9, 0.05), (0.2, 0.95, 0.07), (0.3, 0.8, 0.01)], 0.2, 0.3),
        ([(0.1, 0.9, 0.05), (0.2, 0.95, 0.01), (0.3, 0.95, 0.01)], 0.2, 0.2),
        ([(0.3, 0.9, 0.05), (0.1, 0.9, 0.05)], 0.1, 0.1),
    ],
)
def test_of_the_best_the_smallest_alpha_is_chosen(
    runs: list[tuple[float, float, float]], by_accuracy: float, by_ece: float
) -> None:
    results = [of(*each) for each in runs]
    assert search.best(results, by_ece=False).config.alpha == by_accuracy
    assert search.best(results, by_ece=True).config.alpha == by_ece


def test_what_was_chosen_is_tested() -> None:
    chosen = of(0.2, 0.9, 0.1).config
    assert search.final(chosen) == replace(chosen, test_run=True)
