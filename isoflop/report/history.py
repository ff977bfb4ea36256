"""The events of a run in order, including every kill, resume and change of the number of processes."""

import contextlib
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

from isoflop.records import EventLine, SkipLine
from isoflop.report import words
from isoflop.report.facts import Facts
from isoflop.report.sections import decision_sentence
from isoflop.report.style import section, table
from isoflop.report.words import count, text

PROCESSES = ("processes", "hosts", "mode", "copies", "launch")  # fields on the processes that train from an event on
WORDED = ("event", "time", "step", "signal", "taken_again", *PROCESSES)  # fields with a wording of their own
BEGINS = ("started", "resumed")
ENDS = ("stopped", "abandoned", "failed", "diverged", "lost", "hung", "trained", "finished")
BAD_STEPS_SHOWN = 20
HANDLING = {
    "keep": "kept",
    "skip": "discarded",
    "rollback": "rolled back to the last checkpoint, the data skipped",
    "stop": "stopped",
}

Row = tuple[float, list[str]]


def history(facts: Facts) -> str:
    run = facts.run
    rows = [*events(run.events), *bad_steps(run.skips)]
    rows += [row(line.time, line.at_step, "decision", decision_sentence(line)) for line in run.decisions]
    rows.sort(key=lambda time_and_cells: time_and_cells[0])
    body = table(["time (UTC)", "step", "what", ""], [cells for _, cells in rows], {1}) if rows else ""
    return section("History", "" if rows else "No event has been logged yet.", body)


def row(time: float | None, step: float | None, event: str, details: str) -> Row:
    """A row of the table with the time to sort it by. `details` is HTML."""
    moment = f'<span class="n">{words.moment(time)}</span>'
    return time or 0.0, [moment, count(step), text(event), details]


def events(lines: Sequence[EventLine]) -> list[Row]:
    rows, running = [], False
    for event in lines:
        description = details(event)
        if event.event == "resumed" and running:
            description = f"after an end that was not logged (killed, or a power failure); {description}"
        running = event.event in BEGINS or (running and event.event not in ENDS)
        rows.append(row(event.time, event.step, event.event, description))
    return rows


def details(event: EventLine) -> str:
    """An event's fields other than its name, in words."""
    parts = [text(processes_in_words(event))] if event.processes is not None else []
    if again := event.taken_again:
        parts.append(f"{count(again)} step{'s' if again != 1 else ''} since the checkpoint repeated")
    if event.signal is not None:
        parts.append(f"by {text(signal_name(event.signal))}")

    for name, value in event.to_dict().items():
        if name in ("reason", "changed"):
            parts += [text(words.plain(item)) for item in (value if isinstance(value, list) else [value])]
        elif name == "seconds":
            parts.append(f"after {words.duration(event.seconds)} of training")
        elif name not in WORDED:
            parts.append(f"{text(name.replace('_', ' '))} {text(words.plain(value))}")
    return ", ".join(parts)


def signal_name(number: Any) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


def processes_in_words(event: EventLine) -> str:
    """The processes that train a run: "4 processes on 2 hosts, hsdp, 2 copies of the model"."""
    processes, hosts, copies = (value or 1 for value in (event.processes, event.hosts, event.copies))
    if processes == 1:
        return "1 process"
    on_hosts = f" on {count(hosts)} hosts" if hosts > 1 else ""
    of_model = f", {count(copies)} copies of the model" if event.mode == "hsdp" else ""
    return f"{count(processes)} processes{on_hosts}, {event.mode}{of_model}"


def bad_steps(lines: Sequence[SkipLine]) -> list[Row]:
    """Bad steps and how each was handled; of many, the first and the last, and a summary of those between."""
    half = BAD_STEPS_SHOWN // 2
    many = len(lines) > BAD_STEPS_SHOWN
    shown = [*lines[:half], *lines[-half:]] if many else lines
    rows = [row(line.time, line.step, "bad step", bad_step_sentence(line)) for line in shown]
    if many:
        between = lines[half:-half]
        actions = Counter(line.action for line in between)
        summary = "; ".join(f"{count(times)} {HANDLING.get(name, text(name))}" for name, times in actions.items())
        rows.append(row(between[0].time, between[0].step, f"{count(len(between))} more bad steps", summary))
    return rows


def bad_step_sentence(line: SkipLine) -> str:
    """The reason why a step was bad, and how it was handled."""
    tokens = f", {count(line.tokens)} tokens" if line.action in ("skip", "rollback") else ""
    return f"{text(line.reason)}: {HANDLING.get(line.action, text(line.action))}{tokens}"
