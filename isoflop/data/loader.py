"""The tokens of step k as a pure function of k: the loader has no state but the step number.

Sequences are numbered through the whole run: i = step * sequences + row (with a batch-size ramp, the sequences before
the step + row). Number i is the j-th sequence drawn from some source; in epoch e = j // windows it is window
`permutation(j % windows)` of the source's tokens, taken as a circle:

    i ── place ──> (source, j) ── permute ──> window w ──> tokens [offset + w * context, ... + context]

Where windows begin with documents, the tokens of window w are those that packing.py puts into it.

Every arrow is arithmetic. Nothing is shuffled in memory: only the places of a few hundred sequences, which are computed
together, are cached. Step 10^6 costs as much as step 0.
"""

import hashlib
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import torch

from isoflop.data.gaps import Gaps
from isoflop.data.packing import DOCUMENTS, RUNNING, PackedText
from isoflop.data.prepared import Prepared
from isoflop.errors import UserError
from isoflop.records import DataRead, SourceRead

UNIT = 1 << 32  # weights are integer multiples of 1 / UNIT, so that shares are exact in any run
ROUNDS = 4
BLOCK = 512  # sequences whose places are computed together


class Batches(Protocol):
    """The batches of a run, as pure functions of the step; Loader is for text, pair_loader.PairLoader for pairs."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, ...]:
        """The inputs of the task's loss, sequences first; the last tensor holds the targets, -100 where the loss
        ignores them. Each of `world` processes gets an equal share of the step's sequences."""

    def tokens(self, steps: int) -> int:
        """The number of tokens that the first `steps` steps read."""

    def account(self, steps: int) -> DataRead:
        """The same by source."""

    def span(self, step: int, steps: int) -> tuple[int, int]:
        """The sequences to skip so that nothing is read again that the `steps` steps from `step` on read: (first
        sequence, count), as numbered in a run without gaps (gaps.py)."""

    def largest(self, sequences: int) -> tuple[torch.Tensor, ...]:
        """A batch of token 0 only, with the largest shape that this many sequences can have."""


