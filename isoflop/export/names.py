"""Key maps: the names of our tensors in each format, and their layouts.

A Key is one tensor of a format, and our tensors whose rows it stacks. Two layouts differ from ours:

    transposed      GPT-1's and GPT-2's Hugging Face weights are (in, out): y = x W
    turned          rows of q and k are in pairs (0, 1), (2, 3), ... for interleaved rotary positions, as in GGUF
                    and llama2.c; ours and Hugging Face's are in halves (0, K/2), (1, K/2 + 1), ...

A table lists all tensors that a family may have; those that a model lacks (a bias, a tied head) are omitted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isoflop.errors import UserError

QKV = ("attention.q", "attention.k", "attention.v")


@dataclass(frozen=True)
class Key:
    """The name in the format, our names, and the layout. In the tables, names of a block lack its prefix, and one key
    stands for `.weight` and `.bias`."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Names:
    """The names of one format and family.

    Attributes:
        block: the format's prefix of block n, with {n}.
        outside: keys outside the blocks.
        blocks: keys of one block.
        optional_prefix: a prefix that some files of this family omit.
        ignored: endings of names of tensors that are not parameters.
    """

    block: str
    outside: tuple[Key, ...]
    blocks: tuple[Key, ...]
    optional_prefix: str = ""
    ignored: tuple[str, ...] = ()


def conv_blocks() -> tuple[Key, ...]:
    return (
        Key("attn.c_attn", QKV, transposed=True),
        Key("attn.c_proj", ("attention.out",), transposed=True),
        Key("mlp.c_fc", ("feed_forward.up",), transposed=True),
        Key("mlp.c_proj", ("feed_forward.down",), transposed=True),
        Key("ln_1", ("wiring.norms.0",)),
        Key("ln_2", ("wiring.norms.1",)),
    )


def llama_blocks(before_attention: str, before_feed_forward: str) -> tuple[Key, ...]:
    return (
        Key("self_attn.q_proj", ("attention.q",)),
        Key("self_attn.k_proj", ("attention.k",)),
        Key("self_attn.v_proj", ("attention.v",)),
        Key("self_attn.o_proj", ("attention.out",)),
        Key("self_attn.q_norm", ("attention.q_norm",)),
        Key("self_attn.k_norm", ("attention.k_norm",)),
        Key("mlp.gate_proj", ("feed_forward.gate",)),
        Key("mlp.up_proj", ("feed_forward.up",)),
        Key("mlp.down_proj", ("feed_forward.down",)),
        Key(before_attention, ("wiring.norms.0",)),
        Key(before_feed_forward, ("wiring.norms.1",)),
    )


LLAMA_OUTSIDE = (
    Key("model.embed_tokens", ("embedding",)),
    Key("model.norm", ("norm",)),
    Key("lm_head", ("head",)),
)
LLAMA = Names(
    "model.layers.{n}.",
    LLAMA_OUTSIDE,
    llama_blocks("input_layernorm", "post_attention_layernorm"),
    ignored=(".rotary_emb.inv_freq",),
)
GGUF_OUTSIDE = (
    Key("token_embd", ("embedding",)),
    Key("position_embd", ("position.table",)),
    Key("output_norm", ("norm",)),
    Key("output", ("head",)),
)


def gguf_blocks(turned: bool) -> tuple[Key, ...]:
    return (
        Key("attn_q", ("attention.q",), turned=turned),
        Key("attn_k", ("attention.k",), turned=turned),
        Key("attn_v", ("attention.v",)),
        Key("attn_output", ("attention.out",)),
        Key("attn_q_norm", ("attention.q_norm",)),
        Key("attn_k_norm", ("attention.k_norm",)),
        Key("ffn_gate", ("feed_forward.gate",)),
        Key("ffn_up", ("feed_forward.up",)),
        Key("ffn_down", ("feed_forward.down",)),
        Key("attn_norm", ("wiring.norms.0",)),
        Key("ffn_norm", ("wiring.norms.1",)),
    )


LLAMA2C = Names(
    "blocks.{n}.",
    (Key("embedding", ("embedding",)), Key("norm", ("norm",)), Key("head", ("head",))),
    (
        Key("wiring.norms.0", ("wiring.norms.0",)),
        Key("attention.q", ("attention.q",), turned=True),
        Key("attention.k", ("attention.k",), turned=True),
        Key("attention.v", ("attention.v",)),
        Key("attention.out", ("attention.out",)),
        Key("wiring.norms.1", ("wiring.norms.1",)),
        Key("feed_forward.gate", ("feed_forward.gate",)),
        Key("feed_forward.down", ("feed_forward.down",)),
        Key("feed_forward.up", ("feed_forward.up",)),
    ),
)


def keys(names: Names, layers: int, ours: Iterable[str]) -> list[Key]:
    """All keys of a model whose tensors are called `ours`, with full names."""
    present = set(ours)
    prefixed = list(names.outside)
    for n in range(layers):
        theirs = names.block.format(n=n)
        prefixed += [
            replace(key, theirs=theirs + key.theirs, ours=tuple(f"blocks.{n}.{name}" for name in key.ours))
            for key in names.blocks
        ]
    return [
        replace(key, theirs=key.theirs + ending, ours=tuple(name + ending for name in key.ours))
        for key in prefixed
        for ending in (".weight", ".bias")
        if key.ours[0] + ending in present
    ]


def to_theirs(keys: Iterable[Key], weights: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Our tensors with the names and the layout of the format."""
    tensors = {}
    for key in keys:
        tensor = torch.cat([in_pairs(weights[n], head_dim) if key.turned else weights[n] for n in key.ours])
        tensors[key.theirs] = (tensor.T if key.transposed and tensor.ndim == 2 else tensor).contiguous()
    return tensors


def to_ours(
    keys: Iterable[Key], load: Callable[[str], Tensor], shapes: Mapping[str, torch.Size], head_dim: int
) -> dict[str, Tensor]:
    """The tensors of the format, loaded one after another in float32, with our names and layout.

    Args:
        shapes: of our tensors.
    """
    weights = {}
    for key in keys:
        tensor = load(key.theirs).float()
        if key.transposed and tensor.ndim == 2:
            tensor = tensor.T
        for name, part in zip(key.ours, tensor.split([shapes[name][0] for name in key.ours]), strict=True):
            weights[name] = (in_halves(part, head_dim) if key.turned else part).contiguous()
    return weights


def check_shapes(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Raises UserError, naming the first tensor that is missing, has another shape, or is unknown to the model."""
    for name, tensor in expected.items():
        if name not in shapes:
            raise UserError(f"{origin} has no tensor {name!r}, which its configuration requires")
        if tuple(shapes[name]) != tuple(tensor.shape):
            raise UserError(
                f"{origin}: {name!r} is {tuple(shapes[name])}; its configuration gives {tuple(tensor.shape)}"
            )
    for name in shapes:
        if name not in expected:
            raise UserError(f"{origin} has a tensor {name[:200]!r} that no block of ours has")


def in_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """(heads * K, ...) in halves -> in pairs: row i of the first half of a head next to row i of its second half."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def in_halves(rows: Tensor, head_dim: int) -> Tensor:
    """(heads * K, ...) in pairs -> in halves."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
