"""Held-out loss, perplexity and bits per byte: always plain cross-entropy, whatever the training loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from isoflop.model.cross_entropy import IGNORED, head_loss
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.gpt import GPT
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import Unused
from isoflop.records.record import plain
from isoflop.runtime import Runtime

BATCH_TOKENS = 16384  # measured at once: enough to fill the machine, little enough for any


Piece = tuple[float, int, int]  # nats, tokens, bytes of one sequence
Found = tuple[float, int, int, tuple[Piece, ...]]  # those of a group of sequences, and of each where that is asked for


class Tokens(Protocol):
    """A sequence of ids that is read in slices: an array, or a file on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class HeldOut:
    """The loss of a model on held-out text.

    Attributes:
        nats: the sum of the cross-entropy of all tokens, including ends of documents.
        tokens: the number of tokens, including ends of documents.
        bytes: the number of bytes of text of these tokens; an end of document has none.
        beside: what else the task is judged by, as names and numbers.
        unused: what of the text named was not used, and found_bytes: that and what was read.
        notes: what else the user should know of that text.
        pieces: of each sequence, in order, where they were asked for.
    """

    nats: float
    tokens: int
    bytes: int
    beside: dict[str, Any] = field(default_factory=dict)
    unused: tuple[Unused, ...] = ()
    found_bytes: int = 0
    notes: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token): comparable only between runs with the same tokenizer."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable between tokenizers."""
        return self.nats / math.log(2) / max(1, self.bytes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "bytes": self.bytes,
            **self.beside,
            **({"unused": plain(self.unused), "found_bytes": self.found_bytes} if self.unused else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }


@torch.no_grad()
def measure(
    model: GPT,
    tokens: Tokens,
    token_bytes: npt.NDArray[Any],
    eot: int,
    runtime: Runtime,
    max_tokens: int = 0,
    group: Group = ALONE,
    pieces: bool = False,
) -> HeldOut:
    """Measure a model on a stream of documents, each followed by `eot`.

    The stream is split into windows of the model's context that do not overlap; every token is predicted once, from
    those before it in its window (the first of a window from the token before the window, the very first from `eot`).
    A token early in a window is thus predicted from little context, which makes the result slightly worse than with a
    sliding window, and comparable with the training loss.

    Args:
        tokens: ids, shape (n,).
        token_bytes: bytes that each id stands for, shape (vocab_size,).
        max_tokens: if the stream is longer, evenly spaced windows of about this many tokens in all; 0: everything.
        group: the processes that share the work; all get the figure.
        pieces: of each window too, for which the head is worked out a second time.
    """
    context, count = model.config.context, len(tokens)
    starts = window_starts(count, context, max_tokens)
    whole = [start for start in starts if start + context <= count]
    rows = max(1, BATCH_TOKENS // context)
    groups = [whole[i : i + rows] for i in range(0, len(whole), rows)]
    if len(whole) < len(starts):
        groups.append([starts[-1]])

    def one(starts: Sequence[int]) -> Found:
        length = min(context, count - int(starts[0]))
        windows = np.stack([with_previous(tokens, int(start), length, eot) for start in starts])
        window = torch.from_numpy(windows).to(runtime.device)
        targets_BT = window[:, 1:]
        with runtime.autocast():
            h_BTD = model.hidden(window[:, :-1])
            loss = head_loss(model, h_BTD, targets_BT, reduction="sum")
            each = one_by_one(model, h_BTD, targets_BT, token_bytes) if pieces else ()
        return float(loss), targets_BT.numel(), int(token_bytes[targets_BT.cpu().numpy()].sum()), each

    return shared_out(model, groups, one, group)


def window_starts(count: int, context: int, max_tokens: int = 0) -> npt.NDArray[np.int64]:
    """The first token of each window to measure in a stream of `count` tokens, see `measure`."""
    starts = np.arange(0, count, context)
    if max_tokens and count > max_tokens:
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, max(1, max_tokens // context)).astype(np.int64))]
    return starts


def one_by_one(
    model: GPT | EncoderDecoder, h_BTD: torch.Tensor, targets_BT: torch.Tensor, token_bytes: npt.NDArray[Any]
) -> tuple[Piece, ...]:
    """Nats, tokens and bytes of each of B sequences, from their hidden states."""
    found = []
    for h_1TD, targets_1T in zip(h_BTD.split(1), targets_BT.split(1), strict=True):
        there = targets_1T[targets_1T != IGNORED]
        nats = float(head_loss(model, h_1TD, targets_1T, reduction="sum"))
        found.append((nats, there.numel(), int(token_bytes[there.cpu().numpy()].sum())))
    return tuple(found)


def shared_out(
    model: GPT | EncoderDecoder, groups: Sequence[Any], one: Callable[[Any], Found], group: Group
) -> HeldOut:
    """Measure groups of sequences, each process every N-th one, with the model in evaluation mode. The results are
    added in the order of the groups, so that the sum does not depend on the number of processes.

    All processes measure equally many groups, some of them the last one again: with a sharded model, a forward pass
    needs all processes.

    Raises:
        CutShort: in all processes, if the caller lets a signal end it (parallel/pause.py).
    """
    was_training = model.training
    model.eval()
    mine: list[Found] = []
    try:
        for turn in range(group.rank, -(-len(groups) // group.size) * group.size, group.size):
            mine.append(one(groups[min(turn, len(groups) - 1)]))
            group.pause()
    finally:
        model.train(was_training)
    everyone = group.gather(mine)
    nats, counted, text_bytes = 0.0, 0, 0
    pieces: list[Piece] = []
    for turn in range(len(groups)):
        found = everyone[turn % group.size][turn // group.size]
        nats, counted, text_bytes = nats + found[0], counted + found[1], text_bytes + found[2]
        pieces += found[3]
    return HeldOut(nats, counted, text_bytes, pieces=tuple(pieces))


def with_previous(tokens: Tokens, start: int, length: int, eot: int) -> npt.NDArray[np.int64]:
    """`length` tokens from `start` and the one before them (`eot` at the very beginning), shape (length + 1,)."""
    if start == 0:
        return np.concatenate([[eot], np.asarray(tokens[:length], dtype=np.int64)])
    return np.asarray(tokens[start - 1 : start + length], dtype=np.int64)


class Pairs(Protocol):
    """Inputs and outputs by number, each an array of ids (isoflop.data.prepared_pairs has the real ones)."""

    @property
    def source(self) -> Any: ...

    @property
    def target(self) -> Any: ...

    def __len__(self) -> int: ...


@torch.no_grad()
def measure_pairs(
    model: EncoderDecoder,
    pairs: Pairs,
    batch: Callable[[npt.NDArray[Any]], tuple[torch.Tensor, ...]],
    token_bytes: npt.NDArray[Any],
    runtime: Runtime,
    max_tokens: int = 0,
    group: Group = ALONE,
    pieces: bool = False,
) -> HeldOut:
    """Measure an encoder-decoder on pairs: the cross-entropy of every output given its input, ends included; the bytes
    are those of the outputs.

    Args:
        batch: numbers of pairs -> (source_BS, visible_BS, inputs_BT, targets_BT).
        max_tokens: if the outputs hold more, evenly spaced pairs with about this many tokens of output; 0: everything.
        group: the processes that share the work; all get the figure.
        pieces: of each pair too, in the order of their lengths.
    """
    lengths = np.asarray(pairs.target.lengths) + 1
    chosen = np.arange(len(pairs))
    if max_tokens and lengths.sum() > max_tokens:
        count = max(1, int(max_tokens / lengths.mean()))
        chosen = np.unique(np.linspace(0, len(pairs) - 1, count).astype(np.int64))
    chosen = chosen[np.argsort(np.asarray(pairs.source.lengths)[chosen] + lengths[chosen], kind="stable")]
    rows = max(1, BATCH_TOKENS // int(2 * lengths.max()))

    def one(numbers: npt.NDArray[Any]) -> Found:
        *inputs, targets_BT = (part.to(runtime.device) for part in batch(numbers))
        with runtime.autocast():
            h_BTD = model.hidden(*inputs)
            loss = head_loss(model, h_BTD, targets_BT, reduction="sum")
            each = one_by_one(model, h_BTD, targets_BT, token_bytes) if pieces else ()
        there = targets_BT[targets_BT != IGNORED]
        return float(loss), there.numel(), int(token_bytes[there.cpu().numpy()].sum()), each

    return shared_out(model, [chosen[first : first + rows] for first in range(0, len(chosen), rows)], one, group)
