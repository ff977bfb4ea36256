"""Reads a header that may come from anyone: the type and size of every value are checked before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.errors import UserError

LARGEST = 2**24  # limit of any size; a larger one means a damaged file
MISSING = object()


@dataclass(frozen=True)
class Fields:
    """The values of config.json, or GGUF's metadata.

    Attributes:
        origin: the file, for messages.
    """

    values: Mapping[str, Any]
    origin: str

    def size(self, name: str, default: Any = MISSING) -> int:
        """A positive whole number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
            raise self.wrong(name, value, "a size")
        return value

    def number(self, name: str, default: Any = MISSING) -> float:
        """A number that is not negative."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e30:
            raise self.wrong(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: Any = MISSING) -> str:
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, value, "a text")
        return value

    def list_of(self, name: str, kind: type, default: Any = MISSING) -> list[Any]:
        value = self.get(name, default)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.wrong(name, value, f"a list of {kind.__name__}")
        return value

    def get(self, name: str, default: Any = MISSING) -> Any:
        """The value; null is the same as absent."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise UserError(f"{self.origin} has no {name}")
        return default

    def refuse_unless(self, name: str, allowed: Any) -> None:
        """Raises UserError unless the value is absent or `allowed`, for features that isoflop does not support."""
        value = self.get(name, allowed)
        if value != allowed:
            raise UserError(f"{self.origin}: {name} = {str(value)[:80]} is not supported by our blocks")

    def wrong(self, name: str, value: Any, wanted: str) -> UserError:
        return UserError(f"{self.origin}: {name} = {str(value)[:80]!r} is not {wanted}")
