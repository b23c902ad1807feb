"""Engines that train runs: processes of this machine and SLURM jobs, both through submitit, or a Ray cluster.

An engine yields the outcomes of jobs in the order of completion. Every run has one thread and a process of
its own, so that a worker that dies affects only its run; workers write to the runs' folders, which all
machines must see under the same path. When the generator is closed, also by Ctrl-C, the workers are stopped.
At most ``workers`` runs train at a time, each with ``gpu_share`` of a GPU: 1 for a whole one, 0 for the CPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
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
    """A run to train, and where."""

    config: RunConfig
    folder: Path
    data_dir: Path
    command: str


@dataclass(frozen=True)
class Outcome:
    """The result of a job, or the reason why there is none, in one line."""

    job: Job
    result: Result | None
    error: str = ""
    elsewhere: bool = False  # another process, which this engine has not started, trains the run


Outcomes = Generator[Outcome, None, None]


def work(job: Job, gpu: str = "", *, device: str = "cpu", caller: int = 0) -> Outcome:
    """Train a run in this process, with one thread, on the named GPU, until a ``caller`` ends."""
    if caller:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        threading.Thread(target=_exit_after, args=(caller,), daemon=True).start()
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    torch.set_num_threads(1)
    about: dict[str, Any] = {"folder": job.folder, "data_dir": job.data_dir, "command": job.command}
    try:
        return Outcome(job, run.run(job.config, device=device, **about))
    except (*run.ERRORS, DataError) as error:
        return Outcome(job, None, _first_line(error), elsewhere=isinstance(error, BlockingIOError))
    except Exception as error:  # memory, CUDA, a defect: the worker's log has the traceback
        traceback.print_exc()
        return Outcome(job, None, f"{type(error).__name__}: {_first_line(error)}")


def _exit_after(caller: int) -> None:
    with suppress(OSError):
        while True:
            os.kill(caller, 0)
            time.sleep(0.5)
    os._exit(1)


def check(engine: str, workers: int, gpu_share: float = 0.0, *, address: str | None = None) -> None:
    """Raise EngineError if the engine "local", "slurm" or "ray" cannot be used here."""
    if workers < 1:
        raise EngineError(f"Expected argument `workers` to be at least 1, but got {workers}.")
    if not 0 <= gpu_share <= 1:
        raise EngineError(f"Expected argument `gpu_share` to be in [0, 1], but got {gpu_share}.")
    package, extra = ("ray", "ray") if engine == "ray" else ("submitit", "study")
    if find_spec(package) is None:
        raise EngineError(f'this engine needs {package}: pip install "lr-relax[{extra}]"')
    if engine == "slurm" and 0 < gpu_share < 1:
        raise EngineError("SLURM gives runs whole GPUs, no shares of them")
    if engine == "local" and gpu_share and not torch.cuda.device_count():
        raise EngineError("this machine has no GPU that torch can use")
    if engine == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise EngineError("the engine slurm needs the commands sbatch and srun, which this machine lacks")
    address = address or (os.environ.get("RAY_ADDRESS") if engine == "ray" else None)
    if address not in (None, "local", "auto"):  # Ray itself tries for a long time and then ends this process
        where = urlsplit(address if "://" in address else f"//{address}")
        try:
            if not (where.hostname and where.port):
                raise ValueError("expected HOST:PORT or ray://HOST:PORT")
            socket.create_connection((where.hostname, where.port), timeout=3).close()
        except (OSError, ValueError) as error:
            raise EngineError(f"no Ray at {address}: {error}") from error


def local(jobs: Iterable[Job], workers: int, *, folder: Path, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs in processes of this machine; ``folder`` gets their logs."""
    check("local", workers, gpu_share)
    gpus = [""] * workers
    if gpu_share:
        names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = names or [str(index) for index in range(torch.cuda.device_count())]
        gpus = (names * workers)[: min(workers, len(names) * int(1 / gpu_share))]
    yield from _submitted("local", jobs, folder, gpus, gpu_share, timeout_min=525_600)  # a year


