"""Figures of a scaling law: plain arrays in, one SVG string out, in the style of a run's report.

Shapes: R runs, F points of a frontier, T targets, P past runs. Compute is in FLOPs, loss in bits per byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from isoflop.report import words
from isoflop.report.drawing import COLORS, RUN_COLORS, compact, drawing, floats, to_svg
from isoflop.report.figures import round_power

WIDTH = 760
HEIGHT = 380


@dataclass(frozen=True)
class Curve:
    """The runs of one budget, and the law along it.

    Attributes:
        flops: of each run.
        parameters, loss: of the runs.
        line_parameters, line_loss: of the law.
        best: the parameters of least loss by the law, and that loss.
    """

    flops: float
    parameters: ArrayLike
    loss: ArrayLike
    line_parameters: ArrayLike
    line_loss: ArrayLike
    best: tuple[float, float]


def isoflop(curves: Sequence[Curve], width: float = WIDTH) -> str:
    """IsoFLOP curves: loss against parameters at equal compute, runs as dots and the law as lines, the least of each
    marked."""
    with drawing():
        figure, axes = frame(width)
        for index, curve in enumerate(curves):
            color = COLORS[f"run-{index % RUN_COLORS}"]
            axes.plot(floats(curve.line_parameters), floats(curve.line_loss), color=color, linewidth=1.6, alpha=0.8)
            axes.plot(floats(curve.parameters), floats(curve.loss), "o", color=color, markersize=6)
            axes.plot([curve.best[0]], [curve.best[1]], marker="|", markersize=16, markeredgewidth=2.5, color=color)
            end, loss = floats(curve.line_parameters)[-1], floats(curve.line_loss)[-1]
            axes.annotate(
                f"{round_power(curve.flops)} FLOPs",
                (end, loss),
                xytext=(5, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                color=color,
                fontsize=11,
            )
        log_ticks(axes, "parameters N", lambda value: compact(value))
        axes.margins(x=0.03, y=0.08)
        low, high = axes.get_xlim()
        axes.set_xlim(low, high * (high / low) ** 0.14)  # room for the labels
        loss_axis(axes)
        return to_svg(figure, "isoflop", "Loss against parameters at equal compute, with the law's curves")


def frontier(
    run_flops_R: ArrayLike,
    run_loss_R: ArrayLike,
    frontier_F4: ArrayLike,
    targets_T4: ArrayLike = (),
    past_P2: ArrayLike = (),
    width: float = WIDTH,
    name: str = "frontier",
) -> str:
    """Loss against compute: the runs as dots, the least loss at each compute by the law with the interval of one run as
    a band, targets with their intervals, past runs as rings.

    Args:
        frontier_F4, targets_T4: rows of (FLOPs, loss, low, high).
        past_P2: rows of (FLOPs, loss reached).
        name: begins the ids in the SVG.
    """
    x, y = floats(run_flops_R), floats(run_loss_R)
    line = np.asarray(frontier_F4, dtype=np.float64).reshape(-1, 4)
    targets = np.asarray(targets_T4, dtype=np.float64).reshape(-1, 4)
    past = np.asarray(past_P2, dtype=np.float64).reshape(-1, 2)
    with drawing():
        figure, axes = frame(width)
        axes.fill_between(line[:, 0], line[:, 2], line[:, 3], color=COLORS["expected"], alpha=0.2, linewidth=0)
        axes.plot(line[:, 0], line[:, 1], color=COLORS["expected"], linewidth=2)
        axes.plot(x, y, "o", color=COLORS["train"], markersize=5, alpha=0.75)
        for flops, value, low, high in targets:
            axes.plot([flops] * 2, [low, high], color=COLORS["expected"], linewidth=10, alpha=0.45)
            axes.plot([flops], [value], marker="_", markersize=18, markeredgewidth=3, color=COLORS["expected"])
        axes.plot(past[:, 0], past[:, 1], "o", color=COLORS["heldout"], markersize=9, fillstyle="none")
        if past.size == 2:
            axes.plot(past[:, 0], past[:, 1], "o", color=COLORS["heldout"], markersize=9)
        seen = np.concatenate([y, line[:, 1], targets[:, 2], past[:, 1]])
        seen = seen[np.isfinite(seen)]
        if seen.size:
            low, high = float(seen.min()), float(seen.max())
            margin = 0.06 * max(high - low, 0.02)
            axes.set_ylim(max(0.0, low - margin), high + margin)
        log_ticks(axes, "training compute, FLOPs", round_power)
        loss_axis(axes)
        return to_svg(figure, name, "Loss against compute, with the law's frontier and its interval")


def best_size(
    run_flops_R: ArrayLike, run_parameters_R: ArrayLike, frontier_F4: ArrayLike, ratio: float, width: float = WIDTH
) -> str:
    """Parameters against compute: the runs as dots, the best size by the law with its interval as a band, and the rule
    of thumb of `ratio` tokens per parameter as a dashed line.

    Args:
        frontier_F4: rows of (FLOPs, N*, low, high).
    """
    line = np.asarray(frontier_F4, dtype=np.float64).reshape(-1, 4)
    with drawing():
        figure, axes = frame(width)
        axes.fill_between(line[:, 0], line[:, 2], line[:, 3], color=COLORS["expected"], alpha=0.2, linewidth=0)
        axes.plot(line[:, 0], line[:, 1], color=COLORS["expected"], linewidth=2)
        axes.plot(line[:, 0], np.sqrt(line[:, 0] / (6 * ratio)), "--", color=COLORS["muted"], linewidth=1.4)
        axes.plot(floats(run_flops_R), floats(run_parameters_R), "o", color=COLORS["train"], markersize=5, alpha=0.75)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_ylabel("parameters N")
        log_ticks(axes, "training compute, FLOPs", round_power)
        return to_svg(figure, "best-size", "The best number of parameters against compute, with its interval")


def frame(width: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, HEIGHT / 72))
    return figure, figure.add_axes((0.085, 0.155, 0.895, 0.815))


def log_ticks(axes: Axes, label: str, form: object) -> None:
    """A logarithmic x axis with round numbers."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 50 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=9))
    axes.xaxis.set_minor_formatter(NullFormatter())
    shown = form if callable(form) else words.count
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.set_xlabel(label)


def loss_axis(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_ylabel("bits per byte, held-out")
