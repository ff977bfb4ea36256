"""The machine's peak, timed once and remembered: a second that a run's second start need not wait for."""

import contextlib
import time
from pathlib import Path
from typing import Any

from isoflop import files
from isoflop.config import load_json
from isoflop.errors import UserError
from isoflop.runtime import describe_machine, measure_peak

FILE = "peak.json"
DAYS = 7.0  # after which it is timed anew, in case the machine was busy then or has changed since


def machine_peak(device: str) -> dict[str, float]:
    """`measure_peak(device)`, or what it gave on this machine, with these versions, no more than DAYS ago.

    It is the ceiling that shares of the peak are shown against. A plan's own estimate times real steps at every start.
    """
    machine, path = describe_machine(device), files.home() / FILE
    known = read(path)
    for entry in known:
        if entry.get("machine") == machine and 0 <= time.time() - entry["time"] < 86_400 * DAYS:
            return dict(entry["peak"])
    peak = measure_peak(device)
    others = [entry for entry in known if entry.get("machine") != machine]
    with contextlib.suppress(OSError):  # then it is timed again the next time
        files.write_json(path, [*others, {"machine": machine, "time": time.time(), "peak": peak}])
    return peak


def read(path: Path) -> list[dict[str, Any]]:
    """What is remembered, entry by entry; a file that is damaged or of another form holds nothing."""
    try:
        known = load_json(path)
    except UserError:
        return []
    return [entry for entry in known if is_entry(entry)] if isinstance(known, list) else []


def is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("time"), (int, float)) and is_peak(entry.get("peak"))


def is_peak(value: Any) -> bool:
    """Whether a JSON value is what `measure_peak` gives."""
    return isinstance(value, dict) and bool(value) and all(type(v) in (int, float) and v > 0 for v in value.values())
