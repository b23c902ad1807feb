"""A disk that is full, for the tests."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_are_at_most(n_bytes: int) -> Iterator[None]:
    """To the system, which then refuses to write as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
