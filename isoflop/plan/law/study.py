"""All results for one table of points, by one call: `study`. Stored as JSON, and read back to predict."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import UserError
from isoflop.plan.law.bootstrap import LEVEL, SAMPLES, Interval, Samples, bootstrap
from isoflop.plan.law.counting import Cost, Counts
from isoflop.plan.law.doubts import doubts
from isoflop.plan.law.fit import Fit, fit
from isoflop.plan.law.forms import PUBLISHED, Law
from isoflop.plan.law.isoflop import Exponent, approach_1, approach_2
from isoflop.plan.law.points import Points
from isoflop.plan.law.predict import Basis
from isoflop.plan.law.rolling import PLAIN, Rolled, Way, choose, roll
from isoflop.untrusted import parse_json, read_text

FORMAT = "isoflop fit 1"
CONSTANTS = ("E", "A", "B", "alpha", "beta", "a")
ALL = ("E", "A", "B", "alpha", "beta", "gamma")
LARGEST_FIT = 64 * 2**20  # bytes
OTHERS = (Way("tied"), Way("kaplan"))  # evaluated for comparison, never chosen


@dataclass(frozen=True)
class Study:
    """The results for one table of points.

    Attributes:
        fitted, squared: approach 3 with Huber's and with squared error, on all points.
        samples: the bootstrap of `fitted`.
        approach_1, approach_2: exponents without a law; None if the table has no valleys for them.
        rolled: each way to fit with its held-out errors, PLAIN first.
        way: the way to predict, chosen by these errors.
        basis, plain: the input of `predict`: by `way`, and by PLAIN.
        warnings: what the points do not determine.
    """

    fitted: Fit
    squared: Fit
    samples: Samples
    approach_1: Exponent | None
    approach_2: Exponent | None
    rolled: tuple[Rolled, ...]
    way: Way
    basis: Basis
    plain: Basis
    warnings: tuple[str, ...]


def study(points: Points, samples: int = SAMPLES, seed: int = 0) -> Study:
    """Fit the law, check it and compare the ways to fit it.

    Args:
        samples: of each bootstrap.
        seed: the same seed gives the same intervals.
    """
    fitted, squared = fit(points), fit(points, delta=math.inf)
    drawn = bootstrap(fitted, samples, seed)
    way, rolled = choose(points)
    doubted = roll(points, PLAIN)
    plain = Basis(drawn, doubted.per_decade, float(points.flops.max()), str(PLAIN))
    basis = plain if way == PLAIN else basis_by(way, points, samples, seed)
    others = [roll(points, other, samples=0) for other in OTHERS]
    return Study(
        fitted,
        squared,
        drawn,
        approach_1(points),
        approach_2(points, fitted.law),
        (doubted, *rolled[1:], *others),
        way,
        basis,
        plain,
        tuple(doubts(fitted, squared)),
    )


def basis_by(way: Way, points: Points, samples: int = SAMPLES, seed: int = 0) -> Basis:
    """The input of `predict`, by one way."""
    drawn = bootstrap(way.fit(points), samples, seed)
    return Basis(drawn, roll(points, way).per_decade, float(points.flops.max()), str(way))


def to_dict(studied: Study) -> dict[str, Any]:
    """The stored form: the main results first, the input of `predict` last."""
    fitted, points = studied.fitted, studied.fitted.points
    intervals = {name: studied.samples.interval(lambda law, name=name: getattr(law, name)) for name in CONSTANTS}  # type: ignore[misc]
    return {
        "format": FORMAT,
        **{name: getattr(fitted.law, name) for name in CONSTANTS},
        "standard_errors": {name: interval.error for name, interval in intervals.items()},
        "intervals": {name: ends(interval) for name, interval in intervals.items()},
        "level": LEVEL,
        "huber_sum": fitted.objective,
        "delta": fitted.delta,
        "points_used": len(points),
        "samples": len(studied.samples),
        "noise": fitted.noise,
        "size_share": studied.samples.size_share,
        "convergence": {**asdict(fitted.convergence), "reached": fitted.convergence.reached},
        "squared": {
            **{name: getattr(studied.squared.law, name) for name in CONSTANTS},
            "sum_of_squares": 2 * studied.squared.objective,
        },
        "counting": {**asdict(points.counts), "cost": asdict(fitted.law.cost), "n_exponent": fitted.law.exponent},
        "ranges": {
            name: [float(values.min()), float(values.max())]
            for name, values in (("n", points.n), ("d", points.d), ("flops", points.flops), ("loss", points.loss))
        },
        "approach_1": exponent_dict(studied.approach_1),
        "approach_2": exponent_dict(studied.approach_2),
        "held_out": [
            {"way": str(one.way), "error": finite(one.size), "cuts": [asdict(cut) for cut in one.cuts]}
            for one in studied.rolled
        ],
        "warnings": list(studied.warnings),
        "predicts_by": str(studied.way),
        "prediction": basis_dict(studied.basis),
        "plain": basis_dict(studied.plain),
    }


def ends(interval: Interval) -> list[float | None]:
    return [finite(interval.low), finite(interval.high)]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def exponent_dict(exponent: Exponent | None) -> dict[str, Any] | None:
    if exponent is None:
        return None
    inside = sum(valley.inside for valley in exponent.valleys)
    return {"a": exponent.a, "error": exponent.error, "bias": exponent.bias, "budgets": inside}


def basis_dict(basis: Basis) -> dict[str, Any]:
    law = basis.samples.law
    return {
        "way": basis.way,
        "constants": {name: getattr(law, name) for name in ALL},
        "cost": asdict(law.cost),
        "noise": basis.samples.noise,
        "per_decade": basis.per_decade,
        "largest": basis.largest,
        "draws": [[float(f"{value:.7g}") for value in row] for row in basis.samples.constants],
    }


def to_text(stored: dict[str, Any]) -> str:
    """JSON with one line per draw."""
    plain = {**stored}
    draws = {name: plain[name]["draws"] for name in ("prediction", "plain")}
    for name in draws:
        plain[name] = {**plain[name], "draws": f"@{name}@"}
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    for name, rows in draws.items():
        lines = ",\n      ".join(json.dumps(row) for row in rows)
        text = text.replace(f'"@{name}@"', f"[\n      {lines}\n    ]")
    return text + "\n"


def read_basis(name: str, plain: bool = False) -> tuple[Basis, str]:
    """The basis of a prediction, see `read_counted`, and what its N counts, in words."""
    basis, counts = read_counted(name, plain)
    return basis, counts.words()


def read_counted(name: str, plain: bool = False) -> tuple[Basis, Counts]:
    """The basis of a prediction, from a stored fit or a published law, and the conventions of its N and C.

    Args:
        plain: use the plain law of the stored fit, not the way that was chosen by held-out error.

    Raises:
        UserError: if the name is neither, or the file was not written by `isoflop plan fit`.
    """
    if name in PUBLISHED:
        one = PUBLISHED[name]
        constants = np.array([[getattr(one.law, constant) for constant in ALL]])
        return Basis(Samples(one.law, constants, 0.0), None, None, one.source), Counts(one.counts)
    path = Path(name)
    if not path.is_file():
        known = ", ".join(PUBLISHED)
        raise UserError(f"{name} is neither a file written by `isoflop plan fit` nor a published law ({known})")
    stored = parse_json(read_text(path, LARGEST_FIT), str(path))
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise UserError(
            f"{name} was not written by `isoflop plan fit`: make one by `isoflop plan fit POINTS.csv --n COL --d COL "
            "--loss COL --out FIT.json`"
        )
    try:
        counting = stored["counting"]
        counts = Counts(counting["parameters"], counting["flops"])
        return basis_of(stored["plain" if plain else "prediction"]), counts
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} is damaged ({error!r}): make it anew with `isoflop plan fit`") from None


def basis_of(stored: dict[str, Any]) -> Basis:
    cost = Cost(**{name: float(value) for name, value in stored["cost"].items()})
    law = Law(**{name: float(stored["constants"][name]) for name in ALL}, cost=cost)
    draws = np.array(stored["draws"], dtype=np.float64)
    if draws.ndim != 2 or draws.shape[1] != len(ALL) or not len(draws) or not np.isfinite(draws).all():
        raise ValueError("draws")
    samples = Samples(law, draws, float(stored["noise"]))
    return Basis(samples, float(stored["per_decade"]), float(stored["largest"]), str(stored["way"]))
