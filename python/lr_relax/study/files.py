"""Atomically written files, locked folders, checkpoints, and the packaged JSON files."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout


class RunError(Exception):
    """A run cannot continue; the message is one line."""


def load_json(name: str) -> Any:
    """Read a file of misc/, to which this package has links that wheels follow, as "published.json"."""
    return json.loads((files(__package__) / "misc" / name).read_text(encoding="utf-8"))


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success that file replaces ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or the name could be on the disk before the content is
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Create a folder if needed and lock it against other processes; if it is locked, wait or raise
    BlockingIOError. The lock ends with the process; its file stays. It works across machines where the file
    system supports it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
        for left in folder.glob(".*.*.[0-9]*"):  # by processes that were killed
            left.unlink(missing_ok=True)
    except Timeout as error:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process is using it", str(folder)) from error
    except (OSError, NotImplementedError) as error:  # not every file system has locks or can be written to
        if getattr(error, "errno", None) in (errno.EISDIR, errno.ELOOP):
            raise RunError(f"{folder} cannot be locked, delete its .lock: {error}") from error
    try:
        yield
    finally:
        lock.release()


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write tensors, numbers, strings and containers of them; OSError if the file cannot be written."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # to memory, because torch's errors do not distinguish a full disk
    with replaced(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` has written, without running code; OSError if it cannot be read."""
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            if archive.testzip() is not None:  # checksums, which torch does not verify
                raise ValueError
        content.seek(0)
        state: dict[str, Any] = {**torch.load(content, map_location="cpu", weights_only=True)}
    except Exception as error:  # torch raises many types
        raise RunError(f"{path} is damaged, delete it to start over") from error
    return state
