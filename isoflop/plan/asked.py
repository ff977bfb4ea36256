"""What the user has set, known from the start: the planner chooses the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isoflop.config import override, parse_value
from isoflop.model.presets import UNSIZED
from isoflop.trainer import RunConfig

VOCABULARY = "model.vocab_size"


@dataclass(frozen=True)
class Asked:
    """`--set` assignments. They are applied once, to the configuration that a plan starts from (job/start.py). After
    that the planner changes a configuration through `choose` only, which never changes the fields that they name."""

    assignments: tuple[str, ...] = ()

    @classmethod
    def of(cls, assignments: Sequence[str]) -> "Asked":
        return cls(tuple(assignments))

    def apply(self, config: RunConfig) -> RunConfig:
        """A configuration with the assignments applied.

        Raises:
            UserError: for an unknown field or an invalid value.
        """
        return override(config, self.assignments)

    def names(self, field: str) -> bool:
        """Whether a dotted field is set, by itself or with the whole object that contains it (`model=gpt2`). A whole
        model sets VOCABULARY only if it spells it out: a preset gives shapes, and the number of ids is the
        tokenizer's. A preset without sizes (`model=portable`) sets no size."""
        parts = field.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts))}
        for text in self.assignments:
            name, _, raw = text.partition("=")
            if name.strip() == field or (name.strip() in above and sets_within(raw, field)):
                return True
        return False

    def within(self, field: str) -> tuple[str, ...]:
        """The names, as given, of what is set of a field, of anything in it, or of an object that contains it."""
        found: dict[str, None] = {}
        for text in self.assignments:
            name, _, raw = text.partition("=")
            name = name.strip()
            inside, around = f"{name}.".startswith(f"{field}."), f"{field}.".startswith(f"{name}.")
            if inside or (around and not keeps(raw, field)):
                found[name] = None
        return tuple(found)

    def choose(self, config: RunConfig, part: str, **values: Any) -> RunConfig:
        """`config` with these fields of one of its parts ("batch"; "" for the configuration's own), except those that
        the user has set.

        Raises:
            UserError: if the values are incompatible with what is set.
        """
        prefix = f"{part}." if part else ""
        chosen = {name: value for name, value in values.items() if not self.names(f"{prefix}{name}")}
        return replace(config, **{part: replace(getattr(config, part), **chosen)} if part else chosen)


def sets_within(raw: str, field: str) -> bool:
    """Whether the value of a whole object sets this field of it."""
    if field != VOCABULARY:
        return not keeps(raw, field)
    value = parse_value(raw)
    return isinstance(value, dict) and VOCABULARY.rpartition(".")[2] in value


def keeps(raw: str, field: str) -> bool:
    """Whether the value of a whole model is a preset that keeps this field."""
    (whole, _, name), value = field.rpartition("."), parse_value(raw)
    return whole == "model" and isinstance(value, str) and name in UNSIZED.get(value, ())


NOTHING = Asked()  # nothing is set: the planner chooses everything
