"""The profile of `isoflop train --profile` as a table and a flame graph."""

from collections.abc import Sequence

from isoflop.records.surroundings import Call
from isoflop.report.facts import Facts
from isoflop.report.style import section, table
from isoflop.report.words import count, duration, fixed, percent, text

ROWS = 16  # operations listed
WIDTH, LINE = 980, 19  # of the flame graph and of one line of it, in pixels
LETTER = 6.2  # width of a character of the labels, in pixels
COLORS = ("expected", "train", "heldout")  # of our functions and modules, of operations, of the backward pass


def profile(facts: Facts) -> str:
    recorded = facts.run.profile
    total, steps = recorded.microseconds, recorded.steps
    if not total or not steps:
        return ""

    step_ms = total / steps / 1e3
    rows = []
    for row in recorded.operations[:ROWS]:
        own, calls = row.microseconds, row.calls
        if own is not None and calls is not None:
            rows.append(
                [
                    f"<code>{text(row.name)}</code>",
                    count(calls / steps),
                    f"{fixed(own / steps / 1e3)} ms",
                    percent(own / total),
                ]
            )

    body = (
        f'<figure class="scroll">{flame(recorded.tree, total)}</figure>\n'
        "<h3>Operations, by their own time</h3>\n"
        + table(["operation", "calls per step", "per step", "share"], rows, {1, 2, 3})
        + '<p>All calls: <a href="profile/trace.json.gz">profile/trace.json.gz</a>, which ui.perfetto.dev and '
        "chrome://tracing open.</p>"
    )
    lead = (
        f"{count(steps)} steps from step {count(recorded.first_step)} on, {duration(step_ms / 1e3)} per step with the "
        "profiler, which itself takes time. Width is time; below each call are the calls that it made."
    )
    return section("Where the time goes", lead, body)


def flame(tree: Sequence[Call], total: float) -> str:
    """The tree of calls as an SVG: one rectangle per call, below its caller, with a width in proportion to its time."""
    cells: list[str] = []
    depth = draw(tree, 0.0, 0, WIDTH / total, total, cells)
    height = (depth + 1) * LINE
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="flame graph of a few steps" '
        f'style="font:11px ui-monospace,Menlo,Consolas,monospace">{"".join(cells)}</svg>'
    )


def draw(nodes: Sequence[Call], x: float, depth: int, scale: float, total: float, cells: list[str]) -> int:
    """Append the cells of sibling calls from `x` (pixels) on and of all calls below; return the greatest depth."""
    deepest = depth
    for node in nodes:
        microseconds, name = node.microseconds, node.name
        if microseconds is None:
            continue

        width, top = microseconds * scale, depth * LINE
        fits = int((width - 4) / LETTER)
        label = name if len(name) <= fits else name[: fits - 1] + "…" if fits > 3 else ""
        cells.append(
            f"<g><title>{text(name)}: {percent(microseconds / total)}</title>"
            f'<rect x="{x:.1f}" y="{top}" width="{max(width - 0.5, 0.2):.1f}" height="{LINE - 1}" '
            f'fill="var(--{color_of(name)})" fill-opacity=".28"/>'
            + (f'<text x="{x + 3:.1f}" y="{top + 13}" fill="var(--text)">{text(label)}</text>' if label else "")
            + "</g>"
        )
        deepest = max(deepest, draw(node.inside, x, depth + 1, scale, total, cells))
        x += width
    return deepest


def color_of(name: str) -> str:
    if "Backward" in name or "AccumulateGrad" in name or name.startswith("autograd::"):
        return COLORS[2]
    return COLORS[1] if "::" in name else COLORS[0]
