"""The files of misc/ that the study reads: hyperparameters and published results.

Here stand links to them, one by one, which builds follow: a wheel and a source distribution have the files.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def load_json(name: str) -> Any:
    """What a file of misc/ holds, by its name: "hyperparams_lr.json", "published.json"."""
    return json.loads((files(__package__) / "misc" / name).read_text(encoding="utf-8"))
