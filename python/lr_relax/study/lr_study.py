"""``python -m lr_relax.study.lr_study``: the paper's script."""

from .cli.study import study

if __name__ == "__main__":
    study(prog_name="python -m lr_relax.study.lr_study")
