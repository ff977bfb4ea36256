"""The list of all parts that can be swapped: literal tables of blocks and initialisations; make() builds an entry.

Adding an entry takes a class in blocks/ (or init.py) and a line here; help and error texts are derived from the tables.
A Spec may also name a class by its dotted path (`mypkg.blocks.MyNorm`) without a line here; code from outside isoflop
runs only inside `trust_code("mypkg")`.
"""

import contextlib
import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn

from isoflop.config import convert
from isoflop.errors import UserError
from isoflop.model.blocks.attention import Attention
from isoflop.model.blocks.feed_forward import MLP, Gated
from isoflop.model.blocks.latent import Latent
from isoflop.model.blocks.moe import MoE
from isoflop.model.blocks.norm import BatchNorm, LayerNorm, NoNorm, RMSNorm
from isoflop.model.blocks.part import Absent, ByDepth, entry
from isoflop.model.blocks.position import Alibi, Learned, Position, Relative, Rotary, Sinusoidal
from isoflop.model.blocks.wiring import DeepNorm, NoResidual, Parallel, PostNorm, PreNorm, ReZero, Sandwich
from isoflop.model.init import GPT2, Modern, Normal, Xavier
from isoflop.model.spec import Spec

LARGEST = 2**28  # limit of any size: the bytes of a product of two still fit in 64 bits


class Preset(partial[Any]):
    """A class with other defaults, which a Spec may override; the arguments of a plain partial are fixed."""


Entry = type[Any] | partial[Any]  # a partial: a class with some of its options fixed by the name

NORMS: dict[str, Entry] = {"layer": LayerNorm, "rms": RMSNorm, "batch": BatchNorm, "none": NoNorm}
POSITIONS: dict[str, Entry] = {
    "none": Position,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "alibi": Alibi,
    "relative": Relative,
}
ATTENTIONS: dict[str, Entry] = {
    "full": Attention,
    "banded": Preset(Attention, window=256),  # GPT-Neo's, the open replication of GPT-3's alternation
    # GPT-3's (Brown et al. 2020, 2005.14165, section 2.1): dense and locally banded layers in turn
    "alternating": Preset(ByDepth, pattern=("full", "banded")),
    "latent": Latent,
    "none": Absent,
}
FEED_FORWARDS: dict[str, Entry] = {
    "mlp": MLP,
    "gated": Gated,
    "swiglu": partial(Gated, activation="silu"),
    "geglu": partial(Gated, activation="gelu"),
    "reglu": partial(Gated, activation="relu"),
    "bilinear": partial(Gated, activation="identity"),
    "linear": partial(MLP, activation="identity"),
    "moe": MoE,
    "none": Absent,
}
WIRINGS: dict[str, Entry] = {
    "pre": PreNorm,
    "post": PostNorm,
    "sandwich": Sandwich,
    "parallel": Parallel,
    "none": NoResidual,
    "rezero": ReZero,
    "deepnorm": DeepNorm,
}

INITS: dict[str, Entry] = {"gpt2": GPT2, "normal": Normal, "modern": Modern, "xavier": Xavier}

SLOTS: dict[str, dict[str, Entry]] = {
    "norm": NORMS,
    "position": POSITIONS,
    "attention": ATTENTIONS,
    "feed_forward": FEED_FORWARDS,
    "wiring": WIRINGS,
}

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)

TRUSTED: ContextVar[tuple[str, ...]] = ContextVar("trusted packages", default=())


@contextlib.contextmanager
def trust_code(*packages: str) -> Iterator[None]:
    """Within this context, Specs may name classes of these packages. A configuration runs code in no other way."""
    token = TRUSTED.set((*TRUSTED.get(), *packages))
    try:
        yield
    finally:
        TRUSTED.reset(token)


