"""A grid: its jobs, what has finished before, and the alphas that are tested."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from lr_relax.study import cli, grid
from lr_relax.study import folder as store
from lr_relax.study.engines import Job, Outcome
from made_results import record


def test_finished_runs_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one job for each distinct run, with absolute paths."""
    monkeypatch.chdir(tmp_path)
    done = record(0.9, 0.1)
    configs = [replace(done.config, seed=seed) for seed in (3, 2, 1)]
    jobs = [
        Job(config, tmp_path / "out" / config.key, tmp_path / "data", "a test")
        for config in (*configs, done.config)
    ]
    _, damaged, blocked, finished = jobs
    for job in (damaged, finished):
        job.folder.mkdir(parents=True)
    (damaged.folder / "result.json").write_text("{}")
    blocked.folder.touch()
    store.save_result(done, finished.folder)

    def engine(jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            yield Outcome(job, None, "left to the worker")

    outcomes = grid.run([*configs, done.config, *configs], Path("out"), Path("data"), "a test", engine)
    assert list(outcomes) == [
        Outcome(finished, done),
        *(Outcome(job, None, "left to the worker") for job in jobs[:3]),
    ]


CROSS_ENTROPY = {"loss_name": "cross_entropy"}


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        (["accuracy"], [(0.2, 0), (0.1, 1)]),
        (["ece"], [(0.3, 0), (0.1, 1)]),
        (["accuracy", "ece"], [(0.2, 0), (0.3, 0), (0.1, 1)]),
        ([], []),
    ],
)
def test_best_alphas_are_tested_once(criteria: list[str], expected: list[tuple[float, int]]) -> None:
    finished = [
        record(0.9, 0.02, alpha=0.3),
        record(0.95, 0.04, alpha=0.2),
        record(0.95, 0.02, alpha=0.4),  # as good as another, with a greater alpha
        record(0.8, 0.2, alpha=0.4, seed=1),
        record(0.9, 0.1, alpha=0.1, seed=1),
        record(0.99, 0.001, alpha=0.01, test_run=True),  # tests choose nothing
        record(0.6, 0.5, **CROSS_ENTROPY),  # beside label smoothing, which is another loss
        record(0.7, 0.4, alpha=0.1, **CROSS_ENTROPY),
    ]
    tested = grid.best_tested(finished, criteria)
    assert all(config.test_run for config in tested)
    relaxed = [config for config in tested if config.loss_name == "label_relaxation"]
    assert [(config.alpha, config.seed) for config in relaxed] == expected
    others = [config.alpha for config in tested if config.loss_name == "cross_entropy"]
    assert others == ([0.0, 0.1] if criteria else [])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--gpu_share 1", "this machine has no GPU that torch can use"),
        ("--slurm mem_gb=2", "Invalid value for '--slurm': it needs --engine slurm, but got local."),
        ("--ray_address a:1", "Invalid value for '--ray-address': it needs --engine ray, but got local."),
        ("--tracking_uri nonsense", "'nonsense' is not a store: use sqlite:///mlflow.db or"),
    ],
)
def test_refusals_are_the_only_line(
    words: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = ["--datasets", "digits", "--short", "--tracking_uri", "none", *words.split()]
    ran = CliRunner().invoke(cli.main, ["grid", *options])
    assert ran.exit_code == 2
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"Error: {reason}")
    assert not [*tmp_path.rglob("config.json")]
