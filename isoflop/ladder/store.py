"""The folder of a ladder.

ladder.json     what was asked, the configuration that all sizes share, the rungs; fixed when it begins
runs.jsonl      one line per run
going/          runs that are being made
fit.json        the law, as `isoflop plan predict` reads it; the same as in $ISOFLOP_HOME/ladders
report.html     the page; isoflop.svg, frontier.svg, size.svg: its figures
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.config import from_dict, to_dict
from isoflop.errors import UserError
from isoflop.files import disk_errors, make_folder, write_json
from isoflop.ladder import runs
from isoflop.records import read_object
from isoflop.records.ladder import LadderRun, LadderRung
from isoflop.records.record import Record
from isoflop.trainer import RunConfig

FORMAT = "isoflop ladder 1"


@dataclass(frozen=True, kw_only=True)
class Begun(Record):
    """ladder.json.

    Attributes:
        sources, heldout, assignments, budget, targets: as they were asked for.
        config: what all sizes share: recipe, vocabulary, context, data, and the rates that those of a width come from.
        fingerprint: of the prepared data; text: a digest of the text before it is prepared.
        rungs: the sizes and lengths; seconds: that they were estimated to take.
        workers, threads: how runs are made.
    """

    format: str | None = FORMAT
    sources: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    budget: str | None = None
    targets: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    text: str | None = None
    rungs: tuple[LadderRung, ...] = ()
    seconds: float | None = None
    workers: int | None = None
    threads: int | None = None

    def base(self) -> RunConfig:
        return from_dict(RunConfig, self.config, "ladder.json: config")

    def with_base(self, config: RunConfig) -> "Begun":
        return self.updated(config=to_dict(config))


@dataclass(frozen=True)
class Folder:
    """A ladder's folder."""

    path: Path

    @property
    def fit(self) -> Path:
        return self.path / "fit.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def figure(self, name: str) -> Path:
        return self.path / f"{name}.svg"

    def begun(self) -> Begun | None:
        """What was begun here; None for a folder that is new.

        Raises:
            UserError: if the folder holds something else.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        found = read_object(self.path / "ladder.json")
        if found.get("format") == FORMAT:
            return Begun.read(found)
        if any(path.name not in (".lock", runs.RUNS) for path in self.path.iterdir()):
            raise UserError(f"--out {self.path} is not empty and holds no ladder; name a new folder")
        return None

    def begin(self, begun: Begun) -> None:
        with disk_errors(f"the ladder's folder {self.path}"):
            make_folder(self.path)
            (self.path / runs.RUNS).touch()  # with both it is known for a ladder's, which holds no text of the user
            write_json(self.path / "ladder.json", begun.to_dict())

    def rows(self) -> dict[str, LadderRun]:
        return runs.rows(self.path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for one process.

        Raises:
            UserError: if another one has it.
        """
        with disk_errors(f"--out {self.path}"):
            make_folder(self.path)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path} is in use by another process; wait for it or name another --out"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(descriptor)
