"""Reads the text of JSON records: one record per line, or values of any layout, separate or in one array."""

import codecs
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from isoflop.data.corpus import SourceFile
from isoflop.data.tally import Tally
from isoflop.errors import UserError

LONGEST_LINE = 64 * 1024 * 1024  # bytes; a longer record is skipped, not held in memory
SHOWN_COLUMNS = 12
NOT_UTF8 = "a record is not valid UTF-8"
WRITE_ONE_COLUMN = "write the text of each record into one column first"
WRITE_RECORDS = 'write one record per line instead, in pandas by to_json(PATH, orient="records", lines=True)'
BETWEEN = re.compile(r"[ \t\r\n,\ufeff]*")  # between the elements of an array


class TextColumn:
    """Extracts the text of records, and counts those without it.

    Records missing the text column are counted if another record has it; if none has it, the file is refused.

    Args:
        promised: the file's name says that it holds records, so that a missing column is an error; else such a file is
            skipped and counted.
        hint: advice about records that are not UTF-8.
    """

    def __init__(self, file: SourceFile, column: str, tally: Tally, promised: bool, hint: str = "") -> None:
        self.not_utf8 = f"{NOT_UTF8}, {hint}" if hint else NOT_UTF8
        self.file, self.column, self.tally, self.promised = file, column, tally, promised
        self.columns: dict[str, int] = {}  # of records without the text column -> the length of the longest text
        self.found = False
        self.missing, self.missing_bytes = 0, 0  # records without the column that are not counted yet

    def text(self, record: Any, size: int) -> bytes | None:
        """The text of a record of `size` bytes; None for one that was skipped and counted.

        Raises:
            UserError: if strict, for a record missing text.
        """
        if isinstance(record, str):
            self.found = True
            reason, text = encoded(record, self.column)
        elif self.column in record:
            self.found = True
            reason, text = encoded(record[self.column], self.column)
        else:
            self.miss(record, size)
            return None

        if self.missing:
            self.count()
        if reason:
            self.skip(reason, size)
            return None
        self.tally.documents += 1
        self.tally.used_bytes += max(0, size - len(text))  # the other columns of the record
        return text

    def miss(self, record: dict[str, Any], size: int) -> None:
        """Note a record without the text column, and the texts in its other columns.

        Raises:
            UserError: if strict, in a file that should hold records with text.
        """
        if len(self.columns) < 20:
            for name, value in list(record.items())[:20]:
                length = len(value) if isinstance(value, str) or is_column_of_texts(value) else 0
                self.columns[name] = max(length, self.columns.get(name, 0))
        self.missing += 1
        self.missing_bytes += size
        if self.found:
            self.count()
        elif self.tally.strict and self.promised:
            raise self.refusal()

    def count(self) -> None:
        """Count the records without the column as skipped."""
        number, size, self.missing, self.missing_bytes = self.missing, self.missing_bytes, 0, 0
        self.tally.skip(self.file.shown, f"a record has no column {self.column!r}", size, whole=False, count=number)

    def skip(self, reason: str, size: int) -> None:
        """Count a record that is not read.

        Raises:
            UserError: if strict.
        """
        reason = self.not_utf8 if reason == NOT_UTF8 else reason
        self.tally.skip(self.file.shown, reason, size, whole=False)

    def finish(self) -> None:
        """After the last record.

        Raises:
            UserError: if the file was expected to hold records with text and none has any.
        """
        if not self.missing or self.found:
            return
        if self.promised:
            raise self.refusal()
        self.tally.skip(self.file.shown, f"records, {self.refusal(named=False)}", self.file.size, whole=True)

    def refusal(self, named: bool = True) -> UserError:
        """The error about a file without the text column; `named`: it begins with the file's name."""
        likely = max(self.columns, key=lambda name: self.columns[name], default="")
        likely = likely if self.columns.get(likely) else ""
        return no_column(self.file, self.column, self.columns, likely, named)


def no_column(file: SourceFile, column: str, columns: Iterable[str], likely: str = "", named: bool = True) -> UserError:
    """A file of records without the text column.

    Args:
        likely: the column that probably holds the text; "": none of them holds text.
        named: the message begins with the file's name.
    """
    shown = ", ".join(list(columns)[:SHOWN_COLUMNS])
    beginning = f"{file.shown} has no text column" if named else "they have no text column"
    listing = f"its columns are {shown}" if shown else "its records have no columns at all"
    if not likely:
        none = ", and none of them holds text" if shown else ""
        return UserError(f"{beginning} {column!r}; {listing}{none}: {WRITE_ONE_COLUMN}")

    example = shlex.quote(f"{file.within or file.shown}@{likely}")
    return UserError(
        f"{beginning} {column!r}; {listing}: name one with the source, as in {example}, "
        "or for all sources with --set data.text_column=NAME"
    )


