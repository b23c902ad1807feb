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
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from lr_relax.study import engines, results, run
from lr_relax.study.config import RunConfig

LONG = 100  # epochs, in which another process starts
TOO_LONG = 10_000  # epochs of a run that is not meant to end, and that ends for all that if a test hangs


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., engines.Job]:
    def make(seed: int, *, epochs: int = 1) -> engines.Job:
        config = RunConfig("simple_dense", "digits", "cross_entropy", seed=seed, epochs=epochs, test_run=True)
        return engines.Job(config, tmp_path / "runs" / str(seed), tmp_path, command="a test")

    return make


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A cluster that is there before the engine and stays when it is done."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    ray.init(
        "local",
        num_cpus=2,
        num_gpus=1,  # or so Ray believes
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )
    yield
    assert ray.is_initialized()
    ray.shutdown()


Engine = Callable[[list[engines.Job], int], engines.Outcomes]


@pytest.fixture(params=["local", "slurm", "ray"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    if request.param == "local":
        return engines.local
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        return engines.ray
    from submitit.local.local import LocalJob

    monkeypatch.setattr(LocalJob, "_results_timeout_s", 1)  # how long a result may take to cross a network

    def slurm(jobs: list[engines.Job], workers: int) -> engines.Outcomes:
        return engines.slurm(jobs, workers, folder=tmp_path / "submitit", cluster="local")

    return slurm


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

    names = ("_answer()", "submitit.core._submit", "ray::work")
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


# The tests without a cluster of Ray come first: the others share one from their first to their last.


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "nowhere"])
def test_a_ray_that_does_not_answer(address: str, job: Callable[..., engines.Job]) -> None:
    import ray

    assert not ray.is_initialized()
    start = time.monotonic()
    with pytest.raises(engines.EngineError, match=rf"\Ano Ray at {address}: .+\Z"):
        engines.ray([job(0)], 1, address=address)
    assert time.monotonic() - start < 10


def test_a_ray_of_its_own_ends_with_the_jobs(job: Callable[..., engines.Job]) -> None:
    import ray

    def raylets() -> bool:
        return any(
            parent == os.getpid() and "/raylet " in command for parent, command in processes().values()
        )

    assert not ray.is_initialized()
    outcomes = engines.ray([job(0)], 1)
    assert next(outcomes).error == ""
    assert raylets()
    assert list(outcomes) == []
    assert not ray.is_initialized()
    wait_until(lambda: not raylets())


