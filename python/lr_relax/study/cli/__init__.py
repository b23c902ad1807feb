"""The command ``lr-relax``: checks arguments, shows progress, prints tables; the study's modules do the work.

options.py (what determines a run), execution.py (how and where it runs), terminal.py (progress), compare.py,
study.py (the two scripts of the paper's code), grid.py (many runs), report.py (tables and figures of tracked
runs).
"""

import sys

try:
    import click
    import matplotlib  # noqa: F401  (asked for here, so that it is not missed after the training)
    import rich  # noqa: F401
    import sklearn  # noqa: F401
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
