"""Hugging Face's architectures: one row per `model_type`; reading and writing config.json.

Adding an architecture that consists of existing parts takes a row of anatomy.FAMILIES (what it computes) and a row of
HUGGING_FACE (its names of the class, the tensors and the fields in transformers).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.errors import UserError
from isoflop.export.anatomy import FAMILIES, UNSCALED, Anatomy, Scaling
from isoflop.export.fields import Fields
from isoflop.export.fit import Limits
from isoflop.export.names import LLAMA, Key, Names, conv_blocks, llama_blocks

# Hugging Face's names of activations -> ours; of several names for one of ours the first is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "linear": "identity",
}
GPT1_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # its "gelu" is by tanh


@dataclass(frozen=True)
class Architecture:
    """A family in transformers.

    Attributes:
        cls: its language-model class.
        names: of the tensors.
        defaults: values of fields that are missing in config.json (transformers itself writes all of them).
        activation: the field of the activation, and its default.
        activations: names of the activations.
        read: (config.json's fields, family) -> Anatomy.
        write: (Anatomy, field of the activation) -> the fields of config.json that are specific to this architecture.
    """

    cls: str
    names: Names
    read: Callable[[Fields, str], Anatomy]
    write: Callable[[Anatomy, dict[str, str]], dict[str, Any]]
    defaults: dict[str, Any] = field(default_factory=dict)
    activation: tuple[str, str] = ("hidden_act", "silu")
    activations: dict[str, str] = field(default_factory=lambda: ACTIVATIONS)


def like_llama(
    cls: str,
    context: int,
    *,
    eps: float = 1e-6,
    head_dim: int = 0,
    base: float = 1e4,
    names: Names = LLAMA,
) -> Architecture:
    """An architecture whose config.json has llama's fields, with its defaults; head_dim 0 is d_model / heads."""
    defaults = {"max_position_embeddings": context, "rms_norm_eps": eps, "head_dim": head_dim, "rope_theta": base}
    return Architecture(cls, names, read_llama, write_llama, defaults)


def read_config(fields: Fields) -> Anatomy:
    """config.json as an Anatomy.

    Raises:
        UserError: naming the field that isoflop does not support.
    """
    family = fields.text("model_type")
    if family not in HUGGING_FACE:
        raise UserError(f"{fields.origin}: model_type = {family[:80]!r} is not one of {', '.join(HUGGING_FACE)}")
    anatomy = HUGGING_FACE[family].read(fields, family)
    if anatomy.heads % anatomy.kv_heads:
        raise UserError(f"{fields.origin}: {anatomy.kv_heads} key-value heads do not divide {anatomy.heads} heads")
    return anatomy


def read_gpt(fields: Fields, family: str) -> Anatomy:
    for name, allowed in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        fields.refuse_unless(name, allowed)
    fields.refuse_unless("add_cross_attention", False)
    d_model, heads = fields.size("n_embd"), fields.size("n_head")
    if d_model % heads:
        raise UserError(f"{fields.origin}: n_head = {heads} does not divide n_embd = {d_model}")

    drops = {fields.number(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    return Anatomy(
        family=family,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("n_positions", fields.get("n_ctx", None)),
        layers=fields.size("n_layer"),
        d_model=d_model,
        heads=heads,
        kv_heads=heads,
        head_dim=d_model // heads,
        d_ff=fields.size("n_inner", 4 * d_model) if FAMILIES[family].free_width else 4 * d_model,
        activation=read_activation(fields, family),
        eps=fields.number("layer_norm_epsilon", 1e-5),
        attention_bias=True,
        mlp_bias=True,
        tied=fields.flag("tie_word_embeddings", True),
        dropout=drops.pop() if len(drops) == 1 else 0.0,
    )


def read_llama(fields: Fields, family: str) -> Anatomy:
    fields.refuse_unless("use_sliding_window", False)
    kinds = set(fields.list_of("layer_types", str, []))
    if kinds - {"full_attention"}:
        raise UserError(
            f"{fields.origin}: layer_types has {min(kinds - {'full_attention'})[:80]!r}; ours are full attention"
        )

    heads, d_model = fields.size("num_attention_heads"), fields.size("hidden_size")
    defaults = HUGGING_FACE[family].defaults
    base, scaling = read_rotary(fields, defaults["rope_theta"])
    return Anatomy(
        family=family,
        vocab_size=fields.size("vocab_size"),
        context=fields.size("max_position_embeddings", defaults["max_position_embeddings"]),
        layers=fields.size("num_hidden_layers"),
        d_model=d_model,
        heads=heads,
        kv_heads=fields.size("num_key_value_heads", heads),
        head_dim=fields.size("head_dim", defaults["head_dim"] or max(1, d_model // heads)),
        d_ff=fields.size("intermediate_size"),
        activation=read_activation(fields, family),
        eps=fields.number("rms_norm_eps", defaults["rms_norm_eps"]),
        base=base,
        scaling=scaling,
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False) and FAMILIES[family].biases[1] == "either",
        tied=fields.flag("tie_word_embeddings", False),
    )


def read_rotary(fields: Fields, default: float) -> tuple[float, Scaling]:
    """`rope_theta` and the scaling of rotary positions, from the fields of either generation of config.json.

    Raises:
        UserError: naming a kind of rope scaling that isoflop does not support.
    """
    theta, scaling = fields.get("rope_theta", default), UNSCALED
    for name in ("rope_scaling", "rope_parameters"):
        parameters = fields.get(name, {})
        if not isinstance(parameters, dict):
            raise fields.wrong(name, parameters, "an object")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        inner = Fields(parameters, f"{fields.origin}: {name}")

        if kind == "llama3":
            scaling = Scaling(
                factor=inner.number("factor"),
                low_freq=inner.number("low_freq_factor"),
                high_freq=inner.number("high_freq_factor"),
                original=inner.size("original_max_position_embeddings"),
            )
            if scaling.factor <= 0 or not 0 < scaling.low_freq < scaling.high_freq:
                raise UserError(f"{inner.origin} of kind 'llama3' has inconsistent factors: {str(parameters)[:160]}")
        elif kind != "default":
            raise UserError(f"{fields.origin}: {name} of kind {str(kind)[:80]!r}; ours have Llama 3's scaling or none")
        if parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{fields.origin}: partial_rotary_factor is not 1; our rotary positions rotate complete heads"
            )
        theta = parameters.get("rope_theta", theta)
    return Fields({"rope_theta": theta}, fields.origin).number("rope_theta"), scaling


def read_activation(fields: Fields, family: str) -> str:
    field_name, default = HUGGING_FACE[family].activation
    activations = HUGGING_FACE[family].activations
    value = fields.text(field_name, default)
    if value not in activations:
        raise UserError(f"{fields.origin}: {field_name} = {value[:80]!r} is not one of {', '.join(activations)}")
    return activations[value]


def write_config(anatomy: Anatomy) -> dict[str, Any]:
    """config.json of an Anatomy within the limits of its architecture (`limits`)."""
    architecture = HUGGING_FACE[anatomy.family]
    activation = next(theirs for theirs, ours in architecture.activations.items() if ours == anatomy.activation)
    return {
        "architectures": [architecture.cls],
        "model_type": anatomy.family,
        "torch_dtype": "float32",
        "vocab_size": anatomy.vocab_size,
        "tie_word_embeddings": anatomy.tied,
        **architecture.write(anatomy, {architecture.activation[0]: activation}),
    }


def limits() -> dict[str, Limits]:
    """Each architecture supports the activations for which it has names, and all other features of its family."""
    return {name: Limits(tuple(dict.fromkeys(row.activations.values()))) for name, row in HUGGING_FACE.items()}


def write_gpt(anatomy: Anatomy, activation: dict[str, str]) -> dict[str, Any]:
    free_width = FAMILIES[anatomy.family].free_width
    return {
        "n_positions": anatomy.context,
        "n_embd": anatomy.d_model,
        "n_layer": anatomy.layers,
        "n_head": anatomy.heads,
        **({"n_inner": anatomy.d_ff} if free_width else {}),
        **activation,
        "layer_norm_epsilon": anatomy.eps,
        "resid_pdrop": anatomy.dropout,
        "embd_pdrop": anatomy.dropout,
        "attn_pdrop": anatomy.dropout,
    }


def write_gpt1(anatomy: Anatomy, activation: dict[str, str]) -> dict[str, Any]:
    return {**write_gpt(anatomy, activation), "summary_first_dropout": 0.0}


def write_llama(anatomy: Anatomy, activation: dict[str, str]) -> dict[str, Any]:
    return {
        "max_position_embeddings": anatomy.context,
        "hidden_size": anatomy.d_model,
        "intermediate_size": anatomy.d_ff,
        "num_hidden_layers": anatomy.layers,
        "num_attention_heads": anatomy.heads,
        "num_key_value_heads": anatomy.kv_heads,
        "head_dim": anatomy.head_dim,
        **activation,
        "rms_norm_eps": anatomy.eps,
        **write_rotary(anatomy),
        "attention_bias": anatomy.attention_bias,
        **({"mlp_bias": anatomy.mlp_bias} if FAMILIES[anatomy.family].biases[1] == "either" else {}),
        "attention_dropout": 0.0,
    }


def write_rotary(anatomy: Anatomy) -> dict[str, Any]:
    """The fields of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`)."""
    kind: dict[str, Any] = {"rope_type": "default"}
    if anatomy.scaling != UNSCALED:
        kind = {
            "rope_type": "llama3",
            "factor": anatomy.scaling.factor,
            "low_freq_factor": anatomy.scaling.low_freq,
            "high_freq_factor": anatomy.scaling.high_freq,
            "original_max_position_embeddings": anatomy.scaling.original,
        }
    parameters = {**kind, "rope_theta": anatomy.base}
    scaled = {"rope_scaling": parameters} if anatomy.scaling != UNSCALED else {}
    return {"rope_theta": anatomy.base, **scaled, "rope_parameters": parameters}


HUGGING_FACE: dict[str, Architecture] = {
    "openai-gpt": Architecture(
        "OpenAIGPTLMHeadModel",
        Names(
            "transformer.h.{n}.",
            (
                Key("transformer.tokens_embed", ("embedding",)),
                Key("transformer.positions_embed", ("position.table",)),
                Key("lm_head", ("head",)),
            ),
            conv_blocks(),
            optional_prefix="transformer.",
            ignored=(".attn.bias", "position_ids"),
        ),
        read_gpt,
        write_gpt1,
        activation=("afn", "gelu"),
        activations=GPT1_ACTIVATIONS,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        Names(
            "transformer.h.{n}.",
            (
                Key("transformer.wte", ("embedding",)),
                Key("transformer.wpe", ("position.table",)),
                Key("transformer.ln_f", ("norm",)),
                Key("lm_head", ("head",)),
            ),
            conv_blocks(),
            optional_prefix="transformer.",
            ignored=(".attn.bias", ".attn.masked_bias"),
        ),
        read_gpt,
        write_gpt,
        activation=("activation_function", "gelu_new"),
    ),
    "llama": like_llama("LlamaForCausalLM", 2048),
    "qwen3": like_llama("Qwen3ForCausalLM", 32768, head_dim=128),
    "arcee": like_llama("ArceeForCausalLM", 4096, eps=1e-5),
    "apertus": like_llama(
        "ApertusForCausalLM",
        65536,
        eps=1e-5,
        base=1.2e7,
        names=replace(LLAMA, blocks=llama_blocks("attention_layernorm", "feedforward_layernorm")),
    ),
}
