"""The profile of `isoflop train --profile` as a table and a flame graph."""

from collections.abc import Sequence

from isoflop.records.surroundings import Call
from isoflop.report.facts import Facts
from isoflop.report.style import section, table
from isoflop.report.words import count, duration, fixed, percent, text

ROWS = 16  # operations listed
WIDTH, LINE = 980, 19  # of the flame graph, in pixels; a line holds one call
LETTER = 6.2  # width of a letter of the labels, in pixels
COLORS = ("expected", "train", "heldout")  # our functions and modules, operations, what autograd runs


def profile(facts: Facts) -> str:
    seen = facts.run.profile
    total, steps = seen.microseconds, seen.steps
    if not total or not steps:
        return ""
    step_ms = total / steps / 1e3
    rows = []
    for row in seen.operations[:ROWS]:
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
        f'<figure class="scroll">{flame(seen.tree, total)}</figure>\n'
        "<h3>Operations, by their own time</h3>\n"
        + table(["operation", "calls per step", "per step", "share"], rows, {1, 2, 3})
        + '<p>Every call: <a href="profile/trace.json.gz">profile/trace.json.gz</a>, which ui.perfetto.dev and '
        "chrome://tracing open.</p>"
    )
    lead = (
        f"{count(steps)} steps from step {count(seen.first_step)} on, {duration(step_ms / 1e3)} per step while "
        "profiled, which takes time itself. Width is time; the calls below a call happened inside it."
    )
    return section("Where the time goes", lead, body)


def flame(tree: Sequence[Call], total: float) -> str:
    """The tree of calls as an SVG: one rectangle per call, as wide as its time, below its caller."""
    cells: list[str] = []
    depth = draw(tree, 0.0, 0, WIDTH / total, total, cells)
    height = (depth + 1) * LINE
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="flame graph of a few steps" '
        f'style="font:11px ui-monospace,Menlo,Consolas,monospace">{"".join(cells)}</svg>'
    )


def draw(nodes: Sequence[Call], left: float, depth: int, scale: float, total: float, cells: list[str]) -> int:
    """Add the cells of siblings from `left` (pixels) on, and of all below them; return the greatest depth."""
    deepest = depth
    for node in nodes:
        took, name = node.microseconds, node.name
        if took is None:
            continue
        wide, top = took * scale, depth * LINE
        fits = int((wide - 4) / LETTER)
        label = name if len(name) <= fits else name[: fits - 1] + "…" if fits > 3 else ""
        cells.append(
            f"<g><title>{text(name)}: {percent(took / total)}</title>"
            f'<rect x="{left:.1f}" y="{top}" width="{max(wide - 0.5, 0.2):.1f}" height="{LINE - 1}" '
            f'fill="var(--{color_of(name)})" fill-opacity=".28"/>'
            + (f'<text x="{left + 3:.1f}" y="{top + 13}" fill="var(--text)">{text(label)}</text>' if label else "")
            + "</g>"
        )
        deepest = max(deepest, draw(node.inside, left, depth + 1, scale, total, cells))
        left += wide
    return deepest


def color_of(name: str) -> str:
    if "Backward" in name or "AccumulateGrad" in name or name.startswith("autograd::"):
        return COLORS[2]
    return COLORS[1] if "::" in name else COLORS[0]
