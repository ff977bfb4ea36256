"""The events of a run, in order, however often it was killed, resized and resumed."""

import contextlib
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

from isoflop.records import EventLine, SkipLine
from isoflop.report import words
from isoflop.report.facts import Facts
from isoflop.report.sections import tell
from isoflop.report.style import section, table
from isoflop.report.words import count, text

WORLD = ("processes", "hosts", "mode", "copies", "launch")  # of an event: the processes that train from there on
TOLD = ("event", "time", "step", "signal", "taken_again", *WORLD)  # fields with a wording of their own
BEGINS, ENDS = (
    ("started", "resumed"),
    ("stopped", "abandoned", "failed", "diverged", "lost", "hung", "trained", "finished"),
)
BAD_STEPS_SHOWN = 20
DONE = {
    "keep": "taken all the same",
    "skip": "left out",
    "rollback": "back to the last checkpoint, the data passed over",
    "stop": "stopped",
}

Row = tuple[float, list[str]]


def history(facts: Facts) -> str:
    run = facts.run
    rows = [*events(run.events), *bad_steps(run.skips)]
    rows += [row(line.time, line.at_step, "decision", tell(line)) for line in run.decisions]
    rows.sort(key=lambda one: one[0])
    body = table(["time (UTC)", "step", "what", ""], [cells for _, cells in rows], {1}) if rows else ""
    return section("History", "" if rows else "Nothing has been written down yet.", body)


def row(time: float | None, step: float | None, what: str, details: str) -> Row:
    moment = f'<span class="n">{words.moment(time)}</span>'
    return time or 0.0, [moment, count(step), text(what), details]


def events(lines: Sequence[EventLine]) -> list[Row]:
    rows, alive = [], False
    for event in lines:
        said = details(event)
        if event.event == "resumed" and alive:
            said = f"after an end that nobody wrote down (killed, or the power was cut); {said}"
        alive = event.event in BEGINS or (alive and event.event not in ENDS)
        rows.append(row(event.time, event.step, event.event, said))
    return rows


def details(event: EventLine) -> str:
    """An event's fields other than its name, in words where there are some."""
    said = [text(world(event))] if event.processes is not None else []
    if again := event.taken_again:
        said.append(f"{count(again)} step{'s' if again != 1 else ''} since the checkpoint taken again")
    if event.signal is not None:
        said.append(f"by {text(signal_name(event.signal))}")
    for name, value in event.to_dict().items():
        if name in ("reason", "changed"):
            said += [text(words.plain(one)) for one in (value if isinstance(value, list) else [value])]
        elif name == "seconds":
            said.append(f"after {words.duration(event.seconds)} of training")
        elif name not in TOLD:
            said.append(f"{text(name.replace('_', ' '))} {text(words.plain(value))}")
    return ", ".join(said)


def signal_name(number_: Any) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number_).name
    return str(number_)


def world(event: EventLine) -> str:
    """The processes that train a run, in words: "4 processes on 2 hosts, hsdp, 2 copies of the model"."""
    processes, hosts, copies = (value or 1 for value in (event.processes, event.hosts, event.copies))
    if processes == 1:
        return "1 process"
    where = f" on {count(hosts)} hosts" if hosts > 1 else ""
    whole = f", {count(copies)} copies of the model" if event.mode == "hsdp" else ""
    return f"{count(processes)} processes{where}, {event.mode}{whole}"


def bad_steps(lines: Sequence[SkipLine]) -> list[Row]:
    """Bad steps and how each was handled; of many, the first and the last, and the number of those between."""
    half = BAD_STEPS_SHOWN // 2
    many = len(lines) > BAD_STEPS_SHOWN
    shown = [*lines[:half], *lines[-half:]] if many else lines
    rows = [row(line.time, line.step, "bad step", told(line)) for line in shown]
    if many:
        between = lines[half:-half]
        kinds = Counter(line.action for line in between)
        said = "; ".join(f"{count(times)} {DONE.get(kind, text(kind))}" for kind, times in kinds.items())
        rows.append(row(between[0].time, between[0].step, f"{count(len(between))} more bad steps", said))
    return rows


def told(line: SkipLine) -> str:
    """A bad step and how it was handled."""
    tokens = f", {count(line.tokens)} tokens" if line.action in ("skip", "rollback") else ""
    return f"{text(line.reason)}: {DONE.get(line.action, text(line.action))}{tokens}"
