"""Sources of text: parses the sources that the user names, and lists their files.

A source is written `[name=]PATH[@COLUMN][:WEIGHT]`. PATH is a file, a folder (all files below it, except those that
walk.py excludes), a glob, `-` for standard input, or `stdlib` for the running Python's own standard library (a folder
of that name is `./stdlib`). COLUMN is the column of its records that holds the text.
"""

import atexit
import contextlib
import fcntl
import glob
import hashlib
import math
import os
import re
import secrets
import stat
import sys
import sysconfig
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from isoflop import files
from isoflop.data.tally import Tally, because
from isoflop.data.walk import Walk, from_printable, link_reason, printable, size_below
from isoflop.errors import UserError

STDIN, STDLIB = "-", "stdlib"
LONGEST_SOURCE = 5000  # characters; no path has more than 4,096
NAME = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)=(.+)", re.DOTALL)
WEIGHT = re.compile(r"(.+):([+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|inf))", re.DOTALL)
COLUMN = re.compile(r"(.+)@([^@]+)", re.DOTALL)
WORDS = re.compile(r"[\w -]+")  # a likely name of a column, unlike the end of a path
STDLIB_ENDINGS = (".py", ".txt", ".rst")
STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class Source:
    """One part of the corpus.

    Attributes:
        pattern: the path, glob, `-` or `stdlib`.
        weight: its share of the training tokens (all shares add up to 1); None: in proportion to its size.
        column: the column of its records that holds the text; None: the one that `data.text_column` names.
    """

    name: str
    pattern: str
    weight: float | None = None
    column: str | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file to read. A file in an archive has the archive's path.

    Attributes:
        shown: its name for the user.
        identity: changes when its content does.
        within: the archive's name for the user; "": the file is not in an archive.
    """

    path: Path
    shown: str
    size: int
    identity: tuple[str, ...]
    within: str = ""


def parse_sources(texts: Sequence[str]) -> tuple[Source, ...]:
    """Parse sources as the user typed them. No source at all means the standard library.

    A path may contain `:`, `=` and `@`. Of the possible ways to parse a source the first whose path exists is used, the
    simplest first. If none exists, a leading `identifier=` is a name, a trailing `:NUMBER` a weight and `@words` before
    it a column.

    Raises:
        UserError: for a weight that is not positive, weights on some sources only, or a name given twice.
    """
    if not texts:
        return (Source(STDLIB, STDLIB),)
    names: set[str] = set()
    parsed = [split_source(text) for text in texts]
    for (name, *_), text in zip(parsed, texts, strict=True):
        if name and name in names:
            raise UserError(f"source {text!r} uses the name {name!r} a second time; give each source its own name")
        names.add(name)

    sources = []
    for name, pattern, weight, column in parsed:
        sources.append(Source(name or unused(name_of(pattern), names), pattern, weight, column))
        names.add(sources[-1].name)
    return normalise(sources)


def split_source(text: str) -> tuple[str, str, float | None, str | None]:
    """`books=PATH@body:0.6` -> ("books", "PATH", 0.6, "body"). Without a name it is "", weight and column are None."""
    if not text.strip():
        raise UserError("a source is empty; name a file, a folder, a glob or - for standard input")
    if len(text) > LONGEST_SOURCE:
        raise UserError(f"source {text!r} is longer than any path")

    named, weighted = NAME.fullmatch(text), WEIGHT.fullmatch(text)
    readings: list[tuple[str, str, str | None, str | None]] = [("", text, None, None)]
    if named:
        readings.append((named[1], named[2], None, None))
    if weighted:
        readings.append(("", weighted[1], weighted[2], None))
        if both := NAME.fullmatch(weighted[1]):
            readings.append((both[1], both[2], weighted[2], None))
    with_column = [
        (name, match[1], raw, match[2]) for name, path, raw, _ in readings if (match := COLUMN.fullmatch(path))
    ]
    readings += sorted(with_column, key=lambda reading: reading[2] is None)  # `@body:3` is a column and a weight

    likely = [reading for reading in readings if reading[3] is None or WORDS.fullmatch(reading[3])]
    most_parts = max(likely, key=lambda reading: sum(part not in ("", None) for part in reading))
    name, pattern, raw, column = next((r for r in readings if exists(r[1])), most_parts)
    weight = None if raw is None else float(raw)
    if weight is not None and not (math.isfinite(weight) and weight > 0):
        raise UserError(f"source {text!r} has the weight {raw}; a weight is a positive number, as in books=PATH:0.6")
    return name, pattern, weight, column


def normalise(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The same sources with weights that add up to 1, if they have weights.

    Raises:
        UserError: for weights on some sources only.
    """
    unweighted = [source.name for source in sources if source.weight is None]
    if len(unweighted) == len(sources):
        return tuple(sources)
    if unweighted:
        raise UserError(f"source {unweighted[0]} has no weight and others have one; give a weight to all or to none")
    total = sum(source.weight or 0.0 for source in sources)
    return tuple(replace(source, weight=(source.weight or 0.0) / total) for source in sources)


