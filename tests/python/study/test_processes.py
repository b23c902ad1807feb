"""Several processes that train one network, started by torchrun's agent."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lr_relax.study import data, files, splits
from lr_relax.study.config import RunConfig
from lr_relax.study.folder import Result, load_results
from lr_relax.study.network import Network
from lr_relax.study.optimizer import Plateau
from lr_relax.study.processes import Processes, start
from lr_relax.study.run import run
from lr_relax.study.training import Training
from made_results import timeless
from mlflow import MlflowClient
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

pytestmark = pytest.mark.usefixtures("one_thread")

# What the processes import is imported once: they are forks of a server.
multiprocessing.set_forkserver_preload(["lr_relax.study.cli", "torch._dynamo", "sklearn.datasets"])

CONFIG = RunConfig("simple_dense", "digits", alpha=0.1, epochs=2, initial_lr=0.05, decay=0.01, batch_size=96)
OPTIONS = ["--model_name", "simple_dense", "--dataset_name", "digits", "--alpha", "0.1"]
OPTIONS += ["--initial_lr", "0.05", "--tracking_uri", "none"]


def torchrun(logs: Path, size: int, work: Callable[..., Any], *arguments: Any) -> dict[int, Any]:
    """What ``work`` returns in each process; their outputs are kept in ``logs``."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="test",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    handlers = {
        stop: signal.getsignal(stop)
        for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        returned: dict[int, Any] = elastic_launch(config, work)(*arguments)
    finally:  # torchrun leaves its own
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
    return returned


def told(logs: Path, stream: str) -> list[str]:
    """The lines of all processes."""
    return [line for file in logs.rglob(f"{stream}.log") for line in file.read_text().splitlines()]


def study(arguments: list[str]) -> None:
    """The command, in one of the processes."""
    from lr_relax.study.cli.study import study

    torch.set_num_threads(1)
    try:
        study([*OPTIONS, *arguments], prog_name="lr_study")
    except SystemExit as end:
        if end.code:
            raise


def numbers(epoch: dict[str, Any]) -> dict[str, float]:
    """All but the time; in test runs some are missing."""
    return {name: value for name, value in epoch.items() if name != "seconds" and value is not None}


# One network, one and two processes.


