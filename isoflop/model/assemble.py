"""Builds the parts of one layer from a configuration: each function builds the entry of one slot (registry.py) with the
shapes that its constructor takes. gpt.py and encoder_decoder.py combine them."""

from typing import Any

from torch import nn

from isoflop.errors import UserError
from isoflop.model.blocks.part import Init, Part
from isoflop.model.blocks.position import Position
from isoflop.model.blocks.stream import Backout, Smear
from isoflop.model.blocks.value import ValueEmbedding
from isoflop.model.blocks.wiring import Shortcut
from isoflop.model.config import ModelConfig
from isoflop.model.registry import (
    ATTENTIONS,
    FEED_FORWARDS,
    INITS,
    NORMS,
    POSITIONS,
    WIRINGS,
    entries_with,
    make,
    resolve,
)


def make_init(config: ModelConfig, layers: int | None = None) -> Init:
    """The initialisation of a stack of `layers` blocks (default: the configuration's)."""
    init: Init = make(INITS, config.init, "model.init", layers=config.layers if layers is None else layers)
    return init


def make_norm(config: ModelConfig) -> nn.Module:
    norm: nn.Module = make(NORMS, config.norm, "model.norm", dim=config.d_model, context=config.context)
    return norm


def make_final_norm(config: ModelConfig) -> nn.Module | None:
    """The norm in front of the head, or None."""
    return make_norm(config) if config.final_norm else None


def make_position(config: ModelConfig, level: str, init: Init, head_dim: int) -> Position:
    """The configured position encoding for heads of this width if it acts at this level ("input" or "attention"), else
    one that does nothing."""
    kind = resolve(POSITIONS, config.position.name, "model.position")
    if not issubclass(kind, Position):
        raise UserError(
            f"model.position = {config.position.name!r} is not a position encoding; use one of {', '.join(POSITIONS)}"
        )
    if kind.level != level:
        return Position()

    shapes = {"d_model": config.d_model, "heads": config.heads, "head_dim": head_dim, "context": config.context}
    position: Position = make(POSITIONS, config.position, "model.position", init=init, **shapes)
    return position


def layer_shapes(config: ModelConfig, layer: int, init: Init) -> dict[str, Any]:
    """The shapes of a layer; each branch gets those that its constructor takes."""
    return {
        "d_model": config.d_model,
        "heads": config.heads,
        "head_dim": config.head_width,
        "context": config.context,
        "layer": layer,
        "layers": config.layers,
        "dropout": config.dropout,
        "init": branch_init(config, init),
    }


def branch_init(config: ModelConfig, init: Init) -> Init:
    """The initialisation of the branches by the wiring. A user's own wiring need not define one."""
    of_wiring = getattr(resolve(WIRINGS, config.wiring.name, "model.wiring"), "branch_init", None)
    chosen: Init = of_wiring(init, config.layers) if of_wiring is not None else init
    return chosen


def make_attention(config: ModelConfig, layer: int, init: Init) -> Any:
    return make(
        ATTENTIONS,
        config.attention,
        "model.attention",
        position=lambda width: make_position(config, "attention", init, width),
        **layer_shapes(config, layer, init),
    )


def make_feed_forward(config: ModelConfig, layer: int, init: Init) -> Any:
    return make(FEED_FORWARDS, config.feed_forward, "model.feed_forward", **layer_shapes(config, layer, init))


def make_wiring(config: ModelConfig, branches: int) -> Any:
    shapes = {"branches": branches, "norm": lambda: make_norm(config), "layers": config.layers}
    return make(WIRINGS, config.wiring, "model.wiring", **shapes)


def make_value_embedding(config: ModelConfig, layer: int, init: Init, attention: Part) -> ValueEmbedding | None:
    """The value embedding of every n-th layer, counted from the last; None in the others.

    Raises:
        UserError: if the layer's attention has no values to add to.
    """
    every = config.value_embedding
    if not every or (config.layers - 1 - layer) % every:
        return None
    if not attention.value_width:
        raise UserError(
            f"model.value_embedding = {every} adds to the values of layer {layer}, and model.attention = "
            f"{config.attention.name!r} has no values there that a vector per token can be added to; "
            f"use {' or '.join(entries_with(ATTENTIONS, 'takes_values'))}, or 0"
        )
    return ValueEmbedding(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        heads=attention.value_width // config.head_width,
        head_dim=config.head_width,
        gate=config.value_gate,
        init=branch_init(config, init),
    )


def make_shortcut(config: ModelConfig, layer: int) -> Shortcut | None:
    """The module that mixes the embedding into a layer's input, or None."""
    if not config.embedding_shortcut:
        return None
    depth = layer / max(config.layers - 1, 1)
    residual, embedding = (
        first + (last - first) * depth for first, last in (config.shortcut_residual, config.shortcut_embedding)
    )
    return Shortcut(residual=residual, embedding=embedding)


def make_smear(config: ModelConfig, init: Init) -> Smear | None:
    """The module that adds the previous token's embedding, or None."""
    return Smear(d_model=config.d_model, init=init) if config.smear else None


def make_backout(config: ModelConfig) -> Backout | None:
    """The module that subtracts the stream of the middle, or None."""
    return Backout() if config.backout else None
