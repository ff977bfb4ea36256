"""What the user has set, known from the start: the planner chooses the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from isoflop.config import override, parse_value
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
        tokenizer's."""
        parts = field.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        for text in self.assignments:
            name, _, raw = text.partition("=")
            if name.strip() == field or (name.strip() in above and (field != VOCABULARY or writes_it_out(raw))):
                return True
        return False

    def within(self, field: str) -> tuple[str, ...]:
        """The names, as given, of what is set of a field, of anything in it, or of an object that contains it."""
        asked = dict.fromkeys(text.partition("=")[0].strip() for text in self.assignments)
        return tuple(name for name in asked if f"{name}.".startswith(f"{field}.") or f"{field}.".startswith(f"{name}."))

    def choose(self, config: RunConfig, part: str, **values: Any) -> RunConfig:
        """`config` with these fields of one of its parts ("batch"; "" for the configuration's own), except those that
        the user has set.

        Raises:
            UserError: if the values are incompatible with what is set.
        """
        prefix = f"{part}." if part else ""
        chosen = {name: value for name, value in values.items() if not self.names(f"{prefix}{name}")}
        return replace(config, **{part: replace(getattr(config, part), **chosen)} if part else chosen)


def writes_it_out(raw: str) -> bool:
    value = parse_value(raw)
    return isinstance(value, dict) and VOCABULARY.rpartition(".")[2] in value


NOTHING = Asked()  # nothing is set: the planner chooses everything
