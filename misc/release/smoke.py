"""A fresh installation computes a loss, its gradient and a metric as by hand, and starts its command.

cd / && ENVIRONMENT/bin/python smoke.py
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import torch
from lr_relax import LabelRelaxationLoss, __version__
from lr_relax.metrics import expected_calibration_error


def check_loss(alpha: float = 0.1) -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(64) % 10
    logits[:8] = 10 * torch.nn.functional.one_hot(target[:8], 10)  # inside the set, where the loss is 0
    p = logits.softmax(1)
    is_class = torch.nn.functional.one_hot(target, 10).bool()
    p_class = p[is_class][:, None]
    projection = torch.where(is_class, 1 - alpha, alpha * p / (1 - p_class))
    projection = torch.where(p_class >= 1 - alpha, p, projection)
    divergence = (projection * (projection / p).log()).sum(1)

    logits.requires_grad_()
    loss = LabelRelaxationLoss(alpha=alpha)(logits, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), divergence.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.grad, (p - projection) / 64, rtol=1e-12, atol=1e-12)


def check_metric() -> None:
    # Two bins: three of four right at a confidence of 0.6, one of two at 0.9.
    p = torch.tensor([0.6, 0.6, 0.6, 0.6, 0.9, 0.9], dtype=torch.float64)
    target = torch.tensor([0, 0, 0, 1, 0, 1])
    got = float(expected_calibration_error(torch.stack([p, 1 - p], 1), target))
    want = 4 / 6 * 0.15 + 2 / 6 * 0.4
    assert abs(got - want) < 1e-12, (got, want)


def check_command() -> None:
    command = [str(Path(sys.executable).parent / "lr-relax"), "--help"]
    assert "compare" in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


check_loss()
check_metric()
has_study = all(importlib.util.find_spec(name) for name in ("click", "rich", "torchvision", "submitit"))
if has_study:
    check_command()
print(f"lr-relax {__version__}, torch {torch.__version__}{', study' * has_study}")
