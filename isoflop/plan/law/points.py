"""Measured runs as arrays: reading any table of runs, and refusing sets that no law can be fitted to."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from isoflop.config import nearest
from isoflop.errors import UserError
from isoflop.plan.law.counting import Counts
from isoflop.untrusted import read_text

Array = npt.NDArray[np.float64]

FEWEST = 6  # points: one more than the law has constants
FEWEST_SIZES = 3  # distinct N, and distinct D: an exponent and an offset need three
SAME_BUDGET = 0.05  # difference of log C up to which points count as one budget
ONE_RAY = 0.02  # standard deviation of log D about a line in log N, below which N and D cannot be separated
RANGES = {"N": (1e-30, 1e30), "D": (1e-30, 1e30), "loss": (1e-6, 1e6), "FLOPs": (1e-60, 1e60)}  # in any unit
LARGEST_FILE = 64 * 2**20  # bytes of a table


@dataclass(frozen=True)
class Points:
    """Runs to fit a law to.

    Attributes:
        n: parameters, shape (points,), in the convention of `counts`.
        d: tokens read, shape (points,).
        loss: final loss in nats per token (or the table's unit, which is then the law's), shape (points,).
        flops: training FLOPs C, shape (points,); 6 N D if the table has none.
        counts: the convention of n and flops.
        given_flops: whether the table has FLOPs.
    """

    n: Array
    d: Array
    loss: Array
    flops: Array
    counts: Counts = Counts()  # noqa: RUF009 - frozen
    given_flops: bool = False

    def __len__(self) -> int:
        return len(self.n)

    def select(self, which: Any) -> "Points":
        """Some of the points, by a mask or indices."""
        return replace(self, n=self.n[which], d=self.d[which], loss=self.loss[which], flops=self.flops[which])

    def with_loss(self, loss: Array) -> "Points":
        return replace(self, loss=np.asarray(loss, dtype=np.float64))

    def sizes(self) -> npt.NDArray[np.int64]:
        """The index of each point's size among the distinct N, shape (points,)."""
        return np.unique(self.n, return_inverse=True)[1].astype(np.int64)

    def budgets(self) -> list[npt.NDArray[np.int64]]:
        """The points of each budget, smallest first: those whose C differ by at most SAME_BUDGET in the logarithm."""
        order = np.argsort(self.flops, kind="stable")
        groups: list[list[int]] = []
        for index in order:
            first = groups[-1][0] if groups else -1
            if groups and math.log(self.flops[index] / self.flops[first]) <= SAME_BUDGET:
                groups[-1].append(int(index))
            else:
                groups.append([int(index)])
        return [np.array(group) for group in groups]


def make_points(
    n: Any,
    d: Any,
    loss: Any,
    flops: Any = None,
    counts: Counts = Counts(),  # noqa: B008 - frozen
) -> Points:
    """Points from sequences of equal length, C = 6 N D if `flops` is None.

    Raises:
        UserError: for lengths that differ, values that are not finite and positive, and points that no law can be
            fitted to (see `check`).
    """
    arrays = [np.asarray(values, dtype=np.float64).ravel() for values in (n, d, loss)]
    given = flops is not None
    if given:
        arrays.append(np.asarray(flops, dtype=np.float64).ravel())
    for name, values in zip(RANGES, arrays, strict=False):
        if len(values) != len(arrays[0]):
            raise UserError(f"{len(values)} values of {name} for {len(arrays[0])} of N: give as many of each")
        for number, value in enumerate(values, 1):
            if problem := unusable(float(value), name):
                raise UserError(f"{name} of point {number} is {value:g}, {problem}")
    made = Points(arrays[0], arrays[1], arrays[2], arrays[3] if given else 6.0 * arrays[0] * arrays[1], counts, given)
    check(made)
    return made


def unusable(value: float, name: str) -> str:
    """Why a value of N, D, loss or FLOPs cannot be used, and what to do; "" if it can."""
    low, high = RANGES[name]
    if not (math.isfinite(value) and value > 0):
        return "not a positive number; leave that run out"
    return "" if low <= value <= high else f"outside {low:g} to {high:g}; check the column's unit"