def test_a_ray_without_gpus(job: Callable[..., engines.Job], monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(engines.EngineError, match=r"\Ano machine of the Ray cluster has a GPU\Z"):
        next(engines.ray([job(0)], 1, gpu_share=1))
    assert not ray.is_initialized()


@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_runs_a_gpu(job: Callable[..., engines.Job]) -> None:
    [outcome] = engines.ray([job(0)], 1, gpu_share=0.5)
    assert outcome.job.device == "cuda"
    assert torch.cuda.is_available() or re.search("CUDA|NVIDIA", outcome.error)


def test_a_killed_worker_and_a_failed_run_cost_no_other(
    engine: Engine, job: Callable[..., engines.Job]
) -> None:
    """Two train at a time, and one of them is killed while both do."""
    one, other = job(0, epochs=LONG), job(1, epochs=LONG)
    blocked, last = job(2), job(3)
    blocked.folder.parent.mkdir()
    blocked.folder.write_text("a file where the folder should be")

    def kill() -> None:
        wait_until(lambda: trains(one) and trains(other))
        first, _ = workers_of(os.getpid())
        os.kill(first, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = list(engine([one, other, blocked, last], 2))
    killer.join()
    assert {outcome.job for outcome in outcomes} == {one, other, blocked, last}
    failed = {outcome.job: outcome.error for outcome in outcomes if outcome.result is None}
    assert re.fullmatch(".*File exists.*", failed.pop(blocked))
    [(killed, error)] = failed.items()
    assert killed in (one, other)
    assert re.fullmatch(".*(signal 9|left no result|died unexpectedly).*", error)
    for outcome in outcomes:
        if outcome.result is not None:
            assert outcome.error == ""
            assert outcome.result == results.load(outcome.job.folder)
            assert outcome.result.command == "a test"
            assert outcome.result.environment["threads"] == "1"


def test_the_first_outcome_is_that_of_the_first_to_end_and_closing_stops_the_others(
    engine: Engine, job: Callable[..., engines.Job]
) -> None:
    endless = job(0, epochs=TOO_LONG)
    with closing(engine([endless, job(1)], 2)) as outcomes:
        first = next(outcomes)
        assert (first.job, first.error) == (job(1), "")
        wait_until(lambda: trains(endless))
        assert workers_of(os.getpid())
    wait_until(lambda: not workers_of(os.getpid()))
    assert trains(endless)


def test_ctrl_c_stops_the_workers(job: Callable[..., engines.Job]) -> None:
    endless = job(0, epochs=TOO_LONG)

    def interrupt() -> None:
        wait_until(lambda: trains(endless))
        assert [os.getsid(worker) for worker in workers_of(os.getpid())] != [os.getsid(0)]  # of no terminal
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(engines.local([endless], 1))
    assert not workers_of(os.getpid())


def test_workers_end_when_their_driver_is_killed(job: Callable[..., engines.Job]) -> None:
    endless = job(0, epochs=TOO_LONG)
    program = (
        "import pickle, sys; from lr_relax.study import engines;"
        "list(engines.local([pickle.load(sys.stdin.buffer)], 1))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as driver:
        pickle.dump(endless, driver.stdin)
        driver.stdin.flush()
        wait_until(lambda: trains(endless))
        workers = workers_of(driver.pid)
        driver.kill()
    assert len(workers) == 1
    wait_until(lambda: not processes().keys() & set(workers))


def test_what_goes_wrong_is_one_line(
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
    ("workers", "gpu_share", "devices"),
    [
        (2, 0, ["cpu", "cpu"]),
        (1, 1, ["cuda:0"]),
        (3, 1, ["cuda:0", "cuda:1"]),
        (9, 0.5, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (3, 0.1, ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_processes_share_the_gpus_of_the_machine(
    workers: int, gpu_share: float, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(engines, "_local", lambda jobs, devices: devices)
    assert engines.local([], workers, gpu_share=gpu_share) == devices


def test_a_process_trains_on_the_device_that_it_is_given(
    job: Callable[..., engines.Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    outcomes = list(engines.local([job(0), job(1)], 1, gpu_share=1))
    assert [outcome.job.device for outcome in outcomes] == ["cuda:0", "cuda:0"]
    assert all(re.search("CUDA|NVIDIA", outcome.error) for outcome in outcomes)


def test_a_machine_without_gpus(
    job: Callable[..., engines.Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(engines.EngineError, match=r"\Athis machine has no GPU that torch can use\Z"):
        engines.local([job(0)], 1, gpu_share=1)


def test_work_trains_with_one_thread(job: Callable[..., engines.Job], one_thread: None) -> None:
    torch.set_num_threads(2)
    outcome = engines.work(job(0))
    assert outcome.result is not None
    assert outcome.result.environment["threads"] == "1"


def test_without_slurm_nothing_is_submitted(
    job: Callable[..., engines.Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(engines.EngineError, match=r"needs the commands sbatch and srun.*\Z"):
        engines.slurm([job(0)], 1, folder=tmp_path / "submitit")
    assert list(tmp_path.iterdir()) == []


SBATCH = """#!/bin/sh
cp "$1" "$(dirname "$0")/script"
echo "sbatch: error: invalid partition specified: nowhere" >&2
exit 1
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a machine of SLURM's keeps the script that it was given, and refused."""
    for command in ("sbatch", "srun"):
        (tmp_path / command).write_text(SBATCH)
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "script"


def test_slurm_gets_an_array_of_single_threads(
    job: Callable[..., engines.Job], tmp_path: Path, sbatch: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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


def test_slurm_is_asked_for_a_gpu(job: Callable[..., engines.Job], tmp_path: Path, sbatch: Path) -> None:
    with pytest.raises(engines.EngineError, match="invalid partition"):
        next(engines.slurm([job(0)], 1, folder=tmp_path / "submitit", gpu_share=1))
    assert "#SBATCH --gpus-per-node=1" in sbatch.read_text().splitlines()


def test_slurm_has_no_shares_of_a_gpu(job: Callable[..., engines.Job], tmp_path: Path) -> None:
    with pytest.raises(engines.EngineError, match=r"\ASLURM gives runs whole GPUs, no shares of them\Z"):
        engines.slurm([job(0)], 1, folder=tmp_path / "submitit", cluster="local", gpu_share=0.5)


def test_a_parameter_that_submitit_does_not_know(job: Callable[..., engines.Job], tmp_path: Path) -> None:
    with pytest.raises(engines.EngineError, match=r"\A.*slurm_queue.*\Z"):
        engines.slurm([job(0)], 1, folder=tmp_path / "submitit", cluster="local", slurm_queue="fast")


@pytest.mark.parametrize(("module", "extra"), [("ray", "ray"), ("submitit", "slurm")])
def test_a_missing_package(module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    options = {"folder": tmp_path, "cluster": "local"} if extra == "slurm" else {}
    with pytest.raises(engines.EngineError, match=rf'pip install "lr-relax\[{extra}\]"\Z'):
        getattr(engines, extra)([], 1, **options)


@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_numbers_out_of_range(name: str, tmp_path: Path) -> None:
    engine = partial(getattr(engines, name), **({"folder": tmp_path} if name == "slurm" else {}))
    with pytest.raises(ValueError, match="Expected argument `workers` to be at least 1, but got 0"):
        engine([], 0)
    for gpu_share in (-0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"Expected argument `gpu_share` to be in \[0, 1\], but got"):
            engine([], 1, gpu_share=gpu_share)


def test_importing_the_engines_imports_no_scheduler() -> None:
    program = "import sys, lr_relax.study.engines; print({'ray', 'submitit'} & sys.modules.keys())"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert loaded.stdout == "set()\n"
