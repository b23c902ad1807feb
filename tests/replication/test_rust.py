"""The example that trains in Rust alone agrees with the study in Python, on the same splits of the digits.

Part of `make test-tch`, which has what the example is built with.
"""

import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from lr_relax import _native, _torch_release
from lr_relax.study import compare, data
from lr_relax.study.run import run

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    _torch_release._built_for(Path(_native.__file__)) is None,
    reason="the example is tested with the tch build",
)
def test_example_agrees_with_python(one_thread: None, tmp_path: Path) -> None:
    export = [sys.executable, ROOT / "misc/examples/export_digits.py", tmp_path, "10"]
    subprocess.run(export, check=True, timeout=120)
    splits = sorted(tmp_path.glob("split-*.npz"))
    command = ["cargo", "run", "--quiet", "--no-default-features", "--features", "tch"]
    command += ["--example", "train_digits", "--"]
    example = subprocess.run(
        [*command, *splits], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert example.returncode == 0, example.stderr
    runs = re.findall(r"accuracy (\d\.\d+), ECE (\d\.\d+)", example.stdout)
    assert len(runs) == len(splits) == 10

    configs = compare.plan("digits", seeds=range(len(splits)))
    digits = data.load("digits", Path("unused"))
    python = compare.summarize(
        [run(config, digits) for config in configs if config.loss_name == "label_relaxation"]
    )
    for metric, values in zip(("accuracy", "ece"), zip(*runs, strict=True), strict=True):
        rust = statistics.fmean(map(float, values))
        assert abs(rust - python[metric].mean) <= python[metric].deviation, metric
