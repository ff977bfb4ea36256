"""Spec: an entry of a table with options. Its plain form is that of JSON and `--set`."""

from dataclasses import dataclass
from typing import Any

from isoflop.errors import UserError


@dataclass(frozen=True, init=False)
class Spec:
    """An entry of a slot's table with options: `Spec("rms", eps=1e-6)`.

    In JSON it is `{"name": "rms", "eps": 1e-6}`, or the name alone, `"rms"`, without options.
    """

    name: str
    options: tuple[tuple[str, Any], ...]

    def __init__(self, name: str, /, **options: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", tuple((key, freeze(value)) for key, value in sorted(options.items())))

    @classmethod
    def from_plain(cls, value: Any, where: str = "") -> "Spec":
        """Raises:
        UserError: if `value` is neither a name nor an object with one.
        """
        if isinstance(value, Spec):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, dict) and isinstance(value.get("name"), str) and all(isinstance(k, str) for k in value):
            return cls(value["name"], **{key: option for key, option in value.items() if key != "name"})
        raise UserError(f'{where} = {value!r} is not an entry: write a name, or {{"name": ..., option: value}}')

    def to_plain(self) -> Any:
        if not self.options:
            return self.name
        return {"name": self.name, **{key: thaw(value) for key, value in self.options}}

    @staticmethod
    def with_option(plain: Any, option: str, value: Any) -> Any:
        """The plain form with one option set: ("rms", "eps", 1e-5) -> {"name": "rms", "eps": 1e-5}."""
        return {**({"name": plain} if isinstance(plain, str) else plain), option: value}

    def __str__(self) -> str:
        return self.name


def freeze(value: Any) -> Any:
    """Lists as tuples and objects as Specs, so that a Spec is hashable and can be compared and used as a default."""
    if isinstance(value, dict):
        return Spec.from_plain(value, "an option")
    return tuple(freeze(item) for item in value) if isinstance(value, (list, tuple)) else value


def thaw(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.to_plain()
    return [thaw(item) for item in value] if isinstance(value, tuple) else value
