"""Frozen dataclass <-> dict <-> JSON, with dotted overrides. The dataclasses themselves are the only schema.

The meaning of a field is the string in its annotation, `steps: Annotated[int, "optimiser steps"] = 1000`, from which
`isoflop config` lists all fields.

- A class whose JSON form is not an object (model/config.py's Spec) defines `to_plain()` and `from_plain(value, where)`.
- A field that may also be given as a name for a complete object has a `Named` in its annotation: `model=gpt2`.
- A field that names an entry of a table has a `OneOf`: `optim.name=muon`.
- A class defines `as_written(object)` if missing fields of older files do not mean their defaults.
- A field that came after configurations had become parts of keys on record has an `Added`; see `to_key`.
"""

import dataclasses
import difflib
import functools
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from isoflop.errors import UserError
from isoflop.untrusted import parse_json, read_text, too_deep
from isoflop.values import KINDS, as_list, instead, spelled

T = TypeVar("T")

LONGEST_NAME = 100  # characters that are compared with the valid names


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """One line of `isoflop config`: dotted name, type as written, default as JSON, meaning."""

    name: str
    type: str
    default: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Named:
    """In a field's annotation: the objects that may be given by name, each made on request.

    Attributes:
        keeps: name -> the fields whose present values are kept when this name is assigned.
    """

    makers: Mapping[str, Callable[[], Any]]
    keeps: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def make(self, name: str, where: str) -> Any:
        """Raises:
        UserError: for an unknown name, with the nearest valid one.
        """
        if name not in self.makers:
            raise UserError(f"{where} = {name!r} is not one of {', '.join(self.makers)}{nearest(name, self.makers)}")
        return self.makers[name]()


@dataclasses.dataclass(frozen=True)
class OneOf:
    """In the annotation of a `str` field: the table whose names it may have. The entries' `words` are its help."""

    table: Mapping[str, Any]

    def check(self, name: Any, where: str) -> str:
        """The name itself.

        Raises:
            UserError: for a name that is not in the table, with the nearest one that is.
        """
        if not isinstance(name, str) or name not in self.table:
            raise UserError(f"{where} = {name!r} is not one of {', '.join(self.table)}{nearest(name, self.table)}")
        return name

    def type_name(self) -> str:
        return " | ".join(self.table)

    def meaning(self) -> str:
        return "; ".join(f"{name}: {entry.words}" if entry.words else name for name, entry in self.table.items())


@dataclasses.dataclass(frozen=True)
class Derived:
    """In a field's annotation: a meaning that is derived from a table on request."""

    meaning: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Added:
    """In a field's annotation: keys on record (of timings, of runs of a ladder or of the lab, of recipes) were made
    before the field existed, and still hold where it has its default."""


def to_dict(value: Any) -> Any:
    """Dataclasses, tuples and paths as plain JSON values; everything else unchanged."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    if isinstance(value, dict):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return value


def to_key(value: Any) -> Any:
    """`to_dict` without the fields marked `Added` that have their default: the part of a configuration of which keys on
    record are hashes."""
    if hasattr(value, "to_plain") or not dataclasses.is_dataclass(value) or isinstance(value, type):
        return to_dict(value)
    added = added_fields(type(value))
    return {
        field.name: to_key(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if field.name not in added or getattr(value, field.name) != added[field.name]
    }


@functools.cache
def added_fields(cls: Any) -> dict[str, Any]:
    """The fields of a class that are marked `Added`, with their defaults."""
    hints = typing.get_type_hints(cls, include_extras=True)
    added = [field for field in dataclasses.fields(cls) if note_of(hints[field.name], Added)]
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in added
    }


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build `cls` from plain JSON values.

    Raises:
        UserError: naming the dotted field, for an unknown field (with the nearest valid one) or a wrong type.
    """
    return typing.cast(T, convert(cls, data, where))


