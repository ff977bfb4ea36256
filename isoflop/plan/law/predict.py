"""Predicts N, D and loss for a budget, and the budget for a loss, next to the rule of thumb D = 20 N."""

import math
from dataclasses import dataclass

import numpy as np

from isoflop.errors import UserError
from isoflop.plan.law.bootstrap import Interval, Samples, around
from isoflop.plan.law.forms import Law
from isoflop.plan.law.points import RANGES

# Standard deviation of log N* around D = 20 N before any run: published optima have D / N of 5 to 80.
PRIOR_WIDTH = math.log(2)
RATIO = 20.0  # tokens per parameter, Hoffmann et al. 2022 in round numbers


@dataclass(frozen=True)
class Basis:
    """The basis of predictions.

    Attributes:
        samples: the law and its bootstrap; for a published law one sample, itself.
        per_decade: the law's own error, as a standard deviation of log loss per factor of ten beyond the points, from
            holding budgets out; None for a published law.
        largest: FLOPs of the largest budget fitted; None for a published law.
        way: its origin, in words.
    """

    samples: Samples
    per_decade: float | None
    largest: float | None
    way: str

    @property
    def law(self) -> Law:
        return self.samples.law

    @property
    def has_intervals(self) -> bool:
        return len(self.samples) > 1

    def beyond(self, flops: float) -> float:
        """How many factors of ten a budget is beyond the points; 0 within them."""
        return max(0.0, math.log10(flops / self.largest)) if self.largest else 0.0

    def spread(self, flops: float) -> float:
        """The standard deviation of one run's log loss around the law at a budget."""
        return math.hypot(self.samples.noise, (self.per_decade or 0.0) * self.beyond(flops))


@dataclass(frozen=True)
class Prediction:
    """The prediction for C FLOPs.

    Attributes:
        flops: C.
        take_n, take_d: the advice: N* drawn towards D = 20 N as far as the points leave it open (`advised`).
        n, d: the best size and tokens by the law.
        loss: the loss of one run with take_n and take_d, with the law's uncertainty, the runs' noise, and the law's own
            error beyond its points.
        law: L* by the law alone, with the law's uncertainty only.
        rule_n, rule_d, rule_loss: with D = 20 N; the loss by the law alone.
        gain: the cost of the rule by the law, L(rule) - L(take_n): below 0 in samples where the rule is better.
        noise: standard deviation between runs, in the loss's unit.
        beyond: factors of ten beyond the largest budget fitted.
    """

    flops: float
    take_n: float
    take_d: float
    n: Interval
    d: Interval
    loss: Interval
    law: Interval
    rule_n: float
    rule_d: float
    rule_loss: Interval
    gain: Interval
    noise: float
    beyond: float

    @property
    def gains(self) -> bool:
        """Whether a gain over D = 20 N may be claimed: its interval is above 0 and it exceeds a run's noise."""
        return self.gain.low > 0 and self.gain.value > self.noise


def predict(basis: Basis, flops: float) -> Prediction:
    """The prediction for C FLOPs.

    Raises:
        UserError: for a budget that is not positive and finite, or out of range.
    """
    low, high = RANGES["FLOPs"]
    if not low <= flops <= high:
        raise UserError(f"budget {flops:g} is not a number of FLOPs from {low:g} to {high:g}")

    samples, law = basis.samples, basis.law
    n = advised(basis, flops)
    d = float(law.tokens(n, flops))
    rule_n, rule_d = (float(value) for value in law.at_ratio(flops, RATIO))
    return Prediction(
        flops=flops,
        take_n=n,
        take_d=d,
        n=samples.interval(lambda one: one.n_star(flops)),
        d=samples.interval(lambda one: one.d_star(flops)),
        loss=run_loss(basis, n, d),
        law=samples.interval(lambda one: one.loss_star(flops)),
        rule_n=rule_n,
        rule_d=rule_d,
        rule_loss=samples.interval(lambda one: one.loss(rule_n, rule_d)),
        gain=samples.interval(lambda one: one.loss(rule_n, rule_d) - one.loss(n, d)),
        noise=samples.noise * float(law.loss_star(flops)),
        beyond=basis.beyond(flops),
    )


