"""Figures that others reported, as they stand in a claim: one case for each pair number."""

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured

MEASURES = ("value", "seconds")


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
