"""Refuses a torch that the extension was not built for, before loading it, which may abort the process.

The default build serves every torch; one with pyo3-tch links to the C++ library of a single release, and
carries its name (src/tch/torch.cpp).
"""

import importlib.util
import re
from pathlib import Path

import torch


def check() -> None:
    """Raise ImportError if the extension was built for another release of torch than the installed one."""
    built_for = _built_for(_extension())
    installed = torch.__version__.partition("+")[0]
    if built_for not in (None, installed):
        raise ImportError(
            f"lr_relax was built with pyo3-tch for torch {built_for}, but torch {installed} is installed. "
            f"Install that release (pip install torch=={built_for}), or the lr_relax for every torch "
            "(pip install --force-reinstall --no-deps lr-relax)."
        )


def _extension() -> Path:
    spec = importlib.util.find_spec("lr_relax._native")
    if spec is None or spec.origin is None:
        raise ImportError(
            "lr_relax has no extension module: pip install lr-relax, or make build in a checkout."
        )
    return Path(spec.origin)


def _built_for(extension: Path) -> str | None:
    """The release that an extension links to; none for the default build."""
    mark = re.search(rb"lr_relax is built for torch (\d+\.\d+\.\d+)", extension.read_bytes())
    return mark[1].decode() if mark else None
