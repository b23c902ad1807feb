"""The command ``lr-relax``: checks arguments, shows progress, prints tables; the study's modules do the work.

options.py (what determines a run), execution.py (how and where it runs), terminal.py (progress), compare.py,
study.py (the two scripts of the paper's code), grid.py (many runs), report.py (tables and figures of tracked
runs).
"""

import sys
from importlib.util import find_spec

try:
    import click
    import rich  # noqa: F401

    for package in ("matplotlib", "sklearn"):  # which take seconds to import, and would be missed later
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
except ModuleNotFoundError as missing:
    sys.exit(f'lr-relax needs {missing.name}: pip install "lr-relax[study]"')

from .compare import compare
from .grid import grid
from .options import OneLineErrors
from .report import figure, table
from .study import study, study_ho


@click.group(cls=OneLineErrors)
@click.version_option(package_name="lr-relax")
def main() -> None:
    """Label relaxation and calibration: the study."""


for command in (compare, study, study_ho, grid, table, figure):
    main.add_command(command)
