"""Runs at length what the tests run briefly: threads, processes, interrupts, memory, kills and full disks.

    python misc/stress.py                     # all parts, about ten minutes on two cores
    python misc/stress.py threads kills --scale 0.1

Each part prints what it did. What it checks with are functions of the tests.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "python"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "python" / "study"))
import made_results
import test_threads
from loss_cases import CASES, C, N
from lr_relax import _native
from lr_relax.metrics import expected_calibration_error
from lr_relax.study import folder as store

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "python"


def threads(scale: float) -> str:
    """16 Python threads, while another one changes the number of torch's."""
    torch.set_num_threads(2)
    alone = [test_threads.work(seed) for seed in range(16)]
    rounds, done = max(int(40 * scale), 1), threading.Event()

    def change() -> None:
        while not done.wait(0.001):
            torch.set_num_threads(random.randint(1, 4))

    changing = threading.Thread(target=change)
    changing.start()

    def work(seed: int) -> tuple[float, float, float]:
        torch.set_num_threads(1 + seed % 4)
        return test_threads.work(seed)

    try:
        with ThreadPoolExecutor(16) as pool:
            for _ in range(rounds):
                assert list(pool.map(work, range(16))) == alone
    finally:
        done.set()
        changing.join()
    return f"{16 * rounds} calls in 16 threads, the same bits"


def processes(scale: float) -> str:
    """Children of each kind, of processes that have used torch's threads or not, and in a DataLoader."""
    program = """
import sys, warnings, multiprocessing, torch, test_threads as t
warnings.simplefilter("ignore")
method, prior, loader = sys.argv[1], sys.argv[2] == "True", sys.argv[3] == "True"
if prior:
    torch.set_num_threads(2)
    t.work(0)
context = multiprocessing.get_context(method)
if loader:
    batches = torch.utils.data.DataLoader(t.Losses(), 4, num_workers=2, multiprocessing_context=context)
    print(torch.cat(list(batches)).double().tolist())
elif method == "fork" and prior:  # where torch's own operators hang, so that only the kernels run
    with context.Pool(2) as pool:
        found = pool.map(t.scaled_losses, [t.fixed(i) for i in range(8)])
    assert found == [t.scaled_losses(t.fixed(i)) for i in range(8)]
    print([t.work(i)[0] for i in range(8)])
else:
    with context.Pool(2) as pool:
        print([each[0] for each in pool.map(t.work, range(8))])
"""
    n, expected = 0, [test_threads.work(seed)[0] for seed in range(8)]
    for _ in range(max(int(5 * scale), 1)):
        for method in ("fork", "spawn", "forkserver"):
            for prior in (False, True):
                for loader in (False, True):
                    if method == "fork" and prior and loader:
                        continue  # its workers call torch's operators
                    command = [sys.executable, "-c", program, method, str(prior), str(loader)]
                    run = subprocess.run(
                        command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False
                    )
                    assert run.stdout.strip() == str(expected), (command[3:], run.stdout, run.stderr)
                    n += 1
    return f"{n} pools and loaders"


