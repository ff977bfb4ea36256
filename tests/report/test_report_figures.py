"""Figures follow their arrays, accept NaN and empty arrays, and leave matplotlib's settings unchanged."""

import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from isoflop.report import figures, words
from isoflop.report.drawing import MOST_POINTS, smooth, thin
from isoflop.report.facts import last_of_plateau
from isoflop.report.figures import Interval, LossCurves, Mark


def learning(loss: np.ndarray, **options: object) -> tuple[str, int]:
    x = np.arange(loss.size) * 1000.0
    curves = LossCurves(x, loss, np.ones_like(loss), x[::10], loss[::10], **options)  # type: ignore[arg-type]
    return figures.loss_curves(curves)


def test_every_figure_is_xml_without_fixed_black_or_white() -> None:
    loss = 2 + 4 / (1 + np.arange(200) / 5)
    svg, above = learning(
        loss, bits_per_nat=0.5, expected=Interval(2.2, 2.0, 2.4), marks=[Mark(5e4, "decision 1", True)]
    )
    drawn = [
        svg,
        figures.verdict(1.9, Interval(1.95, 1.7, 2.2)),
        figures.verdict(None, Interval(1.95, 1.95, 1.95)),
        figures.trace(np.arange(50), np.ones(50), "speed", "speed"),
        figures.candidates([1e5, 3e5], [2.0, 1.9], ["2×64", "4×96"], 1),
        figures.compared([([0, 1, 2], [3, 2, 1])], "c", "FLOPs", True),
    ]
    for figure in drawn:
        root = ET.fromstring(figure)
        assert root.get("viewBox") and root.get("aria-label")
        assert "#000000" not in figure and "#ffffff" not in figure and "<style" not in figure
    assert 0 < above < 20  # the first fall is cut off, and counted
    assert "decision 1" in svg and "nats per token" in svg and "bits per byte" in svg


@pytest.mark.parametrize(
    "loss", [np.zeros(0), np.array([3.0]), np.full(30, np.nan), np.array([np.nan, 2.0, np.inf, 1.0])]
)
def test_figures_accept_little_or_broken_data(loss: np.ndarray) -> None:
    """Finite values are drawn inside the picture and nothing else is: no coordinate is NaN, no curve made up."""
    x = np.arange(loss.size) + 1.0
    figure_of = {
        "var(--heldout": figures.loss_curves(LossCurves(x, loss, np.ones_like(loss), x, loss))[0],
        "var(--train": figures.trace(x, loss, "t", "t"),
        "var(--run-0": figures.compared([(x, loss)], "c", "c", False),
    }
    on_a_log_axis = figures.compared([(x, loss)], "c", "c", True)
    for color, figure in [*figure_of.items(), ("var(--run-0", on_a_log_axis)]:
        width, height = (float(side) for side in str(ET.fromstring(figure).get("viewBox")).split()[2:])
        points = curve(figure, color)
        assert bool(points) == bool(np.isfinite(loss).any())
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)  # false for NaN


def curve(figure: str, color: str) -> list[tuple[float, float]]:
    """The points of the curves of a colour, in the order in which they are drawn."""
    points = []
    for path in (element for element in ET.fromstring(figure).iter() if element.tag.endswith("path")):
        if path.get("clip-path") and f"stroke: {color}" in path.get("style", ""):
            numbers = [float(word) for word in path.get("d", "").split() if word not in ("M", "L")]
            points += list(zip(numbers[::2], numbers[1::2], strict=True))
    return points


def test_labels_do_not_overlap() -> None:
    """Two rows; decisions have priority over starts, of which there are many."""
    marks = [Mark(5e4 + 10 * n, "resumed") for n in range(5)] + [Mark(5e4, "resumed"), Mark(5e4, "decay starts")]
    marks += [Mark(5.1e4, "decision 1", True), Mark(1e4, "resumed")]
    svg, _ = learning(np.linspace(4, 3, 100), marks=marks)
    labels = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert [labels.count(label) for label in ("decision 1", "decay starts", "resumed")] == [1, 1, 1]


def test_figures_follow_the_data() -> None:
    loss = np.linspace(4, 3, 100)
    assert learning(loss)[0] == learning(loss)[0]
    assert learning(loss)[0] != learning(loss + 0.1)[0]


def test_matplotlibs_settings_are_unchanged() -> None:
    with matplotlib.rc_context({"font.size": 31.0, "svg.hashsalt": "theirs"}):
        before = dict(matplotlib.rcParams)
        figures.verdict(1.0, Interval(1.0, 0.9, 1.1))
        assert dict(matplotlib.rcParams) == before


def test_smoothing_keeps_lines_and_leaves_gaps_out() -> None:
    line = np.linspace(0, 1, 500)
    assert np.allclose(smooth(line), line)
    noisy = line + np.random.default_rng(0).normal(0, 0.1, 500)
    assert np.std(smooth(noisy) - line) < 0.5 * 0.1
    gap = line.copy()
    gap[250] = np.nan
    assert np.isfinite(smooth(gap)).all()


def test_thinning_keeps_every_spike() -> None:
    values = np.zeros(100_000)
    values[[1234, 77_777]] = 9.0
    kept = thin(values)
    assert kept.size <= MOST_POINTS + 2
    assert {1234, 77_777} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_the_decay_begins_where_the_plateau_ends() -> None:
    steps = np.arange(100.0)
    wsd = np.minimum(1.0, np.minimum(steps / 10, (100 - steps) / 20))
    assert last_of_plateau(steps, wsd) == 80
    assert last_of_plateau(steps, np.cos(steps / 70)) is None  # no plateau
    assert last_of_plateau(steps[:60], wsd[:60]) is None  # not yet


@pytest.mark.parametrize(
    ("formatted", "wanted"),
    [
        (words.count(1234), "1,234"),
        (words.count(430_000), "0.43 M"),
        (words.count(1.24e9), "1.24 B"),
        (words.count(999_999_999), "1,000 M"),
        (words.count(None), "–"),
        (words.power(1.349e13), "1.35 × 10¹³"),
        (words.size(12_900_000), "12.9 MB"),
        (words.duration(181.2), "3 min 1 s"),
        (words.duration(59.97), "1 min"),
        (words.duration(0.0421), "0.0421 s"),
        (words.duration(7500), "2 h 05 min"),
        (words.duration(200_000), "2 d 7 h"),
        (words.change(181, 180), "+0.6 %"),
        (words.change(1.9, 2.0), "−5.0 %"),
        (words.change(1.0, 0.0), "–"),
        (words.rate(1.29e11), "129 GFLOP/s"),
        (words.article("8.1 M"), "an"),
        (words.article("11.2 M"), "an"),
        (words.article("110 M"), "a"),
        (words.text("<a\tb\r\n"), "&lt;a\tb␍\n"),
        (words.moment(0), "1970-01-01 00:00:00"),
        (words.moment("x"), "–"),
    ],
)
def test_numbers_are_formatted_readably(formatted: str, wanted: str) -> None:
    assert formatted == wanted
