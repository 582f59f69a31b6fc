"""Draws the curves of several runs over one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.figure import Figure

from foldserve.replacing import replacing
from foldserve.training.run.fonts import fonts_for
from foldserve.training.run.pictures import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from foldserve.training.choosing.summary import RunSummary

_DOTS_PER_INCH = 130
_NAME_CHARACTERS = 36
_PANELS = (
    ("train_loss", "loss in training, as augmented", 1),
    ("validation_loss", "loss in validation", 1),
    ("validation_accuracy", "accuracy in validation (%)", 100),
)


def draw_overlaid(path: Path, runs: Sequence[RunSummary]) -> None:
    """Draw the losses and the accuracy of each run by epoch into the PNG ``path``; replaces it at once.

    The best epoch of each run is marked by a ring.

    Raises:
        OSError: the picture cannot be written.
    """
    with fonts_for([str(run.path) for run in runs]):
        _draw_overlaid(path, runs)


def _draw_overlaid(path: Path, runs: Sequence[RunSummary]) -> None:
    rows = -(-len(runs) // 3)
    figure = Figure(figsize=(13, 4 + 0.25 * rows), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    palette = colormaps["tab10"] if len(runs) <= 10 else colormaps["tab20"].resampled(len(runs))
    for number, run in enumerate(runs):
        epochs = [record["epoch"] for record in run.history]
        best, colour = run.best, palette(number)
        for axes, (figure_name, _, scale) in zip(panels, _PANELS, strict=True):
            values = [scale * record[figure_name] for record in run.history]
            label = shown(str(run.path)[-_NAME_CHARACTERS:], _NAME_CHARACTERS)
            axes.plot(epochs, values, color=colour, marker=".", markersize=4, linewidth=1.2, label=label)
            if best is not None and figure_name == "validation_accuracy":
                place = (best["epoch"], scale * best[figure_name])
                axes.plot(*place, "o", color=colour, markersize=8, fillstyle="none")
    for axes, (_, title, _) in zip(panels, _PANELS, strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    save_replacing(figure, path)


def save_replacing(figure: Figure, path: Path) -> None:
    """Save ``figure`` as a PNG, atomically: the file always has the old picture or the new one."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=_DOTS_PER_INCH, format="png")
