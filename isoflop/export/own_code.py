"""Hugging Face folders with isoflop's own modeling code, for models that no architecture of transformers fits.

config.json describes the model under "network": the ModelConfig as JSON in which every entry has all of its options and
every width is a number, so that the code (export/modeling/) has no defaults of its own. Tensors have our names after
"model.". Transformers runs the code only with `trust_remote_code=True`; isoflop, which reads such a folder, never does.
"""

import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isoflop.config import convert, from_dict, to_dict
from isoflop.errors import UserError
from isoflop.export.bundle import Bundle, gather_as_named, weights_of
from isoflop.export.fields import Fields
from isoflop.export.fit import Resolved, defaults_of, resolved_parts
from isoflop.export.modeling.network_isoflop import Network
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP, Gated
from isoflop.model.blocks.latent import Latent
from isoflop.model.blocks.moe import MoE
from isoflop.model.blocks.norm import BatchNorm, LayerNorm, NoNorm, RMSNorm
from isoflop.model.blocks.part import Absent, ByDepth
from isoflop.model.blocks.position import Alibi, Learned, Position, Relative, Rotary, Sinusoidal
from isoflop.model.blocks.wiring import DeepNorm, NoResidual, Parallel, PostNorm, PreNorm, ReZero, Sandwich
from isoflop.model.config import SIZES, ModelConfig
from isoflop.model.gpt import GPT, Block
from isoflop.model.registry import INITS, SLOTS, class_of

NAME = "isoflop"  # the architecture: model_type in config.json
PREFIX = "model."  # of the names of tensors
FILES = ("configuration_isoflop.py", "modeling_isoflop.py", "network_isoflop.py", "attention_isoflop.py")
AUTO_MAP = {
    "AutoConfig": "configuration_isoflop.IsoflopConfig",
    "AutoModelForCausalLM": "modeling_isoflop.IsoflopForCausalLM",
}
# What a reader has to know about such a folder, in the output of an export and in the model card
NOTES = (
    "it has its own modeling code, which transformers runs only with trust_remote_code=True",
    "llama.cpp and vLLM do not run that code, and GGUF has no place for it",
)
# What the code computes: the classes of entries with their options, and the fields of a ModelConfig. A new entry,
# option or field is refused by name until it is in the code and here.
HELD: dict[type, tuple[str, ...]] = {
    LayerNorm: ("eps", "bias"),
    RMSNorm: ("eps", "gain"),
    BatchNorm: ("over", "eps", "momentum"),
    NoNorm: (),
    Position: (),
    Learned: (),
    Sinusoidal: ("base", "scale"),
    Rotary: ("base", "interleaved", "factor", "low_freq", "high_freq", "original"),
    Alibi: (),
    Relative: ("base",),
    Attention: ("window", "kv_heads", "qk_norm", "qk_gain", "qk_scale", "soft_cap", "bias"),
    Latent: ("kv_rank", "q_rank", "rope_dim", "soft_cap"),
    Absent: (),
    MLP: ("activation", "ratio", "d_ff", "bias"),
    Gated: ("activation", "ratio", "multiple_of", "d_ff", "bias"),
    MoE: ("experts", "top_k", "shared", "gated", "activation", "ratio", "d_ff", "normalise", "balance", "z"),
    **dict.fromkeys((PreNorm, PostNorm, Sandwich, Parallel, NoResidual, ReZero, DeepNorm), ()),
}
FIELDS = (
    *SIZES,
    *SLOTS,
    "init",  # this and the next two only before training
    "shortcut_residual",
    "shortcut_embedding",
    "embedding_norm",
    "embedding_shortcut",
    "smear",
    "backout",
    "value_embedding",
    "value_gate",
    "final_norm",
    "tied_head",
    "logit_cap",
    "dropout",
)
# Widths that an entry may choose itself: option -> the width that the built module has. All other options are exported
# with their configured values.
WIDTHS: dict[type, dict[str, Callable[[Any], int]]] = {
    Attention: {"kv_heads": lambda attention: attention.kv_heads},
    Latent: {
        "kv_rank": lambda attention: attention.kv_down.out_features,
        "rope_dim": lambda attention: attention.k_rope.out_features,
    },
    MLP: {"d_ff": lambda network: network.up.out_features},
    Gated: {"d_ff": lambda network: network.up.out_features},
    MoE: {"d_ff": lambda network: network.experts.up_EFD.shape[1]},
}


