"""A picture of predicted against recorded joints. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def write_joint_plot(
    path: Path, *, predicted: np.ndarray, recorded: np.ndarray, joint_names: Sequence[str], dt: float, title: str
) -> None:
    """A PNG with one graph per joint over the seconds of an episode. predicted, recorded: float32 [N, A] rad."""
    columns = 2
    rows = -(-len(joint_names) // columns)
    figure = Figure(figsize=(11, 2 * rows + 0.8), layout="constrained")
    seconds = np.arange(len(recorded)) * dt
    for index, name in enumerate(joint_names):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.plot(seconds, recorded[:, index], label="recorded", color="0.4", linewidth=2)
        axes.plot(seconds, predicted[:, index], label="predicted", color="tab:red", linewidth=1)
        error = np.abs(predicted[:, index] - recorded[:, index]).mean()
        axes.set_title(f"{name}: {error:.4f} rad off", fontsize=9)
        axes.set_ylabel("rad")
        if index >= len(joint_names) - columns:
            axes.set_xlabel("s")
        if index == 0:
            axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png")
