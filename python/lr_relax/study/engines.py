"""Engines that train runs: processes of this machine and SLURM jobs, both through submitit, or a Ray cluster.

An engine takes jobs and yields their outcomes in the order of completion. Every run has one thread and a
process of its own, so that a worker that dies affects only its run. Workers write to the runs' folders, which
all machines must see under the same path. When the generator is closed, also by Ctrl-C, the engine stops its
workers.

``gpu_share`` is the part of a GPU for each run: 1 for a whole one, 0.25 if four runs share one, 0 for the
CPU.
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from . import run
from .config import RunConfig
from .data import DataError
from .folder import Result


class EngineError(Exception):
    """An engine cannot be used; the message is one line."""


@dataclass(frozen=True)
class Job:
    """A run to train, and where; the engine sets the last three fields."""

    config: RunConfig
    folder: Path
    data_dir: Path
    command: str
    device: str = "cpu"
    gpu: str = field(default="", compare=False)
    """The only GPU that a local worker sees, as CUDA_VISIBLE_DEVICES names it."""
    caller: int = field(default=0, compare=False)
    """The process whose death ends a local worker."""


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or the reason why there is none, in one line."""

    job: Job
    result: Result | None
    error: str = ""
    elsewhere: bool = False
    """Whether another process, which this engine has not started, trains the run."""


Outcomes = Generator[Outcome, None, None]


def work(job: Job) -> Outcome:
    """Train a job's run in this process, with one thread; errors become part of the outcome."""
    if job.caller:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        threading.Thread(target=_exit_after, args=(job.caller,), daemon=True).start()
    if job.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu
    torch.set_num_threads(1)
    try:
        result = run.run(
            job.config, folder=job.folder, data_dir=job.data_dir, device=job.device, command=job.command
        )
    except BlockingIOError as error:
        return Outcome(job, None, _first_line(error), elsewhere=True)
    except (*run.ERRORS, DataError) as error:
        return Outcome(job, None, _first_line(error))
    except Exception as error:  # memory, CUDA, a defect: the worker's log has the traceback
        traceback.print_exc()
        return Outcome(job, None, f"{type(error).__name__}: {_first_line(error)}")
    return Outcome(job, result)


def _exit_after(caller: int) -> None:
    while True:
        try:
            os.kill(caller, 0)
        except OSError:
            os._exit(1)
        time.sleep(0.5)


def local(jobs: Iterable[Job], workers: int, *, folder: Path, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs in processes of this machine, at most ``workers`` at a time; ``folder`` gets their logs."""
    _check(workers, gpu_share)
    free = [("cpu", "")] * workers
    if gpu_share:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = [name for name in visible.split(",") if name] or list(
            map(str, range(torch.cuda.device_count()))
        )
        if not torch.cuda.device_count():
            raise EngineError("this machine has no GPU that torch can use")
        places = min(workers, len(gpus) * int(1 / gpu_share))
        free = [("cuda", gpus[index % len(gpus)]) for index in range(places)]
    executor = _executor("local", folder, {"timeout_min": 525_600})  # a year
    return _submitted(list(jobs), executor, workers=len(free), places=free)


_LONGEST_ARRAY = 1000  # SLURM's default MaxArraySize


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

    The other parameters are those of submitit's ``AutoExecutor``: ``timeout_min`` (default: one day),
    ``mem_gb``, ``slurm_partition``, ``slurm_account`` and so on. A preempted run is queued again and resumes.
    submitit asks ``sacct`` every few minutes for jobs that died. ``cluster`` is for tests.
    """
    _check(workers, gpu_share)
    if 0 < gpu_share < 1:
        raise EngineError("SLURM gives runs whole GPUs, no shares of them")
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise EngineError("the engine slurm needs the commands sbatch and srun, which this machine lacks")
    defaults = {"timeout_min": 24 * 60, **({"gpus_per_node": 1} if gpu_share else {})}
    setup = [*parameters.get("slurm_setup", ()), "export OMP_NUM_THREADS=1"]
    executor = _executor(
        cluster, folder, {**defaults, "slurm_array_parallelism": workers, **parameters, "slurm_setup": setup}
    )
    return _submitted(_on_cuda(jobs) if gpu_share else list(jobs), executor, workers=workers)


def _executor(cluster: str, folder: Path, parameters: dict[str, Any]) -> Any:
    submitit = _import("submitit", extra="study")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="lr-relax", cpus_per_task=1, **parameters)
    except Exception as error:  # submitit asserts, and raises NameError for an unknown parameter
        raise EngineError(_first_line(error)) from error
    return executor


