"""Files of misc/ that the study reads."""

import json
from pathlib import Path
from typing import Any


def load_json(name: str) -> Any:
    return json.loads((Path(__file__).parents[3] / "misc" / name).read_text())
