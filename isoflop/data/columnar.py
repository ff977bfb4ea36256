"""Reads the text column of parquet and Arrow files, a few rows at a time."""

import io
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from isoflop import files
from isoflop.data.corpus import SourceFile
from isoflop.data.decompress import BLOCK
from isoflop.data.json_records import WRITE_ONE_COLUMN, no_column
from isoflop.data.tally import Tally
from isoflop.errors import DiskError, UserError

ROWS = 16  # decoded at once: a dictionary can hold one long text that every row points to
SPARE = 64 * 2**20  # bytes to leave free on the disk
CHECKED = 64 * 2**20  # bytes written between two checks of the free space
TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
    pa.types.is_null,
)
OnProgress = Callable[[int], None] | None


def spooled(blocks: Iterable[bytes], file: SourceFile, size: int) -> BinaryIO:
    """A temporary file with the blocks, for formats that need random access. It is deleted when this process ends.

    Args:
        size: expected bytes; 0: unknown.

    Raises:
        DiskError: if the disk would be full.
    """
    folder = files.spool()
    with files.disk_errors(f"the unpacked {file.shown}"):
        unpacked = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the caller; has no name after a kill

    try:
        needed, written = size, 0
        for block in blocks:
            if needed >= 0:
                free = shutil.disk_usage(folder).free
                if free < needed + SPARE:
                    raise DiskError(
                        f"{file.shown} has to be unpacked to be read, and {folder} has {free / 1e9:.1f} GB left: free "
                        f"some space there or set ISOFLOP_HOME to a folder on another disk"
                    )
                needed = -CHECKED
            with files.disk_errors(f"the unpacked {file.shown}"):
                unpacked.write(block)
            written += len(block)
            needed += len(block)
        with files.disk_errors(f"the unpacked {file.shown}"):
            unpacked.seek(0)
    except BaseException:
        unpacked.close()
        raise
    return cast(BinaryIO, unpacked)


def parquet_documents(
    raw: BinaryIO, file: SourceFile, column: str, tally: Tally, on_progress: OnProgress
) -> Iterator[bytes]:
    """The text column of a parquet file.

    Raises:
        UserError: for a damaged file, or one without such a column of text.
    """
    try:
        table = pa.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=BLOCK)
        check_column(table.schema_arrow, file, column)
        rows = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=[column], use_threads=False):
            yield from texts(batch.column(0), file, column, tally)
            rows += batch.num_rows
            if on_progress:
                on_progress(file.size * rows // max(table.metadata.num_rows, 1))
    except (pa.ArrowException, io.UnsupportedOperation) as error:
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{file.shown} is a damaged parquet file ({first_line}); fetch it again") from None


def arrow_documents(
    raw: BinaryIO, file: SourceFile, stream: bool, column: str, tally: Tally, on_progress: OnProgress
) -> Iterator[bytes]:
    """The text column of an Arrow IPC file or stream, as `datasets` writes them.

    Buffers are views of the mapped file, so that a batch of gigabytes takes no memory.

    Raises:
        UserError: for a damaged file, or one without such a column of text.
    """
    try:
        buffer = pa.py_buffer(mmap.mmap(raw.fileno(), os.fstat(raw.fileno()).st_size, access=mmap.ACCESS_READ))
        opened = pa.ipc.open_stream if stream else pa.ipc.open_file
        schema = opened(pa.BufferReader(buffer)).schema
        check_column(schema, file, column)

        options = pa.ipc.IpcReadOptions(included_fields=[schema.names.index(column)], use_threads=False)
        source = pa.BufferReader(buffer)
        reader = opened(source, options=options)
        for number, batch in enumerate(batches_of(reader, stream), 1):
            values = batch.column(batch.schema.names.index(column))
            values.validate(full=True)  # offsets in a file from anyone may point anywhere
            for start in range(0, len(values), ROWS):
                yield from texts(values.slice(start, ROWS), file, column, tally)
            if on_progress:
                share = source.tell() / len(buffer) if stream else number / max(reader.num_record_batches, 1)
                on_progress(int(file.size * min(1.0, share)))
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first_line = str(error).partition("\n")[0]
        raise UserError(f"{file.shown} is a damaged Arrow file ({first_line}); fetch it again") from None


def batches_of(reader: Any, stream: bool) -> Iterator[Any]:
    if stream:
        yield from reader
    else:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def check_column(schema: Any, file: SourceFile, column: str) -> None:
    """Check that a file has the text column.

    Raises:
        UserError: if there is none of that name, or it is a column of something else.
    """
    if column not in schema.names:
        raise no_column(file, column, schema.names, likely_column(schema))
    kind = plain_type(schema.field(column).type)
    if is_text(kind):
        return

    refusal = f"{file.shown} column {column!r} holds {kind}, not text"
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and is_text(plain_type(kind.value_type)):
        raise UserError(f"{refusal}: join each list to one text first, as pyarrow.compute.binary_join does")
    if not likely_column(schema):
        raise UserError(f"{refusal}: {WRITE_ONE_COLUMN}")
    raise UserError(f"{refusal}: choose another, as in PATH@NAME or with --set data.text_column=NAME")


def likely_column(schema: Any) -> str:
    """The first column of text; "" if there is none."""
    return next((field.name for field in schema if is_text(plain_type(field.type))), "")


def plain_type(kind: Any) -> Any:
    """The type of the values below extensions, dictionaries and runs."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_text(kind: Any) -> bool:
    return any(is_one(kind) for is_one in TEXTS)


def texts(values: Any, file: SourceFile, column: str, tally: Tally) -> Iterator[bytes]:
    """The texts of a few rows; rows without text are skipped and counted."""
    for value in (item.as_py() for item in as_binary(values)):
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


def as_binary(values: Any) -> Any:
    """Values of any type of text as bytes."""
    kind = plain_type(values.type)
    while not values.type.equals(kind):
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        elif pa.types.is_run_end_encoded(values.type):
            values = pa.compute.run_end_decode(values)
        else:
            values = values.dictionary_decode()
    return values.cast(pa.large_binary())