def advised(basis: Basis, flops: float) -> float:
    """The N to train at C FLOPs: log N* and the log N of D = 20 N, weighted by their precision.

    The weights come from the bootstrap's variance of log N* and from PRIOR_WIDTH squared. Points that determine the
    valley within a few per cent decide alone; if a table leaves N* open by a factor of ten, the rule has more weight.
    """
    best, rule = math.log(float(basis.law.n_star(flops))), math.log(float(basis.law.at_ratio(flops, RATIO)[0]))
    if not basis.has_intervals:
        return math.exp(best)
    with np.errstate(all="ignore"):
        logs = np.log(np.asarray(basis.samples.laws().n_star(flops)))
        doubt = float(np.var(logs))
    share = PRIOR_WIDTH**2 / (PRIOR_WIDTH**2 + doubt) if math.isfinite(doubt) else 0.0
    return math.exp(share * best + (1 - share) * rule)


def run_loss(basis: Basis, n: float, d: float) -> Interval:
    """The loss of one run of N parameters on D tokens, with the law's uncertainty, the runs' noise, and the law's own
    error beyond its points."""
    value = float(basis.law.loss(n, d))
    if not basis.has_intervals:
        return Interval(value, value, value, None)
    spread = basis.spread(float(basis.law.cost.flops(n, d)))
    drawn = spread * np.random.default_rng(1).standard_normal(len(basis.samples))
    with np.errstate(over="ignore"):  # far beyond the points values may be infinite
        return around(value, basis.samples.laws().loss(n, d) * np.exp(drawn))


@dataclass(frozen=True)
class Needed:
    """The budget that a loss needs.

    Attributes:
        loss: the requested loss.
        flops: C with the best N and D; an end is infinite if samples never reach the loss.
        rule_flops: C with D = 20 N; infinite if it never reaches the loss.
        share: the share of samples that reach it at all.
    """

    loss: float
    flops: Interval
    rule_flops: float
    share: float


def budget_for(basis: Basis, loss: float) -> Needed:
    """The budget that a loss needs.

    Raises:
        UserError: for a loss that the law never reaches (naming its irreducible loss), one that is out of range, or one
            that is not a positive number.
    """
    if not (math.isfinite(loss) and loss > 0):
        raise UserError(f"loss {loss:g} is not a positive number")
    law = basis.law
    if loss <= law.E:
        raise UserError(f"no budget reaches loss {loss:g}: the law's irreducible loss is {law.E:.4g}; ask for more")
    flops = basis.samples.interval(lambda one: one.flops_for(loss))
    low, high = RANGES["FLOPs"]
    if not low <= flops.value <= high:
        raise UserError(f"loss {loss:g} is too far from the law's runs: it would need {flops.value:.3g} FLOPs")
    reached = np.asarray(basis.samples.laws().E) < loss
    return Needed(loss, flops, rule_budget(law, loss), float(reached.mean()))


def rule_budget(law: Law, loss: float) -> float:
    """C at which D = 20 N reaches a loss, by bisection in log C, since the loss falls monotonically with C."""
    low, high = 0.0, 120.0  # log10
    if float(law.loss(*law.at_ratio(10.0**high, RATIO))) > loss:
        return math.inf
    for _ in range(80):
        middle = 0.5 * (low + high)
        above = float(law.loss(*law.at_ratio(10.0**middle, RATIO))) > loss
        low, high = (middle, high) if above else (low, middle)
    return float(10.0**high)


@dataclass(frozen=True)
class Compared:
    """One run by a law: the terms of its size and its tokens, and the best use of its compute.

    Attributes:
        name: of the model.
        n, d, flops: parameters, tokens, FLOPs.
        loss: L(N, D) = E + n_term + d_term (for gamma = 1).
        n_term, d_term: A / N^alpha and B / D^beta.
        n_star, d_star, loss_star: the best at the same FLOPs.
        enough: the share of its FLOPs that would have been enough for the same loss with the best N and D.
    """

    name: str
    n: float
    d: float
    flops: float
    loss: float
    n_term: float
    d_term: float
    n_star: float
    d_star: float
    loss_star: float
    enough: float


def compare(name: str, n: float, d: float, law: Law) -> Compared:
    """One run of N parameters on D tokens by a law."""
    flops = float(law.cost.flops(n, d))
    loss = float(law.loss(n, d))
    return Compared(
        name,
        n,
        d,
        flops,
        loss,
        float(law.n_term(n)),
        float(law.d_term(d)),
        float(law.n_star(flops)),
        float(law.d_star(flops)),
        float(law.loss_star(flops)),
        law.flops_for(loss) / flops,
    )
