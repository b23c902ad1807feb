"""The engines train real runs in real processes; what is killed here is killed."""

import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lr_relax.study import engines, run
from lr_relax.study import folder as store
from lr_relax.study.config import RunConfig

LONG = 30  # epochs, in which another process starts
TOO_LONG = 10_000  # epochs of a run that is not meant to end, and that ends for all that if a test hangs


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., engines.Job]:
    def make(seed: int, *, epochs: int = 1) -> engines.Job:
        config = RunConfig("simple_dense", "digits", "cross_entropy", seed=seed, epochs=epochs, test_run=True)
        return engines.Job(config, tmp_path / "runs" / str(seed), tmp_path, command="a test")

    return make


Engine = Callable[[list[engines.Job], int], engines.Outcomes]


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    if request.param == "ray":
        return engines.ray
    from submitit.local.local import LocalJob

    monkeypatch.setattr(LocalJob, "_results_timeout_s", 1)  # how long a result may take to cross a network
    return partial(engines.local, folder=tmp_path / "jobs")


def processes() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = folder.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            command = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        found[int(folder.name)] = (int(parent), command)
    return found


def workers_of(driver: int) -> list[int]:
    """The processes that train for a driver, whichever engine has started them."""
    running = processes()

    def descends(process: int) -> bool:
        return process == driver or (process in running and descends(running[process][0]))

    names = ("submitit.core._submit", "ray::work")
    return [
        process
        for process, (_, command) in running.items()
        if any(name in command for name in names) and descends(process)
    ]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120  # where several test runs share a machine
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def trains(job: engines.Job) -> bool:
    return (job.folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "nowhere"])
def test_ray_does_not_answer(address: str, job: Callable[..., engines.Job]) -> None:
    with pytest.raises(engines.EngineError, match=rf"\Ano Ray at {address}: .+\Z"):
        engines.ray([job(0)], 1, address=address)


