"""Counts parameters and FLOPs by all conventions that our sources use. The convention is always in the name.

Nothing here depends on a particular block: parameters are counted on a model built on the meta device, and each block
declares the weights of its matrix products (Part.matmul_weights) and the width of its scores (Part.score_width). The
one exception is Chinchilla's formula, which excludes the matrix products of the position encoding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from isoflop.config import nearest
from isoflop.errors import UserError
from isoflop.model.blocks.part import Linear, Part
from isoflop.model.blocks.position import Position
from isoflop.model.build import Model, build_model
from isoflop.model.config import ModelConfig
from isoflop.model.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class Parameters:
    """Parameter counts of one model.

    Attributes:
        total: all distinct parameters; a tied weight counts once.
        embedding: the token table, V D.
        position: tables at the input (learned positions).
        head: V D, also if the tensor is the embedding's.
        blocks: all parameters of the blocks: matrices, biases, gains, tables of value embeddings.
        matmul: the weights that multiply a token, each counted once: matrices of the blocks and the head. No look-up
            table, bias or gain. This is the N of "6n".
    """

    total: int
    embedding: int
    position: int
    head: int
    blocks: int
    matmul: int


def build_on_meta(config: ModelConfig, task: str = "causal_lm") -> Model:
    """The model on the meta device, which takes no memory. This is also the cheapest check of a configuration.

    Raises:
        UserError: for a configuration that cannot be built.
    """
    with torch.device("meta"):
        return build_model(task, config)


def parameters(config: ModelConfig, task: str = "causal_lm") -> Parameters:
    """Count the parameters of a configuration by building it.

    Raises:
        UserError: for a configuration that cannot be built.
    """
    return count(build_on_meta(config, task))


def count(model: Model) -> Parameters:
    return Parameters(
        total=sum(p.numel() for p in model.parameters()),
        embedding=model.embedding.weight.numel(),
        position=sum(p.numel() for p in model.position.parameters()),
        head=model.head_weight.numel(),
        blocks=sum(p.numel() for unit in model.units() for p in unit.parameters()),
        matmul=sum(m.matmul_weights() for m in model.modules() if isinstance(m, (Part, Linear))),
    )


def six_n(model: Model, context: int) -> float:
    """6 N, N the weights of blocks and head: 2 forward and 4 backward per weight (Porian et al. 2024 "standard";
    nanochat). The head is a matrix product, tied or not; the embedding is a look-up."""
    return 6 * count(model).matmul


def six_n_all(model: Model, context: int) -> float:
    """6 N, N all parameters, embeddings too: GPT-3's table D.1, the Chinchilla fits, Epoch."""
    return 6 * count(model).total


def six_n_blocks(model: Model, context: int) -> float:
    """6 N, N the matrices of the blocks alone, 12 L D^2 in a plain GPT: Kaplan 2020 (2001.08361, section 2.1)."""
    n = count(model)
    return 6 * (n.matmul - n.head)


def palm(model: Model, context: int) -> float:
    """6 N + 12 L H Q T, the "model FLOPs" of PaLM's utilisation (2204.02311, appendix B): attention over the full
    T x T square, as if nothing were masked; recomputation is never counted. N as in "6n". In a banded layer T is the
    window, as in nanochat, so that FLOPs that are never computed are not counted."""
    scores = sum(m.score_width * m.band(context) for m in model.modules() if isinstance(m, Part))
    return 6 * count(model).matmul + 12 * scores


def chinchilla_f(model: Model, context: int) -> float:
    """Chinchilla's appendix F as printed (2203.15556), per token of S:

        3 (2 V d + L [6 d H K + 2 S H K + 3 H S + 2 S H K + 2 H K d + 4 d F] + 2 V d)

    The embedding look-up counts as a matrix product, the full square of scores counts, and the softmax counts 3 per
    score. The matrix of the relative positions, the fifth in the paper's parameter counts, does not count."""
    return chinchilla_a4(model, context) + 3 * 4 * model.head_weight.numel()


def chinchilla_a4(model: Model, context: int) -> float:
    """The same without both vocabulary terms, as in the ratios of the paper's table A4."""
    total: float = 0
    for block in model.units():
        positions = {m for part in block.modules() if isinstance(part, Position) for m in part.modules()}
        for m in block.modules():
            if not isinstance(m, (Part, Linear)) or m in positions:
                continue
            total += 2 * m.matmul_weights()
            if isinstance(m, Part) and m.score_width:
                total += (4 * m.score_width + 3 * model.config.heads) * m.band(context)
    return 3 * total


def executed(model: Model, context: int) -> float:
    """The FLOPs computed: three times the forward FLOPs that the parts declare, so that causal attention counts half;
    look-ups and elementwise operations count nothing. (The backward pass of a matrix product is two of them.)"""
    return 3 * model.flops(context)


CONVENTIONS: dict[str, Callable[[Model, int], float]] = {
    "6n": six_n,
    "6n_all": six_n_all,
    "6n_blocks": six_n_blocks,
    "palm": palm,
    "chinchilla_f": chinchilla_f,
    "chinchilla_a4": chinchilla_a4,
    "executed": executed,
}


def flops_per_token(config: ModelConfig, context: int | None = None, convention: str = "6n") -> float:
    """Training FLOPs (forward and backward) per token, in sequences of `context` tokens (default: the model's).

    Raises:
        UserError: for an unknown convention, or a configuration that cannot be built.
    """
    if convention not in CONVENTIONS:
        names = ", ".join(CONVENTIONS)
        raise UserError(f"convention {convention!r} is not one of {names}{nearest(convention, CONVENTIONS)}")
    return CONVENTIONS[convention](build_on_meta(config), config.context if context is None else context)


def pair_flops_per_token(config: ModelConfig, source: float, target: float) -> float:
    """Training FLOPs per token of an encoder-decoder, averaged over the source and target tokens of pairs of S and T
    tokens: as "6n", 6 (N_S S + N_T T) / (S + T), with N_S the weights that multiply a source token and N_T those that
    multiply a target token. Padding is not counted.

    Raises:
        UserError: for a configuration that cannot be built.
    """
    with torch.device("meta"):
        source_weights, target_weights = EncoderDecoder(config).weights_by_side()
    return 6 * (source_weights * source + target_weights * target) / (source + target)
