"""A cache of what was timed on this machine while it was idle: timings.json in $ISOFLOP_HOME.

An entry belongs to one machine with its versions and to one shape with all that determines its speed. A timing taken
while another program was running is not stored, and one that a run contradicts is dropped (job/start.py, job/job.py),
so that the next plan measures again.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop import files
from isoflop.config import load_json, to_key
from isoflop.errors import UserError
from isoflop.runtime import describe_machine
from isoflop.trainer import RunConfig

FILE = "timings.json"
DAYS = 7.0  # after which a timing is taken again, in case the machine has changed
MOST = 500  # the newest entries are kept
PATHS = 1  # increased when a change of the code makes steps faster or slower, so that shapes are timed again
DECIDE = ("task", "model", "loss", "batch", "optim", "runtime", "guard")  # fields of RunConfig that affect the speed


def fingerprint(device: str) -> str:
    """The machine and the versions as a string, without the threads, which belong to the shape."""
    described = {name: value for name, value in describe_machine(device).items() if name != "threads"}
    return f"paths {PATHS}, " + ", ".join(f"{name} {value}" for name, value in described.items())


def shape(config: RunConfig) -> str:
    """The shape of a configuration in words: layers x width."""
    return f"{config.model.layers} x {config.model.d_model}"


def key(config: RunConfig, data: str = "") -> str:
    """A hash of all that affects how fast a configuration trains. `data`: the fingerprint of the data it is timed
    on."""
    plain = to_key(config)
    decides = json.dumps([data, *(plain[name] for name in DECIDE), *growth(config)], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()[:16]


def growth(config: RunConfig) -> list[tuple[tuple[int, int], float]]:
    """Which share of the steps has which sequences and context; empty if all steps are alike."""
    if not config.batch.grows:
        return []
    return [(size, round(share, 2)) for size, share in config.sizes.shares(config.steps).items()]


def recall(what: str, device: str, of: str) -> float | None:
    """A cached value, or None.

    Args:
        what: "tokens per second" or "threads".
        of: the key of the configuration that was timed.
    """
    machine = fingerprint(device)
    for entry in read(files.home() / FILE):
        same = (entry["what"], entry["machine"], entry["of"]) == (what, machine, of)
        if same and 0 <= time.time() - entry["time"] < 86_400 * DAYS:
            return float(entry["value"])
    return None


def remember(what: str, device: str, measured: Mapping[str, tuple[str, float]]) -> None:
    """Store what was measured: by key, the shape in words and the value."""
    machine, path, now = fingerprint(device), files.home() / FILE, time.time()
    new = [
        {"what": what, "machine": machine, "of": of, "shape": shape, "time": now, "value": value}
        for of, (shape, value) in measured.items()
    ]
    others = [
        entry
        for entry in read(path)
        if not (entry["what"] == what and entry["machine"] == machine and entry["of"] in measured)
    ]
    with contextlib.suppress(OSError):  # if it cannot be written, it is timed again the next time
        files.write_json(path, [*others, *new][-MOST:])


def forget(device: str, of_shape: str = "") -> int:
    """Drop the entries of a shape on this machine, or of all shapes. Returns their number."""
    machine, path = fingerprint(device), files.home() / FILE
    known = read(path)
    kept = [entry for entry in known if entry["machine"] != machine or of_shape not in ("", entry["shape"])]
    if len(kept) < len(known):
        with contextlib.suppress(OSError):  # if it cannot be written, the entries stay
            files.write_json(path, kept)
    return len(known) - len(kept)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries; none if the file is damaged or has another form."""
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
