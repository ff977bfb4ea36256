"""Reads files that may come from anyone: sizes are checked before parsing, and every error is one line.

Nothing here runs code from a file. A pipe or a device in place of a file is refused before it is read (it may never
end), a large file before it takes memory, deep nesting before it overflows a stack.
"""

import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.errors import UserError

LARGEST_TEXT = 256 * 2**20  # bytes of one JSON file; a tokenizer of 200,000 entries has 20 MB
LARGEST_LOG = 4 * 2**30  # bytes of a log; a line per step for ten million steps
DEEPEST = 100  # levels of nested objects and lists; isoflop's files have five
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Does not block on a pipe.

    Raises:
        OSError: if it is not a regular file, or cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        raw = io.FileIO(path, "rb", opener=opener)
    except ValueError as error:  # a NUL or half of a surrogate pair in its name
        raise OSError(str(error)) from None
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        raw.close()
        raise OSError("it is not a regular file")
    return io.BufferedReader(raw, 1 << 20)


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a file.

    Raises:
        UserError: if it is missing, not a regular file, or has more than `largest` bytes.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > largest:
                raise UserError(f"{path} has {size:,} bytes; the limit for such files is {largest:,}")
            return file.read(size)  # not more: read allocates the requested size at once
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The content of a UTF-8 file.

    Raises:
        UserError: as `read_bytes`, and for bytes that are not UTF-8.
    """
    try:
        return read_bytes(path, largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}") from None


def parse_json(text: str | bytes, origin: str) -> Any:
    """A JSON value, nested at most DEEPEST deep, that can be written again.

    Raises:
        UserError: naming `origin`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{origin} is not valid JSON: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        # `origin` may name a line of a file, of which this text is the first and only one
        line = f"line {error.lineno} " if "\n" in error.doc.strip() else ""
        raise UserError(f"{origin} is not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except ValueError as error:
        raise UserError(f"{origin} is not valid JSON: {error}") from None
    if too_deep(value, text):
        raise UserError(f"{origin} is not valid JSON: it is nested more than {DEEPEST} deep")
    if halved(value, text):
        raise UserError(f"{origin} holds half of a surrogate pair, which is not text")
    return value


def too_deep(value: Any, text: str | bytes) -> bool:
    """Whether a value is nested more than DEEPEST deep; `text` is its JSON form."""
    opening = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opening <= DEEPEST:
        return False
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def halved(value: Any, text: str | bytes) -> bool:
    """Whether JSON contains half of a surrogate pair (`"\\ud800"`), which cannot be encoded in a file."""
    if not SURROGATE.search(text if isinstance(text, str) else text.decode("utf-8", errors="replace")):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """A context for a library's parser: any exception means a bad file and becomes one line.

    Raises:
        UserError: `what` with the parser's reason.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of a library written in Rust is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{what} ({reason})") from None
