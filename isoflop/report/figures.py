"""Figures of a report: plain arrays in, one SVG string out.

The SVGs are made for an HTML page. Their colours are CSS variables (`var(--heldout, #e8590c)`), so that the page can be
light or dark, with a fallback colour for a stand-alone file. Text stays text, in the page's font. The same arrays give
the same bytes: no date, fixed ids, and the user's matplotlibrc is ignored.

Shapes: T training log lines, H held-out evaluations, F running forecasts, C candidate shapes. Widths and heights are in
CSS pixels. NaN is a gap.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from isoflop.report import words
from isoflop.report.drawing import (
    COLORS,
    RUN_COLORS,
    Floats,
    compact,
    drawing,
    floats,
    largest,
    log_axis,
    smooth,
    thin,
    to_svg,
    token_axis,
)


@dataclass(frozen=True)
class Mark:
    """An event on the curves: a thin vertical line at `tokens`. `label` must not contain text from a run."""

    tokens: float
    label: str
    strong: bool = False


@dataclass(frozen=True)
class Interval:
    """An expected value and its interval, in the unit of its axis."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LossCurves:
    """The losses of a run in nats per token, against tokens read.

    Attributes:
        tokens_T, loss_T, lr_T: training loss and learning rate.
        heldout_tokens_H, heldout_loss_H: held-out loss.
        bits_per_nat: held-out bits per byte divided by nats per token; gives the axis on the right.
        expected: expected held-out loss in nats per token, drawn as a bar at the end.
        end_tokens: planned end of the run; the axis reaches at least this far.
        marks: events.
        fan: forecast of the held-out loss, rows of (tokens, nats per token, low, high), shape (P, 4).
    """

    tokens_T: ArrayLike
    loss_T: ArrayLike
    lr_T: ArrayLike
    heldout_tokens_H: ArrayLike
    heldout_loss_H: ArrayLike
    bits_per_nat: float | None = None
    expected: Interval | None = None
    end_tokens: float | None = None
    marks: Sequence[Mark] = ()
    fan: Sequence[Sequence[float]] = ()


def verdict(reached: float | None, expected: Interval, width: float = 460) -> str:
    """The expected interval as a band, the expected value as a tick, the value reached as a dot. Bits per byte."""
    with drawing():
        figure = Figure(figsize=(width / 72, 96 / 72))
        axes = figure.add_axes((0.02, 0.28, 0.96, 0.44))
        axes.barh(
            [0], [expected.high - expected.low], left=[expected.low], height=0.8, color=COLORS["expected"], alpha=0.28
        )
        axes.plot([expected.value] * 2, [-0.4, 0.4], color=COLORS["expected"], linewidth=2.5, solid_capstyle="butt")
        values = [expected.low, expected.high, expected.value]
        if reached is not None:
            axes.plot([reached], [0], "o", color=COLORS["heldout"], markersize=16)
            values.append(reached)

        span = max(max(values) - min(values), 1e-9)
        axes.set_xlim(min(values) - 0.1 * span, max(values) + 0.1 * span)
        axes.set_ylim(-1, 1)

        for value in (expected.low, expected.high):
            axes.text(value, -1.0, f"{value:.2f}", ha="center", va="top", fontsize=14)
        label = f"expected {expected.value:.2f}"
        axes.text(expected.value, 1.0, label, ha="center", va="bottom", color=COLORS["expected"], fontsize=14)
        axes.set_axis_off()
        return to_svg(figure, "verdict", "The value reached against the interval expected")


