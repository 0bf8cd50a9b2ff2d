"""The curves of one training, drawn when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


def draw_curves(history: Sequence[Mapping[str, float]], title: str, file: Path) -> None:
    """Draw losses and validation accuracy over the epochs as a PNG."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for name, label in (("train_loss", "training"), ("validation_loss", "validation, cross-entropy")):
        losses.plot(epochs, [row[name] for row in history], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss", title=title)
    losses.legend()
    accuracy.plot(epochs, [100 * row["validation_accuracy"] for row in history], marker=".", color="tab:green")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy, %", title=title)
    for axes in (losses, accuracy):
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
