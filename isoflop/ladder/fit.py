"""From the runs of a ladder to a law that later plans use."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.errors import UserError
from isoflop.job.ledger import git_commit, installed_version
from isoflop.ladder.rates import Bracket, Transfer, bracket, transfer
from isoflop.ladder.rungs import RATE_SEED
from isoflop.plan import fitted
from isoflop.plan.fitted import Fitted, worth
from isoflop.plan.law.counting import Counts
from isoflop.plan.law.points import FEWEST, Points, make_points
from isoflop.plan.law.study import Study, study, to_dict, to_text
from isoflop.records.ladder import LadderAbout, LadderRun
from isoflop.trainer import RunConfig

UNIT = "bits per byte"
REPEATED = 1.01  # times the unique tokens above which a run counts as one that repeats its text


@dataclass(frozen=True)
class Climbed:
    """What the runs of a ladder say.

    Attributes:
        used: the runs that the law was fitted to; diverged: those that are not among them for that reason.
        study: the fit with all that plan/law says of it.
        noise: standard deviation of log loss between seeds; nan where there are no repeats.
        transfer: of the learning rates.
    """

    used: tuple[LadderRun, ...]
    diverged: tuple[LadderRun, ...]
    study: Study
    noise: float
    transfer: Transfer


def usable(runs: Sequence[LadderRun]) -> list[LadderRun]:
    """The runs with the plan's learning rates that did not diverge, in the order of their sizes and lengths."""
    chosen = [run for run in runs if run.bits_per_byte and not run.diverged and run.factor == 1.0]
    return sorted(chosen, key=lambda run: (run.parameters or 0, run.tokens or 0, run.seed or 0))


def points_of(runs: Sequence[LadderRun]) -> Points:
    """The runs as points of a law in bits per byte, N' and D'.

    Raises:
        UserError: if no law can be fitted to them.
    """
    if len(runs) < FEWEST:
        raise UserError(f"{len(runs)} runs are too few for a law, which needs {FEWEST}: run the same command again")
    pairs = [worth(run.parameters or 0, run.tokens or 0, run.unique_tokens or math.inf) for run in runs]
    n, d = np.array(pairs).T
    return make_points(n, d, [run.bits_per_byte for run in runs], counts=Counts("matmul"))


def seed_noise(runs: Sequence[LadderRun]) -> float:
    """The standard deviation of log loss between runs that differ in their seed alone, pooled over sizes and lengths;
    nan without repeats."""
    groups: dict[tuple[int | None, int | None], list[float]] = {}
    for run in runs:
        groups.setdefault((run.parameters, run.tokens), []).append(math.log(run.bits_per_byte or 1.0))
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return math.nan
    squares = sum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / sum(len(values) - 1 for values in several))


def tried(runs: Sequence[LadderRun], parameters: int) -> dict[float, float]:
    """The loss by factor of the learning rates that was tried at a size; infinite for a run that diverged."""
    return {
        run.factor or 1.0: run.bits_per_byte if run.bits_per_byte and not run.diverged else math.inf
        for run in runs
        if run.parameters == parameters and run.seed == RATE_SEED
    }


def brackets_of(runs: Sequence[LadderRun], noise: float) -> list[Bracket]:
    """The best learning rates at each size at which some were tried, smallest first."""
    sizes = sorted({run.parameters for run in runs if run.role == "rate" and run.parameters})
    found = [bracket(size, tried(runs, size), noise if math.isfinite(noise) else 0.0) for size in sizes]
    return [one for one in found if one is not None]


def climbed(runs: Sequence[LadderRun], samples: int = 1000) -> Climbed:
    """Fit the law to the runs of a ladder, and look at noise and learning rates.

    Raises:
        UserError: if no law can be fitted to them.
    """
    used = usable(runs)
    noise = seed_noise(used)
    diverged = tuple(run for run in runs if run.diverged)
    found = study(points_of(used), samples)
    return Climbed(tuple(used), diverged, found, noise, transfer(brackets_of(runs, noise)))


def about(found: Climbed, config: RunConfig, **known: Any) -> LadderAbout:
    """What the law holds for.

    Args:
        config: of a size of the ladder, with its rates.
        known: further fields of LadderAbout.
    """
    flops = [run.flops or 0.0 for run in found.used]
    return LadderAbout(
        recipe=fitted.recipe_digest(config),
        rates=fitted.rates_of(config),
        context=config.model.context,
        vocab_size=config.data.vocab_size,
        max_train_bytes=config.data.max_train_bytes,
        ids=config.model.vocab_size,
        repeated=any((run.tokens or 0) > REPEATED * (run.unique_tokens or math.inf) for run in found.used),
        runs=len(found.used),
        diverged=len(found.diverged),
        seed_noise=found.noise if math.isfinite(found.noise) else None,
        drift=found.transfer.per_decade,
        smallest=min(flops),
        largest=max(flops),
        version=installed_version(),
        commit=git_commit() or None,
        time=time.time(),
        **known,
    )


def stored(found: Climbed, holds_for: LadderAbout) -> str:
    """The fit as JSON: a file of `isoflop plan fit`, with what the law holds for and the runs."""
    return to_text(
        {
            **to_dict(found.study),
            "unit": UNIT,
            "ladder": holds_for.to_dict(),
            "rates": [
                {
                    "parameters": one.parameters,
                    "tried": [[factor, loss if math.isfinite(loss) else None] for factor, loss in one.tried.items()],
                    "best": one.best,
                    "low": one.low,
                    "high": one.high,
                    "gain": one.gain,
                    "inside": one.inside,
                }
                for one in found.transfer.brackets
            ],
            "runs": [run.to_dict() for run in (*found.used, *found.diverged)],
        }
    )


def keep(found: Climbed, holds_for: LadderAbout, config: RunConfig) -> Fitted:
    """Store the law in $ISOFLOP_HOME, where plans find it."""
    key = fitted.key_of(holds_for.text or "", holds_for.fingerprint or "", config)
    return fitted.keep(key, stored(found, holds_for))
