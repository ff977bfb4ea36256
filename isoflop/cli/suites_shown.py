"""What `isoflop eval --suite` and `--stride` print."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop import job
from isoflop.errors import UserError
from isoflop.evaluate.compare import Compared
from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Scores
from isoflop.evaluate.statistics import Interval
from isoflop.files import to_json
from isoflop.job.suites import Scored
from isoflop.screen import Screen
from isoflop.terminal import listing

Print = Callable[[str], None]


def show(scored: Scored, width: int | None, show_line: Print) -> None:
    """A table of all suites by all runs; subsets, published figures and comparisons below it."""
    suites = next(iter(scored.runs.values()))
    runs = list(scored.runs)
    head = ["suite", *(["score"] if len(runs) == 1 else runs), "chance", "items", "by"]
    rows = [
        [
            one.asked.suite.name,
            *(shown(scored.runs[run][i].score(), one.metric) for run in runs),
            percent(one.asked.chance) if METRICS[one.metric].shares else "-",
            f"{len(one.asked.items):,}",
            one.metric,
        ]
        for i, one in enumerate(suites)
    ]
    lines = listing(head, rows, width)
    for i, one in enumerate(suites):
        lines += subsets(i, one, scored, width)
        lines += further(i, one, scored)
    lines += [told(one) for one in scored.compared]
    for line in [*lines, *scored.notes]:
        show_line(line)


def subsets(i: int, one: Scores, scored: Scored, width: int | None) -> list[str]:
    """A table of one suite's subsets."""
    if not one.asked.subsets:
        return []
    runs = list(scored.runs)
    head = [one.asked.suite.name, *(["score"] if len(runs) == 1 else runs), "items"]
    rows = [
        [name, *(shown(scored.runs[run][i].score(rows=at), one.metric) for run in runs), f"{len(at):,}"]
        for name, at in one.asked.subsets.items()
    ]
    return ["", *listing(head, rows, width)]


def further(i: int, one: Scores, scored: Scored) -> list[str]:
    """What else there is to say of a suite: other metrics, contexts that were cut, contamination, published figures."""
    lines, name = [], one.asked.suite.name
    for run, found in scored.runs.items():
        scores, whose = found[i], f"{run}: " if len(scored.runs) > 1 else ""
        others = [
            f"{metric} {shown(scores.score(metric), metric)}" for metric in scores.values if metric != scores.metric
        ]
        if others:
            lines.append(f"{name}: {whose}{', '.join(others)}")
        if scores.cut:
            lines.append(
                f"{name}: {whose}{scores.cut:,} items are longer than the model's context; read from their end"
            )
        lines += [f"{name}: {whose}{text}" for text in contamination(scores)]
    for published in one.asked.suite.reference:
        metric = published.metric or one.metric
        value = percent(published.score) if METRICS[metric].shares else f"{published.score:,.2f}"
        note = f"; {published.note}" if published.note else ""
        lines.append(f"{name}: published: {published.model} {value} by {metric} ({published.source}{note})")
    return ["", *lines] if lines else []


def contamination(scores: Scores) -> list[str]:
    """How many items stand in the training text, and the score without them."""
    said = scores.to_dict().get("contamination")
    if said is None:
        return []
    count = len(scores.asked.items)
    text = f"{said['overlapping']:,} of {count:,} items share 13 words in a row with the training text"
    if said["without"] is not None and said["overlapping"]:
        rest: dict[str, Any] = said["without"]
        without = Interval(rest["score"], rest["low"], rest["high"])
        text += f"; {shown(without, scores.metric)} without them"
    short = f"; {said['too_short']:,} are too short to say" if said["too_short"] else ""
    return [text + short]


def told(one: Compared) -> str:
    """A comparison as a sentence."""
    value = one.found.difference
    shares = METRICS[one.metric].shares
    if not one.better:
        return f"{one.suite}: {one.first} and {one.second} are alike"
    worse = one.first if one.better == one.second else one.second
    low, high = sorted(abs(end) if end * value.value > 0 else -abs(end) for end in (value.low, value.high))
    by = (
        f"by {100 * abs(value.value):.1f} points ({100 * low:.1f} to {100 * high:.1f})"
        if shares
        else f"by {abs(value.value):.3f} nats per item ({low:.3f} to {high:.3f})"
    )
    alone = ""
    if shares:
        right, wrong = (
            (one.only_second, one.only_first) if one.better == one.second else (one.only_first, one.only_second)
        )
        alone = f", alone right on {right:,} items against {wrong:,}"
    verdict = "a real difference" if one.real else "not shown to be real"
    test = f"p = {one.found.p:.2g}, {one.found.test}"
    return f"{one.suite}: {one.better} is better than {worse} {by}{alone}; {test}: {verdict}"


def shown(interval: Interval, metric: str) -> str:
    """A score with its interval, shares in per cent."""
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
    json: bool,
    unused: Mapping[str, Any],
) -> None:
    """`isoflop eval RUN [RUN ...] --suite NAME`.

    Args:
        unused: options that say how text is read, by name.
    """
    refuse(unused, "--suite")
    screen = Screen(is_result=True)
    tell = screen.say if screen.live_bars else None
    scored = job.score(runs, split_names(suites), items=items, limit=limit, contamination=contamination, say=tell)
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
    json: bool,
    unused: Mapping[str, Any],
) -> None:
    """`isoflop eval RUN [SOURCE ...] --stride N`."""
    refuse(unused, "--stride")
    found = job.perplexity(run, sources, stride, text_column=text_column, set=set).to_dict()
    if json:
        print(to_json(found), end="")
        return
    for name, value in found.items():
        print(f"{name:>15}  {value:,.4f}" if isinstance(value, float) else f"{name:>15}  {value:,}")


def refuse(given: Mapping[str, Any], option: str) -> None:
    """Raises UserError, naming the first option that was given and that goes with no `option`."""
    for name, value in given.items():
        if value:
            raise UserError(f"{name} does not go with {option}; leave one of them out")


def split_names(values: Sequence[str]) -> list[str]:
    """Names that were given one by one or with commas between them."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
