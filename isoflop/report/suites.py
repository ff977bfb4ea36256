"""What the model learned on the way: suites scored during training, by subset, and whole suites scored afterwards."""

from collections.abc import Sequence

from isoflop.records import Run, SuiteLine, SuiteScore
from isoflop.report import multiples
from isoflop.report.facts import Facts, column
from isoflop.report.style import section, table
from isoflop.report.words import MISSING, count, fixed, percent, text

LONGEST = 32  # letters of a subset's name that a panel has room for


def suites(facts: Facts) -> str:
    """The section; empty where nothing was scored."""
    run = facts.run
    parts = [*on_the_way(run), *afterwards(run.suites)]
    lead = "How often the model is right, where what is right is known. Bands and brackets hold 95 %."
    return section("What it learned", lead, "\n".join(parts)) if parts else ""


def on_the_way(run: Run) -> list[str]:
    """A figure for each suite that was scored during training."""
    drawn = []
    for index, name in enumerate(dict.fromkeys(line.suite for line in run.suite_lines)):
        lines = [line for line in run.suite_lines if line.suite == name and line.score is not None]
        subsets = list(dict.fromkeys(subset for line in lines for subset in line.subset_scores))
        if not lines:
            continue
        panels = [panel(lines, subset) for subset in subsets] or [panel(lines, "")]
        svg = multiples.over_tokens(panels, f"suite-{index}", f"Scores on {plain(name)} against tokens read")
        last = lines[-1]
        shares = last.chance is not None
        reached = f"{percent(last.score)} of {count(last.items)} items" if shares else f"{fixed(last.score)}"
        title = f"{text(name)}, by {text(last.metric)}: {reached} at the end"
        drawn.append(f'<figure><figcaption class="above">{title}</figcaption>{svg}</figure>')
    return drawn


def panel(lines: Sequence[SuiteLine], subset: str) -> multiples.Panel:
    """One subset, or the whole suite where there is none."""
    shown = [line for line in lines if not subset or subset in line.subset_scores]
    scores = [line.subset_scores[subset] if subset else line.score for line in shown]
    items = [line.subset_items.get(subset) if subset else line.items for line in shown]
    return multiples.Panel(
        plain(subset.replace("_", " ")),
        column(shown, "tokens"),
        [float("nan") if score is None else score for score in scores],
        [number or 0 for number in items],
        shown[-1].chance,
    )


def plain(name: str) -> str:
    """A name from a run as it may stand in a figure: short, and nothing but letters, digits and blanks."""
    return "".join(c for c in name[:LONGEST] if c.isalnum() or c in " -_")


def afterwards(found: Sequence[SuiteScore]) -> list[str]:
    """A table of the whole suites that `isoflop eval` scored."""
    if not found:
        return []
    rows = [
        [
            text(one.suite),
            f"<b>{shown(one.score, one)}</b> <small>{shown(one.low, one)} to {shown(one.high, one)}</small>",
            percent(one.chance),
            count(one.items),
            text(one.metric),
            "; ".join(
                f"{text(ref.model)} {shown(ref.score, one)}" for ref in one.references if ref.metric == one.metric
            )
            or MISSING,
        ]
        for one in found
    ]
    head = ["suite", "score", "chance", "items", "by", "published"]
    return ["<h3>Whole suites</h3>\n" + table(head, rows, {2, 3})]


def shown(value: float | None, one: SuiteScore) -> str:
    return fixed(value) if one.chance is None else percent(value)
