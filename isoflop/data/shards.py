"""Token files: a 64-byte header, then ids; little endian, 2 bytes each where the vocabulary fits, else 4.

    0   8s  magic "ISOFLOP\\0"
    8   u4  format version
    12  u4  bytes per token
    16  u8  tokens
    24      zeros

Every document is followed by the end-of-text id. A stream is one or more files, each memory-mapped.
"""

import contextlib
import hashlib
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import UserError
from isoflop.files import sha256
from isoflop.untrusted import LARGEST_TEXT, open_regular

MAGIC, VERSION, HEADER = b"ISOFLOP\0", 1, struct.Struct("<8sIIQ40x")
SHARD_BYTES = 256 * 1024 * 1024
SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.bin")


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class ShardWriter:
    """Writes tokens to `folder/prefix.0000.bin`, `.0001.bin`, ... of about `shard_bytes` each.

    `close()` returns the stream's entry of the manifest: its files with their tokens and SHA-256, and the SHA-256 of
    the tokens alone, which does not depend on the division into files.
    """

    def __init__(self, folder: Path, prefix: str, dtype: np.dtype[Any], shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.prefix, self.dtype = folder, prefix, dtype
        self.limit = max(shard_bytes // dtype.itemsize, 1)
        self.digest = hashlib.sha256()
        self.shards: list[dict[str, Any]] = []
        self.tokens = 0
        self.open()

    def open(self) -> None:
        self.path = self.folder / f"{self.prefix}.{len(self.shards):04d}.bin"
        self.file = self.path.open("wb", buffering=1 << 20)
        self.file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, 0))
        self.count = 0

    def write(self, tokens: np.ndarray) -> None:
        data = tokens.astype(self.dtype, copy=False)
        while len(data):
            if self.count == self.limit:
                self.finish()
                self.open()
            part = data[: self.limit - self.count]
            content = part.tobytes()
            self.file.write(content)
            self.digest.update(content)
            self.count += len(part)
            self.tokens += len(part)
            data = data[len(part) :]

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, self.count))
        self.file.close()
        self.shards.append({"file": self.path.name, "tokens": self.count, "sha256": sha256(self.path)})

    def close(self) -> dict[str, Any]:
        self.finish()
        return {"tokens": self.tokens, "sha256": self.digest.hexdigest(), "shards": self.shards}

    def abandon(self) -> None:
        """Close the file without an error; it is about to be removed."""
        with contextlib.suppress(OSError):  # on a full disk the flush fails as well
            self.file.close()


