"""Reads the documents of one file, of any format, in constant memory. The format is recognised by content, not by name.

    decompress: gzip, bzip2, xz, zstd -> formats: which? -> text · json_records · tables · columnar · archives

Documents are UTF-8 bytes, with newlines exactly as in the file. Reading never executes anything, and what is not read
is counted.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from isoflop.data.archives import tar_members, zip_members
from isoflop.data.columnar import arrow_documents, parquet_documents, spooled
from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import Peekable, compression_of, decompress, peekable
from isoflop.data.encodings import to_utf8
from isoflop.data.formats import Format, ending_of, format_of, plain_text_note
from isoflop.data.json_records import TextColumn, json_documents, jsonl_documents
from isoflop.data.reading import AUTO, Reading
from isoflop.data.tables import table_documents
from isoflop.data.tally import Tally
from isoflop.data.text import text_documents
from isoflop.errors import DiskError, UserError

Moved = Callable[[int], None] | None

SEPARATES_TEXT = "each of its records is one document: data.document_separator splits plain text only"


def read_or_skip(file: SourceFile, how: Reading, tally: Tally, moved: Moved = None) -> Iterator[bytes]:
    """`read_documents`, except that the rest of a file that cannot be read is counted rather than refused, unless
    strict."""
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


def read_documents(file: SourceFile, how: Reading | str, tally: Tally, moved: Moved = None) -> Iterator[bytes]:
    """The documents of a file.

    Args:
        how: a Reading, or only the name of the text column.
        moved: called with the number of bytes on disk that have been read.

    Raises:
        UserError: for a damaged or truncated file, or if no record has the text column.
    """
    how = Reading(column=how) if isinstance(how, str) else how
    try:
        with file.path.open("rb") as raw:
            for document in documents_of(raw, file, how, tally, moved):
                if not document or document.isspace():
                    tally.empty += 1
                    continue
                tally.pieces += 1
                tally.used_bytes += len(document)
                yield document
    except OSError as error:
        reason = (error.strerror or str(error)).partition("\n")[0]
        raise UserError(f"{file.shown} cannot be read: {reason}") from error


def documents_of(
    raw: Peekable, file: SourceFile, how: Reading, tally: Tally, moved: Moved, size: int = -1
) -> Iterator[bytes]:
    """The documents of a file, or of a member of an archive, whose content has `size` bytes."""
    inside = size >= 0
    compression = compression_of(raw)
    blocks = peekable(decompress(raw, file))
    first = next(blocks, b"")
    found = format_of(file, first, how, compression, inside)
    stream = with_position(first, blocks, raw, moved)
    if found.kind in ("zip", "tar"):
        yield from archived(raw, stream, file, found, how, tally, compression, inside, moved)
    elif found.kind in ("parquet", "arrow", "arrow stream"):
        if not inside and not compression:
            whole: Any = raw
            whole.seek(0)
            yield from columns(whole, file, found, how, tally, moved)
        else:
            with spooled(stream, file, 0 if compression else max(size, 0)) as unpacked:
                yield from columns(unpacked, file, found, how, tally, None)
    else:
        if found.encoding:
            stream = to_utf8(stream, found.encoding)
        yield from texts(stream, file, found, how, tally)


def texts(stream: Iterator[bytes], file: SourceFile, found: Format, how: Reading, tally: Tally) -> Iterator[bytes]:
    """The documents of the formats that are written as text."""
    if found.encoding:
        tally.note(file.shown, f"it was read as {found.encoding}")
    is_text = found.kind == "text" and not found.reason
    if is_text and how.format == AUTO and (said := plain_text_note(ending_of(file.shown))):
        tally.note(file.shown, said)
    if how.separator and found.kind != "text":
        tally.note(file.shown, SEPARATES_TEXT)
    records = TextColumn(file, how.column, tally, found.promised, found.hint)
    if found.kind == "jsonl":
        yield from jsonl_documents(stream, records)
    elif found.kind == "json":
        yield from json_documents(stream, records)
    elif found.table:
        yield from table_documents(stream, found.table, records)
    else:
        yield from text_documents(stream, file, how, tally, found.reason, found.encoding or "UTF-8")


def columns(
    whole: BinaryIO, file: SourceFile, found: Format, how: Reading, tally: Tally, moved: Moved
) -> Iterator[bytes]:
    if how.separator:
        tally.note(file.shown, SEPARATES_TEXT)
    if found.kind == "parquet":
        yield from parquet_documents(whole, file, how.column, tally, moved)
    else:
        yield from arrow_documents(whole, file, found.kind == "arrow stream", how.column, tally, moved)


def archived(
    raw: Peekable,
    stream: Iterator[bytes],
    file: SourceFile,
    found: Format,
    how: Reading,
    tally: Tally,
    compression: str,
    inside: bool,
    moved: Moved,
) -> Iterator[bytes]:
    """The documents of every file in an archive."""
    if inside:
        tally.skip(file.shown, "an archive inside an archive; unpack it first", file.size, whole=True)
    elif found.kind == "tar":
        for member in tar_members(stream, file, tally):
            yield from documents_of(member.content, member.file, how, tally, None, member.size)
    elif compression:
        with spooled(stream, file, 0) as unpacked:
            for member in zip_members(unpacked, file, tally):
                yield from documents_of(member.content, member.file, how, tally, None, member.size)
    else:
        whole = cast(BinaryIO, raw)
        for member in zip_members(whole, file, tally):
            yield from documents_of(member.content, member.file, how, tally, None, member.size)
            if moved:
                moved(whole.tell())


def with_position(first: bytes, blocks: Iterator[bytes], raw: Any, moved: Moved) -> Iterator[bytes]:
    for block in itertools.chain([first], blocks):
        if moved:
            moved(raw.tell())
        yield block
