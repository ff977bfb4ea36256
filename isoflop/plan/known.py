"""What was measured of this machine before, in quiet moments: timings.json in $ISOFLOP_HOME.

An entry is of one machine with its versions and of one shape with all that decides its speed. Nothing that was measured
next to another program is kept, and what a run contradicts is forgotten (job/start.py, job/job.py), so that the
next plan measures anew.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop import files
from isoflop.config import load_json, to_dict
from isoflop.errors import UserError
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig

FILE = "timings.json"
DAYS = 7.0  # after which a timing is taken anew, in case the machine has changed since
MOST = 500  # entries that are kept, the newest
PATHS = 1  # goes up where steps become faster or slower, so that what is known of before is timed again
DECIDE = ("task", "model", "loss", "batch", "optim", "runtime", "guard")  # fields of RunConfig that decide the speed


def fingerprint(device: str) -> str:
    """The machine and the versions, in words. The threads are the shape's."""
    described = {name: value for name, value in describe_machine(device).items() if name != "threads"}
    return f"paths {PATHS}, " + ", ".join(f"{name} {value}" for name, value in described.items())


def shape(config: RunConfig) -> str:
    """What of a configuration a person would call its shape."""
    return f"{config.model.layers} x {config.model.d_model}"


def key(config: RunConfig, data: str = "") -> str:
    """A digest of all that decides how fast a configuration trains. `data`: the fingerprint of what it is timed on."""
    plain = to_dict(config)
    decides = json.dumps([data, *(plain[name] for name in DECIDE)], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()[:16]


def recall(what: str, device: str, of: str) -> float | None:
    """What is known, if it is.

    Args:
        what: "tokens per second" or "threads".
        of: the key of what it was measured of.
    """
    machine = fingerprint(device)
    for entry in read(files.home() / FILE):
        same = (entry["what"], entry["machine"], entry["of"]) == (what, machine, of)
        if same and 0 <= time.time() - entry["time"] < 86_400 * DAYS:
            return float(entry["value"])
    return None


def remember(what: str, device: str, found: Mapping[str, tuple[str, float]]) -> None:
    """Keep what was measured: by key, the shape in words and the value."""
    machine, path, now = fingerprint(device), files.home() / FILE, time.time()
    new = [
        {"what": what, "machine": machine, "of": of, "shape": shape, "time": now, "value": value}
        for of, (shape, value) in found.items()
    ]
    others = [
        entry
        for entry in read(path)
        if not (entry["what"] == what and entry["machine"] == machine and entry["of"] in found)
    ]
    with contextlib.suppress(OSError):  # then it is timed again the next time
        files.write_json(path, [*others, *new][-MOST:])


def forget(device: str, of_shape: str = "") -> int:
    """Drop what is known of a shape on this machine, or of all shapes. Returns how many entries that were."""
    machine, path = fingerprint(device), files.home() / FILE
    known = read(path)
    kept = [entry for entry in known if entry["machine"] != machine or of_shape not in ("", entry["shape"])]
    if len(kept) < len(known):
        with contextlib.suppress(OSError):  # then they are as old as before
            files.write_json(path, kept)
    return len(known) - len(kept)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries; a file that is damaged or of another form has none."""
    try:
        known = load_json(path) if path.is_file() else []
    except UserError:
        return []
    return [entry for entry in known if is_entry(entry)] if isinstance(known, list) else []


def is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(name), str) for name in ("what", "machine", "of", "shape"))
        and all(type(entry.get(name)) in (int, float) for name in ("time", "value"))
        and 0 < entry["value"] < float("inf")
    )
