"""Shared by all figures: palette, isolated matplotlib settings, SVG clean-up, smoothing and thinning of arrays."""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# CSS variable -> fallback colour. All colours differ, so that each can be found in the SVG.
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
STYLE: dict[Any, Any] = {
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


def smooth(values_T: ArrayLike, share: float = 0.02) -> Floats:
    """A centred weighted mean over `share` of the values, narrower towards both ends.

    It is centred so as not to lag behind the fall at the start and the decay at the end. NaN is ignored.
    """
    values = floats(values_T)
    half = min(max(1, round(share * values.size / 4)), values.size // 8)
    return mean_around(mean_around(values, half), half)  # twice: triangular weights


def mean_around(values: Floats, half: int) -> Floats:
    """The mean of each value and up to `half` neighbours on either side."""
    is_known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    index = np.arange(values.size)
    reach = np.minimum(np.minimum(index, values.size - 1 - index), half)
    start, stop = index - reach, index + reach + 1
    inside = counts[stop] - counts[start]
    return np.where(inside > 0, (sums[stop] - sums[start]) / np.maximum(inside, 1), np.nan)


def thin(values_T: Floats) -> NDArray[np.int64]:
    """Indices to draw: all; in long runs the minimum and maximum of each stretch, so that no spike is lost."""
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


def token_axis(axes: Axes, narrow: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_xlabel("tokens read")


def log_axis(axes: Axes, values: Floats) -> None:
    """Make the axis logarithmic, with ticks for the positive ones of `values`; without any it stays linear."""
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return
    axes.set_xscale("log")
    decades = math.log10(values.max() / values.min())
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if decades > 1.6 else (1.0, 2.0, 5.0), numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def compact(value: float) -> str:
    """The label of a tick: 250 k, 1.5 M, 0.4."""
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
    """A context with matplotlib's default settings and our style; the user's settings are restored after it."""
    not_style = {"backend", "backend_fallback", "interactive", "toolbar", "timezone", "webagg.open_in_browser"}
    defaults: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in not_style}
    with matplotlib.rc_context(defaults | STYLE):
        yield


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as SVG for an HTML page: with unique ids, and with the page's colours and fonts.

    Args:
        name: begins all ids; unique on a page.
        label: describes the figure to screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, dpi=72, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()

    # matplotlib's style sheet would apply to every element of the page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font: [^;\"]*?([\d.]+px) [^;\"]*", r"font-size: \1", svg)  # before matplotlib 3.10
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    # Two decimals are enough in attributes; tick labels keep their digits.
    svg = re.sub(r'"[^"]*"', lambda match: re.sub(r"(\d\.\d{2})\d+", r"\1", match[0]), svg)

    svg = svg.replace("xlink:href", "href").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", svg)
    for variable, color in COLORS.items():
        svg = svg.replace(color, f"var(--{variable}, {color})")

    opening = f'<svg role="img" aria-label="{label}" font-family="{FONT}" xmlns="http://www.w3.org/2000/svg"'
    box = re.search(r'viewBox="[^"]+"', svg)
    return re.sub(r"^<svg[^>]*>", f"{opening} {box[0] if box else ''}>", svg)
