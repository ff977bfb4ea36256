"""A run folder: its file names, appending to its logs, and the lock for its one writer."""

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
from isoflop.records.lines import append_line, ends_with_newline, json_line, read_lines
from isoflop.records.logs import EventLine
from isoflop.records.record import Record

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # a temporary file of files.py, left by a killed process
Line = TypeVar("Line", bound=Record)

LOGS = ("metrics", "samples", "decisions", "skips", "events", "suites", "diagnostics")
# errors of flock: on a file system without locks, and while another process holds (or may hold) the lock
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
LOCK_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True)
class RunFolder:
    """The path of a run folder and the names in it.

    Attributes:
        is_writer: False if another process of the same run writes to the folder; then this one writes nothing.
    """

    path: Path
    is_writer: bool = True

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
        """Attempts that were abandoned for another plan, and the next one during its preparation (job/attempts.py)."""
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
        if not self.is_writer:
            return
        value = record.to_dict() if isinstance(record, Record) else record
        if append_line(self.log(name), value, open_nofollow, durable) and durable:
            sync_folder(self.path)

    def lines(self, name: str, kind: type[Line]) -> list[Line]:
        """The lines of a log as records of the class `kind`, see lines.read_lines."""
        return [kind.read(line) for line in read_lines(self.log(name))]

    def event(self, event: str, **details: Any) -> None:
        """Append a line to events.jsonl; `details` are fields of EventLine, written in the order given."""
        line = EventLine(event=event, time=time.time(), **details).written_as("event", "time", *details)
        self.append("events", line, durable=True)

    def drop_lines_after(self, step: int, drop_skips: bool = False) -> None:
        """Drop the lines of steps after `step` from the logs, because these steps are about to be repeated. Lines of
        rollbacks, whose data stay skipped, and replayed decisions are kept, unless `drop_skips`."""
        if not self.is_writer:
            return
        by_step = dict.fromkeys(("metrics", "samples", "skips", "suites", "diagnostics"), "step")
        for name, key in {**by_step, "decisions": "at_step"}.items():
            path = self.log(name)
            if path.exists():
                remaining = [
                    line
                    for line in read_lines(path)
                    if not is_after(line.get(key), step) or (concerns_later_steps(line) and not drop_skips)
                ]
                write_text(path, "".join(json_line(line) + "\n" for line in remaining))

    def sync_logs(self) -> None:
        """Wait until all lines appended so far, and the names of the logs, are on disk."""
        for name in ("metrics", "samples", "suites", "diagnostics"):  # the other logs are appended to durably
            with contextlib.suppress(FileNotFoundError), self.log(name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.path)

    def repair(self) -> None:
        """Remove an incomplete last line, which a power cut can leave, from every log, so that the next append starts a
        new line. Also removes temporary files."""
        if not self.is_writer:
            return
        for path in self.path.iterdir():
            if UNFINISHED.fullmatch(path.name) and not path.is_dir():
                path.unlink()
        for name in LOGS:
            path = self.log(name)
            if path.exists() and not ends_with_newline(path):
                content = path.read_bytes()
                write_text(path, content[: content.rfind(b"\n") + 1].decode("utf-8"))

    @contextlib.contextmanager
    def locked(self) -> Iterator["Lock"]:
        """Lock the folder for one writer. The operating system releases the lock when the process ends, so no lock is
        ever stale: a killed process leaves only its process id, in a file that is no longer locked.

        Raises:
            UserError: if another process holds it, or the file system has no locks.
        """
        if not self.is_writer:
            yield Lock(self.path)
            return

        make_folder(self.path)
        with open(self.path / ".lock", "a+", opener=open_nofollow) as file:
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
        leftovers = {".lock", *(path.name for path in (self.plan, self.environment, self.data, self.tokenizer))}
        leftovers.add(self.log("decisions").name)  # written first by a run with --like
        if self.path.is_dir() and any(
            p for p in self.path.iterdir() if p.name not in leftovers and not UNFINISHED.fullmatch(p.name)
        ):
            raise UserError(f"--out {self.path} is not empty and holds no run; name a new folder")

    def is_locked(self) -> bool:
        """Whether a process is training in this folder now."""
        try:
            with open(self.path / ".lock", opener=open_nofollow) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except OSError as error:
            return error.errno in LOCK_HELD


@dataclass(frozen=True)
class Lock:
    """The lock on a run folder, held while its file is open. `file` is None if another process of the run holds it."""

    path: Path
    file: IO[str] | None = None

    def check(self) -> None:
        """Check that the folder at the path is still the one that was locked: a disk can be unmounted, and a folder
        moved or replaced, during a run.

        Raises:
            UserError: if it is not.
        """
        if self.file is None:
            return
        locked = os.fstat(self.file.fileno())
        try:
            present = (self.path / ".lock").stat()
        except OSError:
            present = None
        if present is None or (present.st_dev, present.st_ino) != (locked.st_dev, locked.st_ino):
            raise UserError(
                f"the run folder {self.path} disappeared during the run (unmounted, moved or deleted); bring it back, "
                f"then: isoflop train --resume {quoted(self.path)}"
            )


def open_nofollow(name: str, flags: int) -> int:
    """An opener for files of a run folder that does not follow symbolic links, which may lead anywhere in an untrusted
    folder, and does not block on a pipe."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link and not a file", name) from None
        raise


def is_after(line_step: Any, step: int) -> bool:
    return isinstance(line_step, (int, float)) and line_step > step


def concerns_later_steps(line: Mapping[str, Any]) -> bool:
    """Whether a line also affects steps after its own: a rollback's, or a replayed decision."""
    return line.get("action") == "rollback" or line.get("replayed") is True


def lock(file: IO[str]) -> None:
    """Take the lock for writing. `is_locked` holds it for a moment, so this tries several times."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
