"""Text from an item's fields: `{question}`, `{Best Answer}`, `{choices[0]}`, `{subject:words}`, and `{choices.text[0]}`
of the object `choices`; `{{` and `}}` are braces.

Only fields of the item, items of lists in them and the filters below: a suite file may come from anyone, and Python's
own `str.format` would let it look into objects.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from isoflop.errors import UserError

FILTERS: dict[str, Callable[[str], str]] = {
    "capitalize": str.capitalize,
    "lower": str.lower,
    "strip": str.strip,
    "words": lambda text: text.replace("_", " "),
}
PART = re.compile(r"\{\{|\}\}|\{(?P<field>[^\W\d][\w .-]*)(?:\[(?P<index>\d+)\])?(?::(?P<filter>\w+))?\}|[{}]")


def check_template(template: str, where: str) -> None:
    """Raises UserError, naming `where` and what is wrong, for a template that cannot be filled."""
    for part in PART.finditer(template):
        if part[0] in "{}":
            raise UserError(
                f"{where} = {template!r}: a brace that belongs to no field; write {{name}} for one, or the brace twice"
            )
        if part["filter"] and part["filter"] not in FILTERS:
            raise UserError(f"{where} = {template!r}: {part['filter']!r} is not one of {', '.join(FILTERS)}")


def fill(template: str, record: Mapping[str, Any], where: str) -> str:
    """The text of a template that was checked.

    Raises:
        UserError: naming `where`, for a field that the item does not have or that is neither text nor a number.
    """

    def value(part: re.Match[str]) -> str:
        if part[0] in ("{{", "}}"):
            return part[0][0]
        text = plain_text(look_up(record, part["field"], part["index"], where), part[0], where)
        return FILTERS[part["filter"]](text) if part["filter"] else text

    return PART.sub(value, template)


def look_up(record: Mapping[str, Any], field: str, index: str | None, where: str) -> Any:
    value = member(record, field, where)
    if index is None:
        return value
    if not isinstance(value, list) or int(index) >= len(value):
        there = f"a list of {len(value)}" if isinstance(value, list) else "no list"
        raise UserError(f"{where}: {field}[{index}] is not there, as {field} is {there}")
    return value[int(index)]


def member(record: Mapping[str, Any], field: str, where: str) -> Any:
    """The value of a field; `a.b` is the field `b` of the object `a`, unless a field has this whole name.

    Raises:
        UserError: naming `where`, if there is none.
    """
    value: Any = record
    for name in [field] if field in record else field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(f"{where} has no field {field!r}; its fields: {', '.join(map(str, record)) or 'none'}")
        value = value[name]
    return value


def plain_text(value: Any, name: str, where: str) -> str:
    """A value of an item as text.

    Raises:
        UserError: for a list, an object or nothing.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    kind = "nothing (null)" if value is None else "a list" if isinstance(value, list) else "an object"
    raise UserError(f"{where}: {name} is {kind} and no text")