def interrupts(scale: float) -> str:
    """Ctrl-C in calls that take long: an error, and the next call is right."""
    z, y = torch.randn(2000, 20_000), torch.zeros(2000, dtype=torch.int64)
    expected = expected_calibration_error(z, y, from_logits=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    n = max(int(50 * scale), 1)
    for _ in range(n):
        timer = threading.Timer(random.uniform(0.01, 0.3), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                assert expected_calibration_error(z, y, from_logits=True) == expected
        except KeyboardInterrupt:
            pass
        assert expected_calibration_error(z, y, from_logits=True) == expected
    return f"{n} interrupts"


def memory(scale: float) -> str:
    """Many calls: the resident memory stays what it is."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    z, n, before = torch.randn(N, C), max(int(200_000 * scale), 2000), 0.0
    losses = [*CASES.values()]
    for i in range(n):
        leaf = z.detach().requires_grad_()
        losses[i % len(losses)](leaf).backward()
        if i % 10 == 0:
            with suppress(ValueError):  # errors, too
                losses[0](z[:1])
            expected_calibration_error(z.softmax(1), torch.zeros(N, dtype=torch.int64))
        if i == n // 4:
            before = resident()
    _native.empty_cache()
    growth = resident() - before
    assert growth < 2, f"{growth} MiB"
    return f"{n} calls, {growth:.1f} MiB more resident memory than after the first quarter"


def command(out: Path) -> list[str]:
    """A run of seconds, by the paper's command."""
    options = "--model_name simple_dense --dataset_name digits --alpha 0.1 --epochs 12 --initial_lr 0.05"
    options += " --threads 1 --device cpu --tracking_uri none"
    return [sys.executable, "-m", "lr_relax.study.lr_study", *options.split(), "--out", str(out)]


def result(out: Path) -> Any:
    (path,) = out.glob("*/result.json")
    found = store.load_result(path.parent)
    assert found is not None
    return made_results.timeless(found)


def kills(scale: float) -> str:
    """kill -9 at random moments, until the run is finished with the bits of one that was not killed."""
    n_kills, n_runs = 0, max(int(10 * scale), 1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        subprocess.run(command(Path(folder) / "whole"), capture_output=True, check=True)
        whole, seconds = result(Path(folder) / "whole"), time.monotonic() - start
        for i in range(n_runs):
            out = Path(folder) / str(i)
            while True:
                with subprocess.Popen(
                    command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                ) as process:
                    try:
                        assert process.wait(random.uniform(0.3, 1.2) * seconds) == 0, process.stderr
                        break
                    except subprocess.TimeoutExpired:
                        process.kill()
                        n_kills += 1
            assert result(out) == whole
            assert not [*out.glob("*/.*.[0-9]*")], "temporary files were left"
    return f"{n_kills} kills of {n_runs} runs, the same bits"


def disk(scale: float) -> str:
    """A full disk: the run ends with one line, and goes on where there is room."""
    if os.name != "posix" or os.geteuid() != 0:
        return "left to the tests, which limit the size of files: a full file system takes root to make"
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "whole", Path(folder) / "small"
        small.mkdir()
        subprocess.run(command(whole), capture_output=True, check=True)
        mount = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True, check=False
        )
        if mount.returncode:
            return "left to the tests, which limit the size of files: no file system can be mounted here"
        try:
            run = subprocess.run(command(small / "out"), capture_output=True, text=True, check=False)
            last = run.stderr.strip().splitlines()[-1]
            assert run.returncode != 0, "the disk is not full"
            assert "No space left" in last, run.stderr
            assert "Traceback" not in run.stderr, run.stderr
            assert not [*small.glob("out/*/.*.[0-9]*")], "a partial file was left"
            subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
            subprocess.run(command(small / "out"), capture_output=True, check=True)
            assert result(small / "out") == result(whole)
        finally:
            subprocess.run(["umount", small], check=True)
    return f"{last!r}, then the same bits"


def damage(scale: float) -> str:
    """Damaged checkpoints, results, data and tracking stores, two processes in one folder: the tests."""
    words = (
        "damaged or truncated or edited or unusable or failing_store or lock or two_processes or full_disk"
    )
    files = [str(TESTS / "study"), str(TESTS / "test_hostile_files.py")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.strip().splitlines()[-1]


PARTS = {part.__name__: part for part in (threads, processes, interrupts, memory, kills, disk, damage)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="a part of the calls, kills, ...")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    if unknown := {*arguments.parts} - PARTS.keys():
        parser.error(f"expected parts of {', '.join(PARTS)}, but got {', '.join(unknown)}")
    if not arguments.scale > 0:
        parser.error(f"expected --scale to be above 0, but got {arguments.scale}")
    random.seed(arguments.seed)
    print(f"seed {arguments.seed}", flush=True)
    for name in arguments.parts or PARTS:
        start = time.monotonic()
        done = PARTS[name](arguments.scale)
        print(f"{name}: {done}, in {time.monotonic() - start:.0f} s", flush=True)