def convert(kind: Any, value: Any, where: str) -> Any:
    """A plain JSON value as the annotated type `kind`.

    Raises:
        UserError: naming the dotted field `where`, for a value of another type.
    """
    if typing.get_origin(kind) is typing.Annotated:
        if isinstance(value, str) and (named := names_of(kind)):
            return named.make(value, where)
        if one_of := note_of(kind, OneOf):
            return one_of.check(value, where)
        kind = typing.get_args(kind)[0]

    if hasattr(kind, "from_plain"):
        return kind.from_plain(value, where)
    if dataclasses.is_dataclass(kind):
        return convert_dataclass(kind, value, where)

    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UserError(
                f"{where} = {spelled(value)} is not one of {', '.join(map(str, arguments))}{nearest(value, arguments)}"
            )
        return value
    if origin is tuple:
        length = 0 if arguments[-1] is Ellipsis else len(arguments)
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} = {spelled(value)} is not a list{as_list(value, length)}")
        if length and length != len(value):
            raise UserError(f"{where} = {spelled(value)} is not a list of {length} values")
        inner = list(arguments) if length else [arguments[0]] * len(value)
        return tuple(convert(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} = {spelled(value)} is not an object")
        return value
    return convert_scalar(kind, value, where)


def convert_scalar(kind: Any, value: Any, where: str) -> Any:
    """`convert` for a type that is not a container."""
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise UserError(f"{where} = {spelled(value)} is not a finite number")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise UserError(f"{where} = {spelled(value)} is not {KINDS.get(kind, kind.__name__)}{instead(kind, value)}")
    return value


def convert_dataclass(cls: Any, value: Any, where: str) -> Any:
    """`convert` for a dataclass, from an object with its fields."""
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        by_name = isinstance(value, str) and where and "name" in [field.name for field in dataclasses.fields(cls)]
        meant = f"; did you mean {where}.name={value}?" if by_name else ""
        raise UserError(f"{where or cls.__name__} = {spelled(value)} is not an object of fields{meant}")
    if hasattr(cls, "as_written"):
        value = cls.as_written(value)
    if hasattr(cls, "from_older"):  # a file of an earlier version, and its meaning of missing fields
        value = cls.from_older(value)

    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in value:
        if key not in names:
            raise unknown_field(join(where, key), names)
    missing = [f.name for f in dataclasses.fields(cls) if not has_default(f) and f.name not in value]
    if missing:
        raise UserError(f"{join(where, missing[0])} is missing and has no default")
    return cls(**{key: convert(hints[key], item, join(where, key)) for key, item in value.items()})


def override(config: T, assignments: Sequence[str]) -> T:
    """Apply `dotted.field=value` strings to a frozen config and return the new one.

    A value is parsed as JSON if possible (`3`, `0.1`, `true`, `null`, `[1, 2]`), else it is a string. They apply in
    order: `model=gpt2` sets the whole preset, and `model.layers=3` after it changes one field of that. (Some names
    keep the present values of some fields, see Named.)

    Raises:
        UserError: for a string without `=`, an unknown field (with the nearest valid one) or a wrong type.
    """
    data = to_dict(config)
    for text in assignments:
        dotted, separator, raw = text.partition("=")
        if not separator or not dotted:
            raise UserError(f"--set {text!r} is not of the form dotted.field=value")
        set_path(type(config), data, dotted.strip(), parse_value(raw))
    return from_dict(type(config), data)


def set_path(cls: Any, data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set one dotted field in the dict of a configuration of class `cls`, in place."""
    head, _, further = dotted.partition(".")
    prefix = ""
    while True:
        names = [field.name for field in dataclasses.fields(cls)]
        if head not in names:
            raise unknown_field(join(prefix, head), names)

        hint = typing.get_type_hints(cls, include_extras=True)[head]
        kind = bare(hint)
        if not further:
            named = names_of(hint) if isinstance(value, str) else None
            if named:
                made, kept = to_dict(named.make(value, join(prefix, head))), named.keeps.get(value, ())
                value = made | {name: data[head][name] for name in kept}
            data[head] = value
            return
        if hasattr(kind, "from_plain"):  # an option of a Spec: model.norm.eps=1e-5
            data[head] = kind.with_option(data[head], further, value)
            return
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"{join(prefix, head)} is a single value and has no field {further!r}")
        if data[head] is None:
            data[head] = {}

        prefix, data, cls = join(prefix, head), data[head], kind
        head, _, further = further.partition(".")


def parse_value(raw: str) -> Any:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.strip()
    if too_deep(value, raw):
        raise UserError(f"{raw[:60]!r} ... is nested too deeply for a value")
    return value


def bare(kind: Any) -> Any:
    """`Annotated[X | None, ...]` -> X."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(a for a in typing.get_args(kind) if a is not type(None))
    return kind


def names_of(hint: Any) -> Named | None:
    """The `Named` in a field's annotation, if any."""
    return note_of(hint, Named)


def note_of(hint: Any, kind: type[T]) -> T | None:
    """The first note of this kind in a field's annotation, if any."""
    return next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, kind)), None)


def meaning_of(hint: Any) -> str:
    """The meaning in a field's annotation."""
    notes = getattr(hint, "__metadata__", ())
    return " ".join(
        note if isinstance(note, str) else note.meaning() for note in notes if isinstance(note, (str, OneOf, Derived))
    )


def describe(cls: Any, prefix: str = "") -> list[FieldInfo]:
    """Every field of a configuration class, nested ones with dotted names."""
    lines: list[FieldInfo] = []
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint, kind = hints[field.name], bare(hints[field.name])
        name = join(prefix, field.name)
        if named := names_of(hint):
            lines.append(FieldInfo(name, "name", "", f"{meaning_of(hint)}: {', '.join(named.makers)}"))
        if dataclasses.is_dataclass(kind) and not hasattr(kind, "from_plain"):
            lines += describe(kind, name)
            continue
        lines.append(FieldInfo(name, type_name(hint), default_of(field), meaning_of(hint)))
    return lines


def type_name(hint: Any) -> str:
    if one_of := note_of(hint, OneOf):
        return one_of.type_name()
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return json.dumps(to_dict(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return json.dumps(to_dict(field.default_factory()))
    return "required"


def load_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        UserError: if it is missing or not JSON, or exceeds the limits of untrusted.py.
    """
    return parse_json(read_text(path), str(path))


def has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def unknown_field(dotted: str, names: list[str]) -> UserError:
    head, _, last = dotted.rpartition(".")
    close = difflib.get_close_matches(last[:LONGEST_NAME], names, n=1, cutoff=0.5)
    hint = f"did you mean {join(head, close[0])}?" if close else f"its fields are {', '.join(names)}"
    return UserError(f"unknown field {dotted}: {hint} (`isoflop config` lists all)")


def nearest(value: Any, allowed: typing.Iterable[Any]) -> str:
    """`; did you mean x?` if one of the allowed values is close, else ""."""
    close = difflib.get_close_matches(str(value)[:LONGEST_NAME], [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
