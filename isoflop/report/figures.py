"""Figures of a report: plain arrays in, one SVG string out.

An SVG here is meant to be put inside an HTML page. Its colours are CSS variables (`var(--heldout, #d9480f)`), so that the
page decides on light or dark, with a middling colour to fall back on when the file stands alone. Its text is text, in the
page's font. Same arrays, same bytes: no date, fixed ids, and whatever matplotlibrc the user has is left out.

Shapes: T training records, H held-out evaluations, C candidate shapes. Widths and heights are CSS pixels. NaN is a gap.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from isoflop.report import words

Floats = NDArray[np.float64]

# The CSS variable and the colour without it. Each colour is unique: that is how it is found in the SVG again.
COLORS = {
    "ink": "#59636e",
    "muted": "#8b949e",
    "grid": "#bcc3cb",
    "train": "#4f86c6",
    "heldout": "#e8590c",
    "expected": "#2b9a77",
    "mark": "#8e63ce",
    "run-0": "#4f86c7",
    "run-1": "#e8590d",
    "run-2": "#2b9a78",
    "run-3": "#8e63cf",
    "run-4": "#c9a20a",
    "run-5": "#d6498f",
    "run-6": "#3aa0b8",
    "run-7": "#7a8490",
}
RUN_COLORS = 8
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isoflop",
    "font.size": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLORS["grid"],
    "axes.labelcolor": COLORS["ink"],
    "axes.labelsize": 12.0,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.5,
    "grid.alpha": 0.55,
    "text.color": COLORS["ink"],
    "text.parse_math": False,
    "xtick.color": COLORS["grid"],
    "ytick.color": COLORS["grid"],
    "xtick.labelcolor": COLORS["ink"],
    "ytick.labelcolor": COLORS["ink"],
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
FONT = "system-ui, sans-serif"
MOST_POINTS = 1200


@dataclass(frozen=True)
class Mark:
    """A moment on the curves: a thin upright line at `tokens`, with a short label of our own (never text from a run)."""

    tokens: float
    label: str
    strong: bool = False


@dataclass(frozen=True)
class Interval:
    """An expected value and its interval, in the unit of the axis it is drawn on."""

    value: float
    low: float
    high: float


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


def learning(
    tokens_T: ArrayLike,
    loss_T: ArrayLike,
    lr_T: ArrayLike,
    heldout_tokens_H: ArrayLike,
    heldout_loss_H: ArrayLike,
    *,
    bits_per_nat: float | None = None,
    expected: Interval | None = None,
    end_tokens: float | None = None,
    marks: Sequence[Mark] = (),
    width: float = 920,
) -> tuple[str, int]:
    """Training and held-out loss (nats per token) against tokens read, with the learning rate below.

    Args:
        bits_per_nat: held-out bits per byte for one nat per token; gives the axis on the right.
        expected: expected held-out loss in nats per token, drawn as a bar at the end.
        end_tokens: where the run is planned to end; the axis reaches at least there.

    Returns:
        The SVG, and how many of the T losses lie above the picture: the first steps fall so far that showing them whole
        would flatten everything that comes after.
    """
    x, loss, lr = floats(tokens_T), floats(loss_T), floats(lr_T)
    hx, held = floats(heldout_tokens_H), floats(heldout_loss_H)
    smoothed = smooth(loss)
    right = largest(x, hx, [end_tokens or 0.0], default=1.0) or 1.0
    low, high = loss_limits(x, loss, smoothed, held, expected, right)
    with drawing():
        narrow = width < 600
        figure = Figure(figsize=(width / 72, (430 if narrow else 520) / 72))
        left, room = (0.13, 0.73) if narrow else (0.065, 0.865)
        top = figure.add_axes((left, 0.31, room, 0.61))
        below = figure.add_axes((left, 0.09, room, 0.15), sharex=top)
        keep = thin(loss)
        top.plot(x[keep], loss[keep], color=COLORS["train"], linewidth=0.7, alpha=0.4)
        top.plot(x, smoothed, color=COLORS["train"], linewidth=2)
        top.plot(hx, held, "o-", color=COLORS["heldout"], linewidth=1.6, markersize=5)
        top.set_xlim(0, 1.05 * right)
        top.set_ylim(low, high)
        if expected is not None:
            at = (end_tokens or right) * 1.02
            top.plot(
                [at] * 2,
                [expected.low, expected.high],
                color=COLORS["expected"],
                linewidth=12,
                alpha=0.35,
                solid_capstyle="butt",
            )
            top.plot([at], [expected.value], marker="_", markersize=18, markeredgewidth=3, color=COLORS["expected"])
        draw_marks((top, below), marks, 1.05 * right, 1.02, narrow)
        if not narrow:
            top.set_ylabel("nats per token")
        else:
            top.text(0, 1.012, "nats", transform=top.transAxes, ha="right", va="bottom")
        if bits_per_nat:
            add_bits_axis(top, bits_per_nat, narrow)
        top.tick_params(labelbottom=False)
        keep = thin(lr)
        below.plot(x[keep], lr[keep], color=COLORS["ink"], linewidth=1.5)
        below.set_ylim(0, 1.15 * largest(lr, default=1.0))
        below.yaxis.set_major_locator(MaxNLocator(2))
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        below.text(0.0, 1.04, "learning rate", transform=below.transAxes, ha="left", va="bottom")
        token_axis(below, narrow)
        svg = to_svg(
            figure, f"learning-{width:.0f}", "Training and held-out loss against tokens read, and the learning rate"
        )
    return svg, int(np.sum(loss > high))


def trace(
    tokens_T: ArrayLike, values_T: ArrayLike, name: str, label: str, marks: Sequence[Mark] = (), width: float = 440
) -> str:
    """A small multiple: one measure of training against tokens read, raw and smoothed.

    Args:
        name: what ids in the SVG begin with; unique on a page.
        label: what it shows, in our own words, for readers who cannot see it.
    """
    x, values = floats(tokens_T), floats(values_T)
    smoothed = smooth(values)
    with drawing():
        figure = Figure(figsize=(width / 72, 190 / 72))
        axes = figure.add_axes((0.125, 0.21, 0.85, 0.72))
        keep = thin(values)
        axes.plot(x[keep], values[keep], color=COLORS["train"], linewidth=0.7, alpha=0.4)
        axes.plot(x, smoothed, color=COLORS["train"], linewidth=1.8)
        right = largest(x, default=1.0) or 1.0
        axes.set_xlim(0, 1.02 * right)
        finite = values[np.isfinite(values)]
        ceiling = min(largest(finite, default=1.0), 2.5 * float(np.percentile(finite, 95))) if finite.size else 1.0
        axes.set_ylim(0, 1.08 * ceiling if ceiling > 0 else 1.0)
        draw_marks((axes,), marks, 1.02 * right, None, True)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        token_axis(axes, True)
        return to_svg(figure, name, label)


def candidates(
    parameters_C: ArrayLike, bits_per_byte_C: ArrayLike, shapes: Sequence[str], chosen: int | None, width: float = 440
) -> str:
    """Expected bits per byte of every shape that calibration timed, against its parameters; the chosen one is marked."""
    x, y = floats(parameters_C), floats(bits_per_byte_C)
    with drawing():
        figure = Figure(figsize=(width / 72, 250 / 72))
        axes = figure.add_axes((0.13, 0.19, 0.83, 0.76))
        order = np.argsort(x)
        axes.plot(x[order], y[order], "o-", color=COLORS["muted"], linewidth=1, markersize=6)
        for index, shape in enumerate(shapes):
            picked = index == chosen
            if picked:
                axes.plot([x[index]], [y[index]], "o", color=COLORS["heldout"], markersize=11)
            axes.annotate(
                f"{shape} chosen" if picked else shape,
                (x[index], y[index]),
                xytext=(0, -12 if picked else 9),
                textcoords="offset points",
                ha="center",
                va="top" if picked else "bottom",
                color=COLORS["heldout" if picked else "ink"],
            )
        log_axis(axes, x)
        axes.margins(x=0.14, y=0.2)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("parameters (block and head weights)")
        return to_svg(figure, "candidates", "Expected bits per byte of each candidate shape against its parameters")


def compared(
    curves: Sequence[tuple[ArrayLike, ArrayLike]], name: str, label: str, log: bool, width: float = 440
) -> str:
    """Held-out bits per byte of several runs against one measure of cost.

    Args:
        curves: per run (cost_H, bits_per_byte_H), in the order of the page's colours.
        label: the cost, as the axis is called.
        log: whether the cost axis is logarithmic (costs of 0 are left out then).
    """
    pairs = [(floats(x), floats(y)) for x, y in curves]
    with drawing():
        figure = Figure(figsize=(width / 72, 320 / 72))
        axes = figure.add_axes((0.12, 0.16, 0.84, 0.80))
        for index, (x, y) in enumerate(pairs):
            keep = x > 0 if log else np.isfinite(x)
            dash = ("-", "--", ":")[index // RUN_COLORS % 3]
            axes.plot(
                x[keep],
                y[keep],
                marker="o",
                linestyle=dash,
                color=COLORS[f"run-{index % RUN_COLORS}"],
                linewidth=1.6,
                markersize=4,
            )
        known = np.concatenate([y[np.isfinite(y)] for _, y in pairs] or [np.zeros(0)])
        if known.size:
            ends = [y[np.isfinite(y)][-1] for _, y in pairs if np.isfinite(y).any()]
            # The start of a run is far above its end: look at the part where runs differ.
            ceiling = min(float(known.max()), max(float(np.median(known)) * 1.25, 1.15 * max(ends)))
            floor = float(known.min())
            axes.set_ylim(floor - 0.06 * (ceiling - floor + 0.01), ceiling + 0.06 * (ceiling - floor + 0.01))
        xs = np.concatenate([x for x, _ in pairs] or [np.zeros(0)])
        if log:
            log_axis(axes, xs[xs > 0])
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.power(value)))
        else:
            axes.set_xlim(0, 1.04 * (largest(xs, default=1.0) or 1.0))
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(label)
        return to_svg(figure, name, f"Held-out bits per byte against {label}")


def smooth(values_T: ArrayLike, share: float = 0.02) -> Floats:
    """A centred weighted mean over `share` of the records, narrower towards both ends.

    Centred, so that it neither lags behind the fall at the start nor behind the decay at the end. NaN is left out.
    """
    values = floats(values_T)
    half = min(max(1, round(share * values.size / 4)), values.size // 8)
    return mean_around(mean_around(values, half), half)  # twice: one spike leaves a hill, not a box


def mean_around(values: Floats, half: int) -> Floats:
    """The mean of each value and up to `half` neighbours on either side."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(values.size)
    reach = np.minimum(np.minimum(index, values.size - 1 - index), half)
    start, stop = index - reach, index + reach + 1
    inside = counts[stop] - counts[start]
    return np.where(inside > 0, (sums[stop] - sums[start]) / np.maximum(inside, 1), np.nan)