def encoded(value: Any, column: str) -> tuple[str, bytes]:
    """("", bytes of a text), or (why it is not text, b"")."""
    if is_column_of_texts(value):
        return f"column {column!r} holds all texts in one object, as pandas' to_json writes them: {WRITE_RECORDS}", b""
    if not isinstance(value, str):
        return f"column {column!r} holds {'nothing' if value is None else 'no text'}", b""
    try:
        return "", value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair, which UTF-8 cannot encode
        is_byte = "\udc80" <= value[error.start] <= "\udcff"  # an invalid byte, as json_documents decodes it
        return NOT_UTF8 if is_byte else "a record is not valid Unicode", b""


def is_column_of_texts(value: Any) -> bool:
    """Whether a value is a complete column, as pandas' `to_json` writes it by default: {"0": text, "1": text ...}."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(name.isdecimal() and isinstance(text, str) for name, text in value.items())
    )


# One record per line


def jsonl_documents(blocks: Iterable[bytes], column: TextColumn) -> Iterator[bytes]:
    """The text of each record. A line that is not a record with text is skipped and counted, and reading continues."""
    for line, size in lines(blocks):
        record, reason = parse_line(line, size)
        if reason:
            column.skip(reason, size)
        elif record is not None:
            text = column.text(record, size)
            if text is not None:
                yield text
    column.finish()


def parse_line(line: bytes, size: int) -> tuple[dict[str, Any] | str | None, str]:
    """(record, ""), or (None, why it is not a record); (None, "") for an empty line.

    A string is a text itself, as in an array.
    """
    if size > LONGEST_LINE:
        return None, f"a record longer than {LONGEST_LINE >> 20} MiB"
    if not line:
        return None, ""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return None, NOT_UTF8
    except (ValueError, RecursionError):
        return (None, "a line is not JSON") if line != codecs.BOM_UTF8 else (None, "")
    return (record, "") if isinstance(record, dict | str) else (None, "a line is not a JSON object")


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """(line without its end, its size in bytes). A line longer than LONGEST_LINE becomes (b"", its size)."""
    buffer, dropped = bytearray(), 0
    for block in blocks:
        *complete, beginning = block.split(b"\n")
        for line in complete:
            buffer += line
            yield (b"", dropped + len(buffer)) if dropped else (bytes(buffer).strip(), len(buffer) + 1)
            buffer.clear()
            dropped = 0
        buffer += beginning
        if len(buffer) > LONGEST_LINE:
            dropped += len(buffer)
            buffer.clear()
    yield (b"", dropped + len(buffer)) if dropped else (bytes(buffer).strip(), len(buffer))


# Values of any layout


def json_documents(blocks: Iterable[bytes], column: TextColumn) -> Iterator[bytes]:
    """The text of each value of a file, or of each element of an array. An element that is a string is a document
    itself. At most one element of LONGEST_LINE is held in memory."""
    for value, size, reason in values(blocks):
        if not reason and not isinstance(value, (dict, str)):
            reason = "an element is not a JSON object"
        if reason:
            column.skip(reason, size)
            continue
        text = column.text(value, size)
        if text is not None:
            yield text
    column.finish()


def values(blocks: Iterable[bytes]) -> Iterator[tuple[Any, int, str]]:
    """(value, number of characters, error) of each value or element.

    After an element that is not JSON or too long the next one cannot be found, so it is the last one, and its size
    includes everything after it.
    """
    decoder = json.JSONDecoder()
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # an invalid byte costs only its own record
    source = iter(blocks)
    buffer, at, ended, in_array, started = "", 0, False, False, False
    wanted = 0  # characters to hold before the next attempt: twice as many after one that reached the end

    while True:
        at = past_blanks(buffer, at)
        while not ended and len(buffer) - at <= wanted:
            block = next(source, None)
            ended = block is None
            buffer, at = buffer[at:] + text.decode(block or b"", ended), 0
            at = past_blanks(buffer, at)
        if at >= len(buffer):
            return

        if not started:
            started = True
            if buffer[at] == "[":
                in_array, at = True, at + 1
                continue
        if in_array and buffer[at] == "]":
            in_array, started, at = False, False, at + 1  # another may follow
            continue

        try:
            value, end = decoder.raw_decode(buffer, at)
            complete = ended or end < len(buffer)  # a number may continue in the next block
            reason = ""
        except RecursionError:
            complete, reason = True, "an element is nested too deeply"
        except ValueError:
            complete, reason = ended, "an element is not JSON, and what follows it is not read"
            if not ended and len(buffer) - at > LONGEST_LINE:
                complete = True
                reason = f"an element longer than {LONGEST_LINE >> 20} MiB, or no JSON; what follows it is not read"

        if not complete:
            wanted = min(max(2 * (len(buffer) - at), 1), LONGEST_LINE)
            continue
        if reason:
            yield None, len(buffer) - at + sum(map(len, source)), reason
            return
        wanted = 0
        yield value, end - at, ""
        at = end


def past_blanks(text: str, at: int) -> int:
    """The position after white space and commas."""
    match = BETWEEN.match(text, at)
    return match.end() if match else at
