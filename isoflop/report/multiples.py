"""Small multiples: one panel per subset of a suite, all with the same axes. Plain arrays in, one SVG string out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from isoflop.report.drawing import COLORS, Floats, compact, drawing, floats, largest, to_svg

ACROSS = 4
ROW, TITLE, PLOT = 140, 28, 86  # CSS pixels per row, and of these for the name and the panel; then comes the axis
MOST = 24  # panels; of more subsets the first are drawn
Z = 1.96  # two-sided 95 %


@dataclass(frozen=True)
class Panel:
    """The scores of one subset against tokens read: arrays of shape (P,).

    Attributes:
        name: the title of the panel.
        items: the number of items behind each score.
        chance: the score of guessing, drawn as a line; None: the scores are not shares of right answers.
    """

    name: str
    tokens: ArrayLike
    scores: ArrayLike
    items: ArrayLike
    chance: float | None


def over_tokens(panels: Sequence[Panel], name: str, label: str, width: float = 980) -> str:
    """All panels, in rows of ACROSS.

    Args:
        name: begins the ids in the SVG; unique on a page.
        label: describes the figure to screen readers.
    """
    shown = panels[:MOST]
    rows, across = math.ceil(len(shown) / ACROSS), min(ACROSS, len(shown))
    height = ROW * rows + 8
    right = largest(*(floats(panel.tokens) for panel in shown), default=1.0) or 1.0
    are_shares = all(panel.chance is not None for panel in shown)
    low, high = (0.0, 1.0) if are_shares else limits(shown)
    if are_shares:
        values = np.concatenate([floats(panel.scores) for panel in shown])
        finite = values[np.isfinite(values)]
        low = max(0.0, min([0.4, *(panel.chance or 0.0 for panel in shown), *finite]) - 0.05)

    with drawing():
        figure = Figure(figsize=(width / 72, height / 72))
        for index, panel in enumerate(shown):
            row, column = divmod(index, ACROSS)
            bottom = 1 - (row * ROW + TITLE + PLOT) / height
            axes = figure.add_axes((0.05 + column * 0.945 / across, bottom, 0.945 / across - 0.018, PLOT / height))
            x, scores = floats(panel.tokens), floats(panel.scores)
            if panel.chance is not None:
                axes.axhline(panel.chance, color=COLORS["muted"], linewidth=1, linestyle=(0, (3, 3)))
                lower, upper = wilson(scores, floats(panel.items))
                axes.fill_between(x, lower, upper, color=COLORS["heldout"], alpha=0.2, linewidth=0)
            axes.plot(x, scores, "o-", color=COLORS["heldout"], linewidth=1.6, markersize=3)

            axes.set_xlim(0, 1.03 * right)
            axes.set_ylim(low, high)
            axes.tick_params(labelleft=column == 0)
            axes.text(0.0, 1.05, panel.name, transform=axes.transAxes, ha="left", va="bottom")
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{100 * value:.0f} %" if are_shares else f"{value:g}")
            )
        return to_svg(figure, name, label)


def limits(panels: Sequence[Panel]) -> tuple[float, float]:
    """The lowest and highest score, with a margin."""
    values = np.concatenate([floats(panel.scores) for panel in panels])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    margin = 0.05 * (finite.max() - finite.min()) or 1.0
    return float(finite.min() - margin), float(finite.max() + margin)


def wilson(scores: Floats, items: Floats) -> tuple[Floats, Floats]:
    """The ends of the 95 % interval of each share, by Wilson's score method (Wilson 1927)."""
    n = np.maximum(items, 1.0)
    middle = (scores + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z / (1 + Z * Z / n) * np.sqrt(np.maximum(scores * (1 - scores), 0.0) / n + Z * Z / (4 * n * n))
    return np.clip(middle - reach, 0.0, 1.0), np.clip(middle + reach, 0.0, 1.0)