def loss_curves(curves: LossCurves, width: float = 920) -> tuple[str, int]:
    """Training and held-out loss against tokens read, with the learning rate below.

    Returns:
        The SVG, and how many of the T losses are above its upper limit: the loss falls so far in the first steps that
        showing all of it would flatten the curve.
    """
    x, loss = floats(curves.tokens_T), floats(curves.loss_T)
    heldout_x, heldout = floats(curves.heldout_tokens_H), floats(curves.heldout_loss_H)
    fan_P4 = np.asarray(curves.fan, dtype=np.float64).reshape(-1, 4)
    smoothed = smooth(loss)
    right = largest(x, heldout_x, [curves.end_tokens or 0.0], default=1.0) or 1.0
    low, high = loss_limits(x, loss, smoothed, heldout, curves.expected, right)
    low, high = min([low, *fan_P4[:, 2]]), max([high, *fan_P4[-1:, 3]])

    with drawing():
        narrow = width < 600
        figure = Figure(figsize=(width / 72, (430 if narrow else 520) / 72))
        left, axes_width = (0.13, 0.73) if narrow else (0.065, 0.865)
        upper = figure.add_axes((left, 0.31, axes_width, 0.61))
        lower = figure.add_axes((left, 0.09, axes_width, 0.15), sharex=upper)

        draw_raw_and_smoothed(upper, x, loss, smoothed, 2)
        upper.plot(heldout_x, heldout, "o-", color=COLORS["heldout"], linewidth=1.6, markersize=5)
        if fan_P4.size:
            tokens, middle, bottom, top = fan_P4.T
            upper.fill_between(tokens, bottom, top, color=COLORS["heldout"], alpha=0.2, linewidth=0)
            upper.plot(tokens, middle, "--", color=COLORS["heldout"], linewidth=1.4)

        upper.set_xlim(0, 1.05 * right)
        upper.set_ylim(low, high)
        if curves.expected is not None:
            draw_expected(upper, (curves.end_tokens or right) * 1.02, curves.expected)
        draw_marks((upper, lower), curves.marks, 1.05 * right, 1.02, narrow)
        if narrow:
            upper.text(0, 1.012, "nats", transform=upper.transAxes, ha="right", va="bottom")
        else:
            upper.set_ylabel("nats per token")
        if curves.bits_per_nat:
            add_bits_axis(upper, curves.bits_per_nat, narrow)
        upper.tick_params(labelbottom=False)

        draw_rate(lower, x, floats(curves.lr_T))
        token_axis(lower, narrow)
        label = "Training and held-out loss against tokens read, and the learning rate"
        svg = to_svg(figure, f"learning-{width:.0f}", label)
    return svg, int(np.sum(loss > high))


def draw_raw_and_smoothed(axes: Axes, x: Floats, values: Floats, smoothed: Floats, linewidth: float) -> None:
    """A thin pale line of all values, and a line of `linewidth` of the smoothed ones."""
    shown = thin(values)
    axes.plot(x[shown], values[shown], color=COLORS["train"], linewidth=0.7, alpha=0.4)
    shown = thin(smoothed)
    axes.plot(x[shown], smoothed[shown], color=COLORS["train"], linewidth=linewidth)


def draw_expected(axes: Axes, at: float, expected: Interval) -> None:
    """The expected interval as a bar, the expected value as a tick."""
    color = COLORS["expected"]
    axes.plot([at] * 2, [expected.low, expected.high], color=color, linewidth=12, alpha=0.35, solid_capstyle="butt")
    axes.plot([at], [expected.value], marker="_", markersize=18, markeredgewidth=3, color=color)


def draw_rate(axes: Axes, x: Floats, lr: Floats) -> None:
    """The learning rate against tokens read."""
    shown = thin(lr)
    axes.plot(x[shown], lr[shown], color=COLORS["ink"], linewidth=1.5)
    axes.set_ylim(0, 1.15 * largest(lr, default=1.0))
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.text(0.0, 1.04, "learning rate", transform=axes.transAxes, ha="left", va="bottom")


def trace(
    tokens_T: ArrayLike, values_T: ArrayLike, name: str, label: str, marks: Sequence[Mark] = (), width: float = 440
) -> str:
    """A small multiple: one measure of training against tokens read, raw and smoothed.

    Args:
        name: begins the ids in the SVG; unique on a page.
        label: describes the figure to screen readers.
    """
    x, values = floats(tokens_T), floats(values_T)
    smoothed = smooth(values)
    with drawing():
        figure = Figure(figsize=(width / 72, 190 / 72))
        axes = figure.add_axes((0.125, 0.21, 0.85, 0.72))
        draw_raw_and_smoothed(axes, x, values, smoothed, 1.8)

        right = largest(x, default=1.0) or 1.0
        axes.set_xlim(0, 1.02 * right)
        finite = values[np.isfinite(values)]
        # A single spike must not flatten the curve: the axis ends at 2.5 times the 95th percentile.
        ceiling = min(largest(finite, default=1.0), 2.5 * float(np.percentile(finite, 95))) if finite.size else 1.0
        axes.set_ylim(0, 1.08 * ceiling if ceiling > 0 else 1.0)
        draw_marks((axes,), marks, 1.02 * right, None, True)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        token_axis(axes, True)
        return to_svg(figure, name, label)


