"""The laws that `isoflop ladder` fitted to the user's own text: kept in $ISOFLOP_HOME/ladders, found again by a plan.

    ladders/TEXT-KEY.json     a file of `isoflop plan fit`, with what it holds for under "ladder" and its runs

TEXT is a digest of the text before it is prepared, so that a plan can take the tokenizer that the law holds for; KEY is
one of the prepared data and the recipe. A law is used for the same prepared data and the same recipe, nothing else. It
is in bits per byte, and in tokens and parameters that are worth less once the text is repeated (repetition.py).
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.config import added_fields
from isoflop.errors import UserError
from isoflop.files import home, write_text
from isoflop.optim.config import OptimConfig
from isoflop.optim.table import rates
from isoflop.plan.asked import Asked
from isoflop.plan.law.counting import Cost
from isoflop.plan.law.forms import Law
from isoflop.plan.prior import LEVELS, UNTRAINED
from isoflop.plan.recipe import recipe_of
from isoflop.plan.repetition import R_D, R_N, TOKENS_PER_PARAMETER, effective
from isoflop.plan.settings import with_rates
from isoflop.records import Expectation
from isoflop.records.ladder import LadderAbout, LadderRun, LadderSeen
from isoflop.records.plan import Interval
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload
from isoflop.untrusted import parse_json, read_text

FOLDER = "ladders"
LARGEST = 64 * 2**20  # bytes of a file
CONSTANTS = ("E", "A", "B", "alpha", "beta", "gamma")
NEAR = 1  # powers of two between the vocabulary of a law and the one that a plan would choose, for the plan to take it
# Standard deviation of log bits per byte that is added for each factor of ten beyond the largest run, at least. An
# assumption: the runs held out of a fit say little where there are few of them.
LEAST_PER_DECADE = 0.01
DRAWN = 24  # points of a frontier that is drawn
SEED = 1

Array = npt.NDArray[np.float64]


def worth(parameters: float, tokens: float, unique_tokens: float) -> tuple[float, float]:
    """N' and D': what parameters and tokens are worth where only so many tokens are new (Muennighoff et al. 2023,
    equations 5 and 6)."""
    n = effective(parameters, unique_tokens / TOKENS_PER_PARAMETER, R_N)
    return n, effective(tokens, unique_tokens, R_D)


@dataclass(frozen=True)
class Fitted:
    """A law of the user's own text.

    Attributes:
        key: the name of its file.
        law: in bits per byte, N' and D'; draws: the bootstrap's laws as one, whose constants have shape (samples,).
        noise: standard deviation of log bits per byte of a run about the law.
        per_decade: what the law missed of held-out budgets, per factor of ten in compute.
        about: what it holds for.
        runs: that it was fitted to, and those that diverged.
        digest: SHA-256 of the file.
    """

    key: str
    law: Law
    draws: Law
    noise: float
    per_decade: float
    about: LadderAbout
    runs: tuple[LadderRun, ...]
    digest: str

    @property
    def path(self) -> Path:
        return home() / FOLDER / f"{self.key}.json"

    def deviation(self, flops: float) -> float:
        """The standard deviation of one run's log bits per byte around the law: between seeds, and what the law misses
        beyond its runs."""
        noise = max(self.noise, self.about.seed_noise or 0.0)
        per_decade = math.hypot(max(self.per_decade, LEAST_PER_DECADE), self.about.drift or 0.0)
        return math.hypot(noise, per_decade * max(0.0, math.log10(flops / self.largest)))

    @property
    def largest(self) -> float:
        """FLOPs of the largest run."""
        return self.about.largest or math.inf

    def expect(self, parameters: float, tokens: float, unique_tokens: float) -> Expectation:
        """What a run of N parameters on D tokens, drawn from so many unique ones, should reach."""
        n, d = worth(parameters, tokens, unique_tokens)
        flops = 6.0 * parameters * tokens
        value = min(float(self.law.loss(n, d)), UNTRAINED)
        drawn = self.drawn(n, d)
        drawn = drawn * np.exp(self.deviation(flops) * np.random.default_rng(SEED).standard_normal(len(drawn)))
        intervals = []
        for level in LEVELS:
            low, high = np.percentile(np.minimum(drawn, UNTRAINED), [50 * (1 - level), 50 * (1 + level)])
            intervals.append(Interval(level=level, low=min(float(low), value), high=max(float(high), value)))
        last = intervals[-1]
        return Expectation(
            bits_per_byte=value,
            low=last.low,
            high=last.high,
            level=last.level,
            source=self.source(flops),
            intervals=tuple(intervals),
        )

    def source(self, flops: float) -> str:
        """What the expectation comes from, in words."""
        inside = flops <= self.largest
        where = "inside their range" if inside else f"{flops / self.largest:.3g} times the compute of the largest"
        return f"a law fitted to {self.about.runs} runs of a ladder on this text with this recipe, {where}"

    def mean_loss(self, parameters: float, tokens: float, unique_tokens: float) -> float:
        """The loss to expect, as a mean over the bootstrap's laws: of shapes, the one with the least is the choice."""
        return float(np.mean(self.drawn(*worth(parameters, tokens, unique_tokens))))

    def drawn(self, n: float, d: float) -> Array:
        """Bits per byte by each of the bootstrap's laws, shape (samples,)."""
        with np.errstate(all="ignore"):
            found = np.asarray(self.draws.loss(n, d), dtype=np.float64)
        return np.minimum(np.nan_to_num(found, nan=UNTRAINED, posinf=UNTRAINED), UNTRAINED)

    def seen(self) -> LadderSeen:
        """What plan.json keeps of it."""
        made = [run for run in self.runs if run.flops and run.bits_per_byte]
        low, high = (self.about.smallest or 1e9), 30 * (self.about.largest or 1e12)
        frontier = []
        for flops in np.geomspace(low, high, DRAWN):
            n = float(self.law.n_star(flops))
            one = self.expect(n, float(self.law.tokens(n, flops)), math.inf)
            frontier.append((float(flops), one.bits_per_byte or 0.0, one.low or 0.0, one.high or 0.0))
        return LadderSeen(
            key=self.key,
            runs=tuple((run.flops or 0.0, run.bits_per_byte or 0.0) for run in made),
            frontier=tuple(frontier),
        )


