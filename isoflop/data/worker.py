"""One encoding process: reads documents from standard input, writes tokens to standard output.

It is a plain subprocess with length-prefixed messages rather than multiprocessing: fork is unsafe after torch and
tokenizers have started threads, spawn and forkserver run the user's script a second time, and nothing is pickled here.
The process ends when its standard input is closed, so it never outlives the process that started it.

    input:    u8 length, tokenizer.json        then repeatedly: u8 count, u8 lengths, the documents
    output:                                    u8 counts of tokens, the tokens (end-of-text after each document)
"""

import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from isoflop.data.shards import dtype_for
from isoflop.data.tokenizer import Tokenizer

STRETCH = 1 << 18  # characters
SIZE = struct.Struct("<Q")


def encode_documents(tokenizer: Tokenizer, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(number of tokens of each document with its end-of-text, all tokens concatenated in the shards' dtype)."""
    dtype = dtype_for(tokenizer.vocab_size)
    end = np.array([tokenizer.eot], dtype)
    parts: list[np.ndarray] = []
    counts = np.zeros(len(documents), "<u8")
    for group in in_groups(tokenizer, documents):
        for (i, last, _), ids in zip(group, tokenizer.encode_batch([text for _, _, text in group]), strict=True):
            parts += [ids.astype(dtype), end] if last else [ids.astype(dtype)]
            counts[i] += len(ids) + last
    return counts, np.concatenate(parts) if parts else np.empty(0, dtype)


def in_groups(tokenizer: Tokenizer, documents: Sequence[bytes]) -> Iterator[list[tuple[int, bool, str]]]:
    """Groups of (document's number, whether this is its last stretch, text), of about 256 Ki characters each.

    The library needs about a hundred bytes of memory per byte of text until a batch is done, so batches are small and a
    document of a hundred megabytes is encoded in stretches.
    """
    group: list[tuple[int, bool, str]] = []
    size = 0
    for i, document in enumerate(documents):
        stretches = tokenizer.stretches(document.decode(), STRETCH)
        for number, text in enumerate(stretches, 1):
            group.append((i, number == len(stretches), text))
            size += len(text)
            if size >= STRETCH:
                yield group
                group, size = [], 0
    if group:
        yield group


def send_documents(stream: BinaryIO, documents: Sequence[bytes]) -> None:
    stream.write(SIZE.pack(len(documents)))
    stream.write(np.array([len(document) for document in documents], "<u8").tobytes())
    stream.write(b"".join(documents))
    stream.flush()


def receive_documents(stream: BinaryIO) -> list[bytes] | None:
    """The next message, None at the end."""
    try:
        (count,) = SIZE.unpack(receive(stream, SIZE.size))
    except EOFError:
        return None
    return [receive(stream, int(length)) for length in np.frombuffer(receive(stream, 8 * count), "<u8")]


def receive(stream: BinaryIO, size: int) -> bytes:
    """Exactly `size` bytes, else EOFError."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # no traceback when the parent has ended
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    (length,) = SIZE.unpack(receive(source, SIZE.size))
    tokenizer = Tokenizer.from_json(receive(source, length).decode())
    while (documents := receive_documents(source)) is not None:
        counts, tokens = encode_documents(tokenizer, documents)
        sink.write(counts.tobytes())
        sink.write(tokens.tobytes())
        sink.flush()


if __name__ == "__main__":
    main()
