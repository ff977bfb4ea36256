"""Figures that others reported, as they stand in a claim: one case per pair number."""

import math
from collections.abc import Mapping
from typing import Any

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured

MEASURES = ("value", "seconds")
COMPUTE = ("log10_ratio", "seconds")
CASES = 5  # evenly spaced from one end of a range to the other: the 95 % t interval of five is about the range itself


def published(job: Job) -> Measured:
    """`value`: the one of `options.values` that this pair's number stands for.

    Raises:
        UserError: if there are fewer values than pairs.
    """
    values = job.options.get("values", [])
    if not isinstance(values, (list, tuple)) or not all(type(value) in (int, float) for value in values):
        raise UserError(f"options.values = {values!r} are not numbers, one for each case")
    if job.order >= len(values):
        raise UserError(f"options.values has {len(values)} cases; setup.pairs asks for more: set it to {len(values)}")
    return Measured({"value": float(values[job.order]), "seconds": 0.0})


def compute(job: Job) -> Measured:
    """`log10_ratio`: log10 of the training compute C = 6 N D of one model over that of an earlier one, divided by the
    number of generations between them.

    Options: `parameters` and `tokens` of the model, `than_parameters` and `than_tokens` of the earlier one,
    `generations` (1). What was not published is a range [low, high]; the five cases go from the least to the greatest
    ratio that the ranges allow, in equal steps of its logarithm.

    Raises:
        UserError: for an option that is not a positive number or a range of two, or more pairs than cases.
    """
    if job.order >= CASES:
        raise UserError(f"there are {CASES} cases, from one end of what is not known to the other: set setup.pairs = 5")
    low, high = log10_flops(job.options, "")
    than_low, than_high = log10_flops(job.options, "than_")
    generations = job.options.get("generations", 1)
    if type(generations) is not int or generations < 1:
        raise UserError(f"options.generations = {generations!r} is not a positive whole number")
    smallest, largest = low - than_high, high - than_low
    at = smallest + (largest - smallest) * job.order / (CASES - 1)
    return Measured({"log10_ratio": at / generations, "seconds": 0.0})


def log10_flops(options: Mapping[str, Any], prefix: str) -> tuple[float, float]:
    """The ends of log10 of 6 N D."""
    parameters, tokens = (range_of(options, f"{prefix}{name}") for name in ("parameters", "tokens"))
    low, high = (math.log10(6 * n * d) for n, d in zip(parameters, tokens, strict=True))
    return low, high


def range_of(options: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The ends of an option that is a number or a range.

    Raises:
        UserError: naming the option.
    """
    given = options.get(name)
    ends: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given, given]
    if len(ends) != 2 or not all(type(end) in (int, float) and end > 0 for end in ends) or ends[0] > ends[1]:
        raise UserError(f"options.{name} = {given!r} is neither a positive number nor a range [low, high] of two")
    return float(ends[0]), float(ends[1])
