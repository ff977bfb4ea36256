"""Reads a file in blocks, decompressed if its first bytes are those of gzip, bzip2, xz or zstd."""

import bz2
import gzip
import lzma
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import zstandard

from isoflop.data.corpus import SourceFile
from isoflop.data.utf8 import begins_as_text
from isoflop.errors import UserError

PIECE = 64 * 1024  # plain text longer than this is cut at paragraph ends
BLOCK = 1 << 20
SIP = 8 * 1024
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BZIP2_STARTS = (b"1AY&SY", b"\x17rE8P\x90")  # of a block and of the end, after "BZh" and a digit
COMPRESSION_ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
UNPACKING = {"gzip": "gzip -dc", "bzip2": "bzip2 -dc", "xz": "xz -dc", "zstd": "zstd -dc"}
XZ_MEMORY = 512 * 2**20  # bytes; xz -9 needs 65 MiB. A header of a few bytes can ask for 4 GiB
ZSTD_WINDOW = 128 * 2**20  # bytes; zstd's own limit, and --long=27. A larger one, up to 2 GiB, only in a large file
ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))


class Peekable(Protocol):
    """A binary file that shows its next bytes without moving: an io.BufferedReader, a member of a zip or a tar."""

    def peek(self, size: int = ..., /) -> bytes: ...

    def read(self, size: int | None = ..., /) -> bytes: ...


def compression_of(raw: Peekable) -> str:
    """The compression of the following data, by its first bytes; "" if it is not compressed."""
    return compression_by(raw.peek(10)[:10])


def compression_by(start: bytes) -> str:
    """The compression whose data begin with these bytes; "" if they are not compressed."""
    if start.startswith(b"BZh") and start[3:4] in b"123456789" and start[4:] in BZIP2_STARTS:
        return "bzip2"
    if start.startswith(ZSTD_SKIPPABLE):
        return "zstd"
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), "")


def decompress(raw: Peekable, file: SourceFile) -> Iterator[bytes]:
    """The file's content in blocks, decompressed if its first bytes are those of a compressed file.

    Raises:
        UserError: for a truncated or damaged file, or one named as compressed that holds neither that nor text.
    """
    kind = compression_of(raw)
    named = COMPRESSION_ENDINGS.get(Path(file.shown).suffix.lower(), "")
    # Some downloads are decompressed on the way and keep their names.
    if named and not kind and not begins_as_text(raw.peek(SIP)[:SIP]):
        raise UserError(f"{file.shown} is not a {named} file, or its beginning is damaged; fetch it again")

    sips: Any = InSips(raw)
    opened: Any = gzip.GzipFile(fileobj=sips) if kind == "gzip" else raw
    try:
        if kind == "zstd":
            yield from zstd_blocks(raw, file)
        elif kind == "xz":
            yield from xz_blocks(raw)
        elif kind == "bzip2":
            yield from bzip2_blocks(raw)
        else:
            while block := opened.read(BLOCK):
                yield block
    except EOFError:
        raise UserError(f"{file.shown} is truncated: its {kind} data stops before the end; fetch it again") from None
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise damaged(file, kind, error) from None
    except OSError as error:  # of bz2, which has no error of its own, or of the disk
        if kind != "bzip2" or error.errno is not None:
            raise
        raise damaged(file, kind, error) from None


def damaged(file: SourceFile, kind: str, error: Exception) -> UserError:
    return UserError(f"{file.shown} is damaged: its {kind} data cannot be read ({error}); fetch it again")


class InSips:
    """A file that returns at most SIP bytes per read, so that its position is near the decompressed data.

    Python's own readers read up to 128 KiB ahead, which is a megabyte of text that the survey would not count.
    """

    def __init__(self, raw: Peekable) -> None:
        self.raw = raw

    def read(self, size: int = -1) -> bytes:
        return self.raw.read(SIP if size < 0 else min(size, SIP))


def bzip2_blocks(raw: Peekable) -> Iterator[bytes]:
    """Stream by stream, as parallel compressors write them. Data after the last stream is an error, except zeros."""
    decompressor = bz2.BZ2Decompressor()
    data = b""
    while True:
        if decompressor.eof:
            data = (decompressor.unused_data or raw.read(SIP)).lstrip(b"\0")
            while not data and (data := raw.read(SIP)):
                data = data.lstrip(b"\0")
            if not data:
                return
            decompressor = bz2.BZ2Decompressor()
        elif decompressor.needs_input and not (data := raw.read(SIP)):
            raise EOFError
        if block := decompressor.decompress(data, BLOCK):
            yield block
        data = b""


def xz_blocks(raw: Peekable) -> Iterator[bytes]:
    """Stream by stream, since Python's own reader of .xz has no memory limit. There may be zeros between streams."""
    decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
    data, ended = b"", False
    while True:
        if decompressor.eof:
            data = (decompressor.unused_data or raw.read(SIP)).lstrip(b"\0")
            while not data and (data := raw.read(SIP)):
                data = data.lstrip(b"\0")
            if not data:
                return
            decompressor, ended = lzma.LZMADecompressor(memlimit=XZ_MEMORY), False
        elif decompressor.needs_input:
            data = raw.read(SIP)
            ended = not data
        if ended:
            raise EOFError
        if block := decompressor.decompress(data, BLOCK):
            yield block
        data = b""


def zstd_blocks(raw: Peekable, file: SourceFile) -> Iterator[bytes]:
    """Frame by frame, since zstandard's own stream reader accepts a truncated frame as complete.

    Reading 1 KiB at a time bounds the output: a zstd block has at least 4 bytes and holds at most 128 KiB.

    Raises:
        UserError: for a window that needs more memory than a file of this size may use.
    """
    largest = min(2**31, max(ZSTD_WINDOW, 64 * file.size))
    decompressor = zstandard.ZstdDecompressor(max_window_size=largest)
    frame, pending = None, bytearray()

    while data := raw.read(1024):
        while data:
            if frame is None:
                frame = decompressor.decompressobj()
                check_window(data, file, largest)
            pending += frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = None
        if len(pending) >= BLOCK:
            yield bytes(pending)
            pending.clear()

    if pending:
        yield bytes(pending)
    if frame is not None:
        raise EOFError


def check_window(start: bytes, file: SourceFile, largest: int) -> None:
    """Refuse a frame whose window is too large; a damaged one passes and fails later.

    Raises:
        UserError: with the command that compresses the file again.
    """
    try:
        window = zstandard.get_frame_parameters(start).window_size
    except zstandard.ZstdError:  # damaged, or so short that it is read at the next block
        return
    if window > largest:
        raise UserError(
            f"{file.shown} was compressed by zstd with a window of {window >> 20:,} MiB, and a file of this size may "
            f"use at most {largest >> 20:,} MiB; compress it again: zstd -dc --long=31 {shlex.quote(file.shown)} | "
            "zstd -o NEW.zst"
        )


def peekable(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same stream with at least one piece (64 KiB) in its first block, from which the format is detected."""
    first = bytearray()
    for block in blocks:
        first += block
        if len(first) >= PIECE:
            break
    yield bytes(first)
    yield from blocks