def text_key(workload: Workload) -> str:
    """A digest of a text before it is prepared; empty for data that are no text."""
    if workload.text is None:
        return ""
    return hashlib.sha256(f"{workload.text.size:.0f}\0".encode() + workload.text.sample).hexdigest()[:16]


def recipe_digest(config: RunConfig) -> str:
    """A digest of the recipe without the learning rates, which a plan sets once it knows the width."""
    return hashlib.sha256(json.dumps(recipe_of(config), sort_keys=True).encode()).hexdigest()[:16]


def rates_of(config: RunConfig) -> dict[str, str]:
    """The learning rates over those of the plan for the model's width, in two digits: 1 where the plan chose them."""
    planned = with_rates(replace(config, optim=OptimConfig(name=config.optim.name))).optim
    usual = rates(planned.entry)
    unset = added_fields(OptimConfig)  # laws on record were fitted before these existed
    return {
        name: f"{rate / usual[name] if usual[name] else rate:.2g}"
        for name, rate in rates(config.optim.entry).items()
        if rate != unset.get(name)
    }


def key_of(text: str, fingerprint: str, config: RunConfig) -> str:
    """The name of the law of a text, its prepared data and a recipe."""
    parts = [fingerprint, recipe_digest(config), rates_of(config), config.model.context]
    return f"{text}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"


def known(workload: Workload, config: RunConfig, say: Callable[[str], None] = lambda line: None) -> tuple[Fitted, ...]:
    """The laws of a text with a recipe, whatever tokenizer they hold for, the newest first. A damaged file is said and
    passed over."""
    text, recipe = text_key(workload), recipe_digest(config)
    found = []
    for path in sorted((home() / FOLDER).glob(f"{text}-*.json")) if text else ():
        try:
            one = read(path)
        except UserError as error:
            say(f"note: {error}; without it the forecast is the prior's")
            continue
        if one.about.recipe == recipe:
            found.append(one)
    return tuple(sorted(found, key=lambda one: -(one.about.time or 0.0)))


def nearest(laws: Sequence[Fitted], vocabulary: int, asked: Asked) -> Fitted | None:
    """The law whose tokenizer a plan takes in place of one with `vocabulary` ids; None: none is near enough."""
    far = 0 if asked.names("data.vocab_size") else NEAR
    near = [one for one in laws if abs(math.log2((one.about.vocab_size or 1) / vocabulary)) <= far + 1e-9]
    return min(near, key=lambda one: abs(math.log2((one.about.vocab_size or 1) / vocabulary)), default=None)


def holding(laws: Sequence[Fitted], fingerprint: str, config: RunConfig) -> Fitted | None:
    """The law that holds for prepared data and a configuration with its rates; None if there is none."""
    mine = (fingerprint, rates_of(config), config.model.context)
    return next(
        (one for one in laws if (one.about.fingerprint, one.about.rates, one.about.context) == mine),
        None,
    )


def read(path: Path) -> Fitted:
    """A stored law.

    Raises:
        UserError: if the file is damaged.
    """
    text = read_text(path, LARGEST)
    try:
        stored: Any = parse_json(text, str(path))
        by = stored["prediction"]
        cost = Cost(**{name: float(value) for name, value in by["cost"].items()})
        law = Law(**{name: float(by["constants"][name]) for name in CONSTANTS}, cost=cost)
        rows = np.array(by["draws"], dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(CONSTANTS) or not len(rows) or not np.isfinite(rows).all():
            raise ValueError("its draws are no laws")
        draws: Any = dict(zip(CONSTANTS, rows.T, strict=True))
        noise, per_decade = float(by["noise"]), float(by["per_decade"])
        about = LadderAbout.read(stored["ladder"])
        runs = tuple(LadderRun.read(line) for line in stored["runs"])
    except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and run `isoflop ladder` again") from None
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Fitted(path.stem, law, Law(**draws, cost=cost), noise, per_decade, about, runs, digest)


def of_key(key: str | None) -> Fitted | None:
    """A stored law by its name; None if it is gone or damaged."""
    path = home() / FOLDER / f"{key}.json"
    if not key or not path.is_file():
        return None
    try:
        return read(path)
    except UserError:
        return None


def keep(key: str, text: str) -> Fitted:
    """Store a law, whole or not at all, in place of an earlier one of the same name."""
    path = home() / FOLDER / f"{key}.json"
    write_text(path, text)
    return read(path)
