"""The attempt that a run gave up: its plan was made in a bad moment, and the run began anew, once (job/attempts.py)."""

from isoflop.errors import UserError
from isoflop.records import Run, read_run
from isoflop.report import figures, words
from isoflop.report.facts import column
from isoflop.report.style import section, table
from isoflop.report.words import count, duration, fixed, text


def first_attempt(run: Run) -> str:
    """When and why the run began anew, what was planned differently, and the loss of the first attempt; empty for a run
    that did not."""
    event = next((event for event in run.events if event.event == "restarted"), None)
    if event is None:
        return ""
    said = f"This run began anew, once, after {duration(event.seconds)} of training; they count against its budget"
    said += f": {text(event.reason)}." if event.reason else "."
    try:
        first = read_run(run.folder.attempts / "1")
    except UserError:
        return section("Begun anew", f"{said} What the first attempt wrote is not there any more.", "")
    return section("Begun anew", said, differences(first, run) + losses(first))


def differences(first: Run, second: Run) -> str:
    """What the two attempts were planned as, where they differ, and how fast they ran."""
    planned = [{choice.name: choice.value for choice in run.plan.choices} for run in (first, second)]
    rows = [
        [text(name), *(f"<b>{text(words.plain(plan.get(name)))}</b>" for plan in planned)]
        for name in planned[1]
        if planned[0].get(name) != planned[1][name]
    ]
    expected = [run.plan.expected.bits_per_byte if run.plan.expected else None for run in (first, second)]
    if any(bits is not None for bits in expected):
        rows.append(["expected bits per byte", *(fixed(bits, 3) for bits in expected)])
    reached = [run.training[-1].tokens_per_second if run.training else None for run in (first, second)]
    rows.append(["tokens per second at its end", *(count(rate) for rate in reached)])
    steps = [run.training[-1].step if run.training else None for run in (first, second)]
    rows.append(["steps taken", *(count(number) for number in steps)])
    return table(["", "first attempt", "this run"], rows)


def losses(first: Run) -> str:
    """The training loss of the first attempt."""
    if len(first.training) < 2:
        return ""
    title = "Training loss of the first attempt"
    svg = figures.trace(
        column(first.training, "tokens"), column(first.training, "loss"), "attempt", f"{title} against tokens read"
    )
    return f'<div class="pair"><figure><figcaption class="above">{title}</figcaption>{svg}</figure></div>'
