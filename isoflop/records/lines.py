"""JSON-lines files and JSON objects: appending a line, reading."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isoflop.config import load_json
from isoflop.errors import UserError
from isoflop.untrusted import LARGEST_LOG, parse_json, read_bytes

Opener = Callable[[str, int], int]


def json_line(value: Mapping[str, Any]) -> str:
    """A JSON object on one line, without the newline."""
    return json.dumps(value, ensure_ascii=False)


def append_line(path: Path, value: Mapping[str, Any], opener: Opener, durable: bool = False) -> bool:
    """Append one line to a file, flushed to the operating system; `durable` also waits for the disk. If the disk has no
    space for the line, the file is left as it was.

    Returns:
        Whether the line is the first of the file.
    """
    line = json_line(value).encode("utf-8") + b"\n"
    with open(path, "ab", buffering=0, opener=opener) as file:
        end = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
        if durable:
            os.fsync(file.fileno())
    return not end


def ends_with_newline(path: Path) -> bool:
    """Whether a file is empty or its last byte ends a line, without reading all of it."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. An incomplete last line, which a killed process can leave, is ignored.

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
                raise UserError(f"{path} line {number} is not a JSON object")
            records.append(record)
        except UserError as error:
            if number < len(lines) - 1:
                raise UserError(f"{error}; the file was edited or damaged: remove that line") from None
    return records


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty if the file is missing or holds something else."""
    if not path.exists():
        return {}
    value = load_json(path)
    return value if isinstance(value, dict) else {}
