"""Fuzzes losses and metrics against references of higher precision, for a stated time.

    python misc/fuzz --seconds 60 --seed 1
    python misc/fuzz --case "losses(loss='focal', dtype='float16', seed=3)"  # one case again

A case is a line of choices, from which a seed makes the numbers. The choices of one that fails are replaced
by simpler ones while it fails. A second process runs the cases, so that one that ends the process is known.

Not with Hypothesis: what it needs to choose an input takes longer than most cases do, and it counts examples,
not seconds. The rows of a table, replaced one by one, shrink as well as its bytes.
"""

import argparse
import ast
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import losses
import metrics
from choices import Skip

FAILURES = 3  # the status of the process that runs the cases; sanitizers end with 1
AREAS: dict[str, Any] = {"losses": losses, "metrics": metrics}


def draw(area: Any, seed: int) -> dict[str, Any]:
    """Choices, about half of which are the simplest, so that most cases are of few."""
    rng = np.random.default_rng(seed)
    n = len(area.CHOICES)
    return {
        name: values[int(which * len(values))] if differs else values[0]
        for (name, values), which, differs in zip(
            area.CHOICES.items(), rng.random(n), rng.random(n) < rng.uniform(0.2, 0.9), strict=True
        )
    } | {"seed": seed}


def failure(area: Any, case: dict[str, Any]) -> str | None:
    """What is wrong with a case, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: str | None = area.check(case)
            return found
    except (Skip, KeyboardInterrupt):
        raise
    except BaseException as error:  # pyo3's PanicException is no Exception
        at = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"


def shrunk(area: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The simplest case that fails, one choice at a time."""
    for name in list(area.CHOICES) * 2:
        for simpler in area.CHOICES[name][: area.CHOICES[name].index(case[name])]:
            try:
                if failure(area, case | {name: simpler}):
                    case = case | {name: simpler}
                    break
            except Skip:
                pass
    return case


def line(area: str, case: dict[str, Any]) -> str:
    simplest = {name: values[0] for name, values in AREAS[area].CHOICES.items()}
    changed = [f"{name}={value!r}" for name, value in case.items() if value != simplest.get(name)]
    return f"{area}({', '.join(changed)})"


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """The area and the choices of a case; ValueError if there are no such ones."""
    try:
        call: Any = ast.parse(text, mode="eval").body
        area, given = call.func.id, {each.arg: ast.literal_eval(each.value) for each in call.keywords}
        choices, seed = AREAS[area].CHOICES, given.get("seed", 0)
    except Exception as error:  # also what `ast` raises for what it cannot read
        raise ValueError(f"not a case: {text[:200]!r} ({type(error).__name__}: {error})") from error
    if call.args or len(given) < len(call.keywords):
        raise ValueError(f"not a case: {text[:200]!r} (a value without a name, or a name twice)")
    unknown = [
        name
        for name, value in given.items()
        if name != "seed" and (type(value), value) not in [(type(x), x) for x in choices.get(name, ())]
    ]
    if type(seed) is not int or seed < 0:
        unknown.append("seed")
    if unknown:
        raise ValueError(f"not a choice: {', '.join(map(str, unknown))} of {text[:200]!r}")
    choices = {**choices, "seed": (seed,)}
    return area, {name: values[0] for name, values in choices.items()} | given


def work(seed: int, seconds: float, most: float, log: int) -> int:
    """Runs cases; the line of each is written to a file before it starts."""
    n, failures, start = 0, 0, time.monotonic()
    step = seed * 1_000_000_000
    with suppress(KeyboardInterrupt):
        while not n or (n < most and time.monotonic() - start < seconds):
            step += 1
            area = "losses" if step % 3 else "metrics"
            case = draw(AREAS[area], step)
            os.pwrite(log, line(area, case).ljust(2000).encode(), 0)
            try:
                found = failure(AREAS[area], case)
            except Skip:
                continue
            n += 1
            if found:
                failures += 1
                simple = shrunk(AREAS[area], case)
                print(f"{failure(AREAS[area], simple)}\n    {again(line(area, simple))}", flush=True)
    seconds = time.monotonic() - start
    print(f"seed {seed}: {n} inputs, {n / seconds:.0f} per second, {failures} failures", flush=True)
    return FAILURES if failures else 0


def again(case: str) -> str:
    return f'python misc/fuzz --case "{case}"'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=float, default=float("inf"), help="at most so many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", help="the line of a case that failed")
    parser.add_argument("--log", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not (a.seconds > 0 and a.inputs > 0 and a.seed >= 0):
        parser.error("expected --seconds and --inputs above 0, and --seed of at least 0")
    faulthandler.enable()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the second process ends, too
    if a.case is not None:
        try:
            name, case = parsed(a.case)
            found = failure(AREAS[name], case)
        except (ValueError, Skip) as error:
            parser.error(str(error) or "these choices do not go together")
        print(found or "passes")
        return 1 if found else 0
    if a.log is not None:
        return work(a.seed, a.seconds, a.inputs, a.log)
    print(f"seed {a.seed}", flush=True)
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, str(Path(__file__).parent), "--log", str(log.fileno())]
        command += [f"--{name}={getattr(a, name)}" for name in ("seed", "seconds", "inputs")]
        with subprocess.Popen(command, pass_fds=[log.fileno()], start_new_session=True) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it ends with the case that it runs
                status = process.wait()
        if status == -signal.SIGINT:
            print("interrupted before the first input")
        elif status not in (0, FAILURES):
            log.seek(0)
            print(f"the process ended with {status}\n    {again(log.read().decode().strip())}")
        return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
