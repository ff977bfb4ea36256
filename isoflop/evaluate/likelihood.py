"""The likelihood of a continuation given a context: the sum of ln p over its tokens.

Context and continuation are cut as in lm-eval 0.4, so that the same weights give the same numbers: the two are encoded
together, the context once more alone, and the continuation is whole[len(context):]. Blanks at the end of a context
belong to the continuation. An empty context is the id that begins a document; no other context has one in front,
unless the tokenizer always writes it.

Sequences of nearly one length go through the model together (batches.py), padded at the right, where nothing that
counts sees it. Contexts and inputs that several requests share are computed once, and only the tokens that are scored
go through the head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from isoflop.evaluate.batches import Batch, Ids, Window, make_batches
from isoflop.generate.cache import KVCache
from isoflop.generate.memory import bytes_of_row, not_ragged
from isoflop.model.gpt import GPT
from isoflop.parallel.mesh import ALONE, Group
from isoflop.runtime import Runtime

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}  # read at once
CACHE_BYTES = {"cpu": 2**28, "cuda": 2**32}  # of the keys and values behind shared contexts
CHUNK_LOGITS = 2**22  # logits held at once, in float32
Progress = Callable[[int, int], None]  # sequences read, of so many


class Tokenizer(Protocol):
    """The interface of a tokenizer to scoring (isoflop.data.tokenizer implements it)."""

    @property
    def start(self) -> int: ...

    @property
    def begins(self) -> bool: ...

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]: ...


@dataclass(frozen=True)
class Request:
    """A continuation to be scored after a context."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Likelihood:
    """The result of a request.

    Attributes:
        nats: ln p(continuation | context), at most 0.
        tokens: of the continuation.
        greedy: each of its tokens is the model's first choice.
        cut: tokens of the context that were left out, as the model's context is full.
    """

    nats: float
    tokens: int
    greedy: bool
    cut: int = 0


