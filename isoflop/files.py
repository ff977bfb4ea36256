"""Writes files and folders atomically and durably; finds the folder of data that runs share."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from isoflop.errors import DiskError, UserError

NAME_HOME = "set ISOFLOP_HOME to a folder that can be written to"
QUIET_SECONDS, STALE_SECONDS = 600, 24 * 3600  # without a write, until a folder may and does count as abandoned


def home() -> Path:
    """The folder of prepared data, fits and the ledger of forecasts: `$ISOFLOP_HOME`, else the user's cache folder. If
    that is missing or cannot be written to, this user's folder among the temporary files."""
    chosen = os.environ.get("ISOFLOP_HOME")
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError:
            raise UserError(
                f"ISOFLOP_HOME={chosen} names a home folder that does not exist; write an absolute path"
            ) from None
    cache = user_cache()
    return cache if cache is not None and can_write(cache) else temporary_home()


def user_cache() -> Path | None:
    """The user's cache folder for isoflop; None for a user without a home, as in some containers."""
    try:
        return user_cache_path("isoflop", appauthor=False)
    except (RuntimeError, KeyError):
        return None


def can_write(folder: Path) -> bool:
    """Whether a folder can be written to, or created if it is missing."""
    try:
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError:  # no permission for a parent folder
        return False
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def temporary_home() -> Path:
    """A folder among the temporary files that belongs to this user only, the same in every process.

    Raises:
        UserError: if it cannot be created, or belongs to another user.
    """
    why = "no home folder can be written to"
    try:
        folder = Path(tempfile.gettempdir()) / f"isoflop-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise UserError(f"{why}, and no temporary one ({error.strerror or error}); {NAME_HOME}") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UserError(f"{why}, and other users can write to {folder} or own it; {NAME_HOME}")
    return folder


def home_note() -> str:
    """A note for the user if `home()` is not where it is expected, else ""."""
    if os.environ.get("ISOFLOP_HOME") or home() == user_cache():
        return ""
    why = "note: no home folder can be written to"
    return f"{why}: prepared data is kept in {home()}; set ISOFLOP_HOME to keep it elsewhere"


def spool() -> Path:
    """A folder for files that the writing process removes again; it is created if missing.

    Raises:
        UserError: if it cannot be written to.
    """
    folder = home() / "spool"
    if not can_write(folder):
        folder = temporary_home() / "spool"
    with disk_errors("temporary files", instead=NAME_HOME):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def to_json(value: Any) -> str:
    """JSON text that can be encoded in UTF-8: half of a surrogate pair, as in a name that is not UTF-8, becomes an
    escape."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="backslashreplace").decode() + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: a temporary file next to it, fsync, rename."""
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
    """A context that writes a folder atomically.

    Yields a temporary folder next to `final`; on a clean exit every file and folder in it is fsynced and it is renamed
    to `final` (which must not exist, or is replaced if empty). After an exception the temporary folder is deleted.
    """
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir()
    try:
        with locked(temporary):
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
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which the system releases when this process ends, if the file system supports locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def abandoned(folder: Path) -> bool:
    """Whether the process that wrote an unfinished folder has ended: its lock is free and it was not changed for some
    minutes (locks of other hosts may not be visible here), or, without locks, for a day."""
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
    """Create a folder and its missing parents durably, since a file is lost if the entry of its folder is lost."""
    missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename durable. On systems that cannot open a folder this does nothing."""
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
def disk_errors(what: str, then: str = "", instead: str = "name another folder") -> Iterator[None]:
    """Turn the error of a full, read-only or vanished disk into one line. A broken pipe is not an error of the disk.

    Args:
        then: the command to continue with when the disk is repaired; without it the message ends with `instead`.

    Raises:
        DiskError: naming `what` was being written and the system's reason.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = f"free some space or {instead}" if full else instead
        if then:
            way_out = f"{'free some space' if full else 'repair that'}, then: {then}"
        raise DiskError(f"{what} could not be written: {error.strerror or error}{place}; {way_out}") from error


def try_folder(folder: Path, what: str, instead: str = "name another folder") -> None:
    """Check that a folder can be created and written to; nothing of the check remains.

    Raises:
        DiskError: naming `what` it is for, and the system's reason.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with disk_errors(what, instead=instead):
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
