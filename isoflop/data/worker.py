"""One encoding process: documents come in on standard input, tokens go out on standard output.

A plain subprocess with length-prefixed messages, and not multiprocessing: fork is unsafe after torch and tokenizers
have started threads, spawn and forkserver run the user's script a second time, and here nothing is pickled. The process
ends when its standard input does, so it never outlives the one that started it.

    to it:    u8 length, tokenizer.json        then, again and again: u8 count, u8 lengths, the documents
    from it:                                   u8 counts of tokens, the tokens (end-of-text after each document)
"""

import signal
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from isoflop.data.shards import dtype_for
from isoflop.data.tokenizer import Tokenizer

SIZE = struct.Struct("<Q")


def encode_documents(tokenizer: Tokenizer, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of each document with its end-of-text, all of them one after another in the shards' dtype)."""
    dtype = dtype_for(tokenizer.vocab_size)
    end = np.array([tokenizer.eot], dtype)
    parts: list[np.ndarray] = []
    counts = np.empty(len(documents), "<u8")
    for i, ids in enumerate(tokenizer.encode_batch([document.decode() for document in documents])):
        parts += [ids.astype(dtype), end]
        counts[i] = len(ids) + 1
    return counts, np.concatenate(parts) if parts else np.empty(0, dtype)


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
