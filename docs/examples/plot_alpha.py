"""
Alpha in pictures
=================

The loss and its gradient along one line, the loss over all predictions for three classes, and what a network
of the study makes of alpha.
"""

# %%
# Along a line
# ------------
#
# The loss of a class depends on the other classes only through their sum. So a line shows it whole: the
# probability of the label runs from 0 to 1. A circle marks the border of the credal set, from which on loss
# and gradient are 0. Cross-entropy, alpha = 0, has no such border. Label smoothing pulls back beyond its
# target.

import json
from pathlib import Path

import lr_relax
import torch
from lr_relax import cross_entropy_loss, label_relaxation_loss
from lr_relax.plots import loss_on_simplex
from lr_relax.study.figures import against_alpha
from lr_relax.study.folder import Result
from matplotlib import pyplot

p = torch.linspace(0.02, 0.999, 500, dtype=torch.float64)
figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
losses = {
    f"relaxation, alpha = {alpha:g}": (label_relaxation_loss, {"alpha": alpha}) for alpha in (0, 0.1, 0.3)
}
losses["smoothing, 0.3"] = (cross_entropy_loss, {"label_smoothing": 0.3})
for name, (function, options) in losses.items():
    logits = torch.stack([p.log(), ((1 - p) / 2).log(), ((1 - p) / 2).log()], 1).requires_grad_()
    values = function(logits, torch.zeros(len(p), dtype=torch.long), reduction="none", **options)
    values.sum().backward()
    for panel, y in zip(panels, (values.detach(), logits.grad[:, 0]), strict=True):
        (line,) = panel.plot(p, y, "--" if "smoothing" in name else "-", label=name)
        if options.get("alpha"):
            panel.plot(1 - options["alpha"], 0, "o", color=line.get_color())
for panel, name in zip(panels, ("loss (nats)", "gradient of the label's logit"), strict=True):
    panel.set(xlabel="probability of the label", ylabel=name)
    panel.grid(alpha=0.3)
panels[0].legend(fontsize="small")

# %%
# Over three classes
# ------------------
#
# The set, hatched, is the corner of the label: the larger alpha, the larger the corner without a loss.

first = torch.zeros(1, dtype=torch.long)
figure, panels = pyplot.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
for panel, alpha in zip(panels, (0.05, 0.2, 0.5), strict=True):

    def loss(p, alpha=alpha):
        return label_relaxation_loss(p, first.expand(len(p)), alpha, "none", from_logits=False)

    loss_on_simplex(loss, ax=panel, title=f"alpha = {alpha:g}")

# %%
# Accuracy and calibration
# ------------------------
#
# The study's dense network on validation data of scikit-learn's digits, from the record of its runs in a
# checkout: mean and standard deviation over seeds. For these data, an alpha above 0.1 is too large.

record = Path(lr_relax.__file__).parents[2] / "misc" / "results" / "digits.jsonl"
runs = [Result.from_dict(json.loads(line)) for line in record.read_text().splitlines()]
losses = ("cross_entropy", "label_relaxation")
figure = against_alpha(run for run in runs if run.config.loss_name in losses and not run.config.test_run)