def forecasts(
    tokens_F: ArrayLike,
    value_F: ArrayLike,
    low_F: ArrayLike,
    high_F: ArrayLike,
    *,
    reached: float | None,
    expected: Interval | None,
    end_tokens: float,
    width: float = 440,
) -> str:
    """The running forecasts of a run's final bits per byte, with intervals, against tokens read.

    The forecast of the plan is a bar at the start; the value reached is a dot at the end.
    """
    x, value, low, high = (floats(values) for values in (tokens_F, value_F, low_F, high_F))
    with drawing():
        figure = Figure(figsize=(width / 72, 190 / 72))
        axes = figure.add_axes((0.125, 0.21, 0.85, 0.72))
        axes.fill_between(x, low, high, color=COLORS["heldout"], alpha=0.2, linewidth=0)
        axes.plot(x, value, "o-", color=COLORS["heldout"], linewidth=1.6, markersize=3)

        bounds = [value for value in (*low, *high) if np.isfinite(value)] or [0.0]
        if expected is not None:
            draw_expected(axes, 0, expected)
            bounds += [expected.low, expected.high]
        if reached is not None:
            axes.axhline(reached, color=COLORS["muted"], linewidth=0.9, linestyle=(0, (3, 3)))
            axes.plot([end_tokens], [reached], "o", color=COLORS["ink"], markersize=7)
            bounds.append(reached)

        margin = 0.06 * max(max(bounds) - min(bounds), 0.01)
        axes.set_ylim(min(bounds) - margin, max(bounds) + margin)
        axes.set_xlim(-0.03 * end_tokens, 1.03 * end_tokens)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        token_axis(axes, True)
        return to_svg(figure, "forecasts", "Running forecasts of the final bits per byte against tokens read")


def candidates(
    parameters_C: ArrayLike, bits_per_byte_C: ArrayLike, shapes: Sequence[str], chosen: int | None, width: float = 440
) -> str:
    """Expected bits per byte of every shape timed in calibration, against its parameters; the chosen one is marked."""
    x, y = floats(parameters_C), floats(bits_per_byte_C)
    with drawing():
        figure = Figure(figsize=(width / 72, 250 / 72))
        axes = figure.add_axes((0.13, 0.19, 0.83, 0.76))
        order, lowest = np.argsort(x), int(np.argmin(y))
        axes.plot(x[order], y[order], "o-", color=COLORS["muted"], linewidth=1, markersize=6)

        for index, shape in enumerate(shapes):
            picked = index == chosen
            if picked:
                axes.plot([x[index]], [y[index]], "o", color=COLORS["heldout"], markersize=11)
            # Off the line, which falls towards the lowest point and rises after it.
            side = 0 if index == lowest else 1 if x[index] < x[lowest] else -1
            axes.annotate(
                f"{shape} chosen" if picked else shape,
                (x[index], y[index]),
                xytext=(7 * side, 6 if side else -12),
                textcoords="offset points",
                ha={0: "center", 1: "left", -1: "right"}[side],
                va="bottom" if side else "top",
                color=COLORS["heldout" if picked else "ink"],
            )

        log_axis(axes, x)
        axes.margins(x=0.14, y=0.2)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("parameters N (block and head weights)")
        return to_svg(figure, "candidates", "Expected bits per byte of each candidate shape against its parameters")


