"""The machine's peak FLOP/s, timed once and cached in $ISOFLOP_HOME, so that later runs start a second sooner.

Utilisation is reported relative to it, and it gives a rough estimate of the compute of a budget in seconds. A peak that
was timed while another program was running is used but not cached. If real steps exceed the peak, it is raised to what
they reached.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop import files, processors
from isoflop.config import load_json
from isoflop.errors import UserError
from isoflop.processors import Load, Reading, busy_now, load_now
from isoflop.runtime import describe_machine, measure_peak

FILE = "peak.json"
DAYS = 7.0  # after which it is timed again, in case the machine has changed


def machine_peak(device: str, read: Callable[[], Reading] = processors.read) -> dict[str, float]:
    """`measure_peak(device)`, or its cached result on this machine, with these versions, at most DAYS old.

    If another program used the processors during the measurement and no longer does, the peak is measured once more.

    Args:
        read: reads the system's counters.
    """
    known = remembered(files.home() / FILE)
    machine = describe_machine(device)
    for entry in known:
        if entry.get("machine") == machine and 0 <= time.time() - entry["time"] < 86_400 * DAYS:
            return dict(entry["peak"])

    peak, trouble = watched(device, read)
    if trouble and not busy_now(load_now()):
        again, trouble = watched(device, read)
        peak = {dtype: max(reached, again[dtype]) for dtype, reached in peak.items()}
    if not trouble:
        store(machine, peak)
    return peak


def watched(device: str, read: Callable[[], Reading]) -> tuple[dict[str, float], str]:
    """The peak as measured now, and what kept this process from the processors during the measurement."""
    before = read()
    peak = measure_peak(device)
    return peak, Load.between(before, read()).trouble(computing=device == "cpu")


def raised(device: str, peak: dict[str, float], dtype: str, reached: float) -> dict[str, float]:
    """`peak`, raised to the FLOP/s that real steps reached in a dtype; raises the cached entries of this machine
    too."""
    if not 0 < peak.get(dtype, 0.0) < reached:
        return peak
    here = {**describe_machine(device), "threads": None}  # the steps may use another number than the measurement did
    for entry in remembered(files.home() / FILE):
        machine = entry.get("machine")
        if not isinstance(machine, dict) or {**machine, "threads": None} != here:
            continue
        if entry["peak"].get(dtype, reached) < reached:
            store(machine, {**entry["peak"], dtype: reached})
    return {**peak, dtype: reached}


def store(machine: dict[str, Any], peak: dict[str, float]) -> None:
    path = files.home() / FILE
    others = [entry for entry in remembered(path) if entry.get("machine") != machine]
    with contextlib.suppress(OSError):  # if it cannot be written, it is timed again the next time
        files.write_json(path, [*others, {"machine": machine, "time": time.time(), "peak": peak}])


def remembered(path: Path) -> list[dict[str, Any]]:
    """The cached entries; none if the file is damaged or has another form."""
    try:
        known = load_json(path)
    except UserError:
        return []
    return [entry for entry in known if is_entry(entry)] if isinstance(known, list) else []


def is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("time"), (int, float)) and is_peak(entry.get("peak"))


def is_peak(value: Any) -> bool:
    """Whether a JSON value has the form of `measure_peak`'s result."""
    return isinstance(value, dict) and bool(value) and all(type(v) in (int, float) and v > 0 for v in value.values())
