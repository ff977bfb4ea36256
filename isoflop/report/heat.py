"""Heat maps of layers against tokens read, in one colour of varying opacity, for light and dark pages alike."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from isoflop.report.drawing import COLORS, Floats, drawing, floats, to_svg, token_axis

MOST_COLUMNS, MOST_LABELS = 60, 14
FAINTEST = 0.08  # opacity of the smallest value; missing values are empty


def layers_by_step(
    tokens_S: ArrayLike,
    layers: Sequence[str],
    values_LS: Floats,
    name: str,
    label: str,
    by_logarithm: bool,
    width: float = 440,
) -> str:
    """One measure: layers upwards, the first at the bottom, tokens read to the right. NaN is left empty.

    Args:
        tokens_S: tokens read at each of S measurements; values_LS: the measure, shape (layers, S).
        name: begins the ids in the SVG; unique on a page.
        label: describes the figure to screen readers.
        by_logarithm: opacity is linear in the logarithm; values of 0 and less are left empty.
    """
    x, values = floats(tokens_S), np.asarray(values_LS, dtype=np.float64)
    keep = np.unique(np.linspace(0, x.size - 1, min(x.size, MOST_COLUMNS)).round().astype(int))
    x, values = x[keep], values[:, keep]
    if by_logarithm:
        values = np.log(np.where(values > 0, values, np.nan))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    opacity = FAINTEST + (1 - FAINTEST) * (values - low) / (high - low if high > low else 1.0)

    edges = np.concatenate([x[:1], 0.5 * (x[1:] + x[:-1]), x[-1:]]) if x.size > 1 else np.array([0.0, x[0] or 1.0])
    with drawing():
        figure = Figure(figsize=(width / 72, (70 + 16 * min(len(layers), 16)) / 72))
        bottom = 44 / (70 + 16 * min(len(layers), 16))
        axes = figure.add_axes((0.15, bottom, 0.82, 0.95 - bottom))
        for row in range(values.shape[0]):
            for step in range(values.shape[1]):
                if math.isfinite(opacity[row, step]):
                    corner, size = (edges[step], row - 0.5), edges[step + 1] - edges[step]
                    alpha = round(float(opacity[row, step]), 2)
                    axes.add_patch(Rectangle(corner, size, 1.0, facecolor=COLORS["train"], alpha=alpha, linewidth=0))

        axes.grid(False)
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.set_ylim(-0.5, len(layers) - 0.5)
        every = max(1, math.ceil(len(layers) / MOST_LABELS))
        axes.set_yticks(range(0, len(layers), every), [shown(layer) for layer in layers[::every]])
        token_axis(axes, True)
        return to_svg(figure, name, label)


def shown(layer: str) -> str:
    """A layer's label on the axis, which never contains text from a run."""
    if layer in ("input", "output"):
        return layer
    return f"layer {int(layer)}" if layer.isdecimal() and len(layer) < 7 else "?"
