"""The run folder: what its files are called, adding to them, and reading a finished or a running run back.

    RUN/
      config.json       the resolved RunConfig; runs again with `isoflop train --config`
      environment.json  machine, versions, threads, measured peak
      plan.json         what was planned and why, and the loss expected
      data.json         the data's account: documents, duplicates, skipped, tokens by source
      tokenizer.json
      metrics.jsonl     one JSON object a line; training lines have `step` and `loss`, held-out lines `heldout_loss`
      samples.jsonl     text written by the model along the way
      decisions.jsonl   what the clock decided, each written before it took effect; replayed by --resume
      skips.jsonl       steps whose numbers went wrong and what was done, written before it was done; replayed likewise
      events.jsonl      started, resumed, stopped, finished, with the wall-clock time and how many processes there are
      result.json       what the finished run reached
      checkpoints/step-00001000/
      profile/          with --profile: where the time of a few steps went (trainer/profile.py)
      report.html

This module is the only way to read a run; nothing else parses these files.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from isoflop.config import load_json
from isoflop.errors import UserError
from isoflop.files import make_folder, sync_folder, write_text
from isoflop.untrusted import LARGEST_LOG, parse_json, read_bytes

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # what files.py leaves when it is killed
LOGS = ("metrics", "samples", "decisions", "skips", "events")
# what flock says where the file system has no locks
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # and where somebody has it, or may have


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the names in it.

    Attributes:
        mine: False where another process of the same run writes here: what this one would write is left out.
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
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def log(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def append(self, name: str, record: dict[str, Any], durable: bool = False) -> None:
        """Add one line to a log, flushed to the system; `durable` waits for the disk too. A line that the disk had no
        room for leaves nothing behind."""
        if not self.mine:
            return
        line = json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
        with open(self.log(name), "ab", buffering=0, opener=itself) as file:
            end = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.log(name)))
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
            if durable:
                os.fsync(file.fileno())
        if durable and not end:
            sync_folder(self.path)

    def event(self, what: str, **details: Any) -> None:
        self.append("events", {"event": what, "time": time.time(), **details}, durable=True)

    def forget_after(self, step: int, skips: bool = False) -> None:
        """Drop the lines of steps after `step` from the logs: they are about to be made again. What a rollback passes
        over stays so, unless `skips` forgets that as well."""
        if not self.mine:
            return
        for name, key in (("metrics", "step"), ("samples", "step"), ("decisions", "at_step"), ("skips", "step")):
            path = self.log(name)
            if path.exists():
                kept = [
                    line
                    for line in read_lines(path)
                    if not after(line.get(key), step) or (line.get("action") == "rollback" and not skips)
                ]
                write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def settle(self) -> None:
        """Wait until the disk has every line that was added so far, and the names of the logs."""
        for name in ("metrics", "samples"):  # to the others each line is added durably
            with contextlib.suppress(FileNotFoundError), self.log(name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self.path)

    def mend(self) -> None:
        """Take a torn last line, which a power cut can leave, off every log, so that the next one begins a line; and
        remove what is left of files that were being written."""
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
        """Hold the folder for one writer. The system drops the lock with the process, so none can be stale: what a
        killed process left is only its number, in a file that nobody holds.

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
        """Refuse a folder that cannot take a new run. What a kill left before config.json was written is no hindrance.

        Raises:
            UserError: if it is a file, holds a run, or holds anything that is not a run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        if self.config.exists():
            raise UserError(
                f"--out {self.path} holds another run; name another folder, or go on with that run: "
                f"isoflop train --resume {self.path}"
            )
        first = {".lock", self.plan.name, self.environment.name, self.data.name, self.tokenizer.name}
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
    """The lock on a run's folder, for as long as its file is open; none where another process of the run holds it."""

    path: Path
    file: IO[str] | None = None

    def check(self) -> None:
        """Find out whether what lies at the folder's path is still what was locked: a mount can vanish, and a folder be
        moved or replaced, under a run that writes to it by name.

        Raises:
            UserError: if not.
        """
        if self.file is None:
            return
        held = os.fstat(self.file.fileno())
        try:
            there = (self.path / ".lock").stat()
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise UserError(
                f"the run folder {self.path} is gone from under the run (unmounted, moved or deleted); bring it back, "
                f"then: isoflop train --resume {self.path}"
            )