def check(points: Points) -> None:
    """Refuse points that a law in N and D cannot be fitted to.

    Raises:
        UserError: for fewer than FEWEST points, fewer than FEWEST_SIZES different N or D, points on one curve of D
            against N, and losses that are all the same.
    """
    if len(points) < FEWEST:
        raise UserError(f"{len(points)} points are too few for the law's five constants: give at least {FEWEST}")
    for name, values in (("N", points.n), ("D", points.d)):
        distinct = len(np.unique(values))
        if distinct < FEWEST_SIZES:
            raise UserError(
                f"all points have {distinct} value{'s' if distinct > 1 else ''} of {name}: a law needs at least "
                f"{FEWEST_SIZES} different ones; add runs of other {'sizes' if name == 'N' else 'lengths'}"
            )
    if np.ptp(points.loss) == 0:
        raise UserError(
            f"all {len(points)} losses are {points.loss[0]:g}: there is nothing to fit; check the loss column"
        )
    if off_ray(points) < ONE_RAY:
        slope = float(np.polyfit(np.log(points.n), np.log(points.d), 1)[0])
        raise UserError(
            f"all points lie on one ray (D grows as N^{slope:.2f}), so N and D cannot be told apart (A and "
            "B are not identifiable): add runs of the same sizes on half and twice the tokens"
        )


def off_ray(points: Points) -> float:
    """The distance of the points from one curve D = k N^p: the standard deviation of log D about the line."""
    x, y = np.log(points.n), np.log(points.d)
    slope, offset = np.polyfit(x, y, 1)
    return float(np.std(y - slope * x - offset))


@dataclass(frozen=True)
class Columns:
    """The columns of a table."""

    n: Annotated[str, "parameters"]
    d: Annotated[str, "tokens"]
    loss: Annotated[str, "final loss"]
    flops: Annotated[str, "training FLOPs; empty: 6 N D"] = ""
    where: Annotated[tuple[str, ...], "COLUMN=VALUE: only the rows that have it"] = ()


def read_points(path: Path, columns: Columns, counts: Counts = Counts()) -> Points:  # noqa: B008 - frozen
    """Points from a CSV (or tab-separated) file with a header.

    Raises:
        UserError: for a file that cannot be read, a missing column, a cell that is not a positive number (named with
            its row; the header is row 1), and sets of points that no law can be fitted to.
    """
    header, rows = read_table(path)
    wanted = [columns.n, columns.d, columns.loss] + ([columns.flops] if columns.flops else [])
    places = [place_of(name, header, path) for name in wanted]
    filters = [filter_of(text, header, path) for text in columns.where]

    table: list[list[float]] = []
    for number, row in rows:
        if all(cell_of(row, at) == value for at, value in filters):
            kinds = zip(places, RANGES, strict=False)
            table.append([number_in(row, at, kind, f"{path}, row {number}: {header[at]}") for at, kind in kinds])
    if not table:
        chosen = f" with {' and '.join(columns.where)}" if columns.where else ""
        raise UserError(f"{path} has no rows{chosen}: it needs at least {FEWEST}")

    values = np.array(table).T
    return make_points(values[0], values[1], values[2], values[3] if columns.flops else None, counts)


def read_table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows with their line numbers; empty lines are ignored."""
    text = read_text(path, LARGEST_FILE).removeprefix("\ufeff")
    first = text.partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    rows: list[tuple[int, list[str]]] = []
    try:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter)
        rows.extend((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    except csv.Error as error:
        raise UserError(f"{path} is not a table: {error}") from None
    if not rows:
        raise UserError(f"{path} is empty: give a CSV file with a header and one row per run")
    header = [cell.strip() for cell in rows[0][1]]
    doubled = [name for name, times in Counter(header).items() if times > 1 and name]
    if doubled:
        raise UserError(f"{path} has several columns named {doubled[0]!r}: rename all but one")
    return header, rows[1:]


def place_of(name: str, header: Sequence[str], path: Path) -> int:
    if name not in header:
        known = ", ".join(header[:20]) + (", ..." if len(header) > 20 else "")
        raise UserError(f"{path} has no column {name!r}: its columns are {known}{nearest(name, header)}")
    return list(header).index(name)


def filter_of(text: str, header: Sequence[str], path: Path) -> tuple[int, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--where {text!r} is not COLUMN=VALUE")
    return place_of(name, header, path), value


def cell_of(row: Sequence[str], at: int) -> str:
    return row[at].strip() if at < len(row) else ""


def number_in(row: Sequence[str], at: int, kind: str, where: str) -> float:
    cell = cell_of(row, at)
    try:
        value = float(cell)
    except ValueError:
        problem = "is empty" if not cell else f"is {cell!r}, not a number"
        raise UserError(f"{where} {problem}; correct the cell or leave that row out") from None
    if problem := unusable(value, kind):
        raise UserError(f"{where} is {cell}, {problem}")
    return value
