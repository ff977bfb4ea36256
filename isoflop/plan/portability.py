"""What the choice of portable blocks costs in loss, from the measurements on record in portability.json."""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from isoflop.config import to_dict
from isoflop.model.config import SIZES, ModelConfig
from isoflop.model.presets import portable


@dataclass(frozen=True)
class Cost:
    """Bits per byte on held-out text that `--set model=portable` loses against a model, at equal seconds.

    Attributes:
        low, high: of the sizes that were measured; below 0 the portable blocks were better.
        source: the sizes and the record.
    """

    low: float
    high: float
    source: str

    def in_words(self) -> str:
        """The cost for a sentence: for 0.017 to 0.035 bits per byte more (measured at ...)."""
        more = self.high > 0
        amounts = (self.low, self.high) if more else (-self.high, -self.low)
        shown = " to ".join(dict.fromkeys(f"{amount:.3f}" for amount in amounts))
        return f"for {shown} bits per byte {'more' if more else 'less'} ({self.source})"


@cache
def table() -> dict[str, Any]:
    """portability.json: `rows`, each with `model`, the fields that differ from the portable preset, and `measured`, one
    entry per size."""
    text = resources.files("isoflop.plan").joinpath("portability.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def cost_of_portable(model: ModelConfig) -> Cost | None:
    """What the portable blocks cost against those of a model; None if that was not measured."""
    differ = differences(model)
    for row in table()["rows"]:
        if row["model"] == differ:
            values = [entry["bits_per_byte"] for entry in row["measured"]]
            sizes = " and ".join(entry["size"] for entry in row["measured"])
            return Cost(min(values), max(values), f"measured at {sizes}, docs/recipe.md")
    return None


def differences(model: ModelConfig) -> dict[str, Any]:
    """The blocks and options of a model that are not those of the portable preset, as plain values."""
    preset = portable()
    names = [field.name for field in fields(ModelConfig) if field.name not in SIZES]
    unread = [] if model.value_embedding else ["value_gate"]
    unread += [] if model.embedding_shortcut else ["shortcut_residual", "shortcut_embedding"]
    names = [name for name in names if name not in unread]
    return {name: to_dict(getattr(model, name)) for name in names if getattr(model, name) != getattr(preset, name)}
