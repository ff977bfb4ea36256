"""The ledger, $ISOFLOP_HOME/ledger.jsonl: the forecast of each planned run, written before its first step, and the
outcome, written after its last.

Lines are only ever appended. A forecast has an `id`, and the outcome refers to it. Lines of earlier versions, written
at the end of a run, hold both and have no id. Several processes may write at once. A line that a power cut left
incomplete is skipped and counted when the ledger is read.
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
FINISHED, DIVERGED = "finished", "diverged"  # how a run ended; a run that did neither has no outcome


@dataclass(frozen=True, kw_only=True)
class LedgerForecast(Record):
    """A forecast, recorded before the first step of its run.

    Attributes:
        id: identifies the forecast; replaces: the id of the forecast that it replaces, if the run was restarted or
            extended.
        time: Unix seconds; run: the run folder.
        corpus: names of the sources; fingerprint: of the prepared data.
        budget: as on the command line.
        parameters, tokens, flops: N, D and 6ND, as planned; unique_tokens: tokens in the text.
        expected: the expected loss with its intervals.
        pilots: number of pilots that the forecast was made from.
        recipe: how the run's recipe differs from that of the prior's runs.
        plan, law: SHA-256 of the plan without this id, and of what the forecast was estimated from.
        version, commit, code: of isoflop: its version, the commit of a clone, and the SHA-256 of its source.
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
    """The outcome of a planned run.

    Attributes:
        kind: OUTCOME; forecast: the id of the forecast. Lines of earlier versions have neither.
        status: FINISHED or DIVERGED.
        run: the run folder; fingerprint: of its data; time: Unix seconds.
        tokens: read; flops: spent.
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
        forecasts: by id, in the order of the file.
        outcomes: in the order of the file.
        broken: number of lines that could not be read.
    """

    forecasts: dict[str, LedgerForecast]
    outcomes: list[LedgerLine]
    broken: int = 0


def append(path: Path, line: Record) -> None:
    """Append a line, durably: it is on disk when this returns. After an incomplete line it starts a new one.

    Raises:
        OSError: if it cannot be written; the file is then left as it was.
    """
    make_folder(path.parent)
    with path.open("ab+", buffering=0) as file:
        with contextlib.suppress(OSError):  # without locks (some file systems), a single write still keeps lines apart
            fcntl.flock(file, fcntl.LOCK_EX)

        # the previous line may be incomplete, after a power cut
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
    """Read everything in a ledger that can be read. A missing file is an empty ledger."""
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
