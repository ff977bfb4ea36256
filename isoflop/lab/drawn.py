"""The figures of the lab's pages: plain numbers in, one SVG string out, in the style of a run's report."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from isoflop.lab.verdict import SIGNS, Finding
from isoflop.report.drawing import COLORS, RUN_COLORS, compact, drawing, log_axis, to_svg

WIDTH = 760
LONGEST_LABEL = 100  # characters of a label that fit the width at full size
TEXT = {"supported": "expected", "refuted": "heldout", "equivalent": "train", "undecided": "muted"}


def differences(findings: Sequence[Finding], labels: Sequence[str], name: str, unit: str) -> str:
    """One row for each comparison: every pair's difference as a dot, their mean with its interval as a bar, what counts
    as no difference as a band. `labels` are our own words.

    Infinite differences are drawn at the edge of the picture.
    """
    rows, longest = len(findings), max(map(len, labels))
    size = min(13.0, 13.0 * LONGEST_LABEL / longest)
    shown = [value for finding in findings for value in limits_of(finding)]
    low, high = min([0.0, *shown]), max([0.0, *shown])
    margin = 0.08 * max(high - low, 1e-9)
    low, high = low - margin, high + margin
    with drawing():
        figure = Figure(figsize=(WIDTH / 72, (74 + 62 * rows) / 72))
        foot = 52 / (74 + 62 * rows)
        axes = figure.add_axes((0.03, foot, 0.94, 1 - foot - 0.02))
        for row, (finding, label) in enumerate(zip(findings, labels, strict=True)):
            y = rows - 1 - row
            zone = finding.comparison.zone
            axes.fill_between([max(-zone, low), min(zone, high)], y - 0.32, y + 0.32, color=COLORS["grid"], alpha=0.45)
            color = COLORS[TEXT[finding.verdict]]
            dots = np.clip(np.nan_to_num(finding.differences, posinf=high, neginf=low), low, high)
            axes.plot(dots, np.full(len(dots), y - 0.16), "o", color=color, markersize=4, alpha=0.55)
            ends = np.clip([finding.estimate.low, finding.estimate.high], low, high)
            axes.plot(ends, [y + 0.04] * 2, color=color, linewidth=6, alpha=0.45, solid_capstyle="butt")
            if math.isfinite(finding.estimate.value):
                axes.plot([finding.estimate.value], [y + 0.04], "o", color=color, markersize=10)
            axes.text(low, y + 0.47, label, ha="left", va="center", color=COLORS["ink"], fontsize=size)
        axes.axvline(0.0, color=COLORS["ink"], linewidth=1.2)
        axes.set_xlim(low, high)
        axes.set_ylim(-0.5, rows - 0.35)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_xlabel(unit)
        return to_svg(figure, name, "Differences between the arms, pair by pair, with their intervals")


def strip(finding: Finding, color: str, label: str) -> str:
    """One comparison as a small picture for a table: the mean difference with its interval, on a band that is what
    counts as no difference. Turned so that the right side is what the claim expects; each has a scale of its own, with
    numbers at its ends and under the line of no difference: the measure itself where that is compared with a number.

    Args:
        color: a CSS variable.
        label: what it shows, as text for those who cannot see it.
    """
    sign, zone, one = SIGNS[finding.comparison.expect], finding.comparison.zone, finding.estimate
    width, height, middle = 240, 34, 17
    ends = [sign * end for end in (one.low, one.value, one.high)]
    reach = 1.12 * max([zone, *(abs(end) for end in ends if math.isfinite(end))])

    def x(value: float) -> float:
        return round(width / 2 * (1 + max(-1.0, min(1.0, value / reach))), 1)

    band = f'<rect x="{x(-zone)}" y="3" width="{x(zone) - x(-zone):.1f}" height="{height - 6}" fill="var(--grid)" '
    parts = [band + 'opacity=".45"/>']
    parts.append(f'<line x1="{x(0)}" y1="0" x2="{x(0)}" y2="{height}" stroke="var(--ink)" stroke-width="1.2"/>')
    if one.pairs:
        low, high = sorted((ends[0], ends[2]))
        bar = f'<line x1="{x(low)}" y1="{middle}" x2="{x(high)}" y2="{middle}" stroke="var(--{color})" '
        parts.append(bar + 'stroke-width="6" opacity=".5"/>')
        if not math.isnan(ends[1]):
            at = min(max(x(ends[1]), 7.0), width - 7.0)  # an infinite one is at the edge
            parts.append(f'<circle cx="{at}" cy="{middle}" r="6" fill="var(--{color})"/>')
    offset = finding.comparison.value if finding.comparison.fixed else 0.0
    for at, anchor, value in ((0, "start", -reach), (width / 2, "middle", 0.0), (width, "end", reach)):
        words = compact(float(f"{offset + sign * value:.3g}")).replace("-", "−")
        parts.append(f'<text x="{at:g}" y="{height + 11}" text-anchor="{anchor}" font-size="11">{words}</text>')
    size = f'viewBox="0 0 {width} {height + 14}" style="width:{width}px;fill:var(--muted)" '
    opening = f'<svg role="img" aria-label="{label}" {size}'
    return opening + 'xmlns="http://www.w3.org/2000/svg">' + "".join(parts) + "</svg>"


def limits_of(finding: Finding) -> list[float]:
    """What has to be in the picture: the pairs, the interval where it is finite, and the band, unless that would hide
    the rest."""
    values = [value for value in finding.differences if math.isfinite(value)]
    reach = max(map(abs, values), default=0.0)
    ends = [end for end in (finding.estimate.low, finding.estimate.high) if math.isfinite(end) and abs(end) < 4 * reach]
    zone = min(finding.comparison.zone, 1.5 * reach) if reach else finding.comparison.zone
    return [*values, *ends, -zone, zone]


def lines(
    curves: Mapping[int, Sequence[tuple[Sequence[float], Sequence[float]]]],
    name: str,
    x_words: str,
    y_words: str,
    log: bool = False,
) -> str:
    """Curves of several arms: by arm (its place in the legend) those of its runs, drawn thin, and their mean.

    Runs of one arm have the same x, or as many points. Infinite values are gaps; `log`: the x axis is logarithmic.
    """
    with drawing():
        figure = Figure(figsize=(WIDTH / 72, 360 / 72))
        axes = figure.add_axes((0.085, 0.155, 0.895, 0.815))
        every = []
        for arm, runs in curves.items():
            color, dash = COLORS[f"run-{arm % RUN_COLORS}"], ("-", "--", ":")[arm // RUN_COLORS % 3]
            found = [(np.asarray(x, float), hidden(y)) for x, y in runs if len(x) and len(x) == len(y)]
            for x, y in found if len(found) > 1 else ():
                axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
            points = min((len(x) for x, _ in found), default=0)
            if points:
                ys = np.array([y[:points] for _, y in found])
                known = np.isfinite(ys)
                sums, counts = np.where(known, ys, 0.0).sum(0), known.sum(0)
                mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
                axes.plot(found[0][0][:points], mean, dash, color=color, linewidth=2, marker="o", markersize=4)
                every.append(mean[np.isfinite(mean)])
        joined = np.concatenate(every) if every else np.zeros(0)
        if joined.size > 3 and not log:  # the start of training is far above what is to be seen
            ceiling = max(float(np.percentile(joined, 80)), float(joined.min()) + 1e-9)
            spread = ceiling - float(joined.min())
            if float(joined.max()) > ceiling + 2 * spread:
                axes.set_ylim(float(joined.min()) - 0.08 * spread, ceiling + 0.5 * spread)
        if log:
            log_axis(
                axes, np.concatenate([np.asarray(x, float) for runs in curves.values() for x, _ in runs] or [joined])
            )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axes.set_xlabel(x_words)
        axes.set_ylabel(y_words)
        return to_svg(figure, name, f"{y_words} against {x_words}, by arm")


def hidden(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, float)
    return np.where(np.isfinite(found), found, np.nan)
