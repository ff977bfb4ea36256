"""Detects a file's format from its first bytes; its name is used only if the content is ambiguous.

1. magic bytes: parquet, Arrow, zip, tar, images and other binary formats
2. the encoding: UTF-8, one with a byte order mark, the one that the user names, or none of these
3. the kind of text: JSON lines, JSON values or an array of them, a table with a header, plain text
"""

import codecs
import csv
import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import COMPRESSION_ENDINGS, PIECE, UNPACKING, compression_by
from isoflop.data.encodings import (
    decoded,
    guessed_encoding,
    is_wide,
    keeps_ascii,
    looks_like_text,
    marked_encoding,
    way_out,
)
from isoflop.data.reading import AUTO, Reading
from isoflop.data.utf8 import is_utf8, utf8_boundary
from isoflop.errors import UserError

RECORD_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
TABLE_ENDINGS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
BINARY_STARTS = {
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"%PDF-": "a PDF; extract its text first, as with pdftotext",
    b"\x7fELF": "a program",
    b"SQLite format 3": "a database",
    b"PARE": "an encrypted parquet",
    b"FEA1": "Feather of version 1; convert it to parquet with pyarrow",
    b"ORC": "ORC; convert it to parquet with pyarrow",
    b"Obj\x01": "Avro; convert it to parquet or .jsonl",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a numpy array",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first: 7z x FILE",
    b"Rar!\x1a\x07": "a rar archive; unpack it first: unrar x FILE",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it first: lz4 -dc FILE > NEW",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy, which is not read",
    b"LZIP": "compressed with lzip; unpack it first: lzip -dc FILE > NEW",
    b"\x1f\x9d": "compressed with compress; unpack it first: gzip -dc FILE > NEW",
    b"\x5d\x00\x00": "compressed as .lzma; unpack it first: xz --format=lzma -dc FILE > NEW",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a Microsoft Office document; save it as text",
    b"{\\rtf": "an RTF document; save it as text",
    b"\x80\x02": "a Python pickle, which is never read",
    b"\x80\x03": "a Python pickle, which is never read",
    b"\x80\x04\x95": "a Python pickle, which is never read",
    b"\x80\x05\x95": "a Python pickle, which is never read",
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
TAR, TAR_AT = b"ustar", 257
ARRAY = re.compile(r"\[\s*[{\"]")
OBJECT = re.compile(r"\{\s*\"(?:[^\"\\]|\\.)*\"\s*:")
LONGEST_FIELD = 64 * 1024 * 1024  # characters of a table's field, and bytes of a record: a longer one is not read
LOOKED_AT = 4 * PIECE  # bytes from which records are told from text
LONGEST_HEADER = 200  # characters of a name in the first line of a table
READ_AS_TEXT = "read as plain text although its name ends in"
WRITE_RECORDS = "to use records, write one object per line, with its text in one column"
WRITE_HEADER = "to use its rows, begin it with a line of column names"


@dataclass(frozen=True)
class Table:
    """The dialect of a table.

    Attributes:
        delimiter: between two fields.
        quoted: fields may be quoted.
        header: the names in its first line.
        likely: the name of the column with the most text.
    """

    delimiter: str
    quoted: bool
    header: tuple[str, ...]
    likely: str = ""


@dataclass(frozen=True)
class Format:
    """A file's format.

    Attributes:
        kind: "text", "jsonl", "json", "table", "parquet", "arrow", "arrow stream", "zip" or "tar".
        encoding: the text's encoding; "": UTF-8 (or the file is not text).
        reason: why it cannot be read as text; "": it can be read.
        promised: the name or the magic bytes give the format, so that records without the text column are an error.
        table: the dialect of a "table".
        hint: advice about records that are not UTF-8; "": none.
    """

    kind: str
    encoding: str = ""
    reason: str = ""
    promised: bool = False
    table: Table | None = None
    hint: str = ""


def format_of(file: SourceFile, first: bytes, how: Reading, compression: str = "", inside: bool = False) -> Format:
    """A file's format, from its `first` bytes, decompressed: at least 64 KiB or the complete file.

    Args:
        compression: of the file on disk; "" if it is not compressed.
        inside: the file is a member of an archive.

    Raises:
        UserError: for a file named .parquet that is not one.
    """
    ending = ending_of(file.shown)
    if first.startswith(LFS_POINTER):
        return Format("text", reason="a Git LFS pointer instead of the file; fetch the file with: git lfs pull")
    if how.format == AUTO:
        if first.startswith(b"PAR1"):
            return Format("parquet", promised=True)
        if ending == ".parquet" and binary_reason(first):
            raise UserError(f"{file.shown} is named .parquet and is not a parquet file; fetch it again")
        if first.startswith(b"ARROW1\0\0"):
            return Format("arrow", promised=True)
        if first.startswith(b"\xff\xff\xff\xff") and 0 < int.from_bytes(first[4:8], "little") < 1 << 28:
            return Format("arrow stream", promised=True)
        if first.startswith(ZIP):
            return Format("zip")
        if first[TAR_AT : TAR_AT + 5] == TAR:
            return Format("tar")

    if reason := compressed_twice(first, compression) or binary_kind(first):
        return Format("text", reason=reason)
    encoding, reason, hint = encoding_of(file, first, how, compression, inside)
    if reason.startswith("binary") or how.format != AUTO:
        return Format("text", encoding, f"{reason}, {hint}" if hint else reason)

    is_stream = file.path != Path(file.shown) and not inside
    detected = kind_of_text(beginning(first[:LOOKED_AT], encoding), ending, how.column, is_stream)
    if detected.kind == "text" and reason:
        return Format("text", reason=f"{reason}, {hint}" if hint else reason)
    if detected.kind == "text" and ending == ".parquet":
        raise UserError(
            f"{file.shown} is named .parquet and is not a parquet file; to read it as plain text: "
            "--set data.format=text"
        )
    return replace(detected, encoding=encoding, hint=hint if "seems" in hint else "")


def ending_of(shown: str) -> str:
    """The last suffix of a name before those of compression, in lower case."""
    suffixes = [suffix.lower() for suffix in Path(shown).suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_ENDINGS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def binary_kind(first: bytes) -> str:
    """Why a binary file is not text, by its magic bytes; "" for any other file."""
    kind = next((kind for magic, kind in BINARY_STARTS.items() if first.startswith(magic)), "")
    if not kind and (first.startswith(ZIP) or first[TAR_AT : TAR_AT + 5] == TAR):
        kind = "an archive"
    return f"binary, not text ({kind})" if kind else ""


def compressed_twice(first: bytes, compression: str) -> str:
    """Why a file is not read whose decompressed content is compressed again; "" for any other file."""
    inner = compression_by(first) if compression else ""
    if not inner:
        return ""
    unpack = f"{UNPACKING[compression]} FILE > NEW"
    return f"compressed twice, by {inner} and then by {compression}; unpack it once first: {unpack}"


def binary_reason(first: bytes) -> str:
    """Why the first bytes of a file are not UTF-8 text; "" if they are. A few NULs are accepted, a tenth is not."""
    head = first[:PIECE]
    if reason := binary_kind(first):
        return reason
    if 10 * head.count(0) > len(head):
        return "binary, not text"
    try:
        head[: utf8_boundary(head)].decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start}"
    return ""


def written_in(file: SourceFile, first: bytes, how: Reading, compression: str) -> tuple[str, str]:
    """(encoding, "" for UTF-8; why the file cannot be read as text, with advice, "" if it can)."""
    if reason := compressed_twice(first, compression) or binary_kind(first):
        return "", reason
    encoding, reason, hint = encoding_of(file, first, how, compression, inside=False)
    return encoding, f"{reason}, {hint}" if hint else reason


def encoding_of(file: SourceFile, first: bytes, how: Reading, compression: str, inside: bool) -> tuple[str, str, str]:
    """(encoding, "" for UTF-8; why the file cannot be read, "" if it can; advice about that)."""
    if marked := marked_encoding(first):
        return marked, "", ""
    reason = binary_reason(first)
    if not reason:
        if not how.encoding or is_wide(how.encoding):
            return "", "", ""
        text = first[: utf8_boundary(first)] if len(first) >= PIECE else first
        return ("" if not text.isascii() and keeps_ascii(how.encoding) else how.encoding), "", ""

    if how.encoding:
        if looks_like_text(decoded(first[:PIECE], how.encoding)):
            return how.encoding, "", ""
        if reason.startswith("binary") or not might_be_text(first[:PIECE]):
            return "", "binary, not text", ""
        return "", f"{reason}, nor in {how.encoding}", ""

    name = guessed_encoding(first)
    if not name:
        if reason.startswith("binary") or not might_be_text(first[:PIECE]):
            return "", "binary, not text", ""
        return "", reason, "name its encoding with --set data.encoding=NAME"
    if reason.startswith("binary"):
        reason = "not UTF-8"
    is_stream = file.path != Path(file.shown)
    advice = way_out(name, UNPACKING.get(compression, ""), inside or is_stream)
    return "", reason, f"it seems to be {name}: {advice}"


def might_be_text(head: bytes) -> bool:
    """Whether at most 0.5 % of the bytes are ASCII control characters, as in an unknown encoding or in damaged text."""
    controls = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\r\f\v\x1b")
    return 200 * controls <= len(head)


def beginning(first: bytes, encoding: str) -> str:
    """The first bytes decoded, without a byte order mark and a character that is cut off at the end."""
    if encoding and not (keeps_ascii(encoding) and is_utf8(first[: utf8_boundary(first)])):
        text = codecs.getincrementaldecoder(encoding)("replace").decode(first)
    else:
        text = first[: utf8_boundary(first)].decode("utf-8", "replace")
    return text.removeprefix("\ufeff")


def kind_of_text(head: str, ending: str, column: str, is_stream: bool) -> Format:
    """JSON lines, JSON values, a table or plain text."""
    promised = RECORD_ENDINGS.get(ending) == "jsonl"
    start = head.lstrip("\ufeff \t\r\n")
    if start.startswith("{"):
        if kind := kind_of_objects(start, column, promised or is_stream):
            return Format(kind, promised=promised or is_stream)
    elif ARRAY.match(start) and (promised or is_array(start)) and not lists_line_by_line(start):
        return Format("json", promised=promised)
    if promised:
        return Format("jsonl", promised=True)
    if table := table_of(head.lstrip("\ufeff\r\n"), ending, column):
        return Format("table", table=table)
    return Format("text")


def kind_of_objects(start: str, column: str, expected: bool) -> str:
    """ "jsonl" for one object per line, "json" for objects of several lines, "" for neither."""
    line, newline, further = start.partition("\n")
    record = parsed(line)
    if isinstance(record, dict):
        if column in record or expected:
            return "jsonl"
        return "jsonl" if isinstance(parsed(further.lstrip().partition("\n")[0]), dict) else ""

    named = re.search(json_key(column), start) is not None
    value, end = first_value(start)
    if not newline and not isinstance(value, dict):  # longer than the first bytes
        return "jsonl" if named and OBJECT.match(start) else ""
    if isinstance(value, dict):
        several = start[end:].lstrip(" \t\r\n,").startswith("{")
        return "json" if column in value or several or expected else ""
    return "json" if named and end < 0 and OBJECT.match(start) and not line.strip("{ \t\r") else ""


def plain_text_note(ending: str) -> str:
    """A note on a plain text whose name promises records or rows; "" for any other name."""
    if ending == ".json":
        return f"{READ_AS_TEXT} .json, because it is neither records nor an array of them; {WRITE_RECORDS}"
    if ending in TABLE_ENDINGS:
        return f"{READ_AS_TEXT} {ending}, because its first line is not a header that fits its rows; {WRITE_HEADER}"
    return ""


def is_array(start: str) -> bool:
    """Whether a text that starts like an array of objects or strings is one, as far as its first bytes show."""
    inner = start[1:].lstrip()
    value, end = first_value(inner)
    if end < 0:  # longer than the first bytes
        return len(inner) > PIECE // 2 and (inner.startswith('"') or OBJECT.match(inner) is not None)
    after = inner[end:].lstrip()
    if not after.startswith((",", "]")):
        return after == "" and len(inner) > PIECE // 2
    if isinstance(value, str):  # one text in brackets may be anything
        array, last = first_value(start)
        if len(start) < PIECE // 2 and (not isinstance(array, list) or start[last:].strip()):
            return False
        return isinstance(first_value(after[1:].lstrip())[0], str) or len(value) > PIECE // 4
    return isinstance(value, dict)


def lists_line_by_line(start: str) -> bool:
    """Whether each line is an array by itself."""
    line, _, further = start.partition("\n")
    return isinstance(parsed(line), list) and further.lstrip().startswith("[")


def first_value(text: str) -> tuple[Any, int]:
    """(the JSON value at the start of a text, its end), or (None, -1) if there is none or it is incomplete."""
    try:
        return json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, -1


def parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def json_key(column: str) -> str:
    return re.escape(json.dumps(column)) + r"\s*:"


def table_of(head: str, ending: str, column: str) -> Table | None:
    """The dialect of a table with a header; None if the text is not a table.

    A file named like a table is one if its lines have as many fields as the header; else the header must also name the
    text column.
    """
    promised = ending in TABLE_ENDINGS
    first_line = head.partition("\n")[0]
    if not promised and column not in first_line:
        return None

    for delimiter in dict.fromkeys((TABLE_ENDINGS.get(ending, ","), ",", "\t", ";", "|")):
        for quoted in (True, False):
            rows = rows_of(head, delimiter, quoted) if delimiter in first_line or promised else []
            if not rows:
                continue

            header, body = tuple(name.strip() for name in rows[0]), rows[1:]
            fitting = [row for row in body if len(row) == len(header)]
            if len(set(header)) < len(header) or not all(header) or max(map(len, header)) > LONGEST_HEADER:
                continue
            if quoted and delimiter == "\t" and len(fitting) < len(body):  # TSV often has no quoting
                continue

            named, wide = column in header, len(header) > 1
            regular = wide and len(fitting) > 0 and 10 * len(fitting) >= 9 * len(body)
            if (named and (regular or (promised and (wide or not body or len(fitting) == len(body))))) or (
                promised and regular and len(fitting) == len(body)
            ):
                lengths = [sum(len(row[place]) for row in fitting) for place in range(len(header))]
                return Table(delimiter, quoted, header, header[lengths.index(max(lengths))])
    return None


def rows_of(head: str, delimiter: str, quoted: bool) -> list[list[str]]:
    """The complete rows in the first part of a table."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        read = csv.reader(
            io.StringIO(head, newline=""), delimiter=delimiter, quoting=quoting_of(quoted), strict=delimiter == "\t"
        )
        rows = [row for row in read if row]
    except csv.Error:
        return []
    return rows[:-1] if len(head) >= PIECE // 2 and len(rows) > 1 else rows


def quoting_of(quoted: bool) -> Literal[0, 3]:
    """The csv module's constant for a dialect with or without quoting."""
    return csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
