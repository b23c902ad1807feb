"""Files that hold a network in training: written whole or not at all, read without running any code."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from .atomic import replaced


class CheckpointError(Exception):
    """A checkpoint cannot be read; the message says why in one line."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers, strings and containers of them; OSError where that is impossible."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # to memory, as its own errors do not tell a full disk from others
    with replaced(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save` has written, to a device."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path} is no checkpoint that can be read, delete it to start anew: {reason}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of a run, delete it to start anew")
    return state
