"""Write the splits of the digits that `lr-relax compare` uses to .npz files, one per seed.

    python misc/examples/export_digits.py FOLDER SEEDS

Images are float32, pixels in [0, 1] minus the mean image; labels are int64.
"""

import sys
from pathlib import Path

import numpy as np
from lr_relax.study import data, splits


def main(folder: str, seeds: str) -> None:
    digits = data.load("digits", Path(folder))
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed in range(int(seeds)):
        split = splits.split(digits, seed)
        names = ("train_images", "train_labels", "eval_images", "eval_labels")
        arrays = {name: getattr(split, name).numpy() for name in names}
        np.savez(Path(folder) / f"split-{seed}.npz", **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FOLDER SEEDS")
    main(*sys.argv[1:])
