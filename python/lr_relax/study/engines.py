"""Where runs are trained: in processes of this machine, as jobs of SLURM, or on a Ray cluster.

An engine takes jobs and yields their outcomes in the order of completion. Every run trains with one thread in
a process of its own, so that a worker's death costs its run alone. Workers write to the runs' folders, which
all machines must see under the same path, and tell no one else: the caller hears of a run by its outcome.
When the generator is closed, or Ctrl-C or another exception ends it, what it has started is stopped.

``gpu_share`` is how much of a GPU a run gets: 1 for one of its own, .25 where four share one, 0 for the CPU.
"""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, replace
from io import FileIO, StringIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from . import run
from .checkpoint import CheckpointError
from .config import RunConfig
from .data import DataError
from .results import Result, ResultError


class EngineError(Exception):
    """An engine cannot be used; the message says why in one line."""


@dataclass(frozen=True)
class Job:
    """A run to be trained, and where."""

    config: RunConfig
    folder: Path
    data_dir: Path
    command: str
    device: str = "cpu"
    """The engine that runs the job chooses it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job: a result, or why there is none, in one line."""

    job: Job
    result: Result | None
    error: str = ""
    elsewhere: bool = False
    """Whether another process, which is no worker of this engine, trains it."""


Outcomes = Generator[Outcome, None, None]


def work(job: Job) -> Outcome:
    """Train a job's run here, with one thread. What goes wrong is part of the outcome."""
    torch.set_num_threads(1)
    try:
        result = run.run(
            job.config, folder=job.folder, data_dir=job.data_dir, device=job.device, command=job.command
        )
    except BlockingIOError as error:
        return Outcome(job, None, _first_line(error), elsewhere=True)
    except (run.RunError, ResultError, CheckpointError, DataError, OSError) as error:
        return Outcome(job, None, _first_line(error))
    except Exception as error:  # memory, CUDA, a fault of ours: the worker's log gets all of it
        traceback.print_exc()
        return Outcome(job, None, f"{type(error).__name__}: {_first_line(error)}")
    return Outcome(job, result)


