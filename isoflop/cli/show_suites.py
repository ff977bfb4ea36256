"""`isoflop eval --suite` and `--stride`: calls the job and prints scores and comparisons."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop import job
from isoflop.errors import UserError, quoted
from isoflop.evaluate.compare import Compared
from isoflop.evaluate.contamination import WORDS
from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Scores
from isoflop.evaluate.statistics import Interval
from isoflop.files import to_json
from isoflop.job.suites import Scored
from isoflop.screen import Screen
from isoflop.terminal import listing
from isoflop.values import are, counted

Print = Callable[[str], None]


def show(scored: Scored, width: int | None, show_line: Print) -> None:
    """Print a table of suites and runs, followed by subsets, details and comparisons.

    Args:
        width: columns of the terminal; None: unlimited.
    """
    suites = next(iter(scored.runs.values()))
    runs = list(scored.runs)
    head = ["suite", *(["score"] if len(runs) == 1 else runs), "chance", "items", "by"]
    rows = [
        [
            suite_scores.asked.suite.name,
            *(score_text(scored.runs[run][i].score(), suite_scores.metric) for run in runs),
            percent(suite_scores.asked.chance) if METRICS[suite_scores.metric].shares else "-",
            f"{len(suite_scores.asked.items):,}",
            suite_scores.metric,
        ]
        for i, suite_scores in enumerate(suites)
    ]

    lines = listing(head, rows, width)
    for i, suite_scores in enumerate(suites):
        lines += subset_table(i, suite_scores, scored, width)
        lines += details(i, suite_scores, scored)
    lines += [comparison_text(compared) for compared in scored.compared]
    for line in [*lines, *scored.notes]:
        show_line(line)


def subset_table(i: int, suite_scores: Scores, scored: Scored, width: int | None) -> list[str]:
    """A table of the subsets of suite number `i`."""
    if not suite_scores.asked.subsets:
        return []
    runs = list(scored.runs)
    head = [suite_scores.asked.suite.name, *(["score"] if len(runs) == 1 else runs), "items"]
    rows = [
        [
            name,
            *(score_text(scored.runs[run][i].score(rows=rows_of), suite_scores.metric) for run in runs),
            f"{len(rows_of):,}",
        ]
        for name, rows_of in suite_scores.asked.subsets.items()
    ]
    return ["", *listing(head, rows, width)]


def details(i: int, suite_scores: Scores, scored: Scored) -> list[str]:
    """Further lines about suite number `i`: other metrics, long items, contamination, published scores."""
    lines, name = [], suite_scores.asked.suite.name
    for run, all_scores in scored.runs.items():
        scores, prefix = all_scores[i], f"{run}: " if len(scored.runs) > 1 else ""
        others = [
            f"{metric} {score_text(scores.score(metric), metric)}"
            for metric in scores.values
            if metric != scores.metric
        ]
        if others:
            lines.append(f"{name}: {prefix}{', '.join(others)}")
        if scores.cut:
            longer = f"{counted(scores.cut, 'item')} {are(scores.cut)} longer than the model's context"
            lines.append(f"{name}: {prefix}{longer}, and only the end is read")
        lines += [f"{name}: {prefix}{text}" for text in contamination(scores)]
    for published in suite_scores.asked.suite.reference:
        metric = published.metric or suite_scores.metric
        value = percent(published.score) if METRICS[metric].shares else f"{published.score:,.2f}"
        note = f"; {published.note}" if published.note else ""
        lines.append(f"{name}: published: {published.model} {value} by {metric} ({published.source}{note})")
    return ["", *lines] if lines else []


def contamination(scores: Scores) -> list[str]:
    """A line about the items that occur in the training text, and the score without them; empty if unknown."""
    overlap = scores.to_dict().get("contamination")
    if overlap is None:
        return []
    count = len(scores.asked.items)
    share = "shares" if overlap["overlapping"] == 1 else "share"
    text = (
        f"{overlap['overlapping']:,} of {counted(count, 'item')} {share} {WORDS} words in a row with the training text"
    )
    if overlap["without"] is not None and overlap["overlapping"]:
        without_record: dict[str, Any] = overlap["without"]
        without = Interval(without_record["score"], without_record["low"], without_record["high"])
        text += f"; {score_text(without, scores.metric)} without them"
    short = f"; {overlap['too_short']:,} {are(overlap['too_short'])} too short to check" if overlap["too_short"] else ""
    return [text + short]


def comparison_text(compared: Compared) -> str:
    """A comparison as a sentence."""
    what, items = f"{compared.suite} by {compared.metric}", counted(compared.items, "item")
    test = f"p = {compared.measured.p:.2g}, {compared.measured.test}"
    alone = [compared.only_first, compared.only_second] if compared.only_first is not None else []
    if not compared.better:
        only = f", alone right on {' and '.join(f'{count:,}' for count in alone)}" if alone else ""
        names = f"{compared.first} and {compared.second}"
        return f"{what}: {names} differ by {margin(compared)} over {items}{only}; {test}: not shown to differ"

    worse = compared.first
    if compared.better == compared.first:
        worse = compared.second
    else:
        alone.reverse()
    only = f", alone right on {' against '.join(f'{count:,}' for count in alone)}" if alone else ""
    verdict = "a real difference" if compared.real else "not shown to be real"
    better = f"{compared.better} is better than {worse} by {margin(compared)}"
    return f"{what}: {better} over {items}{only}; {test}: {verdict}"


def margin(compared: Compared) -> str:
    """By how much the better one is better, with the interval."""
    value = compared.measured.difference
    ends = (value.low, value.high) if value.value > 0 or not compared.better else (-value.high, -value.low)
    if METRICS[compared.metric].shares:
        return f"{100 * abs(value.value):.1f} points ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return f"{abs(value.value):.3f} nats per item ({ends[0]:.3f} to {ends[1]:.3f})"


def score_text(interval: Interval, metric: str) -> str:
    """A score with its interval; shares in percent."""
    if METRICS[metric].shares:
        return f"{percent(interval.value)} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return f"{interval.value:,.2f} ({interval.low:,.2f} to {interval.high:,.2f})"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def evaluate_suites(
    runs: Sequence[Path | str],
    suites: Sequence[str],
    items: str,
    limit: int,
    contamination: bool,
    moved: Sequence[str],
    json: bool,
) -> None:
    """`isoflop eval RUN [RUN ...] --suite NAME`."""
    screen = Screen(is_result=True)
    say = screen.say if screen.live_bars else None
    names = split_names(suites)
    scored = job.score(runs, names, items=items, limit=limit, contamination=contamination, moved=moved, say=say)
    if json:
        print(to_json(scored.to_dict()), end="")
    else:
        show(scored, screen.width, print)


def evaluate_strided(
    run: Path | str,
    sources: Sequence[str],
    stride: int,
    text_column: str,
    set: Sequence[str],
    moved: Sequence[str],
    heldout: Sequence[str],
    json: bool,
) -> None:
    """`isoflop eval RUN [SOURCE ...] --stride N`."""
    measured = job.perplexity(
        run, sources, stride, text_column=text_column, set=set, moved=moved, heldout=heldout
    ).to_dict()
    if json:
        print(to_json(measured), end="")
        return
    for name, value in measured.items():
        print(f"{name:>15}  {value:,.4f}" if isinstance(value, float) else f"{name:>15}  {value:,}")


def refuse(options: Mapping[str, Any], option: str) -> None:
    """Raise UserError for the first of `options` that is set, since it does not go with `option`."""
    for name, value in options.items():
        if value:
            raise UserError(f"{name} does not go with {option}; leave one of them out")


def require_suite(options: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `options` that is set, since it needs a suite."""
    for name, value in options.items():
        if value:
            given = name if value is True else f"{name} {quoted(value)}"
            raise UserError(f"{name} goes with a suite; name one, as in: isoflop eval RUN --suite blimp {given}")


def split_names(values: Sequence[str]) -> list[str]:
    """Names given one by one or separated by commas."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
