"""The example that trains a language model, on 512 tokens of its text."""

import math
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "misc" / "examples" / "language_model.py"


def test_language_model(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    command = [sys.executable, SCRIPT, "--windows", "8", "--epochs", "20", "--alpha", "0.5"]
    command += ["--threads", "1", "--plot", picture]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr

    first, *tables = run.stdout.split("\n\n")
    n_classes = int(first.split(" classes")[0].replace(",", ""))
    results: dict[str, dict[str, float]] = {}
    for table in tables:
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        (_, *columns), _, *rows = lines
        for name, *cells in rows:
            found = {column: float(x) for column, x in zip(columns, cells, strict=True) if x}
            results.setdefault(name, {}).update(found)
    assert [*results] == ["cross-entropy", "label smoothing, 0.5", "label relaxation, 0.5"]
    for name, found in results.items():
        assert math.isclose(found["perplexity"], math.exp(found["NLL"]), rel_tol=0.01)
        assert found["NLL, scaled"] < math.log(n_classes)  # it has learned
        assert 0 < found["accuracy"] < 1
        assert 0 < found["ECE"] < 1
        assert ("rows inside" in found) == name.startswith("label relaxation")
        if sys.platform == "linux":
            assert 0 < found["fused, MiB"] < found["whole, MiB"]
    assert results["label relaxation, 0.5"]["rows inside"] > 0  # of the text that it was trained on
    assert picture.read_bytes().startswith(b"\x89PNG")