def local(jobs: Iterable[Job], workers: int, *, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs in processes of this machine, at most ``workers`` at a time, each in a new one."""
    _check(workers, gpu_share)
    devices = ["cpu"] * workers
    if gpu_share:
        gpus = torch.cuda.device_count()
        if not gpus:
            raise EngineError("this machine has no GPU that torch can use")
        devices = [f"cuda:{index % gpus}" for index in range(min(workers, gpus * int(1 / gpu_share)))]
    return _local(list(jobs), devices)


def _local(waiting: list[Job], free: list[str]) -> Outcomes:
    running: dict[Any, tuple[subprocess.Popen[bytes], Job]] = {}  # by the pipe of the answer
    try:
        while waiting or running:
            while waiting and free:
                job = replace(waiting.pop(0), device=free.pop(0))
                process = _start()
                running[process.stdout] = process, job
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it is dead already, as its answer will tell
                    process.stdin.write(pickle.dumps(job))
            for pipe in wait(list(running)):
                process, job = running[pipe]
                with process:
                    answer = pipe.read()  # type: ignore[union-attr]
                    process.wait()  # before the end of its stdin, which would kill it
                del running[pipe]
                free.append(job.device)
                whole = answer and process.returncode == 0
                yield pickle.loads(answer) if whole else Outcome(job, None, _death(process))
    finally:
        for process, _ in running.values():
            with process:
                process.kill()


def _start() -> subprocess.Popen[bytes]:
    """A process that finds the modules that this one finds, and hears no Ctrl-C: it is stopped by this one.

    It is not multiprocessing's, which would import the caller's main module again in every process.
    """
    program = f"import sys; sys.path[:] = {sys.path!r}; from lr_relax.study.engines import _answer; _answer()"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _answer() -> None:
    """What a process of ``local`` does: a job comes in by stdin, its outcome goes out by stdout."""
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # whatever else is printed is no answer
        job = pickle.load(FileIO(0, closefd=False))
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        pickle.dump(work(job), answer)


def _exit_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed, by intent or by death
    os._exit(1)


def _death(process: subprocess.Popen[bytes]) -> str:
    if process.returncode < 0:
        return f"the process was killed by signal {-process.returncode}"
    return f"the process ended with exit status {process.returncode}"


_LONGEST_ARRAY = 1000  # that SLURM takes, unless its MaxArraySize is set


def slurm(
    jobs: Iterable[Job],
    workers: int,
    *,
    folder: Path,
    cluster: str = "slurm",
    gpu_share: float = 0.0,
    **parameters: Any,
) -> Outcomes:
    """Run jobs as an array of SLURM jobs, at most ``workers`` at a time; ``folder`` gets scripts and logs.

    The other parameters are those of submitit's ``AutoExecutor``: ``timeout_min`` (a day unless told),
    ``mem_gb``, ``slurm_partition``, ``slurm_account`` and so on. A run that is preempted is queued again and
    resumes; one that runs out of time fails, and resumes when tried again. That a job died without a word
    is learnt from ``sacct``, which is asked every few minutes. With ``cluster="local"`` submitit runs jobs
    as processes of this machine, to try things out.
    """
    _check(workers, gpu_share)
    if 0 < gpu_share < 1:
        raise EngineError("SLURM gives runs whole GPUs, no shares of them")
    submitit = _import("submitit", extra="slurm")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise EngineError("the engine slurm needs the commands sbatch and srun: this is no machine of SLURM")
    parameters = {
        "name": "lr-relax",
        "timeout_min": 24 * 60,
        "cpus_per_task": 1,
        **({"gpus_per_node": 1} if gpu_share else {}),
        "slurm_array_parallelism": workers,
        **parameters,
        "slurm_setup": [*parameters.get("slurm_setup", ()), "export OMP_NUM_THREADS=1"],
    }
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except Exception as error:  # submitit asserts, and raises NameError, for a wrong parameter
        raise EngineError(_first_line(error)) from error
    return _slurm(_on_cuda(jobs) if gpu_share else list(jobs), workers, executor)


def _slurm(waiting: list[Job], workers: int, executor: Any) -> Outcomes:
    on_slurm = executor.cluster == "slurm"
    running: dict[Any, Job] = {}  # by submitit's job
    try:
        while waiting or running:
            room = workers - len(running)
            if on_slurm:  # which sees to the number of workers itself
                room = 0 if running else _LONGEST_ARRAY
            if batch := waiting[:room]:
                try:
                    with redirect_stderr(StringIO()):  # submitit repeats there what sbatch says
                        running.update(zip(executor.map_array(work, batch), batch, strict=True))
                except Exception as error:
                    raise EngineError(_first_line(error)) from error
                del waiting[:room]
            done = [task for task in running if task.done()]
            for task in done:
                job = running.pop(task)
                try:
                    outcome = task.result()
                except Exception:  # there is none, and the log tells why
                    reason = (
                        f"the job {task.job_id} left no result (state {task.state}), see {task.paths.stderr}"
                    )
                    outcome = Outcome(job, None, reason)
                yield outcome
            if not done:
                time.sleep(2 if on_slurm else 0.1)
    finally:
        for task in running:
            task.cancel(check=False)
        while not on_slurm and not all(task.done() for task in running):
            time.sleep(0.1)


def ray(jobs: Iterable[Job], workers: int, *, address: str | None = None, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs on a Ray cluster, at most ``workers`` at a time, each on one CPU.

    Without an address that is the cluster of this program, the one that ``RAY_ADDRESS`` names, or else a new
    one on this machine, which ends with the jobs. A cluster's machines need this package, in one version.
    """
    _check(workers, gpu_share)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of
    library = _import("ray", extra="ray")
    if not library.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        _check_address(address)
    return _ray(_on_cuda(jobs) if gpu_share else list(jobs), workers, library, address, gpu_share)


def _ray(waiting: list[Job], workers: int, ray: Any, address: str | None, gpu_share: float) -> Outcomes:
    ours = not ray.is_initialized()
    running: dict[Any, Job] = {}  # by Ray's reference to the outcome
    try:
        if ours:
            new = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 100_000_000}
            try:
                ray.init(
                    address, log_to_driver=False, logging_level="error", **new if address == "local" else {}
                )
            except Exception as error:
                raise EngineError(f"no Ray at {address}: {_first_line(error)}") from error
        if gpu_share and not ray.cluster_resources().get("GPU"):
            raise EngineError("no machine of the Ray cluster has a GPU")  # Ray would wait for one
        # A process for each run, as what a run leaves behind should be no concern of the next.
        remote = ray.remote(num_cpus=1, num_gpus=gpu_share, max_retries=0, max_calls=1)(work)
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[remote.remote(job)] = job
            [reference], _ = ray.wait(list(running))
            job = running.pop(reference)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                outcome = Outcome(job, None, _first_line(error))
            yield outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself tries an address for a long time, and then ends this process."""
    if address in ("local", "auto"):
        return
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        if not where.hostname or not where.port:
            raise ValueError("expected HOST:PORT or ray://HOST:PORT")
        socket.create_connection((where.hostname, where.port), timeout=3).close()
    except (OSError, ValueError) as error:
        raise EngineError(f"no Ray at {address}: {error}") from error


def _on_cuda(jobs: Iterable[Job]) -> list[Job]:
    """On the GPU that the cluster lets a job see."""
    return [replace(job, device="cuda") for job in jobs]


def _check(workers: int, gpu_share: float) -> None:
    if workers < 1:
        raise ValueError(f"Expected argument `workers` to be at least 1, but got {workers}")
    if not 0 <= gpu_share <= 1:
        raise ValueError(f"Expected argument `gpu_share` to be in [0, 1], but got {gpu_share}")


def _import(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        install = f'pip install "lr-relax[{extra}]"'
        raise EngineError(f"the engine {extra} needs {missing.name}: {install}") from missing


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
