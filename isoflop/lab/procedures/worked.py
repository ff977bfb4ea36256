"""The notes' example of normalisation, three words of four numbers each, worked out by row and by column."""

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import UserError
from isoflop.lab.procedures.job import Job, Measured

WORDS = {"cat": (0.28, 0.38, 0.5, 0.4), "bat": (0.32, 0.5, 0.85, 0.9), "sat": (0.9, 0.2, 0.3, 0.8)}
MEASURES = ("dependence", "row_mean", "row_spread", "column_mean", "column_spread", "seconds")


def worked(job: Job) -> Measured:
    """The table normalised, to mean 0 and variance 1: each word by itself (`options.by = "row"`, as layer norm does),
    or each feature over the words ("column", as batch norm does).

    dependence    the largest change of the first word's numbers when the other words are drawn anew
    row_mean      the largest mean of a word, in size; row_spread: how far the standard deviations are from 1 at most
    column_mean, column_spread   the same of a feature
    """
    by = job.options.get("by", "row")
    if by not in ("row", "column"):
        raise UserError(f"options.by = {by!r} is not row or column")
    axis = 1 if by == "row" else 0
    table = np.array(list(WORDS.values()))
    shown = normalised(table, axis)
    others = table.copy()
    others[1:] = np.random.default_rng(job.order).random((len(WORDS) - 1, table.shape[1]))
    measures = {"dependence": float(np.abs(normalised(others, axis)[0] - shown[0]).max()), "seconds": 0.0}
    for name, across in (("row", 1), ("column", 0)):
        measures[f"{name}_mean"] = float(np.abs(shown.mean(across)).max())
        measures[f"{name}_spread"] = float(np.abs(shown.std(across) - 1).max())
    lists = {"feature": [1.0, 2.0, 3.0, 4.0]}
    return Measured(measures, lists | {word: [float(x) for x in row] for word, row in zip(WORDS, shown, strict=True)})


def normalised(table: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """(x - mean) / standard deviation along an axis; the standard deviation divides by the number of values."""
    centred = table - table.mean(axis, keepdims=True)
    return np.asarray(centred / centred.std(axis, keepdims=True))
