"""Train the dense network of the paper's study on other targets, and keep a record of every run.

    python misc/experiments/train.py {label_noise,annotators,temperature} [--seeds 0-2] [--targets ...]
        [--losses ...] [--out FILE]

Fashion-MNIST, ten epochs, one thread; data, network, optimizer and training are those of `lr-relax study`.
The same command resumes: each finished run appends a line to misc/results/STUDY.jsonl and is not repeated.
A record's command trains that run again and gives the same bits on the same kind of machine, apart from its
seconds. pages.py makes the tables and figures of the documentation from the records.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lr_relax import CrossEntropyLoss, LabelRelaxationLoss, RobustDataAmbiguationLoss
from lr_relax.ambiguation import cosine_threshold
from lr_relax.metrics import TemperatureScaling, chance_level, smooth_calibration_error
from lr_relax.study.config import RunConfig, hyperparameters
from lr_relax.study.data import Dataset, load
from lr_relax.study.models import build
from lr_relax.study.run import environment
from lr_relax.study.splits import split
from lr_relax.study.training import Training, evaluate, predict
from numpy.typing import NDArray
from torch import Tensor

RESULTS = Path(__file__).parents[1] / "results"
EPOCHS, ALPHA, VOTES = 10, 0.1, 5
Classes = NDArray[np.int64]

LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": CrossEntropyLoss,
    "label_smoothing": partial(CrossEntropyLoss, label_smoothing=ALPHA),
    "label_relaxation": partial(LabelRelaxationLoss, ALPHA),
    "data_ambiguation": partial(RobustDataAmbiguationLoss, ALPHA),
}
STUDIES: dict[str, list[tuple[str, str]]] = {  # pairs of targets and losses
    "label_noise": [*product(("noise-0.2", "noise-0.4"), LOSSES)],
    "annotators": [
        ("majority", "cross_entropy"),
        ("shares", "cross_entropy"),
        ("majority", "label_relaxation"),
        ("shares", "label_relaxation"),
        ("sets", "label_relaxation"),
    ],
    "temperature": [*product(["labels"], [*LOSSES][:3])],
}
GROUPS = ((0, 2, 3, 4, 6), (5, 7, 9), (1,), (8,))
"""Classes that annotators confuse: the five tops, the three shoes; trousers and bags with none."""
WITHIN_GROUP, HARDEST = 0.75, 0.8


def noisy_labels(labels: Classes, share: float, seed: int) -> Classes:
    """Symmetric noise: each label is redrawn with probability ``share``, from all ten classes evenly.

    A redrawn label is the old one in a tenth of the cases. For a seed, the labels that a smaller share
    redraws are among those of a larger one. As in the code of Lienen & Hüllermeier (AAAI 2024,
    https://github.com/julilien/MitigatingLabelNoiseDataAmbiguation).
    """
    rng = np.random.default_rng((seed, 1))
    drawn = rng.integers(10, size=len(labels))
    return np.where(rng.random(len(labels)) < share, drawn, labels)


def confusion() -> NDArray[np.float64]:
    """The distribution of a wrong vote (column) for each class (row): three quarters within its group."""
    wrong = (1 - np.eye(10)) / 9
    for group in GROUPS:
        for y in group if len(group) > 1 else ():
            wrong[y] *= 1 - WITHIN_GROUP
            wrong[y, [k for k in group if k != y]] += WITHIN_GROUP / (len(group) - 1)
    return wrong


def vote_counts(labels: Classes, seed: int) -> tuple[Classes, Classes]:
    """How often each class got a vote, (N, 10), and the class with most votes, of several one at random.

    Each image has a probability of wrong votes, drawn evenly from [0, HARDEST]; its votes are independent.
    """
    rng = np.random.default_rng((seed, 2))
    error = rng.uniform(0, HARDEST, len(labels))[:, None]
    is_wrong = rng.random((len(labels), VOTES)) < error
    quantile = rng.random((len(labels), VOTES))
    wrong = (quantile[..., None] >= confusion().cumsum(1)[labels][:, None, :-1]).sum(-1)
    votes = np.where(is_wrong, wrong, labels[:, None])
    counts = (votes[..., None] == np.arange(10)).sum(1)
    return counts, (counts + rng.random(counts.shape)).argmax(1)


def make_targets(kind: str, labels: Classes, seed: int) -> tuple[Tensor, dict[str, float]]:
    """The targets of the training data, and facts about them."""
    if kind == "labels":
        return torch.from_numpy(labels), {}
    if kind.startswith("noise-"):
        noisy = noisy_labels(labels, float(kind.removeprefix("noise-")), seed)
        return torch.from_numpy(noisy), {"wrong_labels": float((noisy != labels).mean())}
    counts, majority = vote_counts(labels, seed)
    of_true = counts[np.arange(len(labels)), labels]
    facts = {
        "wrong_votes": float(1 - of_true.mean() / VOTES),
        "wrong_majorities": float((majority != labels).mean()),
        "sets_with_true_class": float((of_true > 0).mean()),
        "classes_per_set": float((counts > 0).sum(1).mean()),
    }
    targets = {
        "majority": torch.from_numpy(majority),
        "shares": torch.from_numpy((counts / VOTES).astype(np.float32)),
        "sets": torch.from_numpy(counts > 0),
    }
    return targets[kind], facts


def assessment(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    """Metrics and bins of predictions, and the ECE that calibrated predictions show by chance."""
    metrics, curve = evaluate(logits, labels, 15)
    chance = chance_level(logits, labels, from_logits=True, binning="paper")
    means = [
        [None if math.isnan(x) else x for x in bins.tolist()] for bins in (curve.confidence, curve.accuracy)
    ]
    return {
        "temperature": temperature,
        **vars(metrics),
        "smooth_ece": float(smooth_calibration_error(logits, labels, from_logits=True)),
        "ece_by_chance": [chance.mean, chance.low, chance.high],
        "bin_counts": curve.counts.tolist(),
        "bin_confidence": means[0],
        "bin_accuracy": means[1],
    }


def train(study: str, target: str, loss: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """Train and evaluate a network; the record of the run."""
    start = time.perf_counter()
    options: dict[str, Any] = {"dataset_name": dataset.name, "model_name": "simple_dense"}
    row = hyperparameters("cross_entropy", **options)  # the paper's are the same for all losses
    held_out = study == "temperature"
    options |= {**row, "epochs": EPOCHS, "seed": seed, "test_run": True, "temp_scaling": held_out}
    parts = split(dataset, seed, validation=False, temperature=held_out)
    torch.manual_seed(seed)
    network = build("simple_dense", parts.mean_image.shape, dataset.classes)
    training = Training(RunConfig(**options), parts, network, device=torch.device("cpu"))
    targets, facts = make_targets(target, parts.train_labels.numpy(), seed)
    criterion = LOSSES[loss]()
    # Training picks a batch's labels by their rows: with row numbers as labels, the loss finds any target.
    training.labels = torch.arange(len(targets))
    training.criterion = lambda logits, rows: criterion(logits, targets[rows])
    for epoch in range(EPOCHS):
        if isinstance(criterion, RobustDataAmbiguationLoss):
            criterion.threshold = cosine_threshold(epoch, EPOCHS)
        training.epoch()
    logits, labels = predict(network, parts.eval_images), parts.eval_labels
    evaluations = {"none": assessment(logits, labels, 1.0)}
    for method in ("nll", "grid") if held_out else ():
        predicted = predict(network, parts.scaling_images)
        scaling = TemperatureScaling().fit(predicted, parts.scaling_labels, method=method)
        evaluations[method] = assessment(scaling.transform(logits), labels, scaling.temperature.item())
    return {
        "target": target,
        "loss": loss,
        "seed": seed,
        "n_train": len(targets),
        "n_test": len(labels),
        "facts": facts,
        "evaluations": evaluations,
        "seconds": time.perf_counter() - start,
        "environment": environment(torch.device("cpu")),
        "command": f"python misc/experiments/train.py {study} --seeds {seed} --targets {target} "
        f"--losses {loss}",
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The recorded runs."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", default="0-2", help="first and last seed, or one")
    parser.add_argument("--targets", help="only these, as noise-0.2,noise-0.4")
    parser.add_argument("--losses", help="only these, as cross_entropy,label_relaxation")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="the record, by default misc/results/STUDY.jsonl")
    arguments = parser.parse_args()
    record = arguments.out or RESULTS / f"{arguments.study}.jsonl"
    pairs = [
        (target, loss)
        for target, loss in STUDIES[arguments.study]
        if target in (arguments.targets or target).split(",")
        and loss in (arguments.losses or loss).split(",")
    ]
    targets, losses = zip(*STUDIES[arguments.study], strict=True)
    for given, known in ((arguments.targets, targets), (arguments.losses, losses)):
        if unknown := {*(given or known[0]).split(",")} - {*known}:
            parser.error(f"expected some of {', '.join(dict.fromkeys(known))}, but got {', '.join(unknown)}")
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1) if arguments.seeds.replace("-", "", 1).isdigit() else ()
    if not seeds or not pairs:
        parser.error(f"expected --seeds as 0-2 or 1, and targets of the losses, but got {arguments.seeds}")
    torch.set_num_threads(1)
    dataset = load("fashion_mnist", arguments.data_dir)
    for seed, (target, loss) in product(seeds, pairs):
        if any((run["target"], run["loss"], run["seed"]) == (target, loss, seed) for run in read(record)):
            continue
        run = train(arguments.study, target, loss, seed, dataset)
        with record.open("a") as file:
            file.write(json.dumps(run) + "\n")
        of_run = run["evaluations"]["none"]
        print(
            target,
            loss,
            seed,
            f"{of_run['accuracy']:.4f} {of_run['ece']:.4f} {run['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