def _submitted(
    waiting: list[Job], executor: Any, *, workers: int, places: list[tuple[str, str]] | None = None
) -> Outcomes:
    """Submit the jobs; with ``places``, devices and GPUs, each job occupies one until it is done."""
    on_slurm = executor.cluster == "slurm"
    if executor.cluster == "local":
        waiting = [replace(job, caller=os.getpid()) for job in waiting]
    running: dict[Any, Job] = {}  # by submitit's job
    try:
        while waiting or running:
            room = workers - len(running)
            if on_slurm:  # which limits the number of workers itself
                room = 0 if running else _LONGEST_ARRAY
            if batch := waiting[:room]:
                if places is not None:
                    batch = [
                        replace(job, device=d, gpu=g) for job, (d, g) in zip(batch, places, strict=False)
                    ]
                    del places[: len(batch)]
                try:
                    with (
                        _without_ctrl_c(),
                        redirect_stderr(StringIO()),
                    ):  # submitit repeats sbatch's errors there
                        running.update(zip(executor.map_array(work, batch), batch, strict=True))
                except Exception as error:
                    raise EngineError(_first_line(error)) from error
                del waiting[:room]
            done = [task for task in running if task.done()]
            for task in done:
                job = running.pop(task)
                if places is not None:
                    places.append((job.device, job.gpu))
                try:
                    outcome = task.result()
                except Exception:  # the worker died, and the log tells why
                    reason = (
                        f"the job {task.job_id} left no result (state {task.state}), see {task.paths.stderr}"
                    )
                    outcome = Outcome(job, None, reason)
                yield outcome
            if not done:
                time.sleep(2 if on_slurm else 0.1)
    finally:
        for task in running:
            if (process := getattr(task, "_process", None)) is not None:
                process.terminate()  # submitit's cancel() interrupts, which the workers ignore
            else:
                task.cancel(check=False)
        while not on_slurm and not all(task.done() for task in running):
            time.sleep(0.1)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Let processes that are started now ignore Ctrl-C: the engine stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def ray(jobs: Iterable[Job], workers: int, *, address: str | None = None, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs on a Ray cluster, at most ``workers`` at a time, each on one CPU.

    Without an address it is the cluster that this program is connected to, the one in ``RAY_ADDRESS``, or
    else a new one on this machine, which ends with the jobs. All machines need the same version of this
    package.
    """
    _check(workers, gpu_share)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # Ray's future default; it warns otherwise
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
            options = new if address == "local" else {}
            try:
                ray.init(address, log_to_driver=False, logging_level="error", **options)
            except Exception as error:
                raise EngineError(f"no Ray at {address}: {_first_line(error)}") from error
        if gpu_share and not ray.cluster_resources().get("GPU"):
            raise EngineError("no machine of the Ray cluster has a GPU")  # Ray would wait for one
        # max_calls=1: a new process for each run.
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
    """Check that a server answers; Ray itself tries for a long time and then ends this process."""
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
    """The same jobs on the GPU that the cluster assigns to each."""
    return [replace(job, device="cuda") for job in jobs]


def _check(workers: int, gpu_share: float) -> None:
    if workers < 1:
        raise ValueError(f"Expected argument `workers` to be at least 1, but got {workers}.")
    if not 0 <= gpu_share <= 1:
        raise ValueError(f"Expected argument `gpu_share` to be in [0, 1], but got {gpu_share}.")


def _import(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise EngineError(f'this engine needs {missing.name}: pip install "lr-relax[{extra}]"') from missing


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
