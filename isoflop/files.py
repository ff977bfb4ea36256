"""Writing so that nothing is ever half-written, and where isoflop keeps what runs share."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from isoflop.errors import UserError

QUIET_SECONDS, STALE_SECONDS = 600, 24 * 3600


def home() -> Path:
    """`$ISOFLOP_HOME`, or the user's cache folder: prepared data, fits and the ledger of predictions."""
    chosen = os.environ.get("ISOFLOP_HOME")
    return Path(chosen).expanduser() if chosen else user_cache_path("isoflop", appauthor=False)


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_json(value))


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder written whole or not at all.

    Yields a temporary folder beside `final`; on a clean exit every file and folder in it is fsynced and it is renamed
    to `final` (which must not exist, or is replaced if empty). After an exception nothing of it remains.
    """
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        with held(temporary):
            yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            elif path.is_file():
                sync_file(path)
        sync_folder(temporary)
        temporary.replace(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(final.parent)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that the system drops with this process, where the file system has such locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def abandoned(folder: Path) -> bool:
    """Whether whoever was writing an unfinished folder is gone: nobody holds it and it was not touched for some minutes
    (the lock of another host need not be seen here), or, where there are no such locks, for a day."""
    untouched = time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    if untouched < QUIET_SECONDS:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return untouched > STALE_SECONDS
    finally:
        os.close(descriptor)
    return True


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably: a file is lost with the folder that has its name."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename durable. Some systems cannot open a folder; there the rename itself has to do."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(what: str, then: str = "") -> Iterator[None]:
    """Turn a full, read-only or vanished disk into one line.

    Args:
        then: what goes on when the disk does, a command; without it the way out is another folder.

    Raises:
        UserError: naming `what` was being written and the system's reason.
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "free some space or name another folder" if full else "name another folder"
        if then:
            way_out = f"{'free some space' if full else 'mend that'}, then: {then}"
        raise UserError(f"{what} could not be written: {error.strerror or error}{place}; {way_out}") from error


def try_folder(folder: Path, what: str) -> None:
    """Find out whether a folder can be made and written to, and leave everything as it was.

    Raises:
        UserError: naming `what` it is for, and the system's reason.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(what):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / f".{secrets.token_hex(4)}.tmp"
            try:
                trial.write_bytes(b"isoflop")
            finally:
                trial.unlink(missing_ok=True)
        finally:
            for path in missing:  # deepest first
                with contextlib.suppress(OSError):
                    path.rmdir()
