"""The command ``lr-relax``: options.py and execution.py are shared, other files have a command each."""

import sys
from importlib.util import find_spec

for package in ("click", "rich", "matplotlib", "sklearn"):  # not imported here: some take seconds
    if find_spec(package) is None:
        sys.exit(f'lr-relax needs {package}: pip install "lr-relax[study]"')

import click  # noqa: E402

from .compare import compare  # noqa: E402
from .grid import grid  # noqa: E402
from .options import Group  # noqa: E402
from .report import figure, table  # noqa: E402
from .study import study, study_ho  # noqa: E402


@click.group(cls=Group)
@click.version_option(package_name="lr-relax")
def main() -> None:
    """Label relaxation and calibration: the paper's study."""


for command in (compare, study, study_ho, grid, table, figure):
    main.add_command(command)
