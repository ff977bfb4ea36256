"""Extrapolates the loss curve of a run to the end of its schedule, by the law of curve_law.py.

Shapes: T training losses, B bins of them, H held-out losses, V losses of the average of the weights, P future points.
Losses are in nats per token; steps count optimiser steps.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from isoflop.trainer.curve_law import AVERAGED, HELD_OUT, PRIOR, TRAINING, Floats, Losses, Prior, Schedule, posterior

LEVEL = 0.9  # probability of the interval
FEWEST = 24  # training losses needed in the window that is fitted
BINS = 40  # of the training losses
PATH_POINTS = 8  # of the forecast, from the next to the last step
Z = 1.645  # two-sided 90 % of the normal distribution


@dataclass(frozen=True)
class Observed:
    """The losses of a run so far, after some of its steps, in order. Those of the average may be absent."""

    steps_T: Floats
    losses_T: Floats
    heldout_steps_H: Floats
    heldout_H: Floats
    averaged_steps_V: Floats = field(default_factory=lambda: np.zeros(0))
    averaged_V: Floats = field(default_factory=lambda: np.zeros(0))

    def until(self, step: float) -> "Observed":
        """The losses known after `step` steps."""
        return Observed(*(column[steps <= step] for steps, losses in self.pairs for column in (steps, losses)))

    def unprobed(self) -> "Observed":
        """Without the losses of the average."""
        return Observed(self.steps_T, self.losses_T, self.heldout_steps_H, self.heldout_H)

    def finite(self) -> "Observed":
        """Without the losses that are not finite."""
        return Observed(*(column[np.isfinite(losses)] for steps, losses in self.pairs for column in (steps, losses)))

    @property
    def pairs(self) -> tuple[tuple[Floats, Floats], ...]:
        """Steps and losses of each kind."""
        training, heldout = (self.steps_T, self.losses_T), (self.heldout_steps_H, self.heldout_H)
        return training, heldout, (self.averaged_steps_V, self.averaged_V)


@dataclass(frozen=True)
class Forecast:
    """The future held-out loss, in nats per token unless stated otherwise.

    Attributes:
        value, low, high: at the end of the run, with the interval of LEVEL.
        path: (step, value, low, high) at P future steps, the last one the end.
    """

    value: float
    low: float
    high: float
    path: tuple[tuple[float, float, float, float], ...]

    def widened(self, share: float) -> "Forecast":
        """The forecast with a wider interval, by an independent relative standard deviation `share`."""

        def widen(value: float, low: float, high: float) -> tuple[float, float, float]:
            below, above = math.hypot(value - low, Z * share * value), math.hypot(high - value, Z * share * value)
            return value, value - below, value + above

        path = tuple((step, *widen(value, low, high)) for step, value, low, high in self.path)
        return Forecast(*widen(self.value, self.low, self.high), path)


def extrapolate(observed: Observed, schedule: Schedule, prior: Prior = PRIOR) -> Forecast | None:
    """Extrapolate the held-out loss of a run to the end of its schedule.

    Args:
        observed: non-finite losses are ignored.

    Returns:
        None if too little was observed: no held-out loss, or fewer than FEWEST training losses after the start.
    """
    if not observed.steps_T.size or not observed.heldout_steps_H.size:
        return None
    now, last = float(max(observed.steps_T[-1], observed.heldout_steps_H[-1])), observed.heldout_steps_H[-1:]
    path_P = np.linspace(now, schedule.end, PATH_POINTS + 1)[1:]
    prediction = predict_losses(observed, schedule, path_P, prior) if now < schedule.end else None
    if prediction is None:
        return None
    value_P, deviation_P = prediction

    # Would the first half of the run have predicted the present loss? If not, the law does not hold for this run, and
    # the interval is widened.
    surprise = 1.0
    if (earlier := predict_losses(observed.until(now / 2), schedule, last, prior)) is not None:
        error = abs(float(observed.heldout_H[-1] - earlier[0][0]))
        surprise = max(1.0, error / (Z * float(earlier[1][0])))
    margin_P = Z * surprise * deviation_P
    if not np.isfinite(value_P).all() or not (value_P > 0).all():
        return None
    low_P, high_P = np.maximum(value_P - margin_P, 0.0), value_P + margin_P
    path = tuple(zip(path_P.tolist(), value_P.tolist(), low_P.tolist(), high_P.tolist(), strict=True))
    return Forecast(*path[-1][1:], path)


def predict_losses(
    observed: Observed, schedule: Schedule, path_P: Floats, prior: Prior
) -> tuple[Floats, Floats] | None:
    """Mean and standard deviation of the held-out loss at the steps `path_P`, shapes (P,); None if too little was
    observed."""
    observed = observed.finite()
    if not observed.steps_T.size or not observed.heldout_steps_H.size:
        return None
    area_T, area_H = schedule.area(observed.steps_T), schedule.area(observed.heldout_steps_H)
    area_now = float(max(area_T[-1], area_H[-1]))
    if area_now <= 0:
        return None

    # the law is fitted to the curve after its beginning
    begin = prior.window * area_now
    late_T, late_H, late_V = area_T >= begin, area_H >= begin, schedule.area(observed.averaged_steps_V) >= begin
    late_H[-1] = True
    present = float(observed.heldout_H[-1])
    if late_T.sum() < FEWEST or not present > 0:
        return None
    bin_steps, bin_losses, bin_noise = binned(observed.steps_T[late_T], observed.losses_T[late_T], area_T[late_T])
    bin_noise = np.hypot(bin_noise / present, prior.training_noise)
    steps_H, heldout_H = observed.heldout_steps_H[late_H], observed.heldout_H[late_H] / present
    steps_V, averaged_V = observed.averaged_steps_V[late_V], observed.averaged_V[late_V] / present
    losses = Losses.of(TRAINING, bin_steps, bin_losses / present, bin_noise)
    losses += Losses.of(HELD_OUT, steps_H, heldout_H, prior.heldout_noise)
    losses += Losses.of(AVERAGED, steps_V, averaged_V, prior.averaged_noise)
    value_P, deviation_P = posterior(schedule, area_now, losses, path_P, prior)
    return present * value_P, present * np.hypot(prior.widen * deviation_P, prior.least)


def binned(steps_T: Floats, losses_T: Floats, area_T: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean losses in bins of equal width in log area: their steps, their values, and the standard deviation of each
    mean, estimated from the scatter between successive steps; shapes (B,)."""
    position = np.log(area_T / area_T[0])
    width = position[-1] / BINS or 1.0
    index = np.minimum((position / width).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    filled = count > 0
    mean = [np.bincount(index, values, BINS)[filled] / count[filled] for values in (steps_T, losses_T)]
    scatter = float(np.median(np.abs(np.diff(losses_T)))) / (0.6745 * math.sqrt(2))  # robust against spikes
    return mean[0], mean[1], scatter / np.sqrt(count[filled])
