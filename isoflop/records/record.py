"""The base class of all records in a run folder: a frozen dataclass that is written as JSON and read tolerantly.

A record is one JSON object: a file such as plan.json, a part of one, or a line of a log. The writer and the readers use
the same dataclass. Files are formats: the keys, their order and their values do not change. A file may be older than
this code or untrusted, so reading never fails: a key that is missing, null or of another type than its field reads as
the field's default, and keys without a field are kept.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

UNREADABLE = object()  # a reader's result for a value that its field cannot hold

Reader = Callable[[Any], Any]


def rare(default: Any = None) -> Any:
    """A field that is omitted from the JSON if it has its default. The None of other fields is written as null."""
    return field(default=default, metadata={"rare": True})


@dataclass(frozen=True, kw_only=True)
class Record:
    """One JSON object.

    Attributes:
        others: values without a field, or of a type that their field cannot hold, by key; written back unchanged.
        keys: the keys to write, in order; None: those of the class's fields, in order. A record that was read has
            those of its file.
    """

    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def read(cls, value: Any) -> Self:
        """A record from any JSON value: anything but an object reads as an empty record."""
        if not isinstance(value, Mapping):
            return cls.blank()
        fields = cls._fields()
        values: dict[str, Any] = {}
        others: dict[str, Any] = {}
        for key, item in value.items():
            field_ = fields.get(key)
            if field_ is None:
                others[key] = item
            elif item is None:
                if field_.default is not None:
                    others[key] = None
            else:
                converted = field_.read(item)
                if converted is UNREADABLE:
                    others[key] = item
                else:
                    values[key] = converted
        return cls(others=others, keys=tuple(value), **values)

    @classmethod
    def blank(cls) -> Self:
        """The record of a missing file."""
        return cls(keys=())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object. Fields that are not among `keys` follow if they differ from their default."""
        fields = self._fields()
        written: dict[str, Any] = {}

        for key in fields if self.keys is None else self.keys:
            if key in self.others:
                written[key] = self.others[key]
            elif key in fields:
                value = getattr(self, key)
                if self.keys is not None or value is not None or not fields[key].rare:
                    written[key] = plain(value)

        if self.keys is not None:
            for key, field_ in fields.items():
                if key not in written and (value := getattr(self, key)) != field_.default:
                    written[key] = plain(value)
        for key, value in self.others.items():
            written.setdefault(key, value)
        return written

    def written_as(self, *keys: str) -> Self:
        """The same record with these keys in the JSON, in this order, followed by those of other fields that are
        set."""
        return dataclasses.replace(self, keys=keys)

    def updated(self, **values: Any) -> Self:
        """The record with other values, each of which is then written, even if it is null."""
        others = {key: value for key, value in self.others.items() if key not in values}
        keys = None if self.keys is None else tuple(dict.fromkeys([*self.keys, *values]))
        return dataclasses.replace(self, others=others, keys=keys, **values)

    @classmethod
    def _fields(cls) -> dict[str, "Field"]:
        hashable: Any = cls
        return fields_of(hashable)

    @property
    def missing(self) -> bool:
        """Whether the record is empty: the file was missing or held no object."""
        return self.keys == () and self == type(self)()


def plain(value: Any) -> Any:
    """The JSON value of a field's value."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Field:
    """How a field that is a key is read and written.

    Attributes:
        rare: omitted if it is None.
    """

    read: Reader
    default: Any
    rare: bool


@cache
def fields_of(cls: Any) -> dict[str, Field]:
    """The fields of a record class that are keys, in order of definition."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Field] = {}
    for field_ in dataclasses.fields(cls):
        if field_.name not in ("others", "keys"):
            make = field_.default_factory
            default = field_.default if make is dataclasses.MISSING else make()
            fields[field_.name] = Field(reader_of(hints[field_.name]), default, "rare" in field_.metadata)
    return fields


def reader_of(kind: Any) -> Reader:
    """The function that converts a JSON value, not null, to a field's type; it returns UNREADABLE if it cannot."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        choices = [reader_of(argument) for argument in arguments if argument is not type(None)]
        return choices[0] if len(choices) == 1 else lambda value: first_readable(choices, value)
    if origin is tuple:
        inner = reader_of(arguments[0])
        return lambda value: read_items(inner, value)
    if origin is dict:
        inner = reader_of(arguments[1])
        return lambda value: read_entries(inner, value)
    if kind is Any:
        return lambda value: value
    if kind is int:
        return read_integer
    if kind is float:
        return read_number
    if isinstance(kind, type) and issubclass(kind, Record):
        return lambda value: kind.read(value) if isinstance(value, dict) else UNREADABLE
    return lambda value: value if isinstance(value, kind) else UNREADABLE


def first_readable(choices: list[Reader], value: Any) -> Any:
    return next((converted for reader in choices if (converted := reader(value)) is not UNREADABLE), UNREADABLE)


def read_number(value: Any) -> Any:
    """A finite number; integers stay integers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return UNREADABLE
    try:
        return value if math.isfinite(value) else UNREADABLE
    except OverflowError:  # an integer larger than every float
        return UNREADABLE


def read_integer(value: Any) -> Any:
    """A finite number, rounded to an integer."""
    number = read_number(value)
    return number if number is UNREADABLE or isinstance(number, int) else round(number)


def read_items(inner: Reader, value: Any) -> Any:
    """The items of a list that can be read."""
    if not isinstance(value, (list, tuple)):
        return UNREADABLE
    return tuple(converted for item in value if (converted := inner(item)) is not UNREADABLE)


def read_entries(inner: Reader, value: Any) -> Any:
    """The entries of an object that can be read."""
    if not isinstance(value, dict):
        return UNREADABLE
    return {str(key): converted for key, item in value.items() if (converted := inner(item)) is not UNREADABLE}