def slurm(
    jobs: Iterable[Job], workers: int, *, folder: Path, gpu_share: float = 0.0, **parameters: Any
) -> Outcomes:
    """Run jobs as an array of SLURM jobs; ``folder`` gets scripts and logs.

    The other parameters are those of submitit's ``AutoExecutor``: ``timeout_min`` (default: one day),
    ``mem_gb``, ``slurm_partition``, ``slurm_account`` and so on. A preempted run is queued again and resumes.
    submitit asks ``sacct`` every few minutes for jobs that died.
    """
    check("slurm", workers, gpu_share)
    known: dict[str, Any] = {"timeout_min": 24 * 60, "slurm_array_parallelism": workers, **parameters}
    if gpu_share:
        known.setdefault("gpus_per_node", 1)
    known["slurm_setup"] = [*known.get("slurm_setup", ()), "export OMP_NUM_THREADS=1"]
    array = [""] * 1000  # SLURM's default MaxArraySize
    yield from _submitted("slurm", jobs, folder, array, gpu_share, **known)


def _submitted(
    cluster: str, jobs: Iterable[Job], folder: Path, gpus: list[str], gpu_share: float, **parameters: Any
) -> Outcomes:
    """Submit jobs while there are ``gpus`` that no job occupies, each named or ""."""
    import submitit

    here = cluster == "local"
    waiting, running = list(jobs), dict[Any, tuple[Job, str]]()  # by submitit's job
    train = partial(work, device="cuda" if gpu_share else "cpu", caller=os.getpid() if here else 0)
    try:
        with _submitting():
            executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            executor.update_parameters(name="lr-relax", cpus_per_task=1, **parameters)
        while waiting or running:
            if waiting and gpus and (here or not running):  # SLURM starts the jobs of an array by itself
                batch, names = waiting[: len(gpus)], gpus[: len(waiting)]
                del waiting[: len(batch)], gpus[: len(names)]
                with _submitting():
                    tasks = executor.map_array(train, batch, names)
                running.update(zip(tasks, zip(batch, names, strict=True), strict=True))
            done = [task for task in running if task.done()]
            for task in done:
                job, gpu = running.pop(task)
                gpus.append(gpu)
                try:
                    outcome = task.result()
                except Exception:  # the worker died, and the log tells why
                    where = f"(state {task.state}), see {task.paths.stderr}"
                    outcome = Outcome(job, None, f"the job {task.job_id} left no result {where}")
                yield outcome
            if not done:
                time.sleep(0.1 if here else 2)
    finally:
        for task in running:
            if here:
                task._process.terminate()  # submitit's cancel() interrupts, which the workers ignore
            else:
                task.cancel(check=False)
        while here and not all(task.done() for task in running):
            time.sleep(0.1)


@contextmanager
def _submitting() -> Iterator[None]:
    """Let new processes ignore Ctrl-C, because the engine stops them; errors become an EngineError."""
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with redirect_stderr(StringIO()):  # where submitit repeats the errors of sbatch
            yield
    except Exception as error:  # submitit asserts, and raises NameError for an unknown parameter
        raise EngineError(_first_line(error)) from error
    finally:
        signal.signal(signal.SIGINT, former)


def ray(jobs: Iterable[Job], workers: int, *, address: str | None = None, gpu_share: float = 0.0) -> Outcomes:
    """Run jobs on a Ray cluster, each on one CPU; all machines need the same version of this package.

    Without an address it is the cluster in ``RAY_ADDRESS``, or a new one on this machine, which ends with the
    jobs.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    check("ray", workers, gpu_share, address=address)
    # The second is Ray's future default, of which it warns.
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    ray: Any = import_module("ray")
    waiting, running = list(jobs), dict[Any, Job]()  # by Ray's reference
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": 100_000_000}
    try:
        try:
            ray.init(address, **options)
        except Exception as error:
            raise EngineError(f"no Ray at {address}: {_first_line(error)}") from error
        if gpu_share and not ray.cluster_resources().get("GPU"):  # Ray would wait for one
            raise EngineError("no machine of the Ray cluster has a GPU")
        # max_calls=1: a new process for each run.
        remote = ray.remote(num_cpus=1, num_gpus=gpu_share, max_retries=0, max_calls=1)(work)
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[remote.remote(job, device="cuda" if gpu_share else "cpu")] = job
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
        ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
