"""Scores on suites: during training, by subset, and on whole suites afterwards."""

from collections.abc import Sequence

from isoflop.records import SuiteLine, SuiteScore
from isoflop.report import multiples
from isoflop.report.facts import Facts, column
from isoflop.report.style import section, table
from isoflop.report.words import MISSING, count, fixed, of_step, percent, text

LONGEST = 32  # characters of a subset's name that fit above a panel


def suites(facts: Facts) -> str:
    """The section; empty if nothing was scored."""
    run = facts.run
    parts = [*during_training(facts), *afterwards(run.suites, facts.reached.steps)]
    lead = "Scores on tasks with known answers. Bands and ranges are 95 % intervals."
    return section("Scores on suites", lead, "\n".join(parts)) if parts else ""


def during_training(facts: Facts) -> list[str]:
    """A figure for each suite that was scored during training."""
    run, drawn = facts.run, []
    for index, name in enumerate(dict.fromkeys(line.suite for line in run.suite_lines)):
        lines = [line for line in run.suite_lines if line.suite == name and line.score is not None]
        subsets = list(dict.fromkeys(subset for line in lines for subset in line.subset_scores))
        if not lines:
            continue

        panels = [panel(lines, subset) for subset in subsets] or [panel(lines, "")]
        svg = multiples.over_tokens(panels, f"suite-{index}", f"Scores on {plain(name)} against tokens read")
        last = lines[-1]
        is_share = last.chance is not None
        reached = f"{percent(last.score)} of {count(last.items)} items" if is_share else f"{fixed(last.score)}"
        title = f"{text(name)}, by {text(last.metric)}: {reached}{moment_of(last, facts)}"
        drawn.append(f'<figure><figcaption class="above">{title}</figcaption>{svg}</figure>')
    return drawn


def moment_of(line: SuiteLine, facts: Facts) -> str:
    """When a suite was scored during training: the last score is often of long before the end."""
    steps = facts.reached.steps
    if facts.finished and line.step is not None and line.step == steps:
        return " at the end"
    return of_step(line.step, steps) + (f", after {count(line.tokens)} tokens" if line.tokens is not None else "")


def panel(lines: Sequence[SuiteLine], subset: str) -> multiples.Panel:
    """The panel of one subset, or of the whole suite if `subset` is empty."""
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
    """A name from a run, safe in a figure: short, with letters, digits, spaces, "-" and "_" only."""
    return "".join(c for c in name[:LONGEST] if c.isalnum() or c in " -_")


def afterwards(scores: Sequence[SuiteScore], steps: float | None) -> list[str]:
    """A table of the whole suites that `isoflop eval` scored.

    Args:
        steps: of the run; a score of an earlier checkpoint says so.
    """
    if not scores:
        return []
    rows = [
        [
            text(score.suite) + of_step(score.step, steps),
            f"<b>{shown(score.score, score)}</b> "
            f"<small>{shown(score.low, score)} to {shown(score.high, score)}</small>",
            percent(score.chance),
            count(score.items),
            text(score.metric),
            "; ".join(
                f"{text(ref.model)} {shown(ref.score, score)}" for ref in score.references if ref.metric == score.metric
            )
            or MISSING,
        ]
        for score in scores
    ]
    head = ["suite", "score", "chance", "items", "metric", "published"]
    return ["<h3>Whole suites</h3>\n" + table(head, rows, {2, 3})]


def shown(value: float | None, score: SuiteScore) -> str:
    return fixed(value) if score.chance is None else percent(value)
