"""Standard streams that may be closed, full or lost, and text layout for the width of a terminal.

Lost output must not end a run: a run writes through `Shown`, which never raises. A command whose output is its product
(`sample`, `runs`) raises once: `OutputLost`, from the guarded streams of the command line.
"""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.cells import cell_len

NEXT_TO_EACH_OTHER = 50  # the least columns for value and reason on one line; else the reason is under the value
FEWEST = 20  # the least width of a column of text
NOTEBOOK_WIDTH = 100  # columns of a notebook's output, whose width is unknown


class OutputLost(BrokenPipeError):
    """Standard output does not accept writes: closed at the other end (EPIPE), a full disk, a lost terminal."""


class Guard(io.RawIOBase):
    """The raw stream under a standard stream. The first failed write raises (`raises`) and later ones are discarded, so
    that nothing, not even the interpreter at its exit, fails a second time.

    Attributes:
        lost: the error of the first failed write, or None.
    """

    def __init__(self, descriptor: int, raises: bool = True) -> None:
        self.descriptor, self.raises = descriptor, raises
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int:
        if self.lost is not None:
            return len(data)
        while True:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:  # another process made the shared terminal or pipe non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.lost = error
                if self.raises:
                    raise OutputLost(error.errno, error.strerror) from None
                return len(data)


def guard_standard_streams() -> None:
    """Make standard input, output and error of this process usable, however the process was started.

    A closed descriptor is opened on the null device: otherwise the next opened file, such as a checkpoint, would get
    its number, and printed text would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout = guarded(sys.stdout, 1, raises=True)
    sys.stderr = guarded(sys.stderr, 2, raises=False)


def guarded(stream: TextIO | None, descriptor: int, raises: bool) -> TextIO:
    """A text stream like `stream` on top of a Guard. Characters that the encoding lacks are replaced, so that no
    character of a sample can fail a command."""
    if stream is not None:
        stream.flush()
    raw = io.BufferedWriter(Guard(descriptor, raises))
    encoding = stream.encoding if stream is not None else "utf-8"
    at_once = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(raw, encoding=encoding, errors="replace", line_buffering=at_once)


def exit_code(error: OSError) -> int:
    """The exit code of a command whose output was lost: 0 if the reader closed the pipe (`| head`), else 2, with a
    message on standard error."""
    if error.errno == errno.EPIPE:
        return 0
    sys.stderr.write(f"isoflop: {lost_in_words(error)}; write it to another file\n")
    return 2


def lost_in_words(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"standard output could not be written: {reason or type(error).__name__}"


class Shown(io.TextIOBase):
    """The screen's stream: standard output at the time of construction, until it fails; later writes are discarded.

    Args:
        reports: report a failure on standard error, once. A reader that closes a pipe is not a failure.

    Attributes:
        lost: the error of the first failed write, or None.
    """

    def __init__(self, reports: bool = True) -> None:
        stream, self.reports = sys.stdout, reports
        self._stream: Any = getattr(stream, "rich_proxied_file", stream)
        self.lost: BaseException | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (AttributeError, OSError, ValueError):  # no stream, a lost one, a closed one
            return False

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("there is no standard output")
        return int(self._stream.fileno())

    def write(self, text: str) -> int:
        shown = text.encode(self.encoding, "replace").decode(self.encoding)  # missing characters become "?"
        self._guarded(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        self._guarded(lambda: self._stream.flush())

    def _guarded(self, call: Any) -> None:
        if self._stream is None or self.lost is not None:
            return
        try:
            call()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed in this process
            self.lost = error
            if self.reports and getattr(error, "errno", None) != errno.EPIPE and sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(f"isoflop: {lost_in_words(error)}: nothing more is shown, the run continues\n")


def width_without_terminal() -> int | None:
    """The width without a terminal: COLUMNS if it is set, else a notebook's; None: lines are not wrapped."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    return NOTEBOOK_WIDTH if "ipykernel" in sys.modules else None


def wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Wrap a text to lines of at most `width` columns, with continuation lines indented.

    Breaks only at spaces, so that no word or number is cut; a word that is wider than a line gets its own line.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if width is None or cell_len(line) <= width:
            lines.append(line)
            continue
        lead = len(line) - len(line.lstrip(" "))
        further = min(lead + indent, max(width - FEWEST, 0))
        filled, empty = line[:lead], True
        for gap, word in words(line[lead:]):
            if not empty and cell_len(filled) + len(gap) + cell_len(word) > width:
                lines.append(filled)
                filled, empty = " " * further, True
            filled += word if empty else gap + word
            empty = False
        lines.append(filled)
    return lines


def words(text: str) -> Iterable[tuple[str, str]]:
    """Pairs of the spaces before a word, and the word."""
    gap = ""
    for piece in text.split(" "):
        if piece:
            yield gap, piece
            gap = " "
        else:
            gap += " "


def padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def reasons(rows: Sequence[tuple[str, str, str]], width: int | None) -> list[tuple[str, str]]:
    """Rows of (name, value, reason) as lines, each in two parts: name and value, and the reason.

    If there is room, value and reason are next to each other, each wrapped in its own column; else the reason is under
    the value.
    """
    names = max(cell_len(name) for name, _, _ in rows) + 2
    widest = max(cell_len(value) for _, value, _ in rows)
    lines: list[tuple[str, str]] = []

    if width is None or width - names >= NEXT_TO_EACH_OTHER:
        column = widest if width is None else min(widest, max(FEWEST, (width - names - 2) * 2 // 5))
        for name, value, reason in rows:
            values = wrapped(value, column)
            value_width = max(column, *(cell_len(line) for line in values))
            room = None if width is None else max(width - names - value_width - 2, FEWEST)
            whys = wrapped(reason, room) if reason else []
            for index in range(max(len(values), len(whys))):
                first = padded(name if index == 0 else "", names) + (values[index] if index < len(values) else "")
                why = whys[index] if index < len(whys) else ""
                lines.append((padded(first, names + value_width + 2) if why else first.rstrip(), why))
        return lines

    for name, value, reason in rows:
        room = max(width - names, FEWEST)
        for index, text in enumerate(wrapped(value, room)):
            lines.append((padded(name if index == 0 else "", names) + text, ""))
        if reason:
            lines.extend((" " * names, text) for text in wrapped(reason, room))
    return lines


def listing(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Rows under a header, in columns if they fit; else a paragraph per row, with the first cell on its own line and
    the other cells with their names."""
    columns = [max(cell_len(row[index]) for row in (head, *rows)) for index in range(len(head))]
    if width is None or sum(columns) + 2 * (len(columns) - 1) <= width:
        return [
            "  ".join(padded(text, room) for text, room in zip(row, columns, strict=True)).rstrip()
            for row in (head, *rows)
        ]
    lines = []
    for row in rows:
        lines.append(row[0])
        cells = [f"{name} {text}" for name, text in zip(head[1:], row[1:], strict=True) if text != "-"]
        lines.extend(wrapped("  " + ", ".join(cells), width))
    return lines


def fitted(parts: Sequence[str], room: int) -> str:
    """The first parts that fit into `room` columns, none of them cut; " ..." if parts are omitted."""
    for count in range(len(parts), 0, -1):
        text = "  ".join(parts[:count]) + (" ..." if count < len(parts) else "")
        if cell_len(text) <= room:
            return text
    return "..."
