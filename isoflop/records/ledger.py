"""The ledger, $ISOFLOP_HOME/ledger.jsonl: what was expected of each planned run, written before its first step, and
what it reached, written after its last one.

Lines are only ever added. A line of a forecast has a name (`id`) of its own; a line of an outcome names it. Lines of
earlier versions, written at the end of a run, hold both and no name. Several processes may write at once, and a line
that was torn by a power cut is passed over and counted by who reads.
"""

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.files import make_folder, sync_folder
from isoflop.records.lines import json_line
from isoflop.records.plan import Expectation, TextPredictability
from isoflop.records.record import Record, rare
from isoflop.untrusted import LARGEST_LOG, parse_json, read_bytes

FORECAST, OUTCOME = "forecast", "outcome"
FINISHED, DIVERGED = "finished", "diverged"  # how a run ended; one that did neither has no outcome


@dataclass(frozen=True, kw_only=True)
class LedgerForecast(Record):
    """A forecast, before the first step that it is about.

    Attributes:
        id: its name; replaces: that of the forecast that it takes the place of, of a run that began anew or got more
            budget.
        time: Unix seconds; run: its folder.
        corpus: names of the sources; fingerprint: of the prepared data.
        budget: as the command line takes it.
        parameters, tokens, flops: N, D and 6ND, as planned; unique_tokens: that the text has.
        expected: with its intervals.
        pilots: how many runs on the same text it was made from.
        recipe: what the run does otherwise than those of the prior.
        plan, law: SHA-256 of the plan without this name, and of what the forecast was estimated from.
        version, commit, code: of isoflop; the commit where it runs from a clone, and the SHA-256 of its source.
    """

    kind: str = FORECAST
    id: str | None = None
    replaces: str | None = rare()
    time: float | None = None
    run: str | None = None
    corpus: str | None = None
    fingerprint: str | None = None
    predictability: TextPredictability | None = None
    budget: str | None = None
    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    unique_tokens: int | None = None
    seed: int | None = None
    expected: Expectation | None = None
    pilots: int | None = None
    recipe: tuple[str, ...] | None = rare()
    plan: str | None = None
    law: str | None = None
    version: str | None = None
    commit: str | None = None
    code: str | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerLine(Record):
    """What became of a planned run.

    Attributes:
        kind: OUTCOME; forecast: the name of the forecast; both missing in lines of earlier versions.
        status: FINISHED or DIVERGED.
        run: its folder; fingerprint: of its data; time: Unix seconds.
        tokens, flops: that were read and spent.
    """

    run: str | None = None
    time: float | None = None
    fingerprint: str | None = None
    predictability: TextPredictability | None = None
    unique_tokens: int | None = None
    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seed: int | None = None
    expected: Expectation | None = None
    reached_bits_per_byte: float | None = None
    verdict: str | None = None
    kind: str | None = rare()
    forecast: str | None = rare()
    status: str | None = rare()


@dataclass(frozen=True)
class Ledger:
    """The lines of a ledger.

    Attributes:
        forecasts: by name, in the order in which they were made.
        outcomes: in the order in which they came.
        broken: lines that could not be read.
    """

    forecasts: dict[str, LedgerForecast]
    outcomes: list[LedgerLine]
    broken: int = 0


def append(path: Path, line: Record) -> None:
    """Add a line, whole and on the disk when this returns. After a line that was torn a new one begins.

    Raises:
        OSError: if it cannot be written; nothing of it is left then.
    """
    make_folder(path.parent)
    with path.open("ab+", buffering=0) as file:
        with contextlib.suppress(OSError):  # a file system without locks: a single write keeps lines apart
            fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        torn = False
        if end:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        content = (b"\n" if torn else b"") + json_line(line.to_dict()).encode("utf-8", "backslashreplace") + b"\n"
        try:
            written = file.write(content)
            if written is None or written < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
        os.fsync(file.fileno())
    if not end:
        sync_folder(path.parent)


def read_ledger(path: Path) -> Ledger:
    """Everything in a ledger that can be read; one that is not there is empty."""
    forecasts: dict[str, LedgerForecast] = {}
    outcomes: list[LedgerLine] = []
    broken = 0
    for raw in read_bytes(path, LARGEST_LOG).split(b"\n") if path.is_file() else ():
        if not raw.strip():
            continue
        try:
            value = parse_json(raw, str(path))
        except UserError:
            value = None
        if not isinstance(value, dict):
            broken += 1
        elif value.get("kind") == FORECAST:
            forecast = LedgerForecast.read(value)
            if forecast.id is None:
                broken += 1
            else:
                forecasts[forecast.id] = forecast
        else:
            outcomes.append(LedgerLine.read(value))
    return Ledger(forecasts, outcomes, broken)
