"""Files that appear whole or not at all, so that an interrupted job leaves no half-written ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success that file takes the place of ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or the name could be on the disk before the content is
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