def likelihoods(
    model: GPT,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    runtime: Runtime,
    group: Group = ALONE,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """Score requests, in their order. The same request twice is scored once.

    Args:
        group: the processes that share the work; all get the result.
    """
    distinct = list(dict.fromkeys(requests))
    windows: list[Window] = []
    parts: list[tuple[range, int, int]] = []  # windows of a request, its tokens, those left out
    for ids, scored in encode(tokenizer, distinct):
        pieces, cut = cut_to_fit(ids, scored, model.config.context)
        parts.append((range(len(windows), len(windows) + len(pieces)), scored, cut))
        windows += pieces
    results = read(model, windows, runtime, group, progress)
    scores = {
        request: Likelihood(sum(results[i][0] for i in span), tokens, all(results[i][1] for i in span), cut)
        for request, (span, tokens, cut) in zip(distinct, parts, strict=True)
    }
    return [scores[request] for request in requests]


def encode(tokenizer: Tokenizer, requests: Sequence[Request]) -> Iterator[tuple[Ids, int]]:
    """The ids of each request, and how many at the end are its continuation."""
    pairs = []
    for request in requests:
        stripped = request.context.rstrip()
        pairs.append((stripped, request.context[len(stripped) :] + request.continuation))
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    context_ids = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    wholes = tokenizer.encode_batch([context + text for context, text in pairs])
    beginning = np.array([tokenizer.start], dtype=np.int64)

    for (context, text), whole in zip(pairs, wholes, strict=True):
        before = context_ids[context]
        after = whole[len(before) :]
        if not len(after):  # it was merged into the context's last token
            after = tokenizer.encode_batch([text])[0]
        begins = [beginning] if tokenizer.begins or not len(before) else []
        yield np.concatenate([*begins, before, after]), len(after)


def cut_to_fit(ids: Ids, scored: int, context: int) -> tuple[list[Window], int]:
    """Windows that a model of this context can read, and the number of ids dropped from the left, as lm-eval does. A
    continuation that is longer than the context is scored in pieces, each after half a context; one without tokens is
    certain, ln p = 0, and needs no window."""
    if not scored:
        return [], 0
    room = context + 1
    if scored <= context:
        return [Window(ids[-room:], scored)], max(0, len(ids) - room)
    half = max(1, context // 2)
    left_out = max(0, len(ids) - scored - half)
    ids = ids[left_out:]
    return list(windows_over(ids, len(ids) - scored, room, half)), left_out


def windows_over(ids: Ids, first: int, length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `length` ids, each `stride` further on, that together predict each id from number `first` on
    once; first is 1 or more, and the length is above the stride."""
    begin, done = 0, first
    while True:
        end = min(begin + length, len(ids))
        if end > done:
            yield Window(ids[begin:end], min(end - done, end - begin - 1))
            done = end
        if end == len(ids):
            return
        begin += stride


@torch.no_grad()
def read(
    model: GPT,
    windows: Sequence[Window],
    runtime: Runtime,
    group: Group = ALONE,
    progress: Progress | None = None,
) -> list[tuple[float, bool]]:
    """Sum of ln p over the scored ids of each window, and whether each of them was the first choice. The model is in
    evaluation meanwhile.

    Several processes read every N-th batch each; all read as many, since where the model is divided a forward needs
    all.
    """
    most = BATCH_TOKENS.get(runtime.device.type, BATCH_TOKENS["cuda"])
    batches = make_batches(windows, most, positions_held(model, runtime, group), model.config.context)
    training = model.training
    model.eval()
    mine: list[tuple[list[float], list[bool]]] = []
    try:
        for turn in range(group.rank, -(-len(batches) // group.size) * group.size, group.size):
            mine.append(read_batch(model, windows, batches[min(turn, len(batches) - 1)], runtime))
            if progress is not None:
                progress(min(turn + 1, len(batches)), len(batches))
            group.pause()
    finally:
        model.train(training)

    everyone = group.gather(mine)
    results: list[tuple[float, bool]] = [(0.0, True)] * len(windows)
    for turn, batch in enumerate(batches):
        nats, greedy = everyone[turn % group.size][turn // group.size]
        numbers = [number for row in batch.rows for number in row]
        for number, one, first_choice in zip(numbers, nats, greedy, strict=True):
            results[number] = (one, first_choice)
    return results


def positions_held(model: GPT, runtime: Runtime, group: Group) -> int:
    """The number of positions that a cache of shared contexts may hold. 0 (no cache) if a block needs all rows at one
    position, and with several processes, whose batches must take equally many passes."""
    if group.size > 1 or not_ragged(model):
        return 0
    return CACHE_BYTES.get(runtime.device.type, CACHE_BYTES["cuda"]) // max(1, bytes_of_row(model, 1))


def read_batch(model: GPT, windows: Sequence[Window], batch: Batch, runtime: Runtime) -> tuple[list[float], list[bool]]:
    """The results of `read` for each window of a batch, row by row."""
    # the inputs; for each scored id its position, the id itself, and its window
    rests = [windows[row[0]].ids[batch.skipped(b) : -1] for b, row in enumerate(batch.rows)]
    longest = max(len(rest) for rest in rests)
    tokens_BT = np.zeros((len(batch.rows), longest), dtype=np.int64)
    places: list[Ids] = []
    targets: list[Ids] = []
    owners: list[Ids] = []
    for b, (row, rest) in enumerate(zip(batch.rows, rests, strict=True)):
        tokens_BT[b, : len(rest)] = rest
        for number in row:
            scored = windows[number].scored
            places.append(b * longest + np.arange(len(rest) - scored, len(rest)))
            targets.append(windows[number].ids[-scored:])
            owners.append(np.full(scored, len(owners)))
    where, inverse = np.unique(np.concatenate(places), return_inverse=True)

    device = runtime.device
    with runtime.autocast():
        cache = cache_of(model, batch, longest, device) if batch.prefixes else None
        h_BTD = model.hidden(torch.from_numpy(tokens_BT).to(device), cache)
        h_ND = h_BTD.flatten(0, 1)[torch.from_numpy(where).to(device)]
        nats_M, greedy_M = judge(model, h_ND, torch.from_numpy(inverse), torch.from_numpy(np.concatenate(targets)))

    owner = np.concatenate(owners)
    sums = np.bincount(owner, weights=nats_M.double().cpu().numpy(), minlength=len(owners))
    missed = np.bincount(owner, weights=(~greedy_M).cpu().numpy(), minlength=len(owners))
    return sums.tolist(), (missed == 0).tolist()


def cache_of(model: GPT, batch: Batch, further: int, device: torch.device) -> KVCache:
    """A cache of each row's prefix, with room for `further` positions. Each prefix goes through the model once."""
    lengths = np.array([len(prefix) for prefix in batch.prefixes])
    P = int(lengths.max())
    tokens_FP = np.zeros((len(lengths), P), dtype=np.int64)
    for f, prefix in enumerate(batch.prefixes):
        tokens_FP[f, P - len(prefix) :] = prefix  # padding in front, which the cache masks

    cache = KVCache(P + further, slots=len(batch.rows), windows=False)
    cache.place(lengths - P)
    model.hidden(torch.from_numpy(tokens_FP).to(device), cache)
    cache.select(torch.tensor(batch.prefix_of, device=device))
    return cache


def judge(model: GPT, h_ND: Tensor, places_M: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """ln p of targets after hidden states, and whether each is the first choice; a hidden state may have several."""
    vocabulary = model.head_weight.shape[0]
    places_M, targets_M = places_M.to(h_ND.device), targets_M.to(h_ND.device)
    nats_M = torch.empty(len(targets_M), device=h_ND.device)
    greedy_M = torch.empty(len(targets_M), dtype=torch.bool, device=h_ND.device)
    at_once = max(1, CHUNK_LOGITS // vocabulary)
    for first in range(0, len(h_ND), at_once):
        logits_CV = model.logits(h_ND[first : first + at_once]).float()
        total_C, best_C = logits_CV.logsumexp(-1), logits_CV.argmax(-1)
        asked = ((places_M >= first) & (places_M < first + at_once)).nonzero().squeeze(1)
        at, target = places_M[asked] - first, targets_M[asked]
        nats_M[asked] = logits_CV[at, target] - total_C[at]
        greedy_M[asked] = best_C[at] == target
    return nats_M, greedy_M
