"""The folder of a run: the names in it, appending to its logs, and the lock of its one writer."""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from isoflop.errors import UserError, quoted
from isoflop.files import make_folder, sync_folder, write_text
from isoflop.records.lines import append_line, ends_a_line, json_line, read_lines
from isoflop.records.logs import EventLine
from isoflop.records.record import Record

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # a temporary file of files.py, left by a killed process
Line = TypeVar("Line", bound=Record)

LOGS = ("metrics", "samples", "decisions", "skips", "events", "suites", "diagnostics")
# errors of flock on a file system without locks
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # and if another process holds the lock, or may hold it


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the names in it.

    Attributes:
        mine: False if another process of the same run writes here: then this one writes nothing.
    """

    path: Path
    mine: bool = True

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def pieces(self) -> Path:
        return self.path / "heldout.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Attempts that were abandoned for another plan, and the next one while it is prepared (job/attempts.py)."""
        return self.path / "attempts"

    @property
    def card(self) -> Path:
        """A person's notes for the model card (records/suites.py)."""
        return self.path / "card.json"

    @property
    def suites(self) -> Path:
        """The run's scores on whole suites, one file each (records/suites.py)."""
        return self.path / "suites"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def log(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def append(self, name: str, record: Record | Mapping[str, Any], durable: bool = False) -> None:
        """Append one line to a log, see lines.append_line."""
        if not self.mine:
            return
        value = record.to_dict() if isinstance(record, Record) else record
        if append_line(self.log(name), value, itself, durable) and durable:
            sync_folder(self.path)

    def lines(self, name: str, kind: type[Line]) -> list[Line]:
        """A log as records of a class, see lines.read_lines."""
        return [kind.read(line) for line in read_lines(self.log(name))]

    def event(self, what: str, **details: Any) -> None:
        """Append a line to events.jsonl; `details` are fields of EventLine, written in their order."""
        line = EventLine(event=what, time=time.time(), **details).written_as("event", "time", *details)
        self.append("events", line, durable=True)

    def forget_after(self, step: int, skips: bool = False) -> None:
        """Drop the lines of steps after `step` from the logs: these steps are about to be repeated. Lines of rollbacks,
        whose data stay skipped, and replayed decisions are kept, unless `skips` drops these too."""
        if not self.mine:
            return
        by_step = dict.fromkeys(("metrics", "samples", "skips", "suites", "diagnostics"), "step")
        for name, key in {**by_step, "decisions": "at_step"}.items():
            path = self.log(name)
            if path.exists():
                kept = [
                    line for line in read_lines(path) if not after(line.get(key), step) or (stays(line) and not skips)
                ]
                write_text(path, "".join(json_line(line) + "\n" for line in kept))

    def settle(self) -> None:
        """Wait until every line that was appended so far, and the names of the logs, are on disk."""
        for name in ("metrics", "samples", "suites", "diagnostics"):  # lines of the others are appended durably
            with contextlib.suppress(FileNotFoundError), self.log(name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.path)

    def mend(self) -> None:
        """Remove an incomplete last line, which a power cut can leave, from every log, so that the next append starts
        on a new line; and remove temporary files."""
        if not self.mine:
            return
        for path in self.path.iterdir():
            if UNFINISHED.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        for name in LOGS:
            path = self.log(name)
            if path.exists() and not ends_a_line(path):
                whole = path.read_bytes()
                write_text(path, whole[: whole.rfind(b"\n") + 1].decode("utf-8"))

    @contextlib.contextmanager
    def locked(self) -> Iterator["Lock"]:
        """Lock the folder for one writer. The operating system releases the lock when the process ends, so no lock is
        stale: a killed process leaves only its number, in a file that is not locked.

        Raises:
            UserError: if another process holds it, or the file system has no locks.
        """
        if not self.mine:
            yield Lock(self.path)
            return
        make_folder(self.path)
        with open(self.path / ".lock", "a+", opener=itself) as file:
            try:
                lock(file)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    raise UserError(
                        f"{self.path} is on a file system without locks ({error.strerror}): two runs could write "
                        "there at once; mount it with flock, or name an --out on another disk"
                    ) from None
                file.seek(0)
                raise UserError(
                    f"{self.path} is in use by process {file.read().strip() or '?'}; wait for it or name another --out"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield Lock(self.path, file)

    def refuse_used(self) -> None:
        """Refuse a folder that cannot hold a new run. Files that a killed process left before it wrote config.json are
        accepted.

        Raises:
            UserError: if it is a file, holds a run, or holds anything else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        if self.config.exists():
            raise UserError(
                f"--out {self.path} holds another run; name another folder, or resume that run: "
                f"isoflop train --resume {quoted(self.path)}"
            )
        first = {".lock", *(path.name for path in (self.plan, self.environment, self.data, self.tokenizer))}
        first.add(self.log("decisions").name)  # of a run like another one
        if self.path.is_dir() and any(
            p for p in self.path.iterdir() if p.name not in first and not UNFINISHED.fullmatch(p.name)
        ):
            raise UserError(f"--out {self.path} is not empty and holds no run; name a new folder")

    def is_locked(self) -> bool:
        """Whether a process is training in this folder now."""
        try:
            with open(self.path / ".lock", opener=itself) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except OSError as error:
            return error.errno in HELD


@dataclass(frozen=True)
class Lock:
    """The lock on a run's folder, held while its file is open; no file if another process of the run holds it."""

    path: Path
    file: IO[str] | None = None

    def check(self) -> None:
        """Check that the folder at the path is still the one that was locked: a mount can vanish, and a folder can be
        moved or replaced during a run.

        Raises:
            UserError: if not.
        """
        if self.file is None:
            return
        held = os.fstat(self.file.fileno())
        try:
            current = (self.path / ".lock").stat()
        except OSError:
            current = None
        if current is None or (current.st_dev, current.st_ino) != (held.st_dev, held.st_ino):
            raise UserError(
                f"the run folder {self.path} is gone from under the run (unmounted, moved or deleted); bring it back, "
                f"then: isoflop train --resume {quoted(self.path)}"
            )


def itself(name: str, flags: int) -> int:
    """An opener of files in a run folder that does not follow links, which may lead anywhere in an untrusted folder,
    and does not wait for a pipe."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link and not a file", name) from None
        raise


def after(at: Any, step: int) -> bool:
    return isinstance(at, (int, float)) and at > step


def stays(line: Mapping[str, Any]) -> bool:
    """Whether a line concerns steps that may still come."""
    return line.get("action") == "rollback" or line.get("replayed") is True


def lock(file: IO[str]) -> None:
    """Lock for writing. is_locked holds the lock for a moment, so try several times."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
