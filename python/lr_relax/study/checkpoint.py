"""Files that hold a network in training: written whole or not at all, read without running any code."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from .atomic import replaced

_DAMAGED = "{} is damaged or no checkpoint, delete it to start anew"


class CheckpointError(Exception):
    """A checkpoint cannot be read; the message says why in one line."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers, strings and containers of them; OSError where that is impossible."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # to memory, as its own errors do not tell a full disk from others
    with replaced(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` has written, to a device; OSError where the file cannot be read."""
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            intact = archive.testzip() is None  # checksums, which torch does not look at
        content.seek(0)
        state = torch.load(content, map_location=device, weights_only=True) if intact else None
    except Exception as error:  # torch raises whatever it stumbles over
        raise CheckpointError(_DAMAGED.format(path)) from error
    if not isinstance(state, dict):
        raise CheckpointError(_DAMAGED.format(path))
    return state
