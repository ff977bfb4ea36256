"""Plain values in messages: how one is spelled, and what was probably meant by one of the wrong type."""

import contextlib
import json
import math
from typing import Any

KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}  # a type in words
SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), "true"),
    **dict.fromkeys(("0", "false", "no", "off"), "false"),
}
LONGEST = 100  # characters of a list that a message spells out


def counted(number: int, noun: str) -> str:
    """1 item, 1,234 items: a number with a noun that takes an s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def are(number: int) -> str:
    return "is" if number == 1 else "are"


def spelled(value: Any) -> str:
    """A value as it is written in JSON, where that differs from Python: true, false and null."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def instead(kind: Any, value: Any) -> str:
    """`; write 0.3`: the value of type `kind` that was probably meant by one of another type; "" if none is likely."""
    if kind is bool and str(value).lower() in SWITCHES:
        return f"; write {SWITCHES[str(value).lower()]}"
    if kind is int and isinstance(value, float) and math.isfinite(value):
        return f"; write {math.floor(value)} or {math.ceil(value)}"
    if kind in (int, float) and isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):  # .5 and 1_000 are no numbers in JSON
            number = kind(value)
            return f"; write {json.dumps(number)}" if math.isfinite(number) else ""
    if kind is str and isinstance(value, (bool, int, float)):
        return f"""; write '"{spelled(value)}"', with both kinds of quotes"""
    return ""


def as_list(value: Any, length: int = 0) -> str:
    """`; write [0.8,0.9]`: the list that was probably meant by a value that is none; "" if none is likely.

    Args:
        length: of the list; 0: any.
    """
    if value is None or isinstance(value, dict):
        return ""
    items = [item_of(word) for word in value.split(",")] if isinstance(value, str) else [value]
    items *= length if len(items) == 1 and length else 1
    text = json.dumps(items, separators=(",", ":"))
    if len(text) > LONGEST or (length and len(items) != length):
        return ""
    return f"; write '{text}'" if '"' in text else f"; write {text}"


def item_of(word: str) -> Any:
    """A part of a text as a number if it is one."""
    try:
        return json.loads(word)
    except (ValueError, RecursionError):
        return word.strip()
