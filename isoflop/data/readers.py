"""One file -> its documents, in constant memory, whatever its ending and compression.

Plain text of any ending, `.jsonl` and `.parquet`; each also gzip-, xz- or zstd-compressed (see decompress). Parquet is
known by its first bytes, text from binary by its content. Documents are UTF-8 bytes, newlines exactly as in the file.
"""

import io
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from isoflop import files
from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import BLOCK, COMPRESSION_ENDINGS, PIECE, decompress, peekable
from isoflop.data.reading import Reading
from isoflop.data.tally import Tally
from isoflop.errors import DiskError, UserError

LONGEST_PIECE = 4 * PIECE  # where no paragraph ends
PARQUET_ROWS = 16  # unpacked at once: a dictionary can hold one long text that every row points to
LONGEST_LINE = 64 * 1024 * 1024  # a .jsonl record beyond this is not held in memory but skipped
RECORD_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
BINARY_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF-", b"PK\x03\x04", b"\x7fELF", b"BZh", b"SQLite format 3")
PARAGRAPH_END = re.compile(rb"\n[ \t\r]*\n|\r\r")


def read_or_skip(
    file: SourceFile, how: Reading, tally: Tally, moved: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """`read_documents`, but that what is left of a file that cannot be read is counted and no error, unless strict."""
    place = 0

    def at(n: int) -> None:
        nonlocal place
        place = n
        if moved:
            moved(n)

    before = tally.pieces
    try:
        yield from read_documents(file, how, tally, at)
    except DiskError:
        raise
    except UserError as error:
        if tally.strict:
            raise
        tally.failure = tally.failure or str(error)
        reason = str(error).removeprefix(f"{file.shown} ")
        if tally.pieces > before:
            tally.skip(file.shown, reason, max(0, file.size - place), whole=True, what="file end")
        else:
            tally.skip(file.shown, reason, file.size, whole=True)


def read_documents(
    file: SourceFile, how: Reading | str, tally: Tally, moved: Callable[[int], None] | None = None
) -> Iterator[bytes]:
    """The documents of a file.

    Args:
        how: a Reading, or only the name of the text column.
        moved: is told how many bytes on disk have been read.

    Raises:
        UserError: for a damaged or truncated file, or records none of which has the text `column`.
    """
    column = how if isinstance(how, str) else how.column
    try:
        with file.path.open("rb") as raw:
            blocks = peekable(decompress(raw, file))
            first = next(blocks, b"")
            kind = kind_of(file, first, column)
            stream = with_position(first, blocks, raw, moved)
            if kind == "parquet":
                documents = parquet_documents(raw, file, column, tally, first, moved)
            elif kind == "jsonl":
                documents = jsonl_documents(stream, file, column, tally)
            else:
                documents = text_documents(stream, file, tally, binary_reason(first))
            for document in documents:
                if not document or document.isspace():
                    tally.empty += 1
                    continue
                tally.pieces += 1
                tally.used_bytes += len(document)
                yield document
    except OSError as error:
        reason = (error.strerror or str(error)).partition("\n")[0]
        raise UserError(f"{file.shown} cannot be read: {reason}") from error


def kind_of(file: SourceFile, first: bytes, column: str) -> str:
    """ "jsonl", "parquet" or "text": by the ending below the compression's, else by content.

    A stream has no ending, so there a first line that is a JSON object makes it jsonl; where that line is too long to
    be seen whole, the name of the text column in it does.
    """
    suffixes = [suffix.lower() for suffix in Path(file.shown).suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_ENDINGS:
        suffixes.pop()
    if first.startswith(b"PAR1"):
        return "parquet"
    kind = RECORD_ENDINGS.get(suffixes[-1] if suffixes else "", "text")
    if kind == "parquet":
        raise UserError(f"{file.shown} is not a parquet file, whatever its name says")
    if file.path != Path(file.shown) and first.startswith(b"{"):
        line, newline, _ = first.partition(b"\n")
        record, _ = parse_line(line, len(line))
        if record or (not newline and json.dumps(column).encode() in line):
            return "jsonl"
    return kind


def with_position(
    first: bytes, blocks: Iterator[bytes], raw: BinaryIO, moved: Callable[[int], None] | None
) -> Iterator[bytes]:
    for block in itertools.chain([first], blocks):
        if moved:
            moved(raw.tell())
        yield block


# Plain text


def binary_reason(first: bytes) -> str:
    """Why these first bytes of a file are not text; "" if they are. A few NULs are text, a tenth of them is not."""
    head = first[:PIECE]
    if head.startswith(BINARY_STARTS) or head[257:262] == b"ustar" or 10 * head.count(0) > len(head):
        return "binary, not text"
    try:
        head[: utf8_boundary(head)].decode()
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start}"
    return ""


def text_documents(blocks: Iterable[bytes], file: SourceFile, tally: Tally, reason: str) -> Iterator[bytes]:
    """Pieces of a plain text. They join to the whole file, but for pieces that are not valid UTF-8.

    A file whose first 64 KiB is not text is skipped whole; an invalid stretch further on costs its own piece only,
    because reading on to judge the whole file first would mean reading everything twice.
    """
    if reason:
        tally.skip(file.shown, reason, file.size, whole=True)
        return
    position = 0
    for piece in cut_pieces(blocks):
        try:
            piece.decode()
        except UnicodeDecodeError as error:
            tally.skip(file.shown, f"not valid UTF-8 at byte {position + error.start}", len(piece), False, "piece")
        else:
            tally.documents += position == 0 and not piece.isspace()
            yield piece
        position += len(piece)
    if position == 0:
        yield b""


def cut_pieces(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut at the last paragraph end within 64 KiB; else the first one after it; without one within 256 KiB, at the last
    line end, and without that between two characters. Cuts depend on what comes before them only, so a file that has
    grown at its end keeps its old pieces but the last."""
    held = bytearray()
    for block in blocks:
        held += block
        start = 0
        while len(held) - start > LONGEST_PIECE:
            end = start + piece_length(held[start : start + LONGEST_PIECE])
            yield bytes(held[start:end])
            start = end
        del held[:start]
    while len(held) > PIECE:
        end = piece_length(held[:LONGEST_PIECE])
        yield bytes(held[:end])
        del held[:end]
    if held:
        yield bytes(held)


def piece_length(window: bytearray) -> int:
    ends = [match.end() for match in PARAGRAPH_END.finditer(window, 0, PIECE)]
    if ends and ends[-1] >= PIECE // 2:
        return ends[-1]
    if later := PARAGRAPH_END.search(window, PIECE):
        return later.end()
    if len(window) < LONGEST_PIECE:
        return len(window)
    line_end = window.rfind(b"\n") + 1
    return line_end if line_end > PIECE else utf8_boundary(window)


def utf8_boundary(window: bytes | bytearray) -> int:
    """The largest length that does not end within a character (the whole length where that is no UTF-8 anyway)."""
    for back in range(1, min(4, len(window)) + 1):
        byte = window[-back]
        if byte & 0xC0 != 0x80:
            width = 1 if byte < 0x80 else 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4 if byte >> 3 == 30 else 1
            return len(window) - back if width > back else len(window)
    return len(window)


# Records


def jsonl_documents(blocks: Iterable[bytes], file: SourceFile, column: str, tally: Tally) -> Iterator[bytes]:
    """The text of each record. A line that is not a record with text is skipped and counted, and the file goes on."""
    columns: dict[str, None] = {}  # of records without the text column
    found = False
    for line, size in lines(blocks):
        record, reason = parse_line(line, size)
        if record is None and not reason:
            continue
        text = b""
        if record is not None and column in record:
            found, reason, text = True, *encoded(record[column], column)
        elif record is not None:
            columns.update(dict.fromkeys(list(record)[:20]) if len(columns) < 20 else {})
            reason = f"a record has no column {column!r}"
            if tally.strict and not found:
                break
        if reason:
            tally.skip(file.shown, reason, size, whole=False)
            continue
        tally.documents += 1
        tally.used_bytes += size - len(text)  # what a record holds next to its text
        yield text
    if columns and not found:
        raise no_column(file, column, columns)


def parse_line(line: bytes, size: int) -> tuple[dict[str, Any] | None, str]:
    """(record, "") or (None, why there is none); (None, "") for an empty line."""
    if size > LONGEST_LINE:
        return None, f"a record longer than {LONGEST_LINE >> 20} MiB"
    if not line:
        return None, ""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return None, "a record is not valid UTF-8"
    except (ValueError, RecursionError):
        return None, "a line is not JSON"
    return (record, "") if isinstance(record, dict) else (None, "a line is not a JSON object")


def encoded(value: Any, column: str) -> tuple[str, bytes]:
    """(reason why it is not text, its bytes)."""
    if not isinstance(value, str):
        return f"column {column!r} holds {'nothing' if value is None else 'no text'}", b""
    try:
        return "", value.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair, which no UTF-8 text holds
        return "a record is not valid Unicode", b""


def lines(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """(line without its end, its bytes). An overlong line comes as (b"", its bytes)."""
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


def no_column(file: SourceFile, column: str, columns: Iterable[str]) -> UserError:
    shown = ", ".join(list(columns)[:12])
    return UserError(
        f"{file.shown} has no text column {column!r}; its columns are {shown}: "
        "choose one with --set data.text_column=NAME"
    )


def parquet_documents(
    raw: BinaryIO,
    file: SourceFile,
    column: str,
    tally: Tally,
    first: bytes,
    moved: Callable[[int], None] | None,
) -> Iterator[bytes]:
    """The text column, a few hundred rows at a time. A compressed parquet is unpacked to a temporary file first,
    because parquet is read from its end."""
    raw.seek(0)
    if raw.read(4) == first[:4]:
        yield from parquet_rows(raw, file, column, tally, moved)
        return
    raw.seek(0)
    folder = files.spool()
    with files.disk_errors(f"the unpacked {file.shown}"):
        unpacked = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below; gone by itself after a kill
    with unpacked:
        for block in decompress(raw, file):
            with files.disk_errors(f"the unpacked {file.shown}"):
                unpacked.write(block)
        unpacked.seek(0)
        yield from parquet_rows(cast(BinaryIO, unpacked), file, column, tally, None)


def parquet_rows(
    raw: BinaryIO, file: SourceFile, column: str, tally: Tally, moved: Callable[[int], None] | None
) -> Iterator[bytes]:
    try:
        table = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BLOCK)
        if column not in table.schema_arrow.names:
            raise no_column(file, column, table.schema_arrow.names)
        rows = 0
        for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[column], use_threads=False):
            for value in (item.as_py() for item in as_binary(batch.column(0), file, column)):
                reason = f"column {column!r} holds nothing" if value is None else ""
                try:
                    (value or b"").decode()
                except UnicodeDecodeError:
                    reason = "a record is not valid UTF-8"
                if reason:
                    tally.skip(file.shown, reason, len(value or b""), whole=False)
                    continue
                tally.documents += 1
                yield value
            rows += batch.num_rows
            if moved:
                moved(file.size * rows // max(table.metadata.num_rows, 1))
    except (pa.ArrowException, io.UnsupportedOperation) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{file.shown} is a damaged parquet file ({first_line}); fetch it again") from None


def as_binary(values: Any, file: SourceFile, column: str) -> Any:
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(is_text(kind) for is_text in texts):
        raise UserError(
            f"{file.shown} column {column!r} holds {kind}, not text: choose another with --set data.text_column=NAME"
        )
    if kind is not values.type:
        values = values.cast(kind)
    return values.cast(pa.large_binary())
