"""Reads the text column of tables with a header in their first line (CSV, TSV)."""

import codecs
import csv
from collections.abc import Iterable, Iterator

from isoflop.data.formats import LONGEST_FIELD, Table, quoting_of
from isoflop.data.json_records import TextColumn, encoded


class Lines:
    """The lines of blocks of UTF-8, with their ends, for the csv module; counts what it has returned.

    A line may be as long as a record. Of a longer one LONGEST_FIELD characters are returned, which csv refuses.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.blocks = iter(blocks)
        self.returned = 0  # characters; one each for invalid bytes

    def __iter__(self) -> Iterator[str]:
        decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        parts: list[str] = []
        length, first, end = 0, True, "\n"
        for block in self.blocks:
            text = decode(block)
            if first:
                text, first = text.lstrip("\ufeff\r\n"), False
                end = "\r" if "\n" not in text and "\r" in text else end  # as older programs on a Mac end lines
            *complete, beginning = text.split(end)
            for line in complete:
                yield self.counted("".join((*parts, line, end)))
                parts, length = [], 0
            parts.append(beginning)
            length += len(beginning)
            if length > LONGEST_FIELD:
                yield self.counted("".join(parts))
                parts, length = [], 0
        if last := "".join((*parts, decode(b"", True))):
            yield self.counted(last)

    def counted(self, line: str) -> str:
        self.returned += len(line)
        return line


def table_documents(blocks: Iterable[bytes], table: Table, column: TextColumn) -> Iterator[bytes]:
    """The text column of each row. A row with more or fewer fields than the header is skipped and counted: one of its
    fields contains an unquoted delimiter, and it is unknown which one."""
    width = len(table.header)
    if column.column not in table.header:
        column.miss({name: table.likely * (name == table.likely) for name in table.header}, 0)
        column.finish()
        return

    csv.field_size_limit(LONGEST_FIELD)
    place, returned = table.header.index(column.column), 0
    lines = Lines(blocks)
    quoting = quoting_of(table.quoted)
    rows = csv.reader(iter(lines), delimiter=table.delimiter, quoting=quoting, strict=table.quoted)
    header = True

    while True:
        reason, row = "", []
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"a row is not CSV ({error})"
            if "limit" in str(error):
                reason = f"a row longer than {LONGEST_FIELD >> 20} MiB"
        size, returned = lines.returned - returned, lines.returned

        if header:
            header = False
            if not reason:
                continue
        if not reason and not row:
            continue
        if not reason and len(row) != width:
            reason = f"a row has {len(row)} fields and the header {width}"
        text = b""
        if not reason:
            reason, text = encoded(row[place], column.column)
        if reason:
            column.skip(reason, size)
            continue
        column.tally.documents += 1
        column.tally.used_bytes += max(0, size - len(text))
        yield text
