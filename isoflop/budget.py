"""Budgets: the type, and the parser of its forms.

90s  3m  2h  1d        seconds of training on this machine
1e15  1e15flop         floating-point operations, C = 6 N D (N: weights of matrix products in blocks and head)
5e6tok  20Mtok         tokens read
2000steps              optimiser steps
$20@2.5/h              money at a price per hour, that is, seconds
+1h                    in addition to the budget of an existing run (only with --resume)
"""

import math
import re
from dataclasses import dataclass, field

from isoflop.errors import UserError

SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MULTIPLES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
NUMBER = r"(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
LONGEST = 100  # characters of a budget
# More than any run can use: beyond it, plans would overflow the numbers of steps and seconds
LARGEST = {
    "seconds": (1e11, "3,000 years"),
    "flops": (1e32, "1e32 FLOPs"),
    "tokens": (1e18, "1e18 tokens"),
    "steps": (1e15, "1e15 steps"),
}
EXAMPLES = "write 90s, 3m, 2h, 1e15 (FLOPs), 5e6tok, 2000steps or $20@2.5/h"


@dataclass(frozen=True)
class Budget:
    """An amount of one kind.

    Attributes:
        kind: "seconds", "flops", "tokens" or "steps".
        more: in addition to the budget of an existing run: `+1h`.
        dollars: the amount of money, for a budget given as money at a price per hour; else 0.
    """

    kind: str
    amount: float
    more: bool = False
    dollars: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        sign = "+" if self.more else ""
        match self.kind:
            case "seconds":
                for unit, size in (("h", 3600.0), ("m", 60.0)):
                    if self.amount >= size and self.amount % size == 0:
                        return f"{sign}{self.amount / size:g}{unit}"
                return f"{sign}{self.amount:g}s"
            case "flops":
                return f"{sign}{self.amount:g}flop"
            case "tokens":
                return f"{sign}{int(self.amount)}tok"
            case _:
                return f"{sign}{int(self.amount)}steps"

    def words(self) -> str:
        """The budget in words: "8h", or "8h ($20 at $2.50 per hour)"."""
        if not self.dollars:
            return str(self)
        return (
            f"{self} ({money_in_words(self.dollars)} at {money_in_words(3600 * self.dollars / self.amount)} per hour)"
        )


def money_in_words(dollars: float) -> str:
    """$1,440, or $2.50: cents where they matter."""
    return f"${dollars:,.0f}" if dollars >= 1000 or dollars == int(dollars) else f"${dollars:,.2f}"


def parse_budget(text: str) -> Budget:
    """Parse one budget.

    Raises:
        UserError: if `text` is none of the forms in the module's docstring, not a positive finite amount, or more than
            LARGEST.
    """
    if len(text) > LONGEST:
        raise UserError(f"budget {text!r} is not understood: {EXAMPLES}")
    stripped = text.strip()
    dollars = 0.0
    more, body = stripped.startswith("+"), stripped.removeprefix("+")

    if money := re.fullmatch(rf"\$?{NUMBER}(?:usd)?@(?P<price>[\d.eE]+)/h", body, re.IGNORECASE):
        price = float_or_nan(money["price"])
        kind, dollars = "seconds", float(money["number"])
        amount = 3600.0 * dollars / price if price > 0 else math.nan
    elif plain := re.fullmatch(rf"{NUMBER}\s*(?P<multiple>[kMGBT]?)(?P<unit>[A-Za-z]*)", body):
        kind, scale = unit_of(plain["multiple"], plain["unit"], text)
        amount = float(plain["number"]) * scale
    else:
        raise UserError(f"budget {text!r} is not understood: {EXAMPLES}")

    if not (math.isfinite(amount) and amount > 0):
        raise UserError(f"budget {text!r} is not a positive amount: {EXAMPLES}")
    if amount > LARGEST[kind][0]:
        raise UserError(f"budget {text!r} is more than {LARGEST[kind][1]}: {EXAMPLES}")
    if kind in ("tokens", "steps"):
        if amount < 1:
            raise UserError(f"budget {text!r} is less than one: {EXAMPLES}")
        amount = float(int(amount))
    return Budget(kind, amount, more, dollars)


def unit_of(multiple: str, unit: str, text: str) -> tuple[str, float]:
    """The kind of budget and the factor that a suffix stands for: ("M", "tok") -> ("tokens", 1e6)."""
    joined = multiple + unit
    if joined in SECONDS:
        return "seconds", SECONDS[joined]
    name = unit.lower()
    if name in ("", "flop", "flops"):
        if name == "" and multiple != "":
            raise UserError(f"budget {text!r} has no unit: {EXAMPLES}")
        return "flops", MULTIPLES[multiple]
    if name in ("tok", "token", "tokens"):
        return "tokens", MULTIPLES[multiple]
    if name in ("step", "steps"):
        return "steps", MULTIPLES[multiple]
    raise UserError(f"budget {text!r} has the unknown unit {joined!r}: {EXAMPLES}")


def float_or_nan(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
