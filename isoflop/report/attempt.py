"""The abandoned first attempt of a run whose plan rested on wrong timings and was made again (job/attempts.py)."""

from isoflop.errors import UserError
from isoflop.records import Run, read_run
from isoflop.report import figures, words
from isoflop.report.facts import column
from isoflop.report.style import section, table
from isoflop.report.words import count, duration, fixed, text


def first_attempt(run: Run) -> str:
    """When and why the run was restarted, what the new plan changed, and the loss of the first attempt; empty for a run
    that was not restarted."""
    event = next((event for event in run.events if event.event == "restarted"), None)
    if event is None:
        return ""

    lead = f"This run was restarted after {duration(event.seconds)} of training, which count against its budget"
    lead += f": {text(event.reason)}." if event.reason else "."
    try:
        first = read_run(run.folder.attempts / "1")
    except UserError:
        return section("Restarted", f"{lead} The files of the first attempt do not exist any more.", "")
    return section("Restarted", lead, differences(first, run) + losses(first))


def differences(first: Run, second: Run) -> str:
    """The choices in which the two plans differ, and the speeds reached."""
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