def small_network() -> Network:
    """With all the penalties."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    return Network(*layers, l2=1e-3, last_l2=1e-2, activity_l2=1e-2)


def trained(config: RunConfig) -> dict[str, Any]:
    dataset = data.load("digits", Path("unused"))
    split = splits.split(dataset, 0, validation=not config.test_run)
    training = Training(config, split, small_network(), device=torch.device("cpu"))
    training.plateau = Plateau(patience=1, least_change=10)  # drops after every epoch but the first
    for _ in range(config.epochs):
        training.epoch()
    return training.state_dict()


CONFIGS = {
    "plain": CONFIG,
    "clipping and plateau": replace(CONFIG, gradient_clipping=0.01, reduce_on_plateau=True, epochs=3),
    "plateau of a test run": replace(CONFIG, test_run=True, reduce_on_plateau=True, epochs=3),
    "batches of one row": replace(CONFIG, batch_size=1, epochs=1, data_augmentation=False),
}


def train_all() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    start(torch.device("cpu"))
    return [trained(config) for config in CONFIGS.values()]


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    both = torchrun(tmp_path, 2, train_all)
    for name, config, first, second in zip(CONFIGS, CONFIGS.values(), both[0], both[1], strict=True):
        alone = trained(config)
        rows = 898 if config.test_run else 673
        assert rows % config.batch_size in (0, 1, 34)  # the last batch of the first two has one row
        for key, weights in alone["network"].items():
            torch.testing.assert_close(first["network"][key], weights, rtol=1e-5, atol=1e-6, msg=name)
            assert second["network"][key].equal(first["network"][key]), name
        assert first["plateau"] == pytest.approx(alone["plateau"], rel=1e-5), name
        for one, two, other in zip(alone["epochs"], first["epochs"], second["epochs"], strict=True):
            one, two, other = map(numbers, (one, two, other))
            assert two == other, name
            assert two == pytest.approx(one, rel=1e-5), name
    assert both[0][1]["plateau"]["drops"] == 2
    assert told(tmp_path, "stderr") == []


@pytest.mark.parametrize(("size", "rows"), [(1, 5), (2, 5), (3, 5), (3, 2), (4, 1)])
def test_shares_partition_the_batch(size: int, rows: int) -> None:
    seen, mean, batch = [], 0.0, torch.arange(rows)
    for rank in range(size):
        processes = Processes()
        processes.rank, processes.size = rank, size
        mine, factor = processes.share(rows)
        assert len(batch[mine])
        seen += batch[mine].tolist() if factor else []
        mean += factor * batch[mine].double().mean().item() / size
    assert sorted(seen) == [*range(rows)]
    assert mean == pytest.approx((rows - 1) / 2)


# A run and its folder.

IMAGES = RunConfig("resnet", "cifar10", epochs=2, batch_size=7, model_checkpoints=True, temp_scaling=True)


def run_thrice(folder: Path) -> list[Result]:
    """Without a break, with one, and once more; the folder's files are those of the first process."""
    torch.set_num_threads(1)
    start(torch.device("cpu"))
    images = np.random.default_rng(0).integers(256, size=(40, 3, 32, 32), dtype=np.uint8)
    dataset = data.Dataset("cifar10", images, np.arange(40) % 10, 255, 10, data.Fraction(1, 4))

    def interrupt(epoch: Any) -> None:
        if epoch.epoch == 0:
            raise KeyboardInterrupt

    whole = run(IMAGES, dataset, folder=folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(IMAGES, dataset, folder=folder / "broken", on_epoch=interrupt)
    resumed = run(IMAGES, dataset, folder=folder / "broken")
    assert run(IMAGES, dataset, folder=folder / "broken").bin_counts == resumed.bin_counts
    return [timeless(whole), timeless(resumed)]


def test_resumes_bit_for_bit_with_three_processes(tmp_path: Path) -> None:
    of_all = torchrun(tmp_path / "logs", 3, run_thrice, tmp_path)
    whole = of_all[0][0]
    assert whole.environment["processes"] == "3"
    for results in of_all.values():
        assert results == [whole, whole]
    for folder in ("whole", "broken"):
        files = sorted(path.name for path in (tmp_path / folder).iterdir())
        made = ["model.pt", "predictions.npz", "reliability.png", "result.json"]
        assert files == [".lock", "config.json", *made]
    assert told(tmp_path / "logs", "stderr") == []  # no warning of torch's about layouts, either


# The command.


def killed(arguments: list[str], ranks: tuple[int, ...] = (1,), epoch: int = 1) -> None:
    """The command, of which some processes are killed at the end of an epoch."""
    sum_of_all, sums = Processes.sum, []

    def die(self: Processes, values: torch.Tensor) -> torch.Tensor:
        sums.append(values)
        if self.rank in ranks and len(sums) == epoch:
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of torchrun, which may be faster than the network
        return sum_of_all(self, values)

    Processes.sum = die  # type: ignore[method-assign]
    study(arguments)


def test_resumes_bit_for_bit_after_sigkill_of_two_processes(tmp_path: Path, sqlite: str) -> None:
    """The first process alone prints and tracks."""
    options = ["--epochs", "5", "--batch_size", "24"]
    arguments = [*options, "--out", str(tmp_path / "killed")]
    with pytest.raises(ChildFailedError) as failure:
        torchrun(tmp_path / "first", 2, killed, arguments, (0, 1), 2)
    assert {ended.exitcode for ended in failure.value.failures.values()} == {-signal.SIGKILL}
    assert len([*tmp_path.rglob("checkpoint.pt")]) == 1
    assert not [*tmp_path.rglob("result.json")]

    tracked = ["--tracking_uri", sqlite, "--tensorboard", str(tmp_path / "board")]
    torchrun(tmp_path / "logs", 2, study, [*arguments, *tracked])
    _, *lines = told(tmp_path / "logs", "stderr")
    assert [line.split("  ")[0] for line in lines] == [f"epoch {i}/5" for i in range(1, 6)]
    assert len(told(tmp_path / "logs", "stdout")) == 3
    mlflow = MlflowClient(sqlite)
    [run] = mlflow.search_runs([experiment.experiment_id for experiment in mlflow.search_experiments()])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in mlflow.get_metric_history(run.info.run_id, "loss")] == [0, 1, 2, 3, 4]
    assert len([*tmp_path.glob("board/**/events.*")]) == 1

    torchrun(tmp_path / "logs", 2, study, [*options, "--out", str(tmp_path / "whole"), "--cluster_job"])
    [resumed], [whole] = load_results(tmp_path / "killed"), load_results(tmp_path / "whole")
    assert timeless(resumed) == timeless(whole)


def failing_to_write(arguments: list[str]) -> None:
    def full(state: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    files.save_checkpoint = full
    study(arguments)


@pytest.mark.parametrize(
    ("work", "arguments", "message", "code"),
    [
        (study, ["--initial_lr", "1e30"], "the loss is nan in epoch 1", 1),
        (study, ["--dataset_name", "mnist", "--data_dir", "{file}"], "mnist cannot be read from {file}", 2),
        (study, ["--out", "{file}"], "File exists: '{file}'", 2),
        (failing_to_write, [], "No space left on device", 1),
        (killed, [], "another process has ended", 1),
    ],
)
def test_all_processes_end_with_one_line(
    work: Callable[..., None], arguments: list[str], message: str, code: int, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    arguments = [argument.format(file=file) for argument in arguments]
    with pytest.raises(ChildFailedError) as failure:
        torchrun(tmp_path / "logs", 2, work, ["--cluster_job", "--out", str(tmp_path / "out"), *arguments])
    # The others would tell, too, if torchrun did not end them: after `wait_for_the_first`'s time.
    [line] = told(tmp_path / "logs", "stderr")
    assert message.format(file=file) in line
    assert failure.value.failures
    for ended in failure.value.failures.values():
        assert ended.exitcode in (code, -signal.SIGTERM, -signal.SIGKILL)
    assert not [*tmp_path.rglob("result.json")]
