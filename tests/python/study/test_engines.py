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
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lr_relax.study import engines, run
from lr_relax.study import folder as store
from lr_relax.study.config import RunConfig
from lr_relax.study.files import RunError

TOO_LONG = 10_000  # epochs of a run that is not meant to end, and that ends for all that if a test hangs


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., engines.Job]:
    def make(seed: int, *, epochs: int = 1) -> engines.Job:
        config = RunConfig("simple_dense", "digits", "cross_entropy", seed=seed, epochs=epochs, test_run=True)
        return engines.Job(config, tmp_path / "runs" / str(seed), tmp_path, command="a test")

    return make


def workers_of(driver: int) -> list[int]:
    """The processes that train for a driver, whichever engine has started them."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            stat, command = folder.joinpath("stat").read_text(), folder.joinpath("cmdline").read_bytes()
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            commands[int(folder.name)] = command.replace(b"\0", b" ")

    def descends(process: int) -> bool:
        return process == driver or (process in parents and descends(parents[process]))

    names = (b"submitit.core._submit", b"ray::work")
    return [p for p, command in commands.items() if any(name in command for name in names) and descends(p)]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120  # where several test runs share a machine
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def trains(job: engines.Job) -> bool:
    return (job.folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(("name", "n_endless"), [("local", 2), ("ray", 1)])
def test_killed_worker_does_not_affect_other_runs(
    name: str,
    n_endless: int,
    job: Callable[..., engines.Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two train at a time. Outcomes come as they finish, and Ctrl-C stops the others."""
    from submitit.local.local import LocalJob

    monkeypatch.setattr(LocalJob, "_results_timeout_s", 1)  # how long a result may take to cross a network
    endless, quick = [job(seed, epochs=TOO_LONG) for seed in range(n_endless)], job(9)
    options = {"folder": tmp_path / "jobs"} if name == "local" else {}
    outcomes = getattr(engines, name)([endless[0], quick, *endless[1:]], 2, **options)
    trained = next(outcomes)
    assert (trained.job, trained.error) == (quick, "")
    assert trained.result == store.load_result(quick.folder)
    assert trained.result.command == "a test"
    assert trained.result.environment["threads"] == "1"

    def kill() -> None:
        wait_until(lambda: all(map(trains, endless)) and len(workers_of(os.getpid())) == n_endless)
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    killed = next(outcomes)
    killer.join()
    assert killed.job in endless
    assert re.fullmatch(".*(left no result|died unexpectedly).*", killed.error)
    if name == "local":
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(outcomes)
    assert list(outcomes) == workers_of(os.getpid()) == []
    assert name == "local" or not sys.modules["ray"].is_initialized()  # its cluster has ended


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
    wait_until(lambda: not Path(f"/proc/{workers[0]}").exists())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RunError("the loss is nan"), "the loss is nan"),
        (PermissionError(13, "Permission denied", "runs"), "[Errno 13] Permission denied: 'runs'"),
        (MemoryError(), "MemoryError: MemoryError"),
        (RuntimeError("CUDA error\nmany\nlines"), "RuntimeError: CUDA error"),
    ],
)
def test_worker_sees_only_its_gpu_and_tells_errors_in_one_line(
    error: Exception,
    told: str,
    job: Callable[..., engines.Job],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen: list[tuple[str, str]] = []

    def fail(*_: object, device: str, **__: object) -> None:
        seen.append((device, os.environ["CUDA_VISIBLE_DEVICES"]))
        raise error

    monkeypatch.setattr(run, "run", fail)
    assert engines.work(job(0), "7", device="cuda") == engines.Outcome(job(0), None, told)
    assert seen == [("cuda", "7")]
    assert capfd.readouterr().err.startswith("Traceback") == told.startswith(type(error).__name__)


@pytest.mark.parametrize(
    ("workers", "share", "visible", "gpus"),
    [(1, 1, "", "0"), (3, 1, "", "0 1"), (9, 0.5, "2,GPU-x", "2 GPU-x 2 GPU-x"), (3, 0.1, "", "0 1 0")],
)
def test_local_workers_share_the_gpus(
    workers: int, share: float, visible: str, gpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engines, "_submitted", lambda cluster, jobs, folder, places, *_, **known: places)
    assert list(engines.local([], workers, folder=tmp_path, gpu_share=share)) == gpus.split()


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

    def refused(error: str, n_jobs: int, **options: Any) -> list[str]:
        with pytest.raises(engines.EngineError, match=error):
            next(engines.slurm(map(job, range(n_jobs)), 2, folder=tmp_path / "submitit", **options))
        return (tmp_path / "script").read_text().splitlines()

    refusal = r"\Asbatch: error: invalid partition specified: nowhere\Z"
    script = refused(refusal, 3, timeout_min=90, slurm_partition="nowhere")
    lines = ["array=0-2%2", "cpus-per-task=1", "time=90", "partition=nowhere"]
    assert {"export OMP_NUM_THREADS=1", *[f"#SBATCH --{line}" for line in lines]} <= set(script)
    assert not any("gpu" in line for line in script)
    assert "#SBATCH --gpus-per-node=1" in refused(refusal, 1, gpu_share=1)
    refused("slurm_queue", 1, slurm_queue="fast")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("local", {"workers": 0}, "Expected argument `workers` to be at least 1, but got 0."),
        ("ray", {"gpu_share": -0.5}, r"Expected argument `gpu_share` to be in \[0, 1\], but got -0.5."),
        ("local", {"gpu_share": 1.5}, r"Expected argument `gpu_share` to be in \[0, 1\], but got 1.5."),
        ("slurm", {"gpu_share": math.nan}, r"Expected argument `gpu_share` to be in \[0, 1\], but got nan."),
        ("local", {"gpu_share": 1}, "this machine has no GPU that torch can use"),
        ("slurm", {"gpu_share": 0.5}, "SLURM gives runs whole GPUs, no shares of them"),
        ("slurm", {}, ".*needs the commands sbatch and srun.*"),
        ("ray", {"address": "127.0.0.1:9"}, "no Ray at 127.0.0.1:9: .+"),
        ("ray", {"address": "ray://127.0.0.1:9"}, "no Ray at ray://127.0.0.1:9: .+"),
        ("ray", {"address": "nowhere.invalid:6379"}, "no Ray at nowhere.invalid:6379: .+"),
        ("ray", {"address": "nowhere"}, "no Ray at nowhere: expected HOST:PORT or .+"),
    ],
)
def test_unusable_engines(
    engine: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(engines.EngineError, match=rf"\A{message}\Z"):
        engines.check(engine, **({"workers": 1} | options))


def test_ray_without_a_gpu(job: Callable[..., engines.Job], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 1}, __spec__="a spec", shutdown=lambda: None)
    ray.init = lambda *_, **__: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(engines.EngineError, match=r"\Ano machine of the Ray cluster has a GPU\Z"):
        next(engines.ray([job(0)], 1, gpu_share=0.5))


@pytest.mark.parametrize(("module", "extra"), [("ray", "ray"), ("submitit", "study")])
def test_names_the_missing_extra(module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(engines.EngineError, match=rf'pip install "lr-relax\[{extra}\]"\Z'):
        engines.check("ray" if extra == "ray" else "local", 1)
