"""Continuous batching: rows of any lengths are decoded together; when one ends, a waiting row takes its slot.

    waiting ─> prefill (a shared prefix once) ─> choose ─> append token ─┐
                                                   ^                     │  until the row ends, or its context is full:
                                                   └────── decode <──────┘  then its last half is prefilled again

The tokens of a row do not depend on the other rows: they are chosen row by row (sample.py) with random numbers from the
row's own generator (rules.py). Only the last bits of logits depend on the shape of the batch, as in any matrix product.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isoflop.generate.cache import KVCache
from isoflop.generate.fused import FusedStep, fusible
from isoflop.generate.memory import READ_AT_ONCE, not_ragged, slots_for
from isoflop.generate.prefix import families
from isoflop.generate.rules import Draws, Rules, Sampling
from isoflop.generate.sample import choose
from isoflop.model.gpt import GPT

SPARE = 4  # a cache has 1 / SPARE more columns than its context, if rows leave and join
PADDING = 0.25  # the most padding in a pass over prompts of nearly equal length, as a share of the pass
WORTH_A_PASS = 64  # tokens of padding that cost less than another pass

Ids = npt.NDArray[np.int64]
Step = tuple[list[int], list[int]]  # numbers of rows, and the new token of each


@dataclass(frozen=True)
class Order:
    """One row to generate.

    Attributes:
        ids: the prompt, at least one token; if it is longer than the context, its end is used.
        tokens: the most new tokens.
    """

    ids: Ids
    tokens: int
    seed: int
    sampling: Sampling


class Batch:
    """Rows that are decoded together, in slots. `run` yields the tokens of each step; `end` ends a row between steps.

    Args:
        orders: the rows, numbered in this order.
        stop: an id that ends a row; it is still yielded.
        slots: rows at once; 0: as memory allows, 256 at most.

    Raises:
        UserError: if not even one row fits in memory, or `slots` do not.
    """

    def __init__(self, model: GPT, orders: Sequence[Order], stop: int | None = None, slots: int = 0) -> None:
        self.model, self.orders, self.stop = model, orders, stop
        self.device, context = model.embedding.weight.device, model.config.context

        # how many rows, and how many columns of the cache
        self.prompts = [order.ids[-context:] for order in orders]
        longest = max((len(ids) for ids in self.prompts), default=1)
        whole = max((len(ids) + order.tokens for ids, order in zip(self.prompts, orders, strict=True)), default=1)
        positions = min(context, whole - 1)
        if not_ragged(model):
            slots = 1
        come_and_go = whole - 1 > context or len(orders) > (slots or len(orders))
        self.penalised = any(order.sampling.repetition_penalty != 1.0 for order in orders)
        spare = max(16, positions // SPARE)
        self.slots = slots_for(model, max(1, len(orders)), positions, longest, spare, slots, self.penalised)
        if self.slots >= len(orders) and not come_and_go:
            spare = 0
        self.cache = KVCache(positions, self.slots, spare)
        self.fused = FusedStep(model, self.slots) if fusible(model) else None

        # state of each slot
        self.number = np.zeros(self.slots, np.int64)
        self.left = np.zeros(self.slots, np.int64)
        self.window = np.zeros((self.slots, context + 1), np.int64)  # the ids in the context
        self.length = np.zeros(self.slots, np.int64)
        self.over = np.zeros(self.slots, bool)
        self.draws = Draws(self.slots)
        self.rules: dict[int, Sampling] = {}
        vocabulary = model.head_weight.shape[0]
        self.seen = torch.zeros(self.slots, vocabulary, dtype=torch.bool) if self.penalised else None
        if self.seen is not None:
            self.seen = self.seen.to(self.device)

        self.prefix_ids, self.prefix_cache = np.zeros(0, np.int64), KVCache(0)
        self.free = list(range(self.slots))[::-1]
        self.again: list[int] = []  # slots whose context is full
        self.rows = np.zeros(0, np.int64)  # the slot of each row of the cache
        self.rules_of_rows: Rules | None = None
        self.waiting = families(self.prompts)

    def run(self) -> Iterator[Step]:
        """Generate all rows. Yields each step: the numbers of rows, and the new token of each."""
        while True:
            for slots, shared in self.admitted():
                for group in groups([int(self.length[slot]) - shared for slot in slots]):
                    yield from self.begin([slots[i] for i in group], shared)
            if not len(self.rows):
                if not self.waiting and not self.again:
                    return
                continue
            yield self.give(self.rows, self.decoded())
            self.settle()

    def decoded(self) -> Tensor:
        """The logits (B, V) after the last token of each row."""
        last_B = torch.from_numpy(self.window[self.rows, self.length[self.rows] - 1]).to(self.device)
        if self.fused is not None:
            return self.fused(last_B, self.cache)
        return next_logits(self.model, last_B.unsqueeze(1), self.cache)

    def end(self, number: int) -> None:
        """End a row that just got a token."""
        self.over[self.slot_of(number)] = True

    def slot_of(self, number: int) -> int:
        return int(self.given[self.number[self.given] == number][0])

    # Rows join

    def admitted(self) -> Iterator[tuple[list[int], int]]:
        """Slots to prefill now, and the length of the prefix that the slots of one yield share."""
        if self.again:
            slots, self.again = self.again, []
            yield slots, 0
        if not self.waiting or (len(self.rows) and len(self.free) < max(1, self.slots // 8)):
            return  # a few free slots are not worth a pass
        while self.waiting and self.free:
            family = self.waiting[0]
            taken, family.members[:] = family.members[: len(self.free)], family.members[len(self.free) :]
            if not family.members:
                self.waiting.pop(0)
            yield [self.enter(number) for number in taken], family.shared

    def enter(self, number: int) -> int:
        slot, order, ids = self.free.pop(), self.orders[number], self.prompts[number]
        self.number[slot], self.left[slot], self.over[slot] = number, order.tokens, False
        self.window[slot, : len(ids)], self.length[slot] = ids, len(ids)
        self.rules[slot] = order.sampling
        self.draws.seed(slot, order.seed)
        if self.seen is not None:
            self.seen[slot] = False
            self.seen[slot, torch.from_numpy(order.ids).to(self.device)] = True
        return slot

    def begin(self, slots: list[int], shared: int) -> Iterator[Step]:
        """Prefill these slots, their shared prefix once, and choose the first token of each."""
        lengths = self.length[slots]
        T = int(lengths.max()) - shared
        first = not len(self.rows)
        if first:
            self.cache.clear()
        cache = self.cache if first else KVCache(int(lengths.max()), len(slots))
        cache.place(lengths - T)

        if shared:
            prefix = self.prefix(self.window[slots[0], :shared])
            with_some = np.flatnonzero(lengths > T)
            if len(with_some):
                cache.begin_with(prefix, with_some, (lengths - T)[with_some])

        columns_BT = lengths[:, None] + np.arange(-T, 0)
        tokens_BT = self.window[np.array(slots)[:, None], np.maximum(columns_BT, 0)]
        tokens_BT[columns_BT < 0] = 0  # padding in front of a row, which is masked
        logits_BV = next_logits(self.model, torch.from_numpy(tokens_BT).to(self.device), cache)

        given = np.array(slots)
        yield self.give(given, logits_BV)
        staying = self.stay(given)
        gone = np.flatnonzero(~staying)
        order = cache.drop(gone) if len(gone) else np.arange(len(given))
        if not first and len(order):
            self.cache.join(cache)
        self.rows = np.concatenate([self.rows, given[order]])
        self.rules_of_rows = None

    def prefix(self, ids: Ids) -> KVCache:
        """The cache of a shared prefix. The last one is kept, since later members of a family need it again."""
        if not np.array_equal(ids, self.prefix_ids):
            self.prefix_ids, self.prefix_cache = ids.copy(), KVCache(len(ids), windows=False)
            read(self.model, torch.from_numpy(self.prefix_ids).unsqueeze(0).to(self.device), self.prefix_cache)
        return self.prefix_cache

    # Rows get tokens, and leave

    def give(self, slots: Ids, logits_BV: Tensor) -> Step:
        """Choose a token for each of these slots and append it."""
        if slots is self.rows:
            if self.rules_of_rows is None:
                self.rules_of_rows = Rules.for_rows([self.rules[slot] for slot in slots.tolist()])
            rules = self.rules_of_rows
        else:
            rules = Rules.for_rows([self.rules[slot] for slot in slots.tolist()])

        slots_B = torch.from_numpy(slots).to(self.device) if self.seen is not None else None
        seen_BV = self.seen[slots_B] if self.seen is not None else None
        tokens_B = choose(logits_BV, rules, self.draws.next(slots), seen_BV)
        if self.seen is not None:
            self.seen[slots_B, tokens_B] = True

        tokens = tokens_B.cpu().numpy()
        self.window[slots, self.length[slots]] = tokens
        self.length[slots] += 1
        self.left[slots] -= 1
        self.given = slots
        return self.number[slots].tolist(), tokens.tolist()

    def stay(self, slots: Ids) -> npt.NDArray[np.bool_]:
        """Which of the slots stay in the cache; the others become free, or are prefilled again if their context is
        full."""
        ended = (self.left[slots] == 0) | self.over[slots]
        if self.stop is not None:
            ended |= self.window[slots, self.length[slots] - 1] == self.stop
        full = ~ended & (self.length[slots] > self.model.config.context)
        if ended.any():
            self.free += slots[ended].tolist()
        for slot in slots[full].tolist():
            half = max(1, self.model.config.context // 2)
            self.window[slot, :half] = self.window[slot, self.length[slot] - half : self.length[slot]].copy()
            self.length[slot] = half
            self.again.append(slot)
        return ~(ended | full)

    def settle(self) -> None:
        """Remove the rows that ended in this step from the cache."""
        staying = self.stay(self.rows)
        if not staying.all():
            self.rows = self.rows[self.cache.drop(np.flatnonzero(~staying))]
            self.rules_of_rows = None


def groups(lengths: list[int]) -> list[list[int]]:
    """The rows of each prefill pass: of nearly equal length, and not too many tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    passes: list[list[int]] = []
    real = 0
    for i in order:
        if passes:
            T, rows = lengths[passes[-1][0]], len(passes[-1]) + 1
            padding = rows * T - real - lengths[i]
            if padding <= max(WORTH_A_PASS, PADDING * rows * T) and rows * T <= READ_AT_ONCE:
                passes[-1].append(i)
                real += lengths[i]
                continue
        passes.append([i])
        real = lengths[i]
    return passes


@torch.inference_mode()
def read(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """h_BTD of T tokens that follow those in the cache."""
    return model.hidden(tokens_BT, cache)


@torch.inference_mode()
def next_logits(model: GPT, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    """The logits (B, V) of the next token, after T tokens that follow those in the cache. The head, which is larger
    than the rest of a small model, is applied to the last position only."""
    return model.logits(read(model, tokens_BT, cache)[:, -1])
