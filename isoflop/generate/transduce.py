"""Beam search with an encoder-decoder: the source is encoded once, then the output is decoded token by token.

sources -> read ─> memory ─> write ─> log p ─> the best `beam` of each source ─> tokens
                               ^                        │
                               └────────────────────────┘
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.generate.memory import AT_ONCE, not_ragged, slots_for
from isoflop.model.encoder_decoder import EncodedSource, EncoderDecoder


@torch.no_grad()
def transduce(
    model: EncoderDecoder, sources: list[np.ndarray], eot: int, beam: int = 1, at_once: int = 0
) -> list[list[int]]:
    """The likeliest output that a beam search finds for each source, as ids without `eot`.

    The score of a hypothesis is the sum of its tokens' log-probabilities, its end included, without a length penalty.
    An output that does not end within the model's context is truncated.

    Args:
        sources: ids of each source, at least one.
        beam: hypotheses per source; 1 is greedy.
        at_once: hypotheses decoded together; 0: as memory allows, 256 at most. A source whose hypotheses have ended
            leaves, and others take its place.

    Raises:
        UserError: for a beam below 1, a source longer than the context, or more than fits into memory.
    """
    if beam < 1:
        raise UserError(f"--beam {beam} is not positive; 1 is greedy")
    longest = max((len(source) for source in sources), default=0)
    if longest > model.config.context:
        raise UserError(f"an input of {longest} tokens does not fit in the model's context of {model.config.context}")

    # an output may be as long as the context
    rows, context = max(1, len(sources)) * beam, model.config.context
    fits = slots_for(model, rows, context, max(1, longest), spare=0, slots=at_once, seen=False)
    if fits < min(beam, AT_ONCE):
        raise UserError(f"--beam {beam} needs more memory than is available; at most {fits} hypotheses fit at once")

    training = model.training
    model.eval()
    try:
        return Search(model, sources, eot, beam, max(1, fits // beam)).run()
    finally:
        model.train(training)


class Search:
    """Beam search over many sources. Rows are sources times beams, the beams of a source next to each other, the best
    first. An ended hypothesis keeps its score and is continued with `eot`.

    Rows join and leave one source at a time; each starts at position 0, whatever the positions of others (cache.py).
    """

    def __init__(self, model: EncoderDecoder, sources: list[np.ndarray], eot: int, beam: int, at_once: int) -> None:
        self.model, self.sources, self.eot, self.W, self.at_once = model, sources, eot, beam, at_once
        self.device, self.context = model.embedding.weight.device, model.config.context
        # sources of nearly equal length together need little padding
        self.waiting = sorted(range(len(sources)), key=lambda i: len(sources[i]))
        self.outputs: list[list[int]] = [[] for _ in sources]
        all_equal = not_ragged(model) != ""  # then no source joins before all have left
        self.few = at_once if all_equal else max(1, at_once // 4)

        self.numbers: list[int] = []
        self.memory: EncodedSource | None = None
        self.cache = KVCache(self.context, min(at_once, len(sources)) * beam, max(16, self.context // 4))
        self.scores_BW = torch.empty(0, beam, device=self.device)
        self.tokens_BWT = torch.empty(0, beam, self.context + 1, dtype=torch.int64, device=self.device)
        self.ended_BW = torch.empty(0, beam, dtype=torch.bool, device=self.device)

    def run(self) -> list[list[int]]:
        while self.waiting or self.numbers:
            if self.waiting and (not self.numbers or self.at_once - len(self.numbers) >= self.few):
                self.admit(self.waiting[: self.at_once - len(self.numbers)])
            self.step()
            self.settle()
        return self.outputs

    def admit(self, chosen: list[int]) -> None:
        """Encode more sources. Only the first beam of each can be continued at first, since all are equal."""
        self.waiting, n, W = self.waiting[len(chosen) :], len(chosen), self.W
        read = self.model.read(*padded([self.sources[i] for i in chosen], self.eot, self.device))
        self.memory = behind(self.memory, repeated(read, W))
        if not self.numbers:
            self.cache.clear()
        self.cache.open(n * W)

        scores_nW = torch.full((n, W), float("-inf"), device=self.device)
        scores_nW[:, 0] = 0.0
        self.scores_BW = torch.cat([self.scores_BW, scores_nW])
        self.tokens_BWT = torch.cat([self.tokens_BWT, self.tokens_BWT.new_full((n, W, self.context + 1), self.eot)])
        self.ended_BW = torch.cat([self.ended_BW, self.ended_BW.new_zeros(n, W)])
        self.numbers += chosen

    def step(self) -> None:
        """Extend each hypothesis by a token and keep the best `beam` of each source."""
        B, W, eot = len(self.numbers), self.W, self.eot
        lengths_B = torch.from_numpy(self.cache.lengths_of_rows()[::W].copy()).to(self.device)
        last_BW1 = self.tokens_BWT.gather(2, lengths_B.view(B, 1, 1).expand(B, W, 1))
        assert self.memory is not None
        h_RTD = self.model.write(last_BW1.view(B * W, 1), self.memory, self.cache)
        log_p_RV = self.model.logits(h_RTD[:, -1]).float().log_softmax(dim=-1)
        ended_R = self.ended_BW.flatten()
        log_p_RV[ended_R] = float("-inf")
        log_p_RV[ended_R, eot] = 0.0

        V = log_p_RV.shape[-1]
        total = (self.scores_BW.unsqueeze(-1) + log_p_RV.view(B, W, V)).flatten(1)
        self.scores_BW, chosen_BW = total.topk(W, dim=-1)
        if W > 1:
            of_BW, rows_B1 = chosen_BW // V, torch.arange(B, device=self.device).unsqueeze(1)
            self.cache.select((rows_B1 * W + of_BW).flatten())
            self.tokens_BWT, self.ended_BW = self.tokens_BWT[rows_B1, of_BW], self.ended_BW[rows_B1, of_BW]
        next_BW = chosen_BW % V
        self.tokens_BWT.scatter_(2, (lengths_B + 1).view(B, 1, 1).expand(B, W, 1), next_BW.unsqueeze(-1))
        self.ended_BW = self.ended_BW | (next_BW == eot)

    def settle(self) -> None:
        """Remove the sources all of whose hypotheses have ended, or whose context is full."""
        W, lengths = self.W, self.cache.lengths_of_rows()[:: self.W]
        done = self.ended_BW.all(dim=1).cpu().numpy() | (lengths >= self.context)
        if not done.any():
            return
        gone = np.flatnonzero(done)
        for b, ids in zip(gone, self.tokens_BWT[torch.from_numpy(gone), 0].tolist(), strict=True):
            self.outputs[self.numbers[b]] = until(ids[1 : lengths[b] + 1], self.eot)

        rows = self.cache.drop((gone[:, None] * W + np.arange(W)).flatten())
        left = torch.from_numpy(rows[::W] // W).to(self.device)
        self.numbers = [self.numbers[b] for b in left.tolist()]
        self.scores_BW, self.tokens_BWT, self.ended_BW = (
            x[left] for x in (self.scores_BW, self.tokens_BWT, self.ended_BW)
        )
        assert self.memory is not None
        self.memory = of_rows(self.memory, torch.from_numpy(rows).to(self.device)) if self.numbers else None


def of_rows(source: EncodedSource, rows_R: Tensor) -> EncodedSource:
    visible = None if source.visible_BS is None else source.visible_BS[rows_R]
    return EncodedSource(tuple((k[rows_R], v[rows_R]) for k, v in source.layers), visible)


def behind(first: EncodedSource | None, second: EncodedSource) -> EncodedSource:
    """The rows of both, padded with zeros to the longest source."""
    if first is None or first.visible_BS is None or second.visible_BS is None:
        return second
    S = max(first.visible_BS.shape[1], second.visible_BS.shape[1])

    def wide(x: Tensor, dim: int) -> Tensor:
        missing = S - x.shape[dim]
        return F.pad(x, (0, 0, 0, missing) if dim == 2 else (0, missing))

    layers = tuple(
        (torch.cat([wide(k, 2), wide(k_more, 2)]), torch.cat([wide(v, 2), wide(v_more, 2)]))
        for (k, v), (k_more, v_more) in zip(first.layers, second.layers, strict=True)
    )
    return EncodedSource(layers, torch.cat([wide(first.visible_BS, 1), wide(second.visible_BS, 1)]))


def padded(sources: list[np.ndarray], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sources as one padded batch: (source_BS, visible_BS)."""
    lengths = np.array([len(source) for source in sources])
    source_BS = np.full((len(sources), lengths.max()), pad, np.int64)
    for row, source in enumerate(sources):
        source_BS[row, : len(source)] = source
    visible_BS = np.arange(source_BS.shape[1]) < lengths[:, None]
    return torch.from_numpy(source_BS).to(device), torch.from_numpy(visible_BS).to(device)


def repeated(source: EncodedSource, beam: int) -> EncodedSource:
    """Each row `beam` times in succession."""
    if beam == 1:
        return source
    layers = tuple((k.repeat_interleave(beam, 0), v.repeat_interleave(beam, 0)) for k, v in source.layers)
    visible = None if source.visible_BS is None else source.visible_BS.repeat_interleave(beam, 0)
    return EncodedSource(layers, visible)


def until(ids: list[int], end: int) -> list[int]:
    """The ids before the first `end`."""
    return ids[: ids.index(end)] if end in ids else ids