def thin(values_T: Floats) -> NDArray[np.int64]:
    """Indices to draw: all of them, or of long runs the lowest and highest of each stretch, so that no spike is lost."""
    if values_T.size <= MOST_POINTS:
        return np.arange(values_T.size)
    keep = {0, values_T.size - 1}
    for stretch in np.array_split(np.arange(values_T.size), MOST_POINTS // 2):
        part = values_T[stretch]
        if np.isfinite(part).any():
            keep |= {int(stretch[np.nanargmin(part)]), int(stretch[np.nanargmax(part)])}
        else:
            keep.add(int(stretch[0]))
    return np.array(sorted(keep))


def loss_limits(
    x: Floats, loss: Floats, smoothed: Floats, held: Floats, expected: Interval | None, right: float
) -> tuple[float, float]:
    """The lowest and highest loss shown: everything from 3 % of the axis on, and the expected interval."""
    later = x >= 0.03 * right
    shown = smoothed[later] if np.isfinite(smoothed[later]).sum() >= 10 else np.concatenate([loss, held])
    bounds = [] if expected is None else [expected.low, expected.high]
    raw = loss[later]
    low = -largest(-raw, -held, [-bound for bound in bounds], default=0.0)
    high = largest(shown, bounds, held[-1:], default=1.0)
    margin = 0.06 * max(high - low, 0.05)
    return low - margin, high + margin


def add_bits_axis(axes: Axes, bits_per_nat: float, narrow: bool) -> None:
    bits = axes.secondary_yaxis("right", functions=(lambda y: y * bits_per_nat, lambda y: y / bits_per_nat))
    bits.yaxis.set_major_locator(MaxNLocator(6))
    bits.spines["right"].set_visible(False)
    if narrow:
        axes.text(1, 1.012, "bits per byte", transform=axes.transAxes, ha="center", va="bottom")
    else:
        bits.set_ylabel("bits per byte, held-out")


def draw_marks(panels: Sequence[Axes], marks: Sequence[Mark], right: float, height: float | None, narrow: bool) -> None:
    """Upright lines on every panel; labels above the first one (none for `height` None), stepped where they would meet."""
    reach: list[float] = []
    for mark in sorted(marks, key=lambda mark: mark.tokens):
        color = COLORS["mark" if mark.strong else "muted"]
        for axes in panels:
            axes.axvline(
                mark.tokens,
                color=color,
                linewidth=1.3 if mark.strong else 0.9,
                linestyle="-" if mark.strong else (0, (3, 3)),
            )
        if height is None:
            continue
        wide = right * len(mark.label) * (0.024 if narrow else 0.0085)
        row = next((i for i, end in enumerate(reach) if mark.tokens - wide / 2 > end), len(reach))
        reach[row : row + 1] = [mark.tokens + wide / 2]
        place = panels[0].get_xaxis_transform()
        panels[0].text(
            mark.tokens, height + 0.045 * (row % 2), mark.label, transform=place, ha="center", va="bottom", color=color
        )


def token_axis(axes: Axes, narrow: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_xlabel("tokens read")


def log_axis(axes: Axes, values: Floats) -> None:
    axes.set_xscale("log")
    decades = math.log10(values.max() / values.min()) if values.size else 0.0
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 1.6 else (1.0, 2.0, 5.0), numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def compact(value: float) -> str:
    """A tick: 250 k, 1.5 M, 0.4."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def largest(*arrays: ArrayLike, default: float) -> float:
    joined = np.concatenate([floats(array) for array in arrays])
    joined = joined[np.isfinite(joined)]
    return float(joined.max()) if joined.size else default


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """matplotlib with its own defaults and our style, and everything as it was afterwards."""
    kept_out = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "webagg.open_in_browser"}
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in kept_out}
    with matplotlib.rc_context(defaults | STYLE):
        yield


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Write the figure as SVG and make it fit for a page: ids of its own, colours and fonts of the page's."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, dpi=72, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # matplotlib's own style sheet would reach every element of the page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: [^;\"]*?([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # before matplotlib 3.10
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    svg = re.sub(
        r'"[^"]*"', lambda found: re.sub(r"(\d\.\d{2})\d+", r"\1", found[0]), svg
    )  # attributes, not tick labels
    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    for variable, color in COLORS.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")
    opening = f'<svg role="img" aria-label="{label}" font-family="{FONT}" xmlns="http://www.w3.org/2000/svg"'
    box = re.search(r'viewBox="[^"]+"', svg)
    return re.sub(r"^<svg[^>]*>", f"{opening} {box[0] if box else ''}>", svg)