def itself(name: str, flags: int) -> int:
    """Opens a file of a run folder and no link in its place, which in a stranger's folder may lead anywhere; a pipe is
    not waited for."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link and not a file", name) from None
        raise


def ends_a_line(path: Path) -> bool:
    """Whether a file is empty or its last byte ends a line; a long log is not read for that."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def after(at: Any, step: int) -> bool:
    return isinstance(at, (int, float)) and at > step


def lock(file: IO[str]) -> None:
    """Lock for writing. Whoever only asks whether a run is locked (is_locked) holds it for a moment, so try again."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass(frozen=True)
class Run:
    """A run as read back. Missing files read as empty: a run that is still training has no result yet.

    Attributes:
        training: lines of metrics.jsonl with `step`, `loss` (what is trained on, nats per token), `lr`, `grad_norm`,
            `tokens` (so far), `seconds` (of training, time down left out), `tokens_per_second`, `flops` (6ND so far).
        heldout: lines with `step`, `tokens`, `seconds`, `heldout_loss` (plain cross-entropy, nats per
            token), `heldout_bits_per_byte`, and what the model's parts report, such as `load_entropy`.
        samples: lines with `step`, `prompt`, `text`.
        skips: lines with `step`, `kind` ("non-finite" or "spike"), `action` ("keep", "skip", "rollback", "stop"),
            `reason`, `loss` and `grad_norm` (null where not finite), `tokens` left out or passed over; with a rollback
            also the range of sequences passed over (data/gaps.py), `first` and `sequences`.
        profile: where the time of a few steps went (trainer/profile.py), if the run was watched.
        status: "running", "finished", "stopped", "imported" for weights that came from elsewhere, or "damaged".
    """

    folder: RunFolder
    config: dict[str, Any]
    environment: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]
    result: dict[str, Any]
    training: list[dict[str, Any]] = field(repr=False)
    heldout: list[dict[str, Any]] = field(repr=False)
    samples: list[dict[str, Any]] = field(repr=False)
    decisions: list[dict[str, Any]] = field(repr=False)
    skips: list[dict[str, Any]] = field(repr=False)
    events: list[dict[str, Any]] = field(repr=False)
    status: str = "stopped"
    profile: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name


def read_run(path: Path | str) -> Run:
    """Read a run folder, finished or running.

    Raises:
        UserError: if there is no run in `path`.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise UserError(
            f"{path} holds no run: there is no config.json in it; `isoflop runs` lists the runs of a folder"
        )
    logs = {name: read_lines(folder.log(name)) for name in LOGS}
    result, plan = read_object(folder.result), read_object(folder.plan)
    imported = plan.get("kind") == "imported"
    status = "running" if folder.is_locked() else "finished" if result else "imported" if imported else "stopped"
    return Run(
        folder=folder,
        config=read_object(folder.config),
        environment=read_object(folder.environment),
        plan=plan,
        data=read_object(folder.data),
        result=result,
        training=[line for line in logs["metrics"] if "loss" in line],
        heldout=[line for line in logs["metrics"] if "heldout_loss" in line],
        samples=logs["samples"],
        decisions=logs["decisions"],
        skips=logs["skips"],
        events=logs["events"],
        status=status,
        profile=read_object(folder.profile / "profile.json"),
    )


def find_runs(path: Path | str) -> list[Run]:
    """Every run at or below `path`, up to two folders deep, in order of name."""
    top = Path(path)
    if not top.is_dir():
        raise UserError(f"{path} is not a folder; name the folder that holds your runs, as in `isoflop runs runs`")
    found = sorted({p.parent for depth in ("", "*/", "*/*/") for p in top.glob(f"{depth}config.json")})
    return [read_or_say(folder) for folder in found if (folder / "environment.json").is_file()]


def read_or_say(path: Path) -> Run:
    """A run, or one of the status "damaged" where its files cannot be read: one of many must not hide the others."""
    try:
        return read_run(path)
    except UserError:
        return Run(RunFolder(path), {}, {}, {}, {}, {}, [], [], [], [], [], [], status="damaged")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. A torn last line, which a kill can leave, is passed over.

    Raises:
        UserError: for a broken line that is not the last.
    """
    if not path.exists():
        return []
    lines = read_bytes(path, LARGEST_LOG).split(b"\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, f"{path} line {number}")
            if not isinstance(record, dict):
                raise UserError(f"{path} line {number} is no JSON object")
            records.append(record)
        except UserError as error:
            if number < len(lines) - 1:
                raise UserError(f"{error}; the file was changed by hand or damaged: take that line out of it") from None
    return records


def read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = load_json(path)
    return value if isinstance(value, dict) else {}
