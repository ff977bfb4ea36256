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
BETWEEN = re.compile(r"[ \t\r\n,\ufeff]*")  # between the elements of an array


class TextColumn:
    """Extracts the text of records, and counts those without it.

    Records without the text column are counted if another record has it; if none does, the file is refused.

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
        self.without, self.without_bytes = 0, 0

    def text(self, record: Any, size: int) -> bytes | None:
        """The text of a record of `size` bytes; None for one that was skipped and counted.

        Raises:
            UserError: if strict, for a record without text.
        """
        if isinstance(record, str):
            reason, text = encoded(record, self.column)
            self.found = True
        elif self.column in record:
            self.found = True
            reason, text = encoded(record[self.column], self.column)
        else:
            self.miss(record, size)
            return None
        if self.without:
            self.count()
        if reason:
            self.skip(reason, size)
            return None
        self.tally.documents += 1
        self.tally.used_bytes += max(0, size - len(text))  # the other columns of the record
        return text

    def miss(self, record: dict[str, Any], size: int) -> None:
        if len(self.columns) < 20:
            for name, value in list(record.items())[:20]:
                length = len(value) if isinstance(value, str) else 0
                self.columns[name] = max(length, self.columns.get(name, 0))
        self.without += 1
        self.without_bytes += size
        if self.found:
            self.count()
        elif self.tally.strict and self.promised:
            raise self.refusal()

    def count(self) -> None:
        """Count the records without the column."""
        number, size, self.without, self.without_bytes = self.without, self.without_bytes, 0, 0
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
        if not self.without or self.found:
            return
        if self.promised:
            raise self.refusal()
        self.tally.skip(self.file.shown, f"records, {self.refusal(named=False)}", self.file.size, whole=True)

    def refusal(self, named: bool = True) -> UserError:
        likely = max(self.columns, key=lambda name: self.columns[name], default="")
        likely = likely if self.columns.get(likely) else ""
        return no_column(self.file, self.column, self.columns, likely, named)


def no_column(file: SourceFile, column: str, columns: Iterable[str], likely: str = "", named: bool = True) -> UserError:
    """A file of records without the text column.

    Args:
        likely: the column that may be meant; "": none of them holds text.
        named: the message begins with the name of the file.
    """
    shown = ", ".join(list(columns)[:SHOWN_COLUMNS])
    beginning = f"{file.shown} has no text column" if named else "they have no text column"
    there = f"its columns are {shown}" if shown else "its records have no columns at all"
    if not likely:
        none = ", and none of them holds text" if shown else ""
        return UserError(f"{beginning} {column!r}; {there}{none}: write the text of each record into one column first")
    example = shlex.quote(f"{file.within or file.shown}@{likely}")
    return UserError(
        f"{beginning} {column!r}; {there}: name one with the source, as in {example}, "
        "or for all sources with --set data.text_column=NAME"
    )


def encoded(value: Any, column: str) -> tuple[str, bytes]:
    """("", bytes of a text), or (why it is not text, b"")."""
    if not isinstance(value, str):
        return f"column {column!r} holds {'nothing' if value is None else 'no text'}", b""
    try:
        return "", value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair, which UTF-8 cannot encode
        escaped = "\udc80" <= value[error.start] <= "\udcff"  # an invalid byte, read so by json_documents
        return NOT_UTF8 if escaped else "a record is not valid Unicode", b""


# One record per line


def jsonl_documents(blocks: Iterable[bytes], found: TextColumn) -> Iterator[bytes]:
    """The text of each record. A line that is not a record with text is skipped and counted, and reading continues."""
    for line, size in lines(blocks):
        record, reason = parse_line(line, size)
        if reason:
            found.skip(reason, size)
        elif record is not None:
            text = found.text(record, size)
            if text is not None:
                yield text
    found.finish()


def parse_line(line: bytes, size: int) -> tuple[dict[str, Any] | str | None, str]:
    """(record, ""), or (None, why it is not a record); (None, "") for an empty line. A string is a text, as in
    an array."""
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
    """(line without its end, its size in bytes). An overlong line is returned as (b"", its size)."""
    held, dropped = bytearray(), 0
    for block in blocks:
        *whole, rest = block.split(b"\n")
        for line in whole:
            held += line
            yield (b"", dropped + len(held)) if dropped else (bytes(held).strip(), len(held) + 1)
            held.clear()
            dropped = 0
        held += rest
        if len(held) > LONGEST_LINE:
            dropped += len(held)
            held.clear()
    yield (b"", dropped + len(held)) if dropped else (bytes(held).strip(), len(held))


# Values of any layout


def json_documents(blocks: Iterable[bytes], found: TextColumn) -> Iterator[bytes]:
    """The text of each value of a file, or of each element of an array; an element that is a string is a document
    itself. At most one element of LONGEST_LINE is held in memory."""
    for value, size, reason in values(blocks):
        if not reason and not isinstance(value, (dict, str)):
            reason = "an element is not a JSON object"
        if reason:
            found.skip(reason, size)
            continue
        text = found.text(value, size)
        if text is not None:
            yield text
    found.finish()


def values(blocks: Iterable[bytes]) -> Iterator[tuple[Any, int, str]]:
    """(value, number of characters, error) of each value or element.

    After an element that is not JSON or too long the next one cannot be found, so it is the last one, and its size
    includes everything after it.
    """
    decoder = json.JSONDecoder()
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # an invalid byte costs only its own record
    source = iter(blocks)
    held, at, ended, in_array, started = "", 0, False, False, False
    wanted = 0  # characters to hold before the next attempt: twice as many after one that reached the end

    while True:
        at = past_blanks(held, at)
        while not ended and len(held) - at <= wanted:
            block = next(source, None)
            ended = block is None
            held, at = held[at:] + text.decode(block or b"", ended), 0
            at = past_blanks(held, at)
        if at >= len(held):
            return
        if not started:
            started = True
            if held[at] == "[":
                in_array, at = True, at + 1
                continue
        if in_array and held[at] == "]":
            in_array, started, at = False, False, at + 1  # another may follow
            continue
        try:
            value, end = decoder.raw_decode(held, at)
            known = ended or end < len(held)  # a number may continue in the next block
            reason = ""
        except RecursionError:
            known, reason = True, "an element is nested too deeply"
        except ValueError:
            known, reason = ended, "an element is not JSON, and what follows it is not read"
            if not ended and len(held) - at > LONGEST_LINE:
                known = True
                reason = f"an element longer than {LONGEST_LINE >> 20} MiB, or no JSON; what follows it is not read"
        if not known:
            wanted = min(max(2 * (len(held) - at), 1), LONGEST_LINE)
            continue
        if reason:
            yield None, len(held) - at + sum(map(len, source)), reason
            return
        wanted = 0
        yield value, end - at, ""
        at = end


def past_blanks(text: str, at: int) -> int:
    """The position after white space and commas."""
    found = BETWEEN.match(text, at)
    return found.end() if found else at
