"""Files that appear whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import errno
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


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Make a folder if need be and keep other processes out that ask by this function, too.

    BlockingIOError if one is in it. The claim ends with the process, whatever ends that. It binds those of a
    machine, and others as far as the file system tells them; Windows has no such locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process is at work there", str(folder)
            ) from error
        except OSError:  # not every file system has locks
            pass
        if not os.path.samestat(os.fstat(handle), folder.stat()):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process has made it anew", str(folder))
        yield
    finally:
        os.close(handle)