def test_killed_worker_does_not_affect_other_runs(engine: Engine, job: Callable[..., engines.Job]) -> None:
    """Two train at a time, and one of them is killed while both do."""
    one, other = job(0, epochs=LONG), job(1, epochs=LONG)
    blocked = job(2)
    blocked.folder.parent.mkdir()
    blocked.folder.write_text("a file where the folder should be")

    def kill() -> None:
        wait_until(lambda: trains(one) and trains(other))
        first, _ = workers_of(os.getpid())
        os.kill(first, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = list(engine([one, other, blocked], 2))
    killer.join()
    assert {outcome.job for outcome in outcomes} == {one, other, blocked}
    failed = {outcome.job: outcome.error for outcome in outcomes if outcome.result is None}
    assert re.fullmatch(".*File exists.*", failed.pop(blocked))
    [(killed, error)] = failed.items()
    assert killed in (one, other)
    assert re.fullmatch(".*(left no result|died unexpectedly).*", error)
    for outcome in outcomes:
        if outcome.result is not None:
            assert outcome.error == ""
            assert outcome.result == store.load_result(outcome.job.folder)
            assert outcome.result.command == "a test"
            assert outcome.result.environment["threads"] == "1"
    if (ray := sys.modules.get("ray")) is not None:
        assert not ray.is_initialized()  # the engine has ended its own cluster


def test_outcomes_come_as_they_finish_and_ctrl_c_stops_the_workers(
    job: Callable[..., engines.Job], tmp_path: Path
) -> None:
    endless = job(0, epochs=TOO_LONG)

    outcomes = engines.local([endless, job(1)], 2, folder=tmp_path / "jobs")
    first = next(outcomes)
    assert (first.job, first.error) == (job(1), "")
    assert workers_of(os.getpid())
    wait_until(lambda: trains(endless))
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert not workers_of(os.getpid())
    assert trains(endless)


def test_workers_exit_with_their_driver(job: Callable[..., engines.Job]) -> None:
    endless = job(0, epochs=TOO_LONG)
    program = (
        "import pickle, sys; from lr_relax.study import engines;"
        "list(engines.local([pickle.load(sys.stdin.buffer)], 1, folder=sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(endless.folder.parent / "jobs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as driver:
        pickle.dump(endless, driver.stdin)
        driver.stdin.flush()
        wait_until(lambda: trains(endless))
        workers = workers_of(driver.pid)
        driver.kill()
    assert len(workers) == 1
    wait_until(lambda: not processes().keys() & set(workers))


def test_errors_are_one_line(
    job: Callable[..., engines.Job],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    def fails_with(error: Exception) -> str:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(run, "run", fail)
        outcome = engines.work(job(0))
        assert outcome.result is None
        return outcome.error

    assert fails_with(run.RunError("the loss is nan")) == "the loss is nan"
    assert fails_with(PermissionError(13, "Permission denied", "runs")).endswith("Permission denied: 'runs'")
    assert fails_with(MemoryError()) == "MemoryError: MemoryError"
    assert capfd.readouterr().err.startswith("Traceback")
    assert fails_with(RuntimeError("CUDA error\nmany\nlines")) == "RuntimeError: CUDA error"


@pytest.mark.parametrize(
    ("workers", "share", "visible", "gpus"),
    [(1, 1, "", "0"), (3, 1, "", "0 1"), (9, 0.5, "2,GPU-x", "2 GPU-x 2 GPU-x"), (3, 0.1, "", "0 1 0")],
)
def test_local_workers_share_the_gpus(
    workers: int, share: float, visible: str, gpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engines, "_submitted", lambda jobs, executor, workers, places: places)
    places = engines.local([], workers, folder=tmp_path, gpu_share=share)
    assert places == [("cuda", gpu) for gpu in gpus.split()]


def test_worker_sees_only_its_gpu(job: Callable[..., engines.Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen: list[tuple[str, str]] = []

    def fail(*_: object, device: str, **__: object) -> None:
        seen.append((device, os.environ["CUDA_VISIBLE_DEVICES"]))
        raise run.RunError("stopped")

    monkeypatch.setattr(run, "run", fail)
    assert engines.work(replace(job(0), device="cuda", gpu="7")).error == "stopped"
    assert seen == [("cuda", "7")]


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo "sbatch: error: invalid partition specified: nowhere" >&2
exit 1
"""


def test_slurm_script(
    job: Callable[..., engines.Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The cluster keeps the script and refuses it."""
    for command in ("sbatch", "srun"):
        (tmp_path / command).write_text(SBATCH)
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    sbatch = tmp_path / "script"
    outcomes = engines.slurm(
        [job(0), job(1), job(2)], 2, folder=tmp_path / "submitit", timeout_min=90, slurm_partition="nowhere"
    )
    with pytest.raises(engines.EngineError, match=r"\Asbatch: error: invalid partition specified: nowhere\Z"):
        next(outcomes)
    script = sbatch.read_text().splitlines()
    assert {
        "#SBATCH --array=0-2%2",
        "#SBATCH --cpus-per-task=1",
        "#SBATCH --time=90",
        "#SBATCH --partition=nowhere",
        "export OMP_NUM_THREADS=1",
    } <= set(script)
    assert not any("gpu" in line for line in script)
    assert capfd.readouterr().err == ""
    with pytest.raises(engines.EngineError, match="invalid partition"):
        next(engines.slurm([job(0)], 1, folder=tmp_path / "submitit", gpu_share=1))
    assert "#SBATCH --gpus-per-node=1" in sbatch.read_text().splitlines()


def test_unusable_engines(
    job: Callable[..., engines.Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 1})
    slurm = partial(engines.slurm, [job(0)], 1, folder=tmp_path)
    for start, message in (
        (lambda: engines.local([job(0)], 1, folder=tmp_path, gpu_share=1), "this machine has no GPU .*"),
        (lambda: next(engines._ray([job(0)], 1, cluster, None, 0.5)), "no machine of the Ray .* has a GPU"),
        (slurm, ".*needs the commands sbatch and srun.*"),
        (lambda: slurm(cluster="local", slurm_queue="fast"), ".*slurm_queue.*"),
    ):
        with pytest.raises(engines.EngineError, match=rf"\A{message}\Z"):
            start()


@pytest.mark.parametrize(("module", "extra"), [("ray", "ray"), ("submitit", "study")])
def test_names_the_missing_extra(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    engine = engines.ray if extra == "ray" else partial(engines.local, folder=tmp_path)
    with pytest.raises(engines.EngineError, match=rf'pip install "lr-relax\[{extra}\]"\Z'):
        engine([], 1)


@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_rejects_numbers_out_of_range(name: str, tmp_path: Path) -> None:
    engine = partial(getattr(engines, name), **({} if name == "ray" else {"folder": tmp_path}))
    with pytest.raises(ValueError, match="Expected argument `workers` to be at least 1, but got 0"):
        engine([], 0)
    for gpu_share in (-0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"Expected argument `gpu_share` to be in \[0, 1\], but got"):
            engine([], 1, gpu_share=gpu_share)