def obstacle(config: ModelConfig) -> str:
    """The first part of a model that the code does not compute, such as a class of the user's own; "" if it computes
    all of them."""
    for slot, parts in resolved_parts(config).items():
        for part in parts:
            if part.cls not in HELD or entry_of(slot, part) is None:
                return f"model.{slot} = {getattr(config, slot)}"
            defaults = defaults_of(part.cls)
            for option, value in part.options.items():
                if option not in HELD[part.cls] and value != defaults.get(option):
                    return f"model.{slot}.{option} = {value}"
    for field in fields(ModelConfig):
        if field.name not in FIELDS and getattr(config, field.name) != field.default:
            return f"model.{field.name} = {getattr(config, field.name)}"
    return ""


def entry_of(slot: str, part: Resolved) -> str | None:
    """The entry of a slot's table that is the part's class with free options."""
    return next((name for name, entry in SLOTS[slot].items() if entry is part.cls), None)


def described(config: ModelConfig) -> dict[str, Any]:
    """The model as plain JSON values of a ModelConfig, with all options and widths.

    Raises:
        UserError: naming the part that the code cannot compute.
    """
    if what := obstacle(config):
        raise UserError(
            f"{what} cannot be written as a Hugging Face model: neither transformers nor isoflop's modeling code has "
            "it; for such a model, train with --set model=portable"
        )
    with torch.device("meta"):
        blocks: list[Any] = list(GPT(replace(config, layers=max(1, config.layers))).blocks)

    plain: dict[str, Any] = {**to_dict(config), "head_dim": config.head_width}
    if config.init.name not in INITS:  # code of the user's own, which no reader needs
        plain["init"] = "gpt2"
    for slot, parts in resolved_parts(config).items():
        entries = [options_of(slot, part, block) for part, block in zip(parts, blocks, strict=True)]
        same = all(entry == entries[0] for entry in entries)
        plain[slot] = entries[0] if same else {"name": by_depth(slot), "pattern": entries}
    return plain


def options_of(slot: str, part: Resolved, block: Block) -> dict[str, Any]:
    """An entry's name with the value of every option, of its own type, and its widths in this block."""
    hints = typing.get_type_hints(part.cls.__init__)
    options = {
        name: convert(hints.get(name, Any), value, f"model.{slot}.{name}") for name, value in part.options.items()
    }
    built = getattr(block, slot, None)
    widths = {name: width(built) for name, width in WIDTHS.get(part.cls, {}).items()}
    return {"name": entry_of(slot, part), **options, **widths}


def by_depth(slot: str) -> str:
    """The entry of a slot that chooses by depth."""
    return next(name for name, entry in SLOTS[slot].items() if class_of(entry) is ByDepth)


def write_code(folder: Path) -> None:
    """Copy the modeling code into a folder."""
    for name in FILES:
        (folder / name).write_bytes(resources.files("isoflop.export.modeling").joinpath(name).read_bytes())


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """config.json, without the ids of special tokens."""
    return {
        "architectures": [AUTO_MAP["AutoModelForCausalLM"].rpartition(".")[2]],
        "model_type": NAME,
        "auto_map": AUTO_MAP,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "head_dim": config.head_width,
        "tie_word_embeddings": config.tied_head,
        "network": described(config),
    }


def tensors_of(bundle: Bundle) -> dict[str, Tensor]:
    """The tensors of a bundle by their names in the file."""
    with torch.device("meta"):
        expected = weights_of(GPT(bundle.config))
    return {PREFIX + name: bundle.weights[name].contiguous() for name in expected}


def read_model(
    described_in: Fields,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    origin: str,
    context: int,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights of such a folder; see bundle.gather. Its code is not run.

    Raises:
        UserError: for a description that is not a model of isoflop's tables, or tensors that do not belong to it.
    """
    network = described_in.get("network")
    if not isinstance(network, dict):
        raise described_in.wrong("network", network, "an object")
    config = from_dict(ModelConfig, network, f"{described_in.origin}: network")
    if what := obstacle(config):
        raise UserError(f"{described_in.origin}: {what} is not something that isoflop's modeling code has")
    config = replace(config, vocab_size=described_in.size("vocab_size", config.vocab_size))
    return gather_as_named(config, PREFIX, shapes, load, origin, context)


class Exported(Bundle):
    """A bundle whose logits are computed by the code of the export in place of isoflop's own blocks."""

    as_named = True

    def logits(self, tokens_BT: Tensor) -> Tensor:
        network = Network(described(self.config))
        network.load_state_dict(self.weights)
        logits_BTV: Tensor = network.eval()(tokens_BT)
        return logits_BTV
