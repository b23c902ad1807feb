"""``python -m lr_relax.study.lr_study``: the paper's script, which is ``lr-relax study``."""

from .cli.study import study

if __name__ == "__main__":
    study(prog_name="python -m lr_relax.study.lr_study")
