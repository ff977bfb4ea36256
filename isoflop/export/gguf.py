"""Models in GGUF, llama.cpp's format (gguf_file.py reads the file itself, gguf_tokenizer.py the tokenizer in it).

The rows of q and k are in pairs (interleaved rotary) in llama and arcee, in halves in qwen3 and apertus. Its
architectures fix their activation: silu in llama and qwen3, GELU by the tanh formula in gpt2, squared ReLU in arcee.
Apertus has xIELU, whose four numbers make it squared ReLU exactly: see XIELU.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from isoflop.errors import UserError
from isoflop.export.anatomy import FAMILIES, UNSCALED, Anatomy, Scaling
from isoflop.export.bundle import Bundle, gather, spread
from isoflop.export.fields import Fields
from isoflop.export.fit import Limits, anatomy_of
from isoflop.export.gguf_file import Stored, load, mapped, need_package, read_header, same
from isoflop.export.gguf_tokenizer import read_tokenizer, tokenizer_values
from isoflop.export.names import GGUF_OUTSIDE, QKV, Key, Names, gguf_blocks
from isoflop.export.rope import TENSOR as ROPE_FACTORS
from isoflop.export.rope import factors, scaling_of

TITLE = "a GGUF model"
FILE_NAME = "model.gguf"
HEAD, TABLE = "output.weight", "token_embd.weight"

# xIELU (Huang and Schlag 2024, 2411.13010) is p x^2 + b x above 0 and n (exp(x) - 1 - x) + b x below. llama.cpp applies
# log(1 + exp(.)) to the stored p and n and adds b to n: these values give p = 1 and b = n = 0, which is squared ReLU.
XIELU = {"alpha_p": math.log(math.e - 1.0), "alpha_n": -1000.0, "beta": 0.0, "eps": -1e-6}
SAME = 1e-6  # of p, n and b in a file that is read

# Written by isoflop next to the factors that llama.cpp reads, so that reading restores the exact numbers.
SCALING = {"factor": "isoflop.rope.factor", "low_freq": "isoflop.rope.low_freq", "high_freq": "isoflop.rope.high_freq"}
ORIGINAL = "isoflop.rope.original"


@dataclass(frozen=True)
class Architecture:
    """A family in llama.cpp: the names of its tensors, and its restrictions.

    Attributes:
        xielu: its activation is xIELU.
        own_head: a tied head is written twice, since llama.cpp does not use the embedding as the head.
    """

    names: Names
    limits: Limits
    xielu: bool = False
    own_head: bool = False


def names_of(turned: bool) -> Names:
    """The names of an architecture like llama; `turned`: see names.Key."""
    return Names("blk.{n}.", GGUF_OUTSIDE, gguf_blocks(turned=turned))


GGUF: dict[str, Architecture] = {
    "llama": Architecture(names_of(turned=True), Limits(("silu",))),
    "qwen3": Architecture(names_of(turned=False), Limits(("silu",), attention_bias=False, scaling=False)),
    "gpt2": Architecture(
        Names("blk.{n}.", GGUF_OUTSIDE, (Key("attn_qkv", QKV), *gguf_blocks(turned=False)[3:])), Limits(("gelu_tanh",))
    ),
    "arcee": Architecture(names_of(turned=True), Limits(("relu2",), attention_bias=False, mlp_bias=False)),
    "apertus": Architecture(names_of(turned=False), Limits(("relu2",)), xielu=True, own_head=True),
}


def limits() -> dict[str, Limits]:
    return {name: row.limits for name, row in GGUF.items()}


def read_gguf(path: Path, tokenizer: str = "", context: int = 0) -> Bundle:
    """The model in a GGUF file.

    Args:
        tokenizer: the text of a tokenizer to use instead of the one in the file.
        context: see bundle.gather.

    Raises:
        UserError: for an architecture or a feature that isoflop does not support, or a damaged file.
    """
    with mapped(path) as data:
        values, stored = read_header(data, str(path))
        fields = Fields(values, str(path))
        anatomy = read_metadata(fields, stored)
        row = GGUF[anatomy.family]

        twice = row.own_head or not is_rotary(anatomy.family)  # llama.cpp's converter writes gpt2's tied head twice too
        if HEAD in stored and twice and same(data, stored, HEAD, TABLE):
            anatomy = replace(anatomy, tied=True)
            stored = {name: tensor for name, tensor in stored.items() if name != HEAD}
        if ROPE_FACTORS in stored and is_rotary(anatomy.family):
            factors_F = load(data, stored[ROPE_FACTORS], str(path))
            anatomy = replace(anatomy, scaling=read_scaling(fields, anatomy, factors_F))
            stored = {name: tensor for name, tensor in stored.items() if name != ROPE_FACTORS}

        shapes = {name: tensor.shape for name, tensor in stored.items()}
        config, weights = gather(
            anatomy, row.names, shapes, lambda name: load(data, stored[name], str(path)), str(path), context
        )
        text = tokenizer or read_tokenizer(fields)
    return Bundle(config, weights, text, f"gguf {anatomy.family}")


def read_metadata(fields: Fields, stored: dict[str, Stored]) -> Anatomy:
    """The header as an Anatomy.

    Raises:
        UserError: naming the architecture or the feature that isoflop does not support.
    """
    family = fields.text("general.architecture")
    if family not in GGUF:
        raise UserError(f"{fields.origin}: architecture {family[:80]!r} is not one of {', '.join(GGUF)}")

    def key(name: str) -> str:
        return f"{family}.{name}"

    fields.refuse_unless(key("rope.scaling.type"), "none")
    fields.refuse_unless(key("expert_count"), 0)
    d_model, heads = fields.size(key("embedding_length")), fields.size(key("attention.head_count"))
    head_dim = fields.size(key("attention.key_length"), max(1, d_model // heads))
    kv_heads = fields.size(key("attention.head_count_kv"), heads)
    fields.refuse_unless(key("attention.value_length"), head_dim)
    if heads % kv_heads or (not is_rotary(family) and d_model != heads * head_dim):
        raise UserError(f"{fields.origin}: {heads} heads with {kv_heads} heads of keys do not fit a width of {d_model}")
    if TABLE not in stored:
        raise UserError(f"{fields.origin} has no tensor {TABLE!r}")

    rotary, row = is_rotary(family), GGUF[family]
    if rotary:
        fields.refuse_unless(key("rope.dimension_count"), head_dim)
    if row.xielu:
        require_squared_relu(fields)
    norm = "attention.layer_norm_rms_epsilon" if rotary else "attention.layer_norm_epsilon"

    return Anatomy(
        family=family,
        vocab_size=stored[TABLE].shape[0],
        context=fields.size(key("context_length")),
        layers=fields.size(key("block_count")),
        d_model=d_model,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        d_ff=fields.size(key("feed_forward_length")),
        activation=(row.limits.activations or ("",))[0],
        eps=single(fields.number(key(norm))),
        base=single(fields.number(key("rope.freq_base"), 10_000.0)) if rotary else 0.0,
        attention_bias=not rotary or (row.limits.attention_bias and "blk.0.attn_output.bias" in stored),
        mlp_bias=not rotary or (may_have_mlp_bias(family) and "blk.0.ffn_down.bias" in stored),
        tied=HEAD not in stored,
    )


def may_have_mlp_bias(family: str) -> bool:
    return FAMILIES[family].biases[1] != "never" and GGUF[family].limits.mlp_bias


def require_squared_relu(fields: Fields) -> None:
    """Raises UserError unless xIELU is squared ReLU in every layer, the only case that isoflop supports."""
    for name, wanted in (("alpha_p", 1.0), ("alpha_n", 0.0), ("beta", 0.0)):
        value = fields.get(f"xielu.{name}")  # one number for all layers, or one per layer
        numbers = value if isinstance(value, list) and value else [value]
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise fields.wrong(f"xielu.{name}", value, "numbers")
        for number in numbers:
            applied = number if name == "beta" else softplus(number)
            if abs(applied - wanted) > SAME:
                raise UserError(
                    f"{fields.origin}: its activation is xIELU with {name} = {applied:.4g}; ours is squared ReLU, "
                    f"which has {wanted:g} there"
                )


def softplus(value: float) -> float:
    """log(1 + exp(value)), as llama.cpp computes it."""
    return value if value > 20.0 else math.log1p(math.exp(value))


def read_scaling(fields: Fields, anatomy: Anatomy, factors_F: Tensor) -> Scaling:
    """The scaling that gives the factors in a file; from the numbers next to them if isoflop wrote the file."""
    stated = None
    if ORIGINAL in fields.values:
        numbers = {name: fields.number(key) for name, key in SCALING.items()}
        stated = Scaling(**numbers, original=fields.size(ORIGINAL))
        if not 0 < stated.low_freq < stated.high_freq or stated.factor <= 0:
            raise UserError(f"{fields.origin}: {SCALING['factor']} and the numbers next to it are inconsistent")
    return scaling_of(factors_F, anatomy.head_dim, anatomy.base, stated, fields.origin)


def is_rotary(family: str) -> bool:
    """Whether a family is like llama (rotary positions, RMS norms, no biases) rather than like GPT-2."""
    return FAMILIES[family].position == "rotary"


def single(value: float) -> float:
    """The shortest decimal that is this number in float32: 1e-5 for 9.99999974e-06."""
    return float(str(np.float32(value)))


def write_gguf(bundle: Bundle, folder: Path, name: str) -> str:
    """Write a bundle as model.gguf, in float32, into an existing folder.

    Args:
        name: of the model, for listings.

    Returns:
        The architecture.

    Raises:
        UserError: naming the block that no architecture of llama.cpp has.
    """
    anatomy = anatomy_of(bundle.config, limits(), TITLE)
    family, row = anatomy.family, GGUF[anatomy.family]
    package = need_package("GGUF is written by the gguf package")
    tokenizer = tokenizer_values(bundle.tokenizer, bundle.config.vocab_size)

    # The header.
    writer = package.GGUFWriter(folder / FILE_NAME, family)
    writer.add_name(name)
    writer.add_file_type(package.LlamaFileType.ALL_F32)
    writer.add_vocab_size(anatomy.vocab_size)
    writer.add_context_length(anatomy.context)
    writer.add_embedding_length(anatomy.d_model)
    writer.add_block_count(anatomy.layers)
    writer.add_feed_forward_length(anatomy.d_ff)
    writer.add_head_count(anatomy.heads)
    if not is_rotary(family):
        writer.add_layer_norm_eps(anatomy.eps)
    else:
        writer.add_head_count_kv(anatomy.kv_heads)
        writer.add_key_length(anatomy.head_dim)
        writer.add_value_length(anatomy.head_dim)
        writer.add_layer_norm_rms_eps(anatomy.eps)
        writer.add_rope_freq_base(anatomy.base)
        writer.add_rope_dimension_count(anatomy.head_dim)
    if row.xielu:
        for number, value in XIELU.items():
            getattr(writer, f"add_xielu_{number}")([value] * anatomy.layers)
    if anatomy.scaling != UNSCALED:
        for number, key in SCALING.items():
            writer.add_float64(key, getattr(anatomy.scaling, number))
        writer.add_uint32(ORIGINAL, anatomy.scaling.original)
    tokenizer.add_to(writer)

    # The tensors.
    for tensor_name, tensor in all_tensors(bundle, anatomy).items():
        writer.add_tensor(tensor_name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return family


def all_tensors(bundle: Bundle, anatomy: Anatomy) -> Mapping[str, Tensor]:
    """The tensors of a file: the weights, a tied head twice if the architecture needs it, and rope scaling factors."""
    row = GGUF[anatomy.family]
    tensors: dict[str, Any] = dict(spread(bundle, anatomy, row.names))
    if row.own_head and anatomy.tied:
        tensors[HEAD] = tensors[TABLE]
    if anatomy.scaling != UNSCALED:
        tensors[ROPE_FACTORS] = factors(anatomy.scaling, anatomy.head_dim, anatomy.base)
    return tensors