def exists(pattern: str) -> bool:
    if pattern in (STDIN, STDLIB) or os.path.lexists(expand(pattern)):
        return True
    return is_glob(pattern) and any(glob.iglob(expand(pattern), recursive=True))  # noqa: PTH207 - may be absolute


def denied(path: str) -> bool:
    """Whether a path cannot be looked up because a folder above it denies access."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def expand(pattern: str) -> str:
    try:
        return from_printable(str(Path(pattern).expanduser()))
    except (RuntimeError, ValueError):  # ~name of an unknown user, or without a name
        return pattern


def name_of(pattern: str) -> str:
    """A short name from a path: the file's up to its first dot, the folder's, or that of the fixed part of a glob."""
    if pattern == STDIN:
        return "stdin"
    fixed = Path(pattern)
    while is_glob(str(fixed)) and not os.path.lexists(fixed):
        fixed = fixed.parent
    stem = (fixed.name or fixed.resolve().name).lstrip(".").partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "text"


def unused(name: str, names: set[str]) -> str:
    """The name, with a number appended if it is in use."""
    numbered = (f"{name}-{number}" for number in range(2, len(names) + 3))
    return name if name not in names else next(n for n in numbered if n not in names)


def find_files(source: Source, tally: Tally | None = None, older: bool = False) -> list[SourceFile]:
    """The files of a source, in an order that depends on their names only.

    Args:
        tally: counts the files that are excluded or cannot be read.
        older: as before the second rule of splitting: links to folders are ignored and only hidden files are excluded,
            so that the data of an older run can be prepared again.

    Raises:
        UserError: for a path that does not exist, a glob without match, an empty folder; or (strict) for a file that
            cannot be read.
    """
    tally = Tally() if tally is None else tally
    if source.pattern == STDIN:
        return [spool(STDIN, sys.stdin.buffer)]
    if source.pattern == STDLIB:
        return standard_library()

    path = expand(source.pattern)
    if os.path.lexists(path):
        return files_at(Path(path), tally, older)
    if not is_glob(source.pattern):
        if denied(path):
            raise UserError(f"{source.pattern} cannot be reached: a folder above it may not be entered")
        raise UserError(f"{source.pattern} does not exist; name a file, a folder, a glob or - for standard input")

    matches = sorted(glob.glob(path, recursive=True), key=os.fsencode)  # noqa: PTH207 - may be absolute
    if not matches:
        raise UserError(f"no file matches {source.pattern!r}; quote the pattern for the shell, and check its folder")
    names = dict.fromkeys(older_matches(matches) if older else matched(matches, Walk(tally)))
    if not names:
        raise UserError(f"{source.pattern!r} matches no file that can be read; check its folders{because(tally)}")
    return with_sizes(names, tally)


def matched(matches: Sequence[str], walk: Walk) -> Iterator[str]:
    """The files that a glob matches, and those below the folders that it matches."""
    for match in matches:
        if os.path.isdir(match):  # noqa: PTH112
            if kind := walk.excluded(match):
                walk.tally.leave_out(kind, printable(match), size_below(match))
            else:
                yield from walk.below(match)
        elif os.path.isfile(match):  # noqa: PTH113
            yield match
        else:
            try:
                os.stat(match)  # noqa: PTH116
                walk.tally.leave_out("special file", printable(match), 0)
            except OSError as error:
                walk.lost("link" if os.path.islink(match) else "file", match, error)  # noqa: PTH114


def older_matches(matches: Sequence[str]) -> Iterator[str]:
    for match in matches:
        if os.path.isdir(match):  # noqa: PTH112
            yield from walk(Path(match))
        elif os.path.isfile(match):  # noqa: PTH113
            yield match


def files_at(path: Path, tally: Tally, older: bool) -> list[SourceFile]:
    """The file, or the files of the folder, that a source names.

    An unreadable file is counted rather than refused, since a pattern of the shell names every file that it matches.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        is_link = path.is_symlink()
        reason = link_reason(error) if is_link else error.strerror or str(error)
        tally.skip(printable(str(path)), reason, 0, whole=True, what="link" if is_link else "file")
        return []

    if stat.S_ISDIR(mode):
        names = list(walk(path) if older else Walk(tally).below(str(path)))
        if not names:
            raise UserError(f"folder {path} holds no files; name a folder with text in it{because(tally)}")
        return with_sizes(names, tally)
    if stat.S_ISFIFO(mode):  # a process substitution, <(command): can be read only once, like standard input
        if str(path) in _spooled:
            return [_spooled[str(path)]]
        with path.open("rb") as stream:
            return [spool(str(path), stream)]
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is neither a file nor a folder")
    return with_sizes([str(path)], tally)