class TokenStream:
    """The tokens of a stream, in one or more arrays: `len(stream)`, `stream[a:b]`, `stream.read(start, n)`.

    Args:
        maps: the arrays, memory-mapped files where they come from `open`; at least one.
    """

    def __init__(self, maps: list[np.ndarray], dtype: np.dtype[Any]) -> None:
        self.maps, self.dtype = maps, dtype
        self.ends = np.cumsum([len(shard) for shard in maps], dtype=np.int64)

    @classmethod
    def open(cls, folder: Path, described: dict[str, Any], dtype: np.dtype[Any]) -> "TokenStream":
        """The stream of a manifest's entry."""
        return cls([map_shard(folder / shard["file"], shard["tokens"], dtype) for shard in described["shards"]], dtype)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: slice) -> np.ndarray:
        """A contiguous slice as an array of the stored dtype (a view if it is within one of them)."""
        start, stop, step = key.indices(len(self))
        if step != 1:
            raise ValueError("a token stream is sliced with step 1 only")
        parts = []
        while start < stop:
            at = int(np.searchsorted(self.ends, start, side="right"))
            first = int(self.ends[at]) - len(self.maps[at])
            part = self.maps[at][start - first : stop - first]
            parts.append(part)
            start += len(part)
        if not parts:
            return np.empty(0, self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` tokens from `start`, continuing at the beginning when the stream ends."""
        start %= len(self)
        parts = [self[start : start + length]]
        missing = length - len(parts[0])
        while missing > 0:
            parts.append(self[:missing])
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def map_shard(path: Path, tokens: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Memory-map one file.

    Raises:
        UserError: if it is missing, of another size, or its header does not fit the manifest.
    """
    try:
        with open_regular(path) as file:
            head, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if size != HEADER.size + tokens * dtype.itemsize:
        raise damaged(path, f"it has {size} bytes instead of {HEADER.size + tokens * dtype.itemsize}")
    if HEADER.unpack(head) != (MAGIC, VERSION, dtype.itemsize, tokens):
        raise damaged(path, "its header does not match the manifest")
    if not tokens:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset=HEADER.size, shape=(tokens,))


def field(holder: Any, name: str, kind: type, manifest: Path) -> Any:
    """A field of a manifest, checked. A manifest may come from anyone, with a correct checksum.

    Raises:
        UserError: if it is missing, of another type, or a number that is negative or too large for any file.
    """
    value: Any = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and not 0 <= value < 1 << 60):
        raise damaged(manifest, f"{name} is missing or not a valid {kind.__name__}")
    return value


def check_stream(described: Any, manifest: Path, vocab_size: int) -> dict[str, tuple[str, int]]:
    """Check a manifest's entry of a stream. Returns its files with their SHA-256 and bytes.

    Raises:
        UserError: for a field that ShardWriter.close cannot have written, such as the name of a file elsewhere.
    """
    shards = field(described, "shards", list, manifest)
    total = sum(field(shard, "tokens", int, manifest) for shard in shards)
    if not shards or total != field(described, "tokens", int, manifest):
        raise damaged(manifest, "the tokens of a stream are not those of its files")
    names = [field(shard, "file", str, manifest) for shard in shards]
    for name in names:
        if not SHARD_NAME.fullmatch(name):
            raise damaged(manifest, f"{name[:80]!r} is not the name of a token file in its folder")
    width = dtype_for(vocab_size).itemsize
    sizes = [HEADER.size + shard["tokens"] * width for shard in shards]
    sums = [field(shard, "sha256", str, manifest) for shard in shards]
    return dict(zip(names, zip(sums, sizes, strict=True), strict=True))


def verify(folder: Path, files: dict[str, tuple[str, int]], vocab_size: int = 0) -> None:
    """Compare every file with its SHA-256, in threads, since hashing releases the GIL.

    Args:
        files: name -> SHA-256 and size in bytes, which is compared first, since hashing takes long; -1: any size of a
            text file.
        vocab_size: token files (.bin) may hold only ids below it; 0: not checked.

    Raises:
        UserError: naming the first file that is missing, differs, or holds an id that no vocabulary has.
    """
    dtype = dtype_for(vocab_size)

    def differs(name: str) -> str:
        digest, largest = hashlib.sha256(), -1
        try:
            with open_regular(folder / name) as file:
                size, wanted = os.fstat(file.fileno()).st_size, files[name][1]
                if size > LARGEST_TEXT if wanted < 0 else size != wanted:
                    return f"it has {size} bytes" + ("" if wanted < 0 else f" instead of {wanted}")
                digest.update(file.read(HEADER.size))
                while block := file.read(1 << 20):
                    digest.update(block)
                    if vocab_size and name.endswith(".bin"):
                        whole = len(block) - len(block) % dtype.itemsize
                        largest = max(largest, int(np.frombuffer(block[:whole], dtype).max(initial=0)))
        except OSError as error:
            return error.strerror or str(error)
        if digest.hexdigest() != files[name][0]:
            return "its checksum does not match"
        return f"it holds the id {largest}, and there are {vocab_size}" if vocab_size and largest >= vocab_size else ""

    with ThreadPoolExecutor(max_workers=8) as pool:
        for name, reason in zip(files, pool.map(differs, files), strict=True):
            if reason:
                raise damaged(folder / name, reason)


def damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); delete the folder {path.parent} to prepare the data again")
