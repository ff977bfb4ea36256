"""Decides which configurations a format can hold, what prevents the others, and which settings would change that.

Entries are resolved, never compared by name: `swiglu` is the class Gated with silu, `banded` is Attention with a
window, and a window that is no narrower than the context is none. For each family of a format the obstacles are
collected, each with the settings that remove it; the family with the lowest cost is the nearest. Gains and biases that
a family always has and a model lacks are written as ones and zeros, and a constant scale as a gain: exactly the same
function.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import torch

from isoflop.config import override
from isoflop.errors import UserError
from isoflop.export.anatomy import FAMILIES, QK_EPS, UNSCALED, Anatomy, Scaling
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP, Gated, hidden_width
from isoflop.model.blocks.norm import LayerNorm, RMSNorm
from isoflop.model.blocks.part import ByDepth
from isoflop.model.blocks.position import Learned, Rotary
from isoflop.model.blocks.wiring import PostNorm, PreNorm
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT
from isoflop.model.registry import SLOTS, Preset, class_of, resolve

# The options of each class that the families can express; all other options must have their defaults.
EXPRESSIBLE: dict[type, tuple[str, ...]] = {
    LayerNorm: ("eps", "bias"),
    RMSNorm: ("eps", "gain"),
    Learned: (),
    Rotary: ("base", "interleaved", "factor", "low_freq", "high_freq", "original"),
    Attention: ("kv_heads", "qk_norm", "qk_gain", "qk_scale", "bias"),
    MLP: ("activation", "ratio", "d_ff", "bias"),
    Gated: ("activation", "ratio", "multiple_of", "d_ff", "bias"),
    PreNorm: (),
    PostNorm: (),
}
# The fields of a ModelConfig that an Anatomy has, that only affect initialisation, or that a GPT does not use.
IN_ANATOMY = (
    "vocab_size",
    "context",
    "layers",
    "d_model",
    "heads",
    "head_dim",
    "final_norm",
    "tied_head",
    "init",
    "dropout",
)
# of an encoder-decoder; of value embeddings and of the shortcut, which are refused themselves
INERT = ("encoder_layers", "value_gate", "shortcut_residual", "shortcut_embedding")
ENTRY, ACTIVATION, NUMBER = 3, 2, 1  # costs: the distance of a change from the user's configuration


@dataclass(frozen=True)
class Limits:
    """The restrictions of a format within a family.

    Attributes:
        activations: those that it supports, the usual one first; None: any.
        attention_bias, mlp_bias: whether it supports them, if they are optional in the family.
        scaling: whether rotary positions may be scaled.
        eps, base: the only supported value; None: any.
        even_heads: heads must be d_model / heads wide.
    """

    activations: tuple[str, ...] | None = None
    attention_bias: bool = True
    mlp_bias: bool = True
    scaling: bool = True
    eps: float | None = None
    base: float | None = None
    even_heads: bool = False


ANY = {name: Limits() for name in FAMILIES}  # the families without restrictions of a format


@dataclass(frozen=True)
class Resolved:
    """An entry of a configuration: its class and the value of every option, set or default."""

    cls: Any
    options: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)


@dataclass(frozen=True)
class Obstacle:
    """A reason why a family cannot hold a model.

    Attributes:
        what: the part of the configuration: "model.norm = none".
        why: the family's own choice.
        sets: the assignments that remove the obstacle.
        cost: the distance of the result from the user's configuration.
    """

    what: str
    why: str
    sets: tuple[str, ...]
    cost: int = NUMBER


def anatomy_of(config: ModelConfig, limits: Mapping[str, Limits], target: str) -> Anatomy:
    """The family among `limits` that computes exactly what a model of this configuration computes.

    Args:
        target: the format, for messages: "a GGUF model".

    Raises:
        UserError: naming the obstacle, and the settings with which the nearest family could hold the model.
    """
    name, obstacles = nearest(config, limits)
    if obstacles:
        first = obstacles[0]
        raise UserError(
            f"{first.what} cannot be written as {target}: {first.why}; for such a model, train with "
            f"--set {' '.join(sets_of(obstacles))}"
        )

    family = FAMILIES[name]
    parts = resolved_parts(config)
    attention, feed_forward, norm, position = (
        parts[slot][0] for slot in ("attention", "feed_forward", "norm", "position")
    )
    with torch.device("meta"):
        weights = GPT(config).blocks[0].state_dict()
    scaling = Scaling(**{option.name: position.get(option.name, option.default) for option in fields(Scaling)})
    return Anatomy(
        family=name,
        vocab_size=config.vocab_size,
        context=config.context,
        layers=config.layers,
        d_model=config.d_model,
        heads=config.heads,
        kv_heads=len(weights["attention.k.weight"]) // config.head_width,
        head_dim=config.head_width,
        d_ff=len(weights["feed_forward.up.weight"]),
        activation=feed_forward.get("activation"),
        eps=norm.get("eps"),
        base=position.get("base", 0.0),
        scaling=scaling if scaling.factor != 1.0 else UNSCALED,
        attention_bias=attention.get("bias") or family.biases[0] == "always",
        mlp_bias=feed_forward.get("bias") or family.biases[1] == "always",
        tied=config.tied_head,
        dropout=config.dropout,
    )


def nearest(config: ModelConfig, limits: Mapping[str, Limits]) -> tuple[str, list[Obstacle]]:
    """The family that holds a model, or the nearest one, with the obstacles."""
    by_family = {name: obstacles_of(config, name, limit) for name, limit in limits.items()}
    name = min(by_family, key=lambda name: sum(obstacle.cost for obstacle in by_family[name]))
    return name, by_family[name]


def sets_of(obstacles: list[Obstacle]) -> list[str]:
    """The assignments that remove all of these obstacles, each once."""
    return list(dict.fromkeys(assignment for obstacle in obstacles for assignment in obstacle.sets))


def would_fit(config: ModelConfig, assignments: list[str]) -> ModelConfig:
    """The configuration with these assignments to `model.*`."""
    return override(config, [text.removeprefix("model.") for text in assignments])


def obstacles_of(config: ModelConfig, name: str, limits: Limits) -> list[Obstacle]:
    """The obstacles for a family within the limits of a format, each with the settings that remove it."""
    family, parts = FAMILIES[name], resolved_parts(config)

    obstacles = [
        *of_norm(config, name, limits, parts["norm"]),
        *of_position(config, name, limits, parts["position"]),
        *of_entry(config, "wiring", name, family.wiring, parts["wiring"], {}),
        *of_attention(config, name, limits, parts["attention"]),
        *of_feed_forward(config, name, limits, parts["feed_forward"]),
    ]
    if config.final_norm != family.final_norm:
        value = json.dumps(family.final_norm)
        what, sets = f"model.final_norm = {config.final_norm}", (f"model.final_norm={value}",)
        obstacles.append(Obstacle(what, f"{name} has {value}", sets, ENTRY))
    if config.layers < 1:
        obstacles.append(Obstacle("model.layers = 0", "it has blocks", ("model.layers=1",)))
    obstacles += of_heads(config, name, limits)

    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        if field.name not in (*IN_ANATOMY, *INERT, *SLOTS) and value != field.default:
            default = json.dumps(field.default)
            obstacles.append(
                Obstacle(
                    f"model.{field.name} = {value}",
                    f"{name} has no such feature",
                    (f"model.{field.name}={default}",),
                    ENTRY,
                )
            )
    return obstacles


def of_heads(config: ModelConfig, name: str, limits: Limits) -> list[Obstacle]:
    """Heads that are not d_model / heads wide although they have to be, or of odd width with rotary positions."""
    family, width, d_model = FAMILIES[name], config.head_width, config.d_model
    pairs, even = family.position == "rotary", limits.even_heads or not family.kv_heads
    if not (even and width * config.heads != d_model) and not (pairs and width % 2):
        return []
    if not even:
        return [Obstacle(f"model.head_dim = {width}", f"{name} rotates pairs", (f"model.head_dim={width + 1}",))]

    sets: tuple[str, ...] = ("model.head_dim=0",)
    if pairs and d_model % 2:
        d_model += 1
        sets = (f"model.d_model={d_model}", *sets)
    fitting = (h for h in range(config.heads, 0, -1) if d_model % h == 0 and not (pairs and d_model // h % 2))
    heads = next(fitting, 1)
    if heads != config.heads:
        sets = (*sets, f"model.heads={heads}", *set_options(config, "attention", Attention, {"kv_heads": 0}))
    return [Obstacle(f"model.head_dim = {width}", f"{name} has d_model / heads", sets)]


def of_norm(config: ModelConfig, name: str, limits: Limits, parts: list[Resolved]) -> list[Obstacle]:
    family = FAMILIES[name]
    wanted = QK_EPS if family.qk_norm else limits.eps
    obstacles = of_entry(config, "norm", name, family.norm, parts, {} if wanted is None else {"eps": wanted})
    eps = parts[0].get("eps")
    if not obstacles and wanted is not None and eps != wanted:
        why = f"{name} has {wanted:g} there"
        if family.qk_norm:
            why = f"{name} has one eps for all norms, and QK norm's is {QK_EPS:g}"
        sets = set_options(config, "norm", parts[0].cls, {**parts[0].options, "eps": wanted})
        obstacles = [Obstacle(f"model.norm.eps = {eps:g}", why, sets)]
    return obstacles


def of_position(config: ModelConfig, name: str, limits: Limits, parts: list[Resolved]) -> list[Obstacle]:
    obstacles = of_entry(config, "position", name, FAMILIES[name].position, parts, {})
    if obstacles or parts[0].cls is not Rotary:
        return obstacles
    options = dict(parts[0].options)
    if not limits.scaling and options["factor"] != 1.0:
        wanted = {**options, "factor": 1.0}
        sets = set_options(config, "position", Rotary, wanted)
        obstacles.append(
            Obstacle(f"model.position.factor = {options['factor']:g}", f"{name} has no scaling there", sets)
        )
    if limits.base is not None and options["base"] != limits.base:
        wanted = {**options, "base": limits.base}
        sets = set_options(config, "position", Rotary, wanted)
        obstacles.append(
            Obstacle(f"model.position.base = {options['base']:g}", f"{name} has {limits.base:g} there", sets)
        )
    return obstacles


def of_attention(config: ModelConfig, name: str, limits: Limits, parts: list[Resolved]) -> list[Obstacle]:
    family = FAMILIES[name]
    parts = [without_wide_window(part, config.context) for part in parts]
    has_bias = family.biases[0] != "never" and limits.attention_bias
    wanted: dict[str, Any] = {"qk_norm": family.qk_norm, "bias": False}  # qk_scale needs the norm
    if parts and parts[0].cls is Attention:
        options = parts[0].options
        wanted["bias"] = options["bias"] and has_bias
        wanted |= {option: options[option] for option in ("kv_heads", "qk_gain")}
        wanted["qk_scale"] = options["qk_scale"] if family.qk_norm else 1.0
    if not family.kv_heads:
        wanted["kv_heads"] = 0
    obstacles = of_entry(config, "attention", name, "full", parts, wanted)
    if obstacles or not parts:
        return obstacles

    sets = set_options(config, "attention", Attention, wanted)
    options = parts[0].options
    if options["qk_norm"] != family.qk_norm:
        value = json.dumps(family.qk_norm)
        what = f"model.attention.qk_norm = {json.dumps(options['qk_norm'])}"
        obstacles.append(Obstacle(what, f"{name}, nearest to this model, has {value}", sets, ENTRY))
    kv_heads = options["kv_heads"] or config.heads
    if not family.kv_heads and kv_heads != config.heads:
        obstacles.append(Obstacle(f"model.attention.kv_heads = {kv_heads}", f"{name} has as many as heads", sets))
    if options["bias"] and not has_bias:
        obstacles.append(Obstacle("model.attention.bias = true", f"{name} has no biases there", sets))
    return obstacles


def of_feed_forward(config: ModelConfig, name: str, limits: Limits, parts: list[Resolved]) -> list[Obstacle]:
    family = FAMILIES[name]
    cls = class_of(SLOTS["feed_forward"][family.feed_forward])
    has_bias = family.biases[1] != "never" and limits.mlp_bias
    options = dict(parts[0].options) if parts else {}
    own_activation = options.get("activation")
    allowed = limits.activations
    activation = allowed[0] if allowed and own_activation not in allowed else own_activation
    wanted = {option: options[option] for option in EXPRESSIBLE[cls] if option in options} if options else {}
    if not parts or parts[0].cls is not cls:
        wanted = {}  # the widths of another kind of branch are not comparable
    wanted |= {"bias": bool(options.get("bias")) and has_bias}
    if activation is not None:
        wanted["activation"] = activation
    if not family.free_width:
        wanted |= {"ratio": 4.0, "d_ff": 0}
    obstacles = of_entry(config, "feed_forward", name, family.feed_forward, parts, wanted)
    if obstacles or not parts:
        return obstacles

    sets = set_options(config, "feed_forward", cls, wanted)
    if not family.free_width:
        d_ff = hidden_width(config.d_model, options["ratio"], options["d_ff"])
        if d_ff != 4 * config.d_model:
            obstacles.append(Obstacle(f"model.feed_forward.d_ff = {d_ff}", f"{name} has 4 d_model", sets))
    if allowed and own_activation not in allowed:
        why = f"{name} has {' or '.join(allowed)}"
        obstacles.append(Obstacle(f"model.feed_forward.activation = {own_activation}", why, sets, ACTIVATION))
    if options["bias"] and not has_bias:
        obstacles.append(Obstacle("model.feed_forward.bias = true", f"{name} has no biases there", sets))
    return obstacles


def of_entry(
    config: ModelConfig, slot: str, name: str, entry: str, parts: list[Resolved], wanted: Mapping[str, Any]
) -> list[Obstacle]:
    """An obstacle if a slot has another class in some layer, or an option that no family can express."""
    cls = class_of(SLOTS[slot][entry])
    if any(part.cls is not cls for part in parts) or any(part != parts[0] for part in parts):
        what = f"model.{slot} = {getattr(config, slot)}"
        sets = set_options(config, slot, cls, wanted, anew=True)
        return [Obstacle(what, f"{name}, nearest to this model, has {entry}", sets, ENTRY)]
    defaults = resolve_entry(slot, Spec(entry))[0].options
    for option, value in parts[0].options.items() if parts else ():
        if option not in EXPRESSIBLE[cls] and value != defaults[option]:
            sets = set_options(config, slot, cls, wanted, anew=True)
            return [Obstacle(f"model.{slot}.{option} = {value}", f"{name} has no such option", sets, ENTRY)]
    return []


def set_options(
    config: ModelConfig, slot: str, cls: Any, wanted: Mapping[str, Any], anew: bool = False
) -> tuple[str, ...]:
    """Assignments after which a slot has this class with these options.

    Args:
        anew: start with the entry's name, without the present options.
    """
    spec = getattr(config, slot)
    entry = resolve(SLOTS[slot], spec.name, f"model.{slot}")
    fixed = entry.keywords if isinstance(entry, partial) and not isinstance(entry, Preset) else {}
    plain = next(name for name, candidate in SLOTS[slot].items() if candidate is cls)
    present = resolve_entry(slot, spec)[0]
    if anew or class_of(entry) is not cls or any(fixed.get(option, value) != value for option, value in wanted.items()):
        sets, present = [f"model.{slot}={plain}"], resolve_entry(slot, Spec(plain))[0]
    else:
        sets = []
    changed = [(option, value) for option, value in wanted.items() if present.get(option) != value]
    return (*sets, *(f"model.{slot}.{option}={json.dumps(value)}".replace('"', "") for option, value in changed))


def resolved_parts(config: ModelConfig) -> dict[str, list[Resolved]]:
    """The resolved entry of every slot, for each layer; one for a model without layers."""
    return {slot: resolve_entry(slot, getattr(config, slot), max(1, config.layers)) for slot in SLOTS}


def resolve_entry(slot: str, spec: Spec, layers: int = 1) -> list[Resolved]:
    """An entry with the value of every option, set or default, for each of `layers` layers.

    Raises:
        UserError: for an entry that does not exist.
    """
    entry = resolve(SLOTS[slot], spec.name, f"model.{slot}")
    options = {**defaults_of(entry), **dict(spec.options)}
    if class_of(entry) is not ByDepth:
        return [Resolved(class_of(entry), options)] * layers
    pattern = options["pattern"]
    specs = [Spec.from_plain(pattern[layer % len(pattern)], f"model.{slot}.pattern") for layer in range(layers)]
    return [resolve_entry(slot, spec, layer + 1)[layer] for layer, spec in enumerate(specs)]  # patterns may nest


@cache
def defaults_of(entry: Any) -> dict[str, Any]:
    """The options of an entry with their defaults."""
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def without_wide_window(part: Resolved, context: int) -> Resolved:
    """The entry, with a window that is no narrower than the context removed."""
    if part.cls is Attention and part.options["window"] is not None and part.options["window"] >= context:
        return Resolved(part.cls, {**part.options, "window": None})
    return part
