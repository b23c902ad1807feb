"""A callback for Lightning that fits the temperature on the validation data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lr_relax.metrics import TemperatureScaling

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    from pytorch_lightning import Callback  # type: ignore[assignment]


class FitTemperature(Callback):
    """Fits a `TemperatureScaling` to the logits of the validation data, at the end of each validation.

    The module's `validation_step` returns a dict with "logits" (N, C) and "target" (N,). The scaling is
    `callback.scaling`, and the temperature is logged as "temperature". Logits are kept on the CPU until the
    end of the validation; with several processes, each fits its own part.

    Args:
        **options: Of `TemperatureScaling.fit`, such as ``method="grid"`` or `ignore_index`.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.scaling = TemperatureScaling()
        self._batches: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._batches = []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not isinstance(outputs, dict) or not {"logits", "target"} <= outputs.keys():
            raise TypeError(
                'Expected `validation_step` to return a dict with "logits" and "target", '
                f"but got {type(outputs).__name__}."
            )
        self._batches.append((outputs["logits"].detach().cpu(), outputs["target"].cpu()))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        batches, self._batches = self._batches, []
        if batches and not trainer.sanity_checking:
            logits, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
            self.scaling.fit(logits, target, **self.options)
            pl_module.log("temperature", self.scaling.temperature.item())
