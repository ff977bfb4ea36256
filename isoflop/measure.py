"""Held-out loss, perplexity and bits per byte: always plain cross-entropy, with any training loss."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from isoflop.data.packing import windows_of_documents
from isoflop.model.cross_entropy import IGNORED, head_loss
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.gpt import GPT
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import Unused
from isoflop.records.record import plain
from isoflop.runtime import Runtime

BATCH_TOKENS = 16384  # per forward pass: enough to occupy any machine, few enough for its memory
FINAL_TOKENS = 4_000_000  # held-out tokens of a run's final evaluation, or all if there are fewer

Piece = tuple[float, int, int]  # nats, tokens, bytes of one sequence
Measured = tuple[float, int, int, tuple[Piece, ...]]  # of a group of sequences, and of each of them if requested


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
        task_metrics: other metrics of the task, by name.
        unused: the parts of the text that were not used; found_bytes: bytes of these and of the text that was read.
        notes: notes to the user about the text.
        pieces: of each sequence, in order, if requested.
    """

    nats: float
    tokens: int
    bytes: int
    task_metrics: dict[str, Any] = field(default_factory=dict)
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
            **self.task_metrics,
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
    apart: int | None = None,
) -> HeldOut:
    """Measure a model on a stream of documents, each followed by `eot`.

    The stream is split into windows of the model's context that do not overlap; every token is predicted once, from
    those before it in its window (the first of a window from the token before the window, the very first from `eot`).
    A token early in a window is thus predicted from little context, which makes the result slightly worse than with a
    sliding window, and comparable with the training loss.

    Args:
        tokens: ids, shape (n,).
        token_bytes: bytes of text of each id, shape (vocab_size,).
        max_tokens: if the stream is longer, evenly spaced windows of about this many tokens in total; 0: all.
        group: the processes that share the work; all get the result.
        pieces: also measure each window by itself, for which the head is computed a second time.
        apart: the id that ends a document, if no token may attend to another document (BatchConfig.document_mask).
    """
    context, count = model.config.context, len(tokens)
    starts = window_starts(count, context, max_tokens)
    complete = [start for start in starts if start + context <= count]
    rows = max(1, BATCH_TOKENS // context)
    groups = [complete[i : i + rows] for i in range(0, len(complete), rows)]
    if len(complete) < len(starts):
        groups.append([starts[-1]])

    def measure_windows(starts: Sequence[int]) -> Measured:
        length = min(context, count - int(starts[0]))
        windows = np.stack([with_previous(tokens, int(start), length, eot) for start in starts])
        window = torch.from_numpy(windows).to(runtime.device)
        inputs_BT, targets_BT = window[:, :-1], window[:, 1:]
        documents = () if apart is None else (None, (inputs_BT == apart).cumsum(1))
        with runtime.autocast():
            h_BTD = model.hidden(inputs_BT, *documents)
            loss = head_loss(model, h_BTD, targets_BT, reduction="sum")
            by_window = measure_pieces(model, h_BTD, targets_BT, token_bytes) if pieces else ()
        return float(loss), targets_BT.numel(), int(token_bytes[targets_BT.cpu().numpy()].sum()), by_window

    return measure_groups(model, groups, measure_windows, group)


@torch.no_grad()
def measure_documents(
    model: GPT,
    tokens: Tokens,
    token_bytes: npt.NDArray[Any],
    eot: int,
    start: int,
    runtime: Runtime,
    max_tokens: int = 0,
    group: Group = ALONE,
    pieces: bool = False,
) -> HeldOut:
    """`measure` in windows that begin with a document, for a model that was trained in such (BatchConfig.windows).

    Each window holds tokens of one document: all of them, or a part of a longer one, each part in a window of its own.
    In front of its first token is `start`. Every token is predicted once, as in `measure`, so that bits per byte are of
    the same text; but the first tokens of a window are predicted from less.

    Args:
        start: the id that a model reads before a document.
        pieces: also measure each window by itself, in the order of their lengths.
    """
    starts, lengths = windows_of_documents(tokens, eot, model.config.context)
    if max_tokens and len(tokens) > max_tokens:
        wanted = max(1, round(max_tokens / lengths.mean()))
        chosen = np.unique(np.linspace(0, len(starts) - 1, wanted).astype(np.int64))
        starts, lengths = starts[chosen], lengths[chosen]

    # windows of similar length share a batch, which saves padding
    order = np.argsort(lengths, kind="stable")
    groups: list[list[int]] = []
    for window in order.tolist():
        if not groups or (len(groups[-1]) + 1) * lengths[window] > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(window)

    def measure_windows(windows: Sequence[int]) -> Measured:
        shape = (len(windows), int(lengths[windows].max()))
        inputs_BT, targets_BT = np.full(shape, start, np.int64), np.full(shape, IGNORED, np.int64)
        for row, window in enumerate(windows):
            ids, length = tokens[int(starts[window]) : int(starts[window] + lengths[window])], int(lengths[window])
            inputs_BT[row, 1:length], targets_BT[row, :length] = ids[:-1], ids
        counted = targets_BT[targets_BT != IGNORED]
        inputs, targets = (torch.from_numpy(ids).to(runtime.device) for ids in (inputs_BT, targets_BT))
        with runtime.autocast():
            h_BTD = model.hidden(inputs)
            loss = head_loss(model, h_BTD, targets, reduction="sum")
            by_window = measure_pieces(model, h_BTD, targets, token_bytes) if pieces else ()
        return float(loss), len(counted), int(token_bytes[counted].sum()), by_window

    return measure_groups(model, groups, measure_windows, group)


def window_starts(count: int, context: int, max_tokens: int = 0) -> npt.NDArray[np.int64]:
    """The first token of each window to measure in a stream of `count` tokens, see `measure`."""
    starts = np.arange(0, count, context)
    if max_tokens and count > max_tokens:
        starts = starts[np.unique(np.linspace(0, len(starts) - 1, max(1, max_tokens // context)).astype(np.int64))]
    return starts


def measure_pieces(
    model: GPT | EncoderDecoder, h_BTD: torch.Tensor, targets_BT: torch.Tensor, token_bytes: npt.NDArray[Any]
) -> tuple[Piece, ...]:
    """Nats, tokens and bytes of each of B sequences, from their hidden states."""
    measured = []
    for h_1TD, targets_1T in zip(h_BTD.split(1), targets_BT.split(1), strict=True):
        counted = targets_1T[targets_1T != IGNORED]
        nats = float(head_loss(model, h_1TD, targets_1T, reduction="sum"))
        measured.append((nats, counted.numel(), int(token_bytes[counted.cpu().numpy()].sum())))
    return tuple(measured)


def measure_groups(
    model: GPT | EncoderDecoder, groups: Sequence[Any], measure_group: Callable[[Any], Measured], group: Group
) -> HeldOut:
    """Measure groups of sequences, each process every N-th group, with the model in evaluation mode.

    The results are added in the order of the groups, so that the sum does not depend on the number of processes. All
    processes measure the same number of groups, some of them the last one again: with a sharded model, a forward pass
    needs all processes.

    Raises:
        CutShort: in all processes, if the caller lets a signal end it (parallel/pause.py).
    """
    was_training = model.training
    model.eval()
    own: list[Measured] = []
    try:
        for number in range(group.rank, -(-len(groups) // group.size) * group.size, group.size):
            own.append(measure_group(groups[min(number, len(groups) - 1)]))
            group.pause()
    finally:
        model.train(was_training)

    of_all = group.gather(own)
    nats, tokens, text_bytes = 0.0, 0, 0
    pieces: list[Piece] = []
    for number in range(len(groups)):
        measured = of_all[number % group.size][number // group.size]
        nats, tokens, text_bytes = nats + measured[0], tokens + measured[1], text_bytes + measured[2]
        pieces += measured[3]
    return HeldOut(nats, tokens, text_bytes, pieces=tuple(pieces))


def with_previous(tokens: Tokens, start: int, length: int, eot: int) -> npt.NDArray[np.int64]:
    """`length` tokens from `start` and the one before them (`eot` at the very beginning), shape (length + 1,)."""
    if start == 0:
        return np.concatenate([[eot], np.asarray(tokens[:length], dtype=np.int64)])
    return np.asarray(tokens[start - 1 : start + length], dtype=np.int64)


class Pairs(Protocol):
    """Inputs and outputs by number, each an array of ids (implemented in isoflop.data.prepared_pairs)."""

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
    """Measure an encoder-decoder on pairs: the cross-entropy of every output given its input, with the end-of-text
    tokens; the bytes are those of the outputs.

    Args:
        batch: numbers of pairs -> (source_BS, visible_BS, inputs_BT, targets_BT).
        token_bytes: bytes of text of each id, shape (vocab_size,).
        max_tokens: if the outputs have more, evenly spaced pairs with about this many output tokens; 0: all.
        group: the processes that share the work; all get the result.
        pieces: also measure each pair by itself, in the order of their lengths.
    """
    lengths = np.asarray(pairs.target.lengths) + 1
    chosen = np.arange(len(pairs))
    if max_tokens and lengths.sum() > max_tokens:
        count = max(1, int(max_tokens / lengths.mean()))
        chosen = np.unique(np.linspace(0, len(pairs) - 1, count).astype(np.int64))
    # Pairs of similar length share a batch, which saves padding.
    chosen = chosen[np.argsort(np.asarray(pairs.source.lengths)[chosen] + lengths[chosen], kind="stable")]
    rows = max(1, BATCH_TOKENS // int(2 * lengths.max()))

    def measure_batch(numbers: npt.NDArray[Any]) -> Measured:
        *inputs, targets_BT = (part.to(runtime.device) for part in batch(numbers))
        with runtime.autocast():
            h_BTD = model.hidden(*inputs)
            loss = head_loss(model, h_BTD, targets_BT, reduction="sum")
            by_pair = measure_pieces(model, h_BTD, targets_BT, token_bytes) if pieces else ()
        counted = targets_BT[targets_BT != IGNORED]
        return float(loss), counted.numel(), int(token_bytes[counted.cpu().numpy()].sum()), by_pair

    batches = [chosen[first : first + rows] for first in range(0, len(chosen), rows)]
    return measure_groups(model, batches, measure_batch, group)
