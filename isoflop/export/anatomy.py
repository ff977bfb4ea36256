"""What a model is, in the words that all file formats share; and which ModelConfigs can be said in them.

Six families of Hugging Face architectures are made of parts that we have. Each is one row of FAMILIES; a row says all
that the family leaves no choice in. Gains and biases that a family always has and a model has not are written as ones
and zeros: the same function exactly.
"""

import inspect
from dataclasses import dataclass, fields
from typing import Any

import torch

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.registry import SLOTS, resolve

QK_EPS = 1e-6  # of the norm in blocks/attention.py, which has no option for it


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        norm, position, wiring, feed_forward: the entries that it is made of.
        qk_norm: queries and keys are normalised, with gains.
        final_norm: there is a norm before the head.
        biases: of attention and feed-forward: "always", "never" or "either" (a field of its config.json says so).
        free_width: d_ff is a field; else it is 4 d_model.
        kv_heads: key-value heads may be fewer, and heads of another width than d_model / heads.
    """

    norm: str
    position: str
    wiring: str
    feed_forward: str
    qk_norm: bool = False
    final_norm: bool = True
    biases: tuple[str, str] = ("always", "always")
    free_width: bool = True
    kv_heads: bool = True


FAMILIES: dict[str, Family] = {
    "openai-gpt": Family("layer", "learned", "post", "mlp", final_norm=False, free_width=False, kv_heads=False),
    "gpt2": Family("layer", "learned", "pre", "mlp", kv_heads=False),
    "llama": Family("rms", "rotary", "pre", "gated", biases=("either", "either")),
    "qwen3": Family("rms", "rotary", "pre", "gated", qk_norm=True, biases=("either", "never")),
    "arcee": Family("rms", "rotary", "pre", "mlp", biases=("either", "either")),
    "apertus": Family("rms", "rotary", "pre", "mlp", qk_norm=True, biases=("either", "never")),
}

# the options of each entry that the families can say; any other one must be at its default
SAYABLE: dict[str, tuple[str, ...]] = {
    "layer": ("eps", "bias"),
    "rms": ("eps", "gain"),
    "learned": (),
    "rotary": ("base", "interleaved"),
    "full": ("kv_heads", "qk_norm", "qk_gain", "bias"),
    "mlp": ("activation", "ratio", "d_ff", "bias"),
    "gated": ("activation", "ratio", "multiple_of", "d_ff", "bias"),
    "pre": (),
    "post": (),
}
# the fields of a ModelConfig that an Anatomy holds, or that matter to a model's beginning only
HELD = ("vocab_size", "context", "layers", "d_model", "heads", "head_dim", "final_norm", "tied_head", "init", "dropout")


@dataclass(frozen=True)
class Anatomy:
    """A model of one of the families.

    Attributes:
        eps: of every norm.
        base: of rotary positions; 0 where there are none.
    """

    family: str
    vocab_size: int
    context: int
    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    activation: str
    eps: float
    base: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    dropout: float = 0.0

    def to_config(self, where: str) -> ModelConfig:
        """The ModelConfig: half-split rotary pairs, every gain and bias of the family.

        Raises:
            UserError: naming what we have no part for.
        """
        family = FAMILIES[self.family]
        if family.qk_norm and self.eps != QK_EPS:
            raise UserError(f"{where}: {self.family} with rms_norm_eps {self.eps:g}; our QK norm has {QK_EPS:g} only")
        attention: dict[str, Any] = {"bias": self.attention_bias}
        if self.kv_heads != self.heads:
            attention["kv_heads"] = self.kv_heads
        if family.qk_norm:
            attention |= {"qk_norm": True, "qk_gain": True}
        position = Spec("rotary", base=self.base) if family.position == "rotary" else Spec(family.position)
        return ModelConfig(
            vocab_size=self.vocab_size,
            context=self.context,
            layers=self.layers,
            d_model=self.d_model,
            heads=self.heads,
            head_dim=0 if self.head_dim * self.heads == self.d_model else self.head_dim,
            norm=Spec(family.norm, eps=self.eps),
            position=position,
            attention=Spec("full", **attention),
            feed_forward=Spec(family.feed_forward, activation=self.activation, d_ff=self.d_ff, bias=self.mlp_bias),
            wiring=Spec(family.wiring),
            init=Spec("gpt2"),
            final_norm=family.final_norm,
            tied_head=self.tied,
            dropout=self.dropout,
        )


def anatomy_of(config: ModelConfig, families: tuple[str, ...], target: str) -> Anatomy:
    """The family of `families` that computes exactly what a model of this configuration computes.

    Args:
        target: the format, for messages.

    Raises:
        UserError: naming the block that none of them has.
    """

    def refuse(what: str, instead: str) -> UserError:
        return UserError(f"{what} cannot be written as {target}: {instead}")

    given = {slot: options_of(slot, getattr(config, slot)) for slot in SLOTS}
    require_defaults(config, given, refuse)
    kinds = {f.norm for f in (FAMILIES[name] for name in families)}
    if config.norm.name not in kinds:
        raise refuse(f"model.norm = {config.norm}", f"it has {' and '.join(sorted(kinds))}")
    qk_norm = bool(given["attention"].get("qk_norm"))
    left = list(families)
    for field, has in [
        ("norm", config.norm.name),
        ("position", config.position.name),
        ("wiring", config.wiring.name),
        ("final_norm", config.final_norm),
        ("feed_forward", config.feed_forward.name),
        ("qk_norm", qk_norm),
    ]:
        fitting = [name for name in left if getattr(FAMILIES[name], field) == has]
        if not fitting:
            wanted = " or ".join(sorted({str(getattr(FAMILIES[name], field)) for name in left}))
            where = "model.attention.qk_norm" if field == "qk_norm" else f"model.{field}"
            raise refuse(f"{where} = {has}", f"{' and '.join(left)}, nearest to this model, have {wanted}")
        left = fitting
    name, family = left[0], FAMILIES[left[0]]
    attention, feed_forward, norm = given["attention"], given["feed_forward"], given["norm"]
    if config.attention.name != "full":
        raise refuse(f"model.attention = {config.attention}", f"{name} has full attention")
    if config.layers < 1:
        raise refuse("model.layers = 0", "it has blocks")
    with torch.device("meta"):
        weights = GPT(config).blocks[0].state_dict()
    kv_heads = len(weights["attention.k.weight"]) // config.head_width
    d_ff = len(weights["feed_forward.up.weight"])
    if not family.kv_heads and kv_heads != config.heads:
        raise refuse(f"model.attention.kv_heads = {kv_heads}", f"{name} has as many as heads")
    if not family.kv_heads and config.head_width * config.heads != config.d_model:
        raise refuse(f"model.head_dim = {config.head_width}", f"{name} has d_model / heads")
    if not family.free_width and d_ff != 4 * config.d_model:
        raise refuse(f"model.feed_forward.d_ff = {d_ff}", f"{name} has 4 d_model")
    for slot, said, rule in (("attention", attention, 0), ("feed_forward", feed_forward, 1)):
        if said["bias"] and family.biases[rule] == "never":
            raise refuse(f"model.{slot}.bias = true", f"{name} has no biases there")
    if qk_norm and norm["eps"] != QK_EPS:
        raise refuse(
            f"model.norm.eps = {norm['eps']:g}", f"{name} has one eps for all norms, and QK norm's is {QK_EPS:g}"
        )
    return Anatomy(
        family=name,
        vocab_size=config.vocab_size,
        context=config.context,
        layers=config.layers,
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=kv_heads,
        head_dim=config.head_width,
        d_ff=d_ff,
        activation=feed_forward["activation"],
        eps=norm["eps"],
        base=given["position"].get("base", 0.0),
        attention_bias=attention["bias"] or family.biases[0] == "always",
        mlp_bias=feed_forward["bias"] or family.biases[1] == "always",
        tied=config.tied_head,
        dropout=config.dropout,
    )


def require_defaults(config: ModelConfig, given: dict[str, dict[str, Any]], refuse: Any) -> None:
    """Raises UserError for an option or a field that no family can say and that is not at its default."""
    for slot, options in given.items():
        spec: Spec = getattr(config, slot)
        if spec.name not in SAYABLE:
            raise refuse(f"model.{slot} = {spec}", f"of that slot it has {sayable(slot)}")
        defaults = options_of(slot, Spec(spec.name))
        for option, value in options.items():
            if option not in SAYABLE[spec.name] and value != defaults.get(option):
                raise refuse(f"model.{slot}.{option} = {value}", f"{option} has no place in it")
    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        if field.name not in (*HELD, *SLOTS) and value != field.default:
            raise refuse(f"model.{field.name} = {value}", f"{field.name} has no place in it")


def sayable(slot: str) -> str:
    return ", ".join(name for name in SLOTS[slot] if name in SAYABLE)


def options_of(slot: str, spec: Spec) -> dict[str, Any]:
    """Every option of an entry with the value that it has: given, or the default."""
    parameters = inspect.signature(resolve(SLOTS[slot], spec.name, f"model.{slot}")).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **dict(spec.options)}
