"""Formats numbers and untrusted text, safe to put into HTML.

A missing number is None everywhere and shown as an en dash.
"""

import datetime
import html
import json
import math
from typing import Any

MISSING = "–"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


# The name of each task's model, repeated from the table in model/build.py, which cannot be imported without torch.
MODEL_KINDS = {"causal_lm": "GPT", "seq2seq": "encoder-decoder"}


def text(value: Any) -> str:
    """Any value as HTML text: escaped, and without invisible characters.

    A model may generate any characters. Control characters become their symbols (NUL is ␀); characters that change the
    writing direction and lone surrogates become �; tabs and line feeds stay.
    """
    return html.escape("".join(map(visible, str(value))))


def visible(character: str) -> str:
    code = ord(character)
    if character in "\t\n":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    is_bidi_control = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F, 0x061C)
    if 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or is_bidi_control or code & 0xFFFE == 0xFFFE:
        return "\ufffd"
    return character


def count(value: float | None) -> str:
    """1,234 · 95,000 · 0.43 M · 12.9 M · 1.2 B"""
    if value is None:
        return MISSING
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size or unit == "M":
            return f"{short(value / size)} {unit}"
    raise AssertionError("unreachable: M takes all remaining sizes")


def short(value: float) -> str:
    """Three significant digits, or all digits before the decimal point; without trailing zeros."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    plain = f"{value:,.{min(digits, 6)}f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def fixed(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def power(value: float | None) -> str:
    """1.35 × 10¹³, as FLOPs are written."""
    if value is None:
        return MISSING
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def rate(value: float | None) -> str:
    """FLOP/s with a prefix: 53.1 GFLOP/s."""
    if value is None:
        return MISSING
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{short(value / size)} {prefix}FLOP/s"
    return f"{value:,.0f} FLOP/s"


def size(value: float | None) -> str:
    """Bytes, in powers of a thousand: 12.9 MB."""
    if value is None:
        return MISSING
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{short(value / scale)} {unit}"
    return f"{value:,.0f} bytes"


def duration(value: float | None) -> str:
    """0.42 s · 12.3 s · 3 min 1 s · 2 h 05 min · 3 d 4 h"""
    if value is None:
        return MISSING
    if value < 59.95:
        return f"{short(value)} s"
    seconds = round(value)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s" if seconds % 60 else f"{seconds // 60} min"
    if seconds < 2 * 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one as percent: 0.183 -> 18.3 %."""
    return MISSING if share is None else f"{100 * share:.{digits}f} %"


def of_step(step: int | None, steps: float | None) -> str:
    """What to write behind a figure of an earlier checkpoint than the last; empty if it is of the last."""
    return f" (at step {count(step)} of {count(steps)})" if step is not None and steps and step < steps else ""


def change(reached: float | None, expected: float | None) -> str:
    """The relative difference in percent with its sign: +0.6 %."""
    if reached is None or not expected:
        return MISSING
    return f"{100 * (reached / expected - 1):+.1f} %".replace("-", "−")


def moment(value: Any) -> str:
    """Unix time as UTC, so that the page does not depend on the local time zone."""
    try:
        return f"{datetime.datetime.fromtimestamp(float(value), datetime.UTC):%Y-%m-%d %H:%M:%S}"
    except (TypeError, ValueError, OverflowError, OSError):
        return MISSING


def article(phrase: str) -> str:
    """ "a" or "an" before a phrase that begins with a number: an 8.1, an 11.2, a 110."""
    digits = phrase.partition(".")[0].partition(" ")[0]
    return "an" if digits.startswith("8") or digits in ("11", "18") else "a"


def plain(value: Any) -> str:
    """A configuration value on one line: strings unquoted, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def model_kind(task: str | None) -> str:
    """The name of a task's model; "model" for an unknown task."""
    return MODEL_KINDS.get(task or "causal_lm", "model")
