"""Encodes documents in parallel processes, keeping their order."""

import contextlib
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Generic, TypeVar, cast

import numpy as np

from isoflop.data.shards import dtype_for
from isoflop.data.tokenizer import Tokenizer
from isoflop.data.worker import SIZE, encode_documents, receive, send_documents
from isoflop.errors import UserError

MESSAGE_BYTES = 1 << 20  # of text: large enough to make pipes cheap, small enough to hold a few per process
Label = TypeVar("Label")


class Batch(Generic[Label]):
    """Some documents, each with a label of the caller's."""

    def __init__(self) -> None:
        self.labels: list[Label] = []
        self.documents: list[bytes] = []
        self.bytes = 0


def batches(labelled: Iterable[tuple[Label, bytes]]) -> Iterator[Batch[Label]]:
    batch: Batch[Label] = Batch()
    for label, document in labelled:
        batch.labels.append(label)
        batch.documents.append(document)
        batch.bytes += len(document)
        if batch.bytes >= MESSAGE_BYTES:
            yield batch
            batch = Batch()
    if batch.documents:
        yield batch


class Encoders:
    """A context with `workers` encoding processes; with one, encoding happens in this process.

    The tokens do not depend on the number of processes.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int) -> None:
        self.tokenizer, self.workers = tokenizer, workers
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()

    def __enter__(self) -> "Encoders":
        if self.workers > 1:
            environment = {
                **os.environ,
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            }
            command = [sys.executable, "-P", "-m", "isoflop.data.worker"]
            for _ in range(self.workers):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=1 << 20
                )
                self.processes.append(process)
                self.idle.put(process)

            message = self.tokenizer.to_json().encode()
            for process in self.processes:
                with ended(process):
                    pipe(process.stdin).write(SIZE.pack(len(message)) + message)
                    pipe(process.stdin).flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            if kind is not None:
                process.kill()
            with contextlib.suppress(OSError):
                pipe(process.stdin).close()
            pipe(process.stdout).close()
            process.wait()

    def encode(self, todo: Iterable[Batch[Label]]) -> Iterator[tuple[Batch[Label], np.ndarray, np.ndarray]]:
        """(batch, tokens of each document, all its tokens), in the order of `todo`, a few batches ahead.

        Raises:
            UserError: if a process was killed (most likely because memory ran out).
        """
        if self.workers <= 1:
            for batch in todo:
                yield batch, *encode_documents(self.tokenizer, batch.documents)
            return

        pending: deque[tuple[Batch[Label], Future[tuple[np.ndarray, np.ndarray]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:  # a thread per process, which only waits for the pipes
            try:
                for batch in todo:
                    pending.append((batch, pool.submit(self.ask, batch.documents)))
                    if len(pending) > self.workers + 2:
                        first, future = pending.popleft()
                        yield first, *future.result()
                while pending:
                    first, future = pending.popleft()
                    yield first, *future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    def ask(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Let an idle process encode some documents: (tokens of each document, all tokens)."""
        process = self.idle.get()
        try:
            with ended(process):
                send_documents(pipe(process.stdin), documents)
                counts = np.frombuffer(receive(pipe(process.stdout), 8 * len(documents)), "<u8")
                dtype = dtype_for(self.tokenizer.vocab_size)
                tokens = np.frombuffer(receive(pipe(process.stdout), int(counts.sum()) * dtype.itemsize), dtype)
            return counts, tokens
        finally:
            self.idle.put(process)


def pipe(stream: object) -> BinaryIO:
    return cast(BinaryIO, stream)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A context that reports a dead process, whose pipes are closed, instead of waiting for it."""
    try:
        yield
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = process.wait()
        if code >= 0:  # a defect of ours: its traceback is on standard error
            raise RuntimeError(f"an encoding process ended with code {code}") from None
        raise UserError(
            f"an encoding process was killed by signal {-code}; if memory ran out, prepare again with "
            "--set data.workers=1"
        ) from None
