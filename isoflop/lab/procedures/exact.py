"""Properties that hold exactly or not at all, shown on fresh models in double precision."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from isoflop.lab.procedures.job import Job, Measured, log10
from isoflop.model.build import build_model
from isoflop.runtime import seed_everything

LINEAR = ("nonlinearity", "nonlinearity_whole", "seconds")
FUTURE = ("leak_in_training", "leak_in_evaluation", "seconds")
SEQUENCES, POSITIONS = 8, 24


def linear(job: Job) -> Measured:
    """How far a stack of layers is from linear: |f(a x + b y) - a f(x) - b f(y)| / |f(a x + b y)|, as log10.

    nonlinearity         with every layer's attention weights held fixed, at what they are for one input, and without
                         norms: the rest is sums and matrix products, and the feed-forward branch
    nonlinearity_whole   of the complete blocks: softmax over scores that depend on the input, norms and all

    -15 and less is rounding in double precision.
    """
    model = fresh(job)
    generator = torch.Generator().manual_seed(job.order)
    shape = (SEQUENCES, POSITIONS, job.config.model.d_model)
    x, y, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    weights = [attention_weights(block.attention, other) for block in model.blocks]

    def fixed(h_BTD: Tensor) -> Tensor:
        for block, w_BHTS in zip(model.blocks, weights, strict=True):
            h_BTD = h_BTD + mixed(block.attention, h_BTD, w_BHTS)
            if not block.feed_forward.absent:
                h_BTD = h_BTD + block.feed_forward(h_BTD)
        return h_BTD

    def whole(h_BTD: Tensor) -> Tensor:
        for block in model.blocks:
            h_BTD = block(h_BTD)
        return h_BTD

    with torch.no_grad():
        found = {"nonlinearity": departure(fixed, x, y), "nonlinearity_whole": departure(whole, x, y)}
    return Measured({**found, "seconds": 0.0})


def fresh(job: Job) -> Any:
    """The model at initialisation, in double precision, with random values where it has zeros: a branch whose last
    matrix is zero would be linear whatever is in it."""
    seed_everything(job.config.seed)
    model: Any = build_model(job.config.task, job.config.model).double()
    for parameter in model.parameters():
        if parameter.ndim == 2 and not parameter.any():
            with torch.no_grad():
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    return model.eval()


def heads_apart(x_BTC: Tensor, heads: int) -> Tensor:
    return x_BTC.unflatten(2, (heads, -1)).transpose(1, 2)


def attention_weights(attention: Any, x_BTD: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) over earlier positions, w_BHTS, by the layer's own queries and keys."""
    with torch.no_grad():
        q_BHTK = heads_apart(attention.q(x_BTD), attention.heads)
        k_BHSK = heads_apart(attention.k(x_BTD), attention.heads)
        scores = q_BHTK @ k_BHSK.transpose(2, 3) / math.sqrt(q_BHTK.shape[-1])
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1)


def mixed(attention: Any, x_BTD: Tensor, w_BHTS: Tensor) -> Tensor:
    """The layer's values mixed by given weights, and its output product."""
    v_BHSK = heads_apart(attention.v(x_BTD), attention.heads)
    y_BTD: Tensor = attention.out((w_BHTS @ v_BHSK).transpose(1, 2).flatten(2))
    return y_BTD


def departure(f: Any, x: Tensor, y: Tensor, a: float = 0.7, b: float = -1.3) -> float:
    together, apart = f(a * x + b * y), a * f(x) + b * f(y)
    return max(-20.0, log10(float((together - apart).norm() / together.norm())))


def future(job: Job) -> Measured:
    """The effect of the later half of each sequence on the logits of the earlier half: the largest change there over
    the largest change anywhere, as log10; -20 for none. In training, where batch norm uses the statistics of the
    batch, and in evaluation, where it uses its running ones."""
    model = fresh(job)
    vocabulary, half = job.config.model.vocab_size, POSITIONS // 2
    generator = torch.Generator().manual_seed(job.order)
    tokens_BT = torch.randint(vocabulary, (SEQUENCES, POSITIONS), generator=generator)
    changed_BT = tokens_BT.clone()
    changed_BT[:, half:] = torch.randint(vocabulary, (SEQUENCES, POSITIONS - half), generator=generator)

    def reach(training: bool) -> float:
        with torch.no_grad():
            one, other = (copy.deepcopy(model).train(training)(tokens) for tokens in (tokens_BT, changed_BT))
        change = (one - other).abs()
        return max(-20.0, log10(float(change[:, :half].max() / change.max())))

    return Measured({"leak_in_training": reach(True), "leak_in_evaluation": reach(False), "seconds": 0.0})
