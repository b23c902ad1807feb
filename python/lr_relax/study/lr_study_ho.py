"""``python -m lr_relax.study.lr_study_ho``: the paper's script, which is ``lr-relax study-ho``."""

from .cli.study import study_ho

if __name__ == "__main__":
    study_ho(prog_name="python -m lr_relax.study.lr_study_ho")
