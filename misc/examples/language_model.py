"""Train a small language model with three losses of its output layer, and compare its predictions.

    python misc/examples/language_model.py [--alpha 0.1] [--seeds 0] [--plot language-model.png]

The text is the documentation inside the running Python: the topics of `help()` and the docstrings of the
standard library. The model is an embedding, a GRU and an output layer of the weights of the embedding.
docs/replication/language_model.md has results.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import math
import platform
import random
import re
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, TypeAlias

import lr_relax
import torch
from lr_relax.metrics import TemperatureScaling, reliability_curve
from lr_relax.plots import reliability_diagrams
from torch import Tensor, nn

LENGTH, BATCH, SIZE, RATE = 64, 64, 128, 0.01  # a batch has 64 windows of 64 tokens
UNKNOWN, END = "<unknown>", "<end>"


def documents() -> Iterator[str]:
    yield from topics.values()
    library, documented = Path(sysconfig.get_path("stdlib")), (ast.Module, ast.ClassDef, ast.FunctionDef)
    for file in sorted(library.rglob("*.py")):
        if not {"test", "tests", "site-packages", "dist-packages"} & {*file.relative_to(library).parts}:
            nodes = [node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, documented)]
            yield "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def windows_of_text() -> tuple[list[Tensor], int]:
    """Windows of tokens (n, LENGTH + 1) for training, validation and test, and the number of classes."""
    seen, texts = set(), []
    for document in documents():  # their paragraphs once: topics repeat each other
        new = [text for text in re.split(r"\n\s*\n", document) if text not in seen]
        seen.update(new)
        texts.append([word for text in new for word in [*re.findall(r"[A-Za-z_]+|\d+|[^\w\s]", text), END]])
    random.Random(0).shuffle(texts)
    words = [word for text in texts for word in text]
    a, b = len(words) * 8 // 10, len(words) * 9 // 10
    known = [word for word, count in Counter(words[:a]).most_common() if count > 1 and word != UNKNOWN]
    index = {word: i for i, word in enumerate([UNKNOWN, *known])}
    tokens = torch.tensor([index.get(word, 0) for word in words])
    return [part.unfold(0, LENGTH + 1, LENGTH) for part in (tokens[:a], tokens[a:b], tokens[b:])], len(index)


class Network(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_classes, SIZE)
        nn.init.normal_(self.embedding.weight, std=SIZE**-0.5)  # it is also the output layer's
        self.gru = nn.GRU(SIZE, 2 * SIZE, batch_first=True)
        self.last, self.dropout = nn.Linear(2 * SIZE, SIZE), nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., LENGTH) to the input of the output layer, (..., LENGTH, SIZE)."""
        hidden, _ = self.gru(self.dropout(self.embedding(tokens)))
        return self.dropout(self.last(self.dropout(hidden)))  # type: ignore[no-any-return]


Head: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The loss of the input of the output layer and the target."""


def losses(alphas: list[float]) -> dict[str, tuple[Any, Any, dict[str, float]]]:
    """The classes of each loss with its layer and of logits, and their option."""
    found: dict[str, Any] = {"cross-entropy": (lr_relax.LinearCrossEntropyLoss, nn.CrossEntropyLoss, {})}
    smoothing = lr_relax.LinearCrossEntropyLoss, nn.CrossEntropyLoss
    relaxation = lr_relax.LinearLabelRelaxationLoss, lr_relax.LabelRelaxationLoss
    for a in alphas:
        found[f"label smoothing, {a:g}"] = *smoothing, {"label_smoothing": a}
        found[f"label relaxation, {a:g}"] = *relaxation, {"alpha": a}
    return found


def train(network: nn.Module, criterion: nn.Module, windows: Tensor, epochs: int) -> float:
    start = time.perf_counter()
    parameters = [*{*network.parameters(), *criterion.parameters()}]
    batch = min(BATCH, len(windows))
    optimizer = torch.optim.Adam(parameters, fused=True)
    steps = epochs * (len(windows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    for _ in range(epochs):
        for rows in torch.randperm(len(windows))[: len(windows) // batch * batch].split(batch):
            loss = criterion(network(windows[rows, :-1]), windows[rows, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def predictions(network: nn.Module, layer: nn.Module, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each prediction the confidence, whether it is correct, and the negative log-likelihood."""
    rows = []
    for batch in windows.split(BATCH):  # the logits of all would take gigabytes
        p, target = layer(network(batch[:, :-1])).log_softmax(2), batch[:, 1:]
        confidence, top = p.max(2)
        own = p.gather(2, target.unsqueeze(2)).squeeze(2)
        rows.append(torch.stack([confidence.exp(), top == target, -own]).flatten(1))
    confidence, correct, nll = torch.cat(rows, 1).double()
    return confidence, correct.long(), nll


def step(head: Head, linear: nn.Linear, input: Tensor, target: Tensor) -> None:
    torch.autograd.grad(head(input, target), [input, *linear.parameters()])