class Loader:
    """Batches of a run.

    Args:
        context: tokens per sequence; each window has one more, since targets are inputs shifted by one.
        sequences: per step, over all ranks; or, if that changes, a function: step -> sequences read before it.
        seed: of the order within each source.
        skipped: (first, count) ranges of sequences to skip, as numbered in a run without gaps.
        length: step -> tokens of each row, of which `context` is a multiple: a step with shorter rows reads the same
            sequences, cut into several rows each. None: `context`.
        windows: "running", one after the other through all documents; "documents", each row begins with a document
            (packing.py).
        number_documents: a batch has a third tensor, the number of each input's document in its row. What precedes a
            document (`start`, or the end of the one before) belongs to it.

    Raises:
        UserError: if a source has less than one window of tokens.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: int,
        sequences: int | Callable[[int], int],
        seed: int,
        skipped: tuple[tuple[int, int], ...] = (),
        length: Callable[[int], int] | None = None,
        windows: str = RUNNING,
        number_documents: bool = False,
    ) -> None:
        self.context, self.seed, self.gaps = context, seed, Gaps.of(skipped)
        self.before = sequences if callable(sequences) else partial(operator.mul, sequences)
        self.length = length or (lambda step: context)
        weight_of = {name: weight for name, weight in prepared.weights().items() if prepared.train_tokens(name)}
        self.names = sorted(weight_of, key=lambda name: (-weight_of[name], prepared.sources.index(name)))
        self.weights = [weight_of[name] for name in self.names]
        self.shares = [max(1, round(weight * UNIT)) for weight in self.weights]
        for name in self.names:
            if prepared.train_tokens(name) <= context:
                raise too_short(name, prepared.train_tokens(name), context)
        self.streams = [prepared.train(name) for name in self.names]
        self.windows = [-(-len(stream) // context) for stream in self.streams]
        self.packed: list[PackedText] = []
        self.first = 0  # the id in front of a document
        if windows == DOCUMENTS:
            self.first, eot = prepared.tokenizer.start, prepared.tokenizer.eot
            self.packed = [PackedText(stream, context, eot) for stream in self.streams]
        elif number_documents:
            self.first = prepared.tokenizer.eot
        self.number_documents = number_documents
        self.block = lru_cache(maxsize=2)(self.find_block)  # two: a batch may span a block boundary

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, ...]:
        """(inputs_BT, targets_BT), int64, of step `step` (from 0): rows rank*B to (rank+1)*B of the step's rows,
        B = sequences / world * context / T; with `number_documents` (inputs_BT, documents_BT, targets_BT).

        Raises:
            UserError: if the sequences cannot be divided by `world`.
        """
        sequences = self.before(step + 1) - self.before(step)
        if sequences % world:
            raise UserError(
                f"the {sequences} sequences of a step cannot be divided among {world} processes; make batch.sequences "
                "(and batch.ramp_from) a multiple"
            )

        rows, length = sequences // world, self.length(step)
        first = self.before(step) + rank * rows
        read = self.read_packed if self.packed else self.read_running
        tokens_2BT = np.empty((2, rows, self.context), np.int64)
        for row in range(rows):
            number, within = divmod(first + row, BLOCK)
            read(*self.block(number)[within], length, tokens_2BT[:, row])
        inputs_BT, targets_BT = torch.from_numpy(tokens_2BT).view(2, -1, length)
        if self.number_documents:
            return inputs_BT, (inputs_BT == self.first).cumsum(1), targets_BT
        return inputs_BT, targets_BT

    def read_running(self, source: int, offset: int, window: int, length: int, into_2T: np.ndarray) -> None:
        """Inputs and targets of a sequence: a window of `context` tokens and the one after it."""
        tokens = self.streams[source].read(offset + window * self.context, self.context + 1)
        into_2T[0], into_2T[1] = tokens[:-1], tokens[1:]

    def read_packed(self, source: int, offset: int, window: int, length: int, into_2T: np.ndarray) -> None:
        """Inputs and targets of a sequence whose rows of `length` tokens begin with a document. Each document in it has
        the tokenizer's start in front of its first token."""
        inputs_T, targets_T = into_2T
        at = 0
        for begin, count in self.packed[source].pieces(offset, window, length):
            tokens = self.streams[source].read(begin, count)
            inputs_T[at] = self.first
            inputs_T[at + 1 : at + count], targets_T[at : at + count] = tokens[:-1], tokens
            at += count

    def find_block(self, number: int) -> list[tuple[int, int, int]]:
        """(source, offset, window) of each of the BLOCK sequences from number * BLOCK on: the window's first token is
        offset + window * context.

        They are computed together, since one costs numpy as much as many.
        """
        first = number * BLOCK
        placed = np.array([place(self.shares, self.gaps.unbroken(i)) for i in range(first, first + BLOCK)], np.int64)
        offsets, windows = np.empty((2, BLOCK), np.int64)
        for source in np.unique(placed[:, 0]):
            of_source = placed[:, 0] == source
            offsets[of_source], windows[of_source] = self.windows_of(int(source), placed[of_source, 1])
        return list(zip(placed[:, 0].tolist(), offsets.tolist(), windows.tolist(), strict=True))

    def tokens(self, steps: int) -> int:
        """Tokens that the first `steps` steps read, as targets."""
        return self.before(steps) * self.context

    def span(self, step: int, steps: int) -> tuple[int, int]:
        return self.gaps.span(self.before(step), self.before(step + steps))

    def largest(self, sequences: int) -> tuple[torch.Tensor, ...]:
        zeros_BT = torch.zeros((sequences, self.context), dtype=torch.int64)
        return tuple(zeros_BT.clone() for _ in range(2 + self.number_documents))

    def windows_of(self, source: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The offset of the epoch and the window of each draw from a source."""
        windows, length = self.windows[source], len(self.streams[source])
        offsets, order = np.empty((2, len(draws)), np.int64)
        epochs = draws // windows
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            keys = keys_of(self.seed, self.names[source], int(epoch))
            order[of_epoch] = permute(draws[of_epoch] % windows, windows, keys[:ROUNDS])
            offsets[of_epoch] = int(keys[ROUNDS]) % length
        return offsets, order

    def account(self, steps: int) -> DataRead:
        """What the first `steps` steps read."""
        end = self.gaps.unbroken(self.before(steps) - 1) + 1 if steps else 0
        drawn = counts(self.shares, end)
        skipped = [0] * len(self.names)
        for first, count in self.gaps.before(self.before(steps)):
            up_to_end, up_to_first = counts(self.shares, first + count), counts(self.shares, first)
            skipped = [sum_ + a - b for sum_, a, b in zip(skipped, up_to_end, up_to_first, strict=True)]
        read = [total - gaps for total, gaps in zip(drawn, skipped, strict=True)]
        total = max(sum(read), 1)

        return DataRead(
            tokens=sum(read) * self.context,
            passed_over=sum(skipped) * self.context,
            sources={
                name: SourceRead(
                    tokens=read[s] * self.context,
                    share=read[s] / total,
                    asked=self.weights[s],
                    epochs=read[s] / self.windows[s],
                    repeated_per_epoch=self.windows[s] * self.context - len(self.streams[s]),
                    passed_over=skipped[s] * self.context,
                )
                for s, name in enumerate(self.names)
            },
        )


def too_short(name: str, tokens: int, context: int) -> UserError:
    """The error about a source without a single window, with a context for which it has one."""
    shorter = f", or use --set model.context={1 << (tokens - 1).bit_length() - 1}" if tokens > 1 else ""
    return UserError(
        f"source {name} has {tokens} training tokens, fewer than the {context + 1} of one window of context {context}; "
        f"add text{shorter}"
    )


def place(shares: Sequence[int], i: int) -> tuple[int, int]:
    """Sequence i -> (its source, the number of sequences drawn from that source before).

    The first source takes every i at which i * share, rounded, increases by one; the others are renumbered and offered
    to the next source. So each source's count among the first i is within about one sequence of its exact share, for
    every i: rounding errors do not accumulate.
    """
    remaining = sum(shares)
    for source, share in enumerate(shares[:-1]):
        drawn = rounded(i, share, remaining)
        if rounded(i + 1, share, remaining) > drawn:
            return source, drawn
        i -= drawn
        remaining -= share
    return len(shares) - 1, i


def counts(shares: Sequence[int], i: int) -> list[int]:
    """The number of sequences of each source among the first i."""
    remaining, drawn = sum(shares), []
    for share in shares:
        drawn.append(rounded(i, share, remaining))
        i -= drawn[-1]
        remaining -= share
    return drawn


def rounded(i: int, share: int, total: int) -> int:
    """i * share / total, rounded to the nearest integer, halves upwards."""
    return (2 * i * share + total) // (2 * total)


def keys_of(seed: int, source: str, epoch: int) -> np.ndarray:
    """ROUNDS keys of the permutation and a number for the offset, uint64."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{source}".encode(), digest_size=8 * (ROUNDS + 1)).digest()
    return np.frombuffer(digest, "<u8")


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """A keyed bijection of 0 ... n-1, evaluated at some positions (int64) in constant memory.

    A Feistel network over the smallest even number of bits that holds n; values of n or more go through it again until
    they are below n (cycle walking: Black & Rogaway 2002), at most four times on average.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64)


def mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