def resolve(table: Mapping[str, Entry], name: str, where: str) -> Any:
    """The class (or partial of one) that a name or a dotted path stands for.

    Raises:
        UserError: for a name that is not in the table, an untrusted path outside isoflop, or a missing class.
    """
    if "." not in name:
        return entry(table, name, where)
    if not DOTTED.fullmatch(name):
        raise UserError(f"{where} = {name!r} is neither an entry nor the dotted path of a class")

    module, _, attribute = name.rpartition(".")
    package = name.partition(".")[0]
    allowed = ("isoflop", *TRUSTED.get())
    if not any(name.startswith(f"{trusted}.") for trusted in allowed):
        raise UserError(
            f"{where} = {name!r} is code from outside isoflop; if you trust it, pass --trust-code {package}"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where} = {name!r} cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"{where} = {name!r} is not a torch.nn.Module class")
    return cls


def class_of(entry: Entry) -> Any:
    return entry.func if isinstance(entry, partial) else entry


def entries_with(table: Mapping[str, Entry], attribute: str, wanted: bool = True) -> list[str]:
    """The names of the entries whose class has this attribute set (or, with `wanted` False, not set), for messages."""
    return [name for name, entry in table.items() if bool(getattr(class_of(entry), attribute, False)) == wanted]


def names_by_depth(table: Mapping[str, Entry], spec: Spec, where: str) -> list[str]:
    """The names of the entries that a Spec may build: its own, or those of its pattern if it chooses by depth. An
    unknown name is returned as it is given; `make` reports it."""
    entry = table.get(spec.name)
    if entry is None or class_of(entry) is not ByDepth:
        return [spec.name]
    usual = entry.keywords if isinstance(entry, partial) else {}
    pattern = dict(spec.options).get("pattern", usual.get("pattern", ()))
    return [name for item in pattern for name in names_by_depth(table, Spec.from_plain(item, where), where)]


def make(table: Mapping[str, Entry], spec: Spec, where: str, **shapes: Any) -> Any:
    """Build one entry: shapes from the parent, options from the Spec, both checked against the constructor.

    Args:
        table: one of those above, or loss.py's.
        where: the dotted field, for messages: "model.norm".
        shapes: arguments of the parent; each is passed on if the keyword-only constructor takes it.

    Raises:
        UserError: for an unknown entry or option (with the nearest valid one), or a value that the entry refuses.
    """
    cls = resolve(table, spec.name, where)
    fixed = cls.keywords if isinstance(cls, partial) and not isinstance(cls, Preset) else {}
    parameters = inspect.signature(cls).parameters
    hints = typing.get_type_hints(class_of(cls).__init__)
    not_options = {*shapes, *fixed}
    options = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name not in not_options]

    values = dict(spec.options)
    for name in values:
        if name in fixed:
            raise UserError(f"{where}.{name} is {fixed[name]} in {spec.name}; choose another entry to set it")
        if name not in options:
            close = difflib.get_close_matches(name[:100], options, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(options) or 'none'}"
            raise UserError(f"{where}.{name} is not an option of {spec.name}: {hint}")

    missing = [name for name in options if name not in values and parameters[name].default is inspect.Parameter.empty]
    if missing:
        raise UserError(f"{where} = {spec.name!r} needs {where}.{missing[0]}, which has no default")
    for name, value in values.items():
        if isinstance(value, (int, float)) and not abs(value) <= LARGEST:
            raise UserError(f"{where}.{name} = {value} is not at most {LARGEST} in size")

    arguments = {name: convert(hints.get(name, Any), value, f"{where}.{name}") for name, value in values.items()}
    arguments |= {name: shape for name, shape in shapes.items() if name in parameters}
    try:
        part = cls(**arguments)
    except UserError as error:
        raise UserError(f"{where} = {spec.name}: {error}") from None

    if isinstance(part, ByDepth):
        item = f"{where}.pattern[{part.item}]"
        return make(table, Spec.from_plain(part.chosen, item), item, **shapes)
    return part