def seconds(heads: list[Head], *arguments: Any) -> list[float]:
    """The medians of the times of a loss and its gradients, in turn."""
    times: list[list[float]] = [[] for _ in heads]
    for _ in range(7):
        for head, samples in zip(heads, times, strict=True):
            start = time.perf_counter()
            step(head, *arguments)
            samples.append(time.perf_counter() - start)
    return [torch.tensor(samples).median().item() for samples in times]


def peak_memory(head: Head, *arguments: Any) -> float:
    """The peak of the resident memory of this process in a step, in MiB above that before it; on Linux."""

    def kib(key: str) -> int:
        return int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0])

    lr_relax.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed
    before = kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    step(head, *arguments)
    return (kib("VmHWM") - before) / 1024


def run(name: str, seed: int, args: Any, windows: list[Tensor], n_classes: int) -> dict[str, Any]:
    """Trains with one loss, and returns what the tables and the picture show."""
    torch.manual_seed(seed)
    network, (fused, plain, option) = Network(n_classes), losses(args.alpha)[name]
    criterion = fused(SIZE, n_classes, bias=True, linear_weight=network.embedding.weight, **option)
    linear, loss = criterion.linear, plain(**option)
    found: dict[str, Any] = {"training, s": train(network, criterion, windows[0], args.epochs)}

    network.eval()
    sample, held_out = (part[:: max(1, len(part) // BATCH)][:BATCH] for part in windows[:2])
    with torch.no_grad():
        scaling = TemperatureScaling().fit(linear(network(held_out[:, :-1])), held_out[:, 1:])
    for suffix, layer in (("", linear), (", scaled", nn.Sequential(linear, scaling))):
        confidence, correct, nll = predictions(network, layer, windows[2])
        curve = reliability_curve(confidence, correct)  # of the event that the prediction is correct
        found |= {"accuracy": correct.double().mean().item(), "curve" + suffix: curve}
        found |= {"NLL" + suffix: nll.mean().item(), "ECE" + suffix: curve.expected_calibration_error}
    found |= {"perplexity": math.exp(found["NLL"]), "temperature": scaling.temperature.item()}

    input, target = network(sample[:, :-1]).flatten(0, 1).detach().requires_grad_(), sample[:, 1:].flatten()
    if "alpha" in option:
        criterion.reduction = "none"
        found["rows inside"] = (criterion(input, target) == 0).double().mean().item()
        criterion.reduction = "mean"
    heads: list[Head] = [criterion, lambda input, target: loss(linear(input), target)]
    found["fused, ms"], found["whole, ms"] = (1e3 * s for s in seconds(heads, linear, input, target))
    if sys.platform == "linux":
        found["fused, MiB"], found["whole, MiB"] = (
            peak_memory(head, linear, input, target) for head in heads
        )
    return found


SCORES = {"perplexity": 1, "accuracy": 4, "NLL": 3, "ECE": 4}
SCALED = {"temperature": 3, "NLL, scaled": 3, "ECE, scaled": 4}
COSTS = {"training, s": 0, "rows inside": 3, "fused, ms": 0, "whole, ms": 0, "fused, MiB": 0, "whole, MiB": 0}


def table(results: dict[str, list[dict[str, Any]]], columns: dict[str, int]) -> str:
    """Means, and standard deviations of several seeds, with so many digits."""
    lines = [["loss", *columns], ["---"] * (len(columns) + 1)]
    for name, runs in results.items():
        lines.append([name])
        for column, digits in columns.items():
            values = torch.tensor([run[column] for run in runs if column in run])
            moments = [values.mean(), values.std()] if len(values) > 1 else values
            lines[-1].append(" ± ".join(f"{x:.{digits}f}" for x in moments))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.1], help="of smoothing and relaxation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--windows", type=int, help="of each split of the text; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", help="file for reliability diagrams of the first seed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    windows, n_classes = windows_of_text()
    windows = [part[: args.windows] for part in windows]
    print(f"{n_classes:,} classes; tokens:", ", ".join(f"{part[:, 1:].numel():,}" for part in windows))
    print(f"Python {platform.python_version()}, torch {torch.__version__}, lr-relax {lr_relax.__version__}\n")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in losses(args.alpha)}
    for seed in args.seeds:
        for name, runs in results.items():
            runs.append(run(name, seed, args, windows, n_classes))
            numbers = (f"{k} {v:.4g}" for k, v in runs[-1].items() if isinstance(v, float))
            print(f"seed {seed}, {name}:", "; ".join(numbers), file=sys.stderr, flush=True)
    print(table(results, SCORES | SCALED), table(results, COSTS), sep="\n\n")
    if args.plot:
        curves = {name: runs[0]["curve"] for name, runs in results.items()}
        reliability_diagrams(curves, histogram="log").savefig(args.plot, dpi=80)


if __name__ == "__main__":
    main()
