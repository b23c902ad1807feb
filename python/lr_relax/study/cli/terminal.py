"""What a command shows while it works: a progress bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..training import Batch, Epoch


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Prints texts as they are, without breaking lines."""
    return Console(stderr=stderr, quiet=quiet, soft_wrap=True, markup=False, emoji=False, highlight=False)


def progress_bar(total: int) -> Progress:
    """A progress bar with one task, on stderr; silent where that is no terminal."""
    terminal = console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal,
    )
    progress.add_task("", total=total, status="")
    return progress


class RunProgress:
    """Shows a run: on a terminal loss, accuracy and the time left as it goes, else a line per epoch."""

    def __init__(self, title: str, epochs: int, *, silent: bool) -> None:
        self.epochs, self.silent = epochs, silent
        self.console = console(stderr=True, quiet=silent)
        self.bar = progress_bar(epochs)
        self.bar.disable |= silent
        [self.task] = self.bar.task_ids
        self.bar.update(self.task, description=title)
        self.shown = 0.0

    def __enter__(self) -> RunProgress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def batch(self, batch: Batch) -> None:
        """Move the bar, a few times per second."""
        if self.bar.disable or (now := time.monotonic()) - self.shown < 0.2:
            return
        self.shown = now
        done = batch.epoch + batch.done / batch.batches
        self.bar.update(
            self.task, completed=done, status=f"loss {batch.loss:.4f}  accuracy {batch.accuracy:.4f}"
        )

    def epoch(self, epoch: Epoch) -> None:
        """Tell what an epoch gave."""
        self.bar.update(self.task, completed=epoch.epoch + 1)
        if not self.console.is_terminal:
            validated = (
                ""
                if epoch.val_accuracy is None
                else f"  validation accuracy {epoch.val_accuracy:.4f}  ECE {epoch.val_ece:.4f}"
            )
            self.console.print(
                f"epoch {epoch.epoch + 1}/{self.epochs}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
                f"{validated}  {epoch.seconds:.1f} s"
            )