def compared(
    curves: Sequence[tuple[ArrayLike, ArrayLike]], name: str, label: str, log: bool, width: float = 350
) -> str:
    """Held-out bits per byte of several runs against one measure of cost.

    Args:
        curves: per run (cost_H, bits_per_byte_H), in the order of the page's colours.
        label: the cost: the label of the axis.
        log: use a logarithmic cost axis; costs of 0 are then left out.
    """
    pairs = [(floats(x), floats(y)) for x, y in curves]
    with drawing():
        figure = Figure(figsize=(width / 72, 270 / 72))
        axes = figure.add_axes((0.13, 0.19, 0.84, 0.77))
        for index, (x, y) in enumerate(pairs):
            shown = x > 0 if log else np.isfinite(x)
            dash = ("-", "--", ":")[index // RUN_COLORS % 3]
            axes.plot(
                x[shown],
                y[shown],
                marker="o",
                linestyle=dash,
                color=COLORS[f"run-{index % RUN_COLORS}"],
                linewidth=1.6,
                markersize=4,
            )

        finite = np.concatenate([y[np.isfinite(y)] for _, y in pairs] or [np.zeros(0)])
        if finite.size:
            ends = [y[np.isfinite(y)][-1] for _, y in pairs if np.isfinite(y).any()]
            # The loss at the start is far above that at the end: show the part where the runs differ.
            ceiling = min(float(finite.max()), max(float(np.median(finite)) * 1.25, 1.15 * max(ends)))
            floor = float(finite.min())
            axes.set_ylim(floor - 0.06 * (ceiling - floor + 0.01), ceiling + 0.06 * (ceiling - floor + 0.01))

        xs = np.concatenate([x for x, _ in pairs] or [np.zeros(0)])
        if log:
            log_axis(axes, xs)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: round_power(value)))
        else:
            axes.set_xlim(0, 1.04 * (largest(xs, default=1.0) or 1.0))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        return to_svg(figure, name, f"Held-out bits per byte against {label}")


def loss_limits(
    x: Floats, loss: Floats, smoothed: Floats, heldout: Floats, expected: Interval | None, right: float
) -> tuple[float, float]:
    """The limits of the loss axis: they include all losses from 3 % of the x axis on, and the expected interval."""
    is_late = x >= 0.03 * right
    late = smoothed[is_late] if np.isfinite(smoothed[is_late]).sum() >= 10 else np.concatenate([loss, heldout])
    bounds = [] if expected is None else [expected.low, expected.high]
    low = -largest(-loss[is_late], -heldout, [-bound for bound in bounds], default=0.0)
    high = largest(late, bounds, heldout[-1:], default=1.0)
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def add_bits_axis(axes: Axes, bits_per_nat: float, narrow: bool) -> None:
    def to_bits(nats: ArrayLike) -> Floats:
        return np.asarray(nats, dtype=np.float64) * bits_per_nat

    def to_nats(bits: ArrayLike) -> Floats:
        return np.asarray(bits, dtype=np.float64) / bits_per_nat

    bits = axes.secondary_yaxis("right", functions=(to_bits, to_nats))
    bits.yaxis.set_major_locator(MaxNLocator(6))
    bits.spines["right"].set_visible(False)
    if narrow:
        axes.text(1, 1.012, "bits per byte", transform=axes.transAxes, ha="center", va="bottom")
    else:
        bits.set_ylabel("bits per byte, held-out")


def round_power(value: float) -> str:
    """A tick at a round number: 5×10¹³."""
    mantissa, _, exponent = words.power(value).partition(" × ")
    return f"{float(mantissa.replace(',', '')):g}×{exponent}" if exponent else mantissa


def draw_marks(panels: Sequence[Axes], marks: Sequence[Mark], right: float, height: float | None, narrow: bool) -> None:
    """Vertical lines on every panel, with labels above the first panel in two rows (no labels if `height` is None).

    If labels would overlap, strong ones have priority, then the rarer ones; a mark without its label keeps its line.
    """
    rows: list[list[tuple[float, float]]] = [[], []]  # the spans of the labels in each row
    frequency = Counter(mark.label for mark in marks)
    for mark in sorted(dict.fromkeys(marks), key=lambda mark: (not mark.strong, frequency[mark.label], mark.tokens)):
        color = COLORS["mark" if mark.strong else "muted"]
        for axes in panels:
            axes.axvline(
                mark.tokens,
                color=color,
                linewidth=1.3 if mark.strong else 0.9,
                linestyle="-" if mark.strong else (0, (3, 3)),
            )

        half = right * len(mark.label) * (0.024 if narrow else 0.0085) / 2
        low, high = mark.tokens - half, mark.tokens + half
        free = [row for row, spans in enumerate(rows) if all(high < start or low > end for start, end in spans)]
        if height is None or not free or not mark.label:
            continue
        rows[free[0]].append((low, high))
        panels[0].text(
            mark.tokens,
            height + 0.045 * free[0],
            mark.label,
            transform=panels[0].get_xaxis_transform(),
            ha="center",
            va="bottom",
            color=color,
        )
