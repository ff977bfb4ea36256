"""Output for input from an encoder-decoder: the source is read once, then one token at a time is written.

sources -> read ─> memory ─> write ─> log p ─> the best `beam` of each source ─> tokens
                               ^                        │
                               └────────────────────────┘
"""

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.generate.cache import KVCache
from isoflop.model.encoder_decoder import EncodedSource, EncoderDecoder

AT_ONCE = 256  # beams decoded at once


@torch.no_grad()
def transduce(model: EncoderDecoder, sources: list[np.ndarray], eot: int, beam: int = 1) -> list[list[int]]:
    """The likeliest output that a beam search finds for each source, as ids without `eot`.

    A hypothesis is worth the sum of its tokens' log-probabilities, its end included, with nothing for its length. An
    output that does not end within the model's context is cut there.

    Args:
        sources: ids of each source, at least one.
        beam: hypotheses kept for each source; 1 is greedy.

    Raises:
        UserError: for a beam below 1, or a source longer than the context.
    """
    if beam < 1:
        raise UserError(f"--beam {beam} is not positive; 1 is greedy")
    longest = max((len(source) for source in sources), default=0)
    if longest > model.config.context:
        raise UserError(f"an input of {longest} tokens does not fit in the model's context of {model.config.context}")
    training = model.training
    model.eval()
    outputs: list[list[int]] = [[] for _ in sources]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # batches of one length pad little
    rows = max(1, AT_ONCE // beam)
    try:
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            found = search(model, [sources[i] for i in chosen], eot, beam)
            for i, output in zip(chosen, found, strict=True):
                outputs[i] = output
    finally:
        model.train(training)
    return outputs


def search(model: EncoderDecoder, sources: list[np.ndarray], eot: int, beam: int) -> list[list[int]]:
    """Beam search over one batch. Rows are sources times beams, the beams of a source side by side; the first beam of a
    source is its best. An ended hypothesis stays as it is and goes on with `eot` at no cost."""
    device = model.embedding.weight.device
    source = repeated(model.read(*padded(sources, eot, device)), beam)
    cache = KVCache(model.config.context)
    B, W = len(sources), beam
    scores_BW = torch.full((B, W), float("-inf"), device=device)
    scores_BW[:, 0] = 0.0  # all beams are the same at first: only one may be continued
    tokens_RT = torch.full((B * W, 1), eot, device=device)
    ended_R = torch.zeros(B * W, dtype=torch.bool, device=device)
    while cache.length < model.config.context and not ended_R.all():
        logits_RV = model.logits(model.write(tokens_RT[:, -1:], source, cache)[:, -1])
        log_p_RV = logits_RV.float().log_softmax(dim=-1)
        log_p_RV[ended_R] = float("-inf")
        log_p_RV[ended_R, eot] = 0.0
        V = log_p_RV.shape[-1]
        total = (scores_BW.unsqueeze(-1) + log_p_RV.view(B, W, V)).flatten(1)
        scores_BW, chosen_BW = total.topk(W, dim=-1)
        rows_R = (torch.arange(B, device=device).unsqueeze(1) * W + chosen_BW // V).flatten()
        next_R = (chosen_BW % V).flatten()
        if W > 1:
            cache.select(rows_R)
        tokens_RT = torch.cat([tokens_RT[rows_R], next_R.unsqueeze(1)], dim=1)
        ended_R = ended_R[rows_R] | (next_R == eot)
    return [until(row, eot) for row in tokens_RT.view(B, W, -1)[:, 0, 1:].tolist()]


def padded(sources: list[np.ndarray], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(source_BS, visible_BS)."""
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
