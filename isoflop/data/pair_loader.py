"""The loader of pairs: the pairs of step k, as a pure function of k, like the loader of text.

Pairs are numbered over the whole run, i = step * sequences + row; number i is pair `permutation(i % n)` of epoch
i // n. The pairs of POOL steps are sorted by length and divided into batches, so that a batch holds pairs of nearly
equal length and little padding; the order of the batches within a pool is a permutation as well.
"""

import numpy as np
import torch

from isoflop.data.gaps import Gaps
from isoflop.data.loader import ROUNDS, keys_of, permute
from isoflop.data.prepared_pairs import Items, PairTokens, PreparedPairs
from isoflop.errors import UserError
from isoflop.records import DataRead, SourceRead

POOL = 16  # steps whose pairs are sorted by length together
IGNORED = -100  # a target that is not counted


class PairLoader:
    """Batches of pairs.

    Args:
        context: positions that the model has for each side.
        sequences: pairs per step, over all ranks.
        seed: of the order.
        skipped: (first, count) ranges of pairs to skip, numbered as a run without gaps reads them; whole steps, since
            the pairs of a step are chosen together.

    Raises:
        UserError: if a pair does not fit in the context, or a range does not begin and end with a step.
    """

    def __init__(
        self,
        prepared: PreparedPairs,
        context: int,
        sequences: int,
        seed: int,
        skipped: tuple[tuple[int, int], ...] = (),
    ) -> None:
        if prepared.longest() > context:
            raise UserError(
                f"model.context = {context} is less than the {prepared.longest()} positions of the longest pair; "
                f"use --set model.context={prepared.longest()}"
            )
        if partial := [gap for gap in skipped if any(number % sequences for number in gap)]:
            raise UserError(
                f"the pairs to skip, {partial[0]}, are not complete steps of {sequences} pairs; see skips.jsonl"
            )
        self.gaps = Gaps.of((first // sequences, count // sequences) for first, count in skipped)  # in steps
        self.sequences, self.seed, self.name = sequences, seed, prepared.sources[0]
        self.pairs, self.eot = prepared.train(), prepared.tokenizer.eot
        self.lengths = self.pairs.source.lengths + self.pairs.target.lengths + 1
        self.last_pool: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.last_epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, ...]:
        """(source_BS, visible_BS, inputs_BT, targets_BT) of step `step` (from 0): its rows rank*B to (rank+1)*B.

        Raises:
            UserError: if the pairs of a step cannot be divided by `world`.
        """
        if self.sequences % world:
            raise UserError(
                f"batch.sequences = {self.sequences} cannot be divided among {world} processes; use a multiple"
            )
        rows = self.sequences // world
        pool, place = divmod(self.gaps.unbroken(step), POOL)
        return collate(self.pairs, self.pool(pool)[place][rank * rows : (rank + 1) * rows], self.eot)

    def pool(self, number: int) -> np.ndarray:
        """The pairs of POOL steps, (POOL, sequences) int64."""
        if self.last_pool[0] != number:
            count = POOL * self.sequences
            drawn = self.drawn(np.arange(number * count, (number + 1) * count))
            by_length = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(POOL, self.sequences)
            keys = keys_of(self.seed, f"pool of {self.name}", number)
            self.last_pool = (number, by_length[permute(np.arange(POOL), POOL, keys[:ROUNDS])])
        return self.last_pool[1]

    def drawn(self, numbers: np.ndarray) -> np.ndarray:
        """Running numbers -> pairs."""
        epochs, places = np.divmod(numbers, len(self.pairs))
        pairs = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            pairs[of_epoch] = permute(
                places[of_epoch], len(self.pairs), keys_of(self.seed, self.name, int(epoch))[:ROUNDS]
            )
        return pairs

    def span(self, step: int, steps: int) -> tuple[int, int]:
        first, count = self.gaps.span(step, step + steps)
        return first * self.sequences, count * self.sequences

    def largest(self, sequences: int) -> tuple[torch.Tensor, ...]:
        longest_source, longest_target = (int(side.lengths.max()) for side in (self.pairs.source, self.pairs.target))
        source_BS, inputs_BT = (
            torch.zeros((sequences, length), dtype=torch.int64) for length in (longest_source, longest_target + 1)
        )
        return source_BS, torch.ones_like(source_BS, dtype=torch.bool), inputs_BT, inputs_BT.clone()

    def tokens(self, steps: int) -> int:
        """Tokens of both sides that the first `steps` steps read, without padding."""
        end = self.gaps.unbroken(steps - 1) + 1 if steps else 0
        return self.tokens_unbroken(end) - self.skipped_tokens(steps)

    def skipped_tokens(self, steps: int) -> int:
        """Tokens that the first `steps` steps skipped."""
        gaps = self.gaps.before(steps)
        return sum(self.tokens_unbroken(first + count) - self.tokens_unbroken(first) for first, count in gaps)

    def tokens_unbroken(self, steps: int) -> int:
        """Tokens in the first `steps` steps of a run without gaps."""
        pools, steps_within = divmod(steps, POOL)
        rows_within = self.pool(pools)[:steps_within] if steps_within else np.empty((0, 0), np.int64)
        within_pool = sum(int(self.lengths[rows].sum()) for rows in rows_within)
        epochs, pairs_within = divmod(pools * POOL * self.sequences, len(self.pairs))
        return epochs * int(self.lengths.sum()) + self.tokens_of_epoch(epochs, pairs_within) + within_pool

    def tokens_of_epoch(self, epoch: int, pairs: int) -> int:
        """Tokens of the first `pairs` pairs of an epoch."""
        if pairs == 0:
            return 0
        if self.last_epoch[0] != epoch:
            first = epoch * len(self.pairs)
            order = self.drawn(np.arange(first, first + len(self.pairs)))
            self.last_epoch = (epoch, self.lengths[order].cumsum())
        return int(self.last_epoch[1][pairs - 1])

    def account(self, steps: int) -> DataRead:
        """The data that the first `steps` steps read; `epochs` are passes over the pairs."""
        tokens, skipped = self.tokens(steps), self.skipped_tokens(steps)
        read = SourceRead(
            tokens=tokens,
            share=1.0,
            asked=1.0,
            epochs=steps * self.sequences / len(self.pairs),
            repeated_per_epoch=0,
            passed_over=skipped,
        )
        return DataRead(tokens=tokens, passed_over=skipped, sources={self.name: read})


def collate(pairs: PairTokens, chosen: np.ndarray, eot: int) -> tuple[torch.Tensor, ...]:
    """(source_BS, visible_BS, inputs_BT, targets_BT) of the pairs with these numbers."""
    return (*padded_source(pairs.source, chosen, eot), *padded_target(pairs.target, chosen, eot))


def padded_source(items: Items, chosen: np.ndarray, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(source_BS, visible_BS): int64 and bool, as wide as the longest; padding is not visible."""
    lengths = items.lengths[chosen]
    source_BS = np.full((len(chosen), int(lengths.max())), pad, np.int64)
    for row, item in enumerate(chosen):
        source_BS[row, : lengths[row]] = items[item]
    return torch.from_numpy(source_BS), torch.from_numpy(np.arange(source_BS.shape[1]) < lengths[:, None])


def padded_target(items: Items, chosen: np.ndarray, eot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs_BT, targets_BT), int64: the inputs begin with end-of-text and the targets end with it, as documents do;
    the targets after it are IGNORED."""
    lengths = items.lengths[chosen]
    shape = (len(chosen), int(lengths.max()) + 1)
    inputs_BT, targets_BT = np.full(shape, eot, np.int64), np.full(shape, IGNORED, np.int64)
    for row, item in enumerate(chosen):
        inputs_BT[row, 1 : lengths[row] + 1] = targets_BT[row, : lengths[row]] = items[item]
        targets_BT[row, lengths[row]] = eot
    return torch.from_numpy(inputs_BT), torch.from_numpy(targets_BT)
