"""The GGUF file format: a header of typed values, then tensors, possibly quantised.

The reader of the `gguf` package trusts every length in a file, so that a false one costs unbounded time and memory. The
header is therefore parsed here, with each length checked against the remainder of the file. This module only
reads; the package dequantises, and gguf.py writes with it.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.export.fields import Fields
from isoflop.untrusted import open_regular

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
F32, F16, BF16 = 0, 1, 30  # tensor types that are not quantised
MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: shape, type, first byte and size in bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    bytes: int


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with open_regular(path) as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise UserError(f"{path} is empty") from None
        with data:
            yield data


class Cursor:
    """Reads values in order, never beyond the end of the file."""

    def __init__(self, data: mmap.mmap, origin: str) -> None:
        self.data, self.origin, self.at = data, origin, 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.data) - self.at:
            raise UserError(f"{self.origin} is damaged: at byte {self.at:,} it states more than its size allows")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or nested:
            raise UserError(f"{self.origin} is damaged: at byte {self.at:,} there is a value of unknown kind {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in SCALARS:
            size = struct.calcsize(f"<{SCALARS[kind]}")
            return [item[0] for item in struct.iter_unpack(f"<{SCALARS[kind]}", self.take(count * size))]
        if count > len(self.data) - self.at:  # each item takes at least a byte
            self.take(count)  # raises the error
        return [self.value(kind, nested=True) for _ in range(count)]


def read_header(data: mmap.mmap, origin: str) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Metadata, and the tensors by name.

    Raises:
        UserError: if it is not a GGUF file, or states more than its size allows.
    """
    cursor = Cursor(data, origin)
    if data[:4] != MAGIC:
        raise UserError(f"{origin} is not a GGUF file")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise UserError(f"{origin} is GGUF version {version}; 2 and 3 are read, on little-endian machines")

    tensor_count, value_count = cursor.number("Q"), cursor.number("Q")
    values: dict[str, Any] = {}
    for _ in range(min(value_count, len(data))):
        name = cursor.text()
        values[name] = cursor.value(cursor.number("I"))

    headed: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(min(tensor_count, len(data))):
        name, dimensions = cursor.text(), cursor.number("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise UserError(f"{origin} is damaged: tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]  # in GGUF the innermost is first
        headed.append((name, shape, cursor.number("I"), cursor.number("Q")))

    alignment = Fields(values, origin).size("general.alignment", 32)
    begin = -(-cursor.at // alignment) * alignment
    stored = {}
    for name, shape, kind, offset in headed:
        size = bytes_of(shape, kind, f"{origin}: tensor {name[:80]!r}")
        if name in stored or begin + offset + size > len(data):
            raise UserError(f"{origin} is damaged: tensor {name[:80]!r} occurs twice or ends beyond the file")
        stored[name] = Stored(shape, kind, begin + offset, size)
    return values, stored


def bytes_of(shape: tuple[int, ...], kind: int, what: str) -> int:
    """The size of a tensor of this shape and type; `what`: its name in messages.

    Raises:
        UserError: for a type that the gguf package does not know, and rows that do not fit its blocks.
    """
    if kind in (F32, F16, BF16):
        return math.prod(shape) * (4 if kind == F32 else 2)
    package = need_package(f"{what} is quantised")
    try:
        block, size = package.GGML_QUANT_SIZES[package.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise UserError(f"{what} is of type {kind}, which the gguf package does not know") from None
    if shape[-1] % block:
        raise UserError(f"{what} has rows of {shape[-1]}, which is not a multiple of its blocks of {block}")
    return math.prod(shape) // block * size


def load(data: mmap.mmap, tensor: Stored, origin: str) -> Tensor:
    """A tensor in float32, dequantised."""
    raw = np.frombuffer(data, dtype=np.uint8, count=tensor.bytes, offset=tensor.start).copy()
    if tensor.kind in (F32, F16, BF16):
        kinds = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
        return torch.from_numpy(raw).view(kinds[tensor.kind]).view(tensor.shape).float()
    package = need_package(f"{origin} is quantised")
    kind = package.GGMLQuantizationType(tensor.kind)
    rows = raw.reshape(package.quant_shape_to_byte_shape(tensor.shape, kind))
    try:
        values = package.dequantize(rows, kind)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{origin}: {kind.name} tensors cannot be dequantised ({str(error)[:80]})") from None
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(tensor.shape)


def same(data: mmap.mmap, stored: dict[str, Stored], first: str, second: str) -> bool:
    """Whether two tensors exist and have the same bytes."""
    a, b = stored.get(first), stored.get(second)
    return a is not None and b is not None and data[a.start : a.start + a.bytes] == data[b.start : b.start + b.bytes]


def need_package(why: str) -> Any:
    """The gguf package.

    Raises:
        UserError: if it is not installed; `why` it is needed.
    """
    try:
        return import_module("gguf")
    except ImportError:
        raise UserError(f"{why}, and the gguf package is not installed: pip install 'isoflop[gguf]'") from None