def with_sizes(names: Iterable[str], tally: Tally) -> list[SourceFile]:
    """The files with their sizes. A file that was deleted meanwhile is counted as skipped."""
    listed = []
    for name in names:
        try:
            listed.append(describe(Path(name)))
        except UserError as error:
            tally.skip(printable(name), str(error), 0, whole=True)
    return listed


def walk(folder: Path, without: Collection[str] = (), endings: tuple[str, ...] = ("",)) -> Iterator[str]:
    """All regular files below `folder` with one of these endings, sorted, without hidden files and folders and those
    named in `without`."""
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in without)
        for name in sorted(names):
            path = os.path.join(directory, name)  # noqa: PTH118 - a Path costs as much as looking at the disk
            if not name.startswith(".") and name.endswith(endings) and os.path.isfile(path):  # noqa: PTH113
                yield path


def describe(path: Path) -> SourceFile:
    try:
        status, resolved = path.stat(), path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    identity = (printable(str(resolved)), str(status.st_size), str(status.st_mtime_ns))
    return SourceFile(path, printable(str(path)), status.st_size, identity)


def unchanged(file: SourceFile) -> bool:
    """Whether a file is unchanged since it was listed."""
    if file.identity[0] in (STDIN, "stream"):
        return True
    try:
        return describe(file.path).identity == file.identity
    except UserError:
        return False


def standard_library() -> list[SourceFile]:
    """The running Python's own source and documentation, without tests and installed packages: about 13 MB."""
    top = Path(sysconfig.get_paths()["stdlib"])
    wanted = [
        name
        for name in walk(top, STDLIB_LEFT_OUT, STDLIB_ENDINGS)
        if STDLIB_LEFT_OUT.isdisjoint(Path(name).parts[len(top.parts) :])
    ]
    if not wanted:
        raise UserError(f"this Python has no library source in {top}; name a file or folder of text")
    return [describe(Path(name)) for name in wanted]


# Streams. A stream can be read only once and the preparation reads twice, so it is first copied to the disk. The copy
# is kept until the process ends: the survey, the preparation and a second preparation all read the same text.

_spooled: dict[str, SourceFile] = {}
_locks: list[BinaryIO] = []


def spool(shown: str, stream: BinaryIO) -> SourceFile:
    """A copy of a stream on the disk, made once per process; `shown` is the stream's name for the user."""
    if shown in _spooled:
        return _spooled[shown]
    with files.disk_errors(f"the copy of {shown}"):
        file, path = temporary_file()
        digest, size = hashlib.sha256(), 0
        while block := stream.read(1 << 20):
            file.write(block)
            digest.update(block)
            size += len(block)
        file.flush()
    kind = STDIN if shown == STDIN else "stream"
    _spooled[shown] = SourceFile(path, shown, size, (kind, str(size), digest.hexdigest()))
    return _spooled[shown]


def temporary_file() -> tuple[BinaryIO, Path]:
    """A file in the spool folder that is removed when this process ends; after a kill the next spooling removes it.

    A lock on the file shows that its process is alive. A file younger than a minute may not have its lock yet.
    """
    folder = files.spool()
    for old in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 60 and not is_locked(old):
                old.unlink()
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    file = path.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    atexit.register(path.unlink, missing_ok=True)
    _locks.append(file)
    return file, path


def is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def total_size(listed: Iterable[SourceFile]) -> int:
    """Bytes on disk."""
    return sum(file.size for file in listed)
