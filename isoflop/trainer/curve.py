"""The loss that a run is on course for: its curve so far, carried on along the schedule that is left.

    held-out(t) = E + A (S(t) / S(now))^-alpha - (B + rho alpha A) D(t) + c R(t)
    training(t) = the same without R(t), + g + k log(S(t) / S(now))

S   the area under the learning rate, as a share of its peak, in whole batches (Tissue et al. 2024, 2408.11029)
D   what the rate's fall has brought so far, of 1 for a fall from the peak to 0: each bit of the fall sets in with the
    area x that follows it as x / (x + tau), the multi-power law's form with one parameter (Luo et al. 2025, 2503.12811)
R   epochs beyond the first: held-out text gains less from text that is read again than training text does
g, k   how the training text lies to the held-out text, in level and in slope

For a given alpha this is linear in E, A, B, c, g and k, which have normal priors, so that the posterior is exact; alpha
is summed over a grid by its evidence. What a run cannot show, such as the drop of a decay that has not begun, comes
from the priors: PRIOR was fitted to runs on texts of several kinds, and its width to runs on texts that were left out
(bench/onway.py). All of it is relative to the present loss.

Shapes: K points of the schedule, T training losses, B bins of them, H held-out losses, P points ahead, C coefficients,
G values of alpha. Losses are in nats per token, steps count optimiser steps.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.9  # of the interval
FEWEST = 24  # training losses in the window that a forecast is made from
BINS = 40
AHEAD = 8  # points of the path to the end
Z = 1.645  # two-sided 90 % of the normal distribution


@dataclass(frozen=True)
class Prior:
    """What is thought of a curve before it is seen. Coefficients are shares of the present loss.

    Attributes:
        window: share of the area so far that is left out at the beginning: no power law holds there.
        alpha, alpha_width: median, and standard deviation of the logarithm.
        floor, floor_width: E. fall_width: A, whose mean is what E leaves.
        drop, drop_width: B. steeper: rho, as the fall of the rate brings more where the loss falls faster.
        onset: tau, in whole batches.
        repeat, repeat_width: c, for each epoch.
        level_width, slope_width: g and k.
        heldout_noise, training_noise: of one measurement, and of a bin beside the scatter inside it.
        widen: standard deviations for one of the model's; least: what is left of it where nothing is ahead.
    """

    window: float = 0.31
    alpha: float = 0.52
    alpha_width: float = 0.51
    floor: float = 0.79
    floor_width: float = 0.29
    fall_width: float = 0.5
    drop: float = 0.124
    drop_width: float = 0.015
    steeper: float = 0.36
    onset: float = 17.0
    repeat: float = 0.004
    repeat_width: float = 0.005
    level_width: float = 0.3
    slope_width: float = 0.001
    heldout_noise: float = 0.004
    training_noise: float = 0.001
    widen: float = 1.55
    least: float = 0.003


PRIOR = Prior()


@dataclass(frozen=True)
class Schedule:
    """A run's learning rate over all its steps, known at K of them, the first 0 and the last the end.

    Attributes:
        steps_K: increasing.
        scale_K: the rate there, as a share of its peak.
        read_K: what is read before each, in whole batches.
        epochs: passes over the text in a whole batch.
        worth: what a fall of the rate brings, next to PRIOR's: it depends on the optimizer (optim/table.py).
    """

    steps_K: Floats
    scale_K: Floats
    read_K: Floats
    epochs: float = 0.0
    worth: float = 1.0

    @cached_property
    def area_K(self) -> Floats:
        middle = 0.5 * (self.scale_K[1:] + self.scale_K[:-1])
        return np.concatenate([[0.0], np.cumsum(middle * np.diff(self.read_K))])

    @property
    def end(self) -> float:
        return float(self.steps_K[-1])

    def area(self, steps: Floats) -> Floats:
        return np.asarray(np.interp(steps, self.steps_K, self.area_K), dtype=np.float64)

    def fallen(self, steps: Floats, onset: float) -> Floats:
        """D at some steps."""
        fall = np.maximum(0.0, self.scale_K[:-1] - self.scale_K[1:])
        begins = fall > 0
        middle = 0.5 * (self.area_K[1:] + self.area_K[:-1])[begins]
        since = np.maximum(0.0, self.area(steps)[:, None] - middle[None, :])
        return np.asarray((since / (since + onset)) @ fall[begins] * self.worth, dtype=np.float64)

    def repeated(self, steps: Floats) -> Floats:
        """R at some steps."""
        read = np.interp(steps, self.steps_K, self.read_K)
        return np.asarray(np.maximum(0.0, read * self.epochs - 1.0), dtype=np.float64)


@dataclass(frozen=True)
class Seen:
    """What a run has shown so far: losses after some steps, in order."""

    steps_T: Floats
    losses_T: Floats
    heldout_steps_H: Floats
    heldout_H: Floats

    def until(self, step: float) -> "Seen":
        """What had been seen after `step` steps."""
        there_T, there_H = self.steps_T <= step, self.heldout_steps_H <= step
        return Seen(
            self.steps_T[there_T], self.losses_T[there_T], self.heldout_steps_H[there_H], self.heldout_H[there_H]
        )


@dataclass(frozen=True)
class Forecast:
    """Held-out loss to come, in nats per token: of the end, and at some steps on the way there, the last of them.

    Attributes:
        value, low, high: of the end, the interval of LEVEL.
        path: (step, value, low, high), P of them.
    """

    value: float
    low: float
    high: float
    path: tuple[tuple[float, float, float, float], ...]

    def doubted(self, share: float) -> "Forecast":
        """The forecast with a wider interval, by a further standard deviation of this share of the loss."""

        def wider(value: float, low: float, high: float) -> tuple[float, float, float]:
            below, above = math.hypot(value - low, Z * share * value), math.hypot(high - value, Z * share * value)
            return value, value - below, value + above

        path = tuple((step, *wider(value, low, high)) for step, value, low, high in self.path)
        return Forecast(*wider(self.value, self.low, self.high), path)


def forecast(seen: Seen, schedule: Schedule, prior: Prior = PRIOR) -> Forecast | None:
    """The loss that a run is on course for at the end of its schedule.

    Args:
        seen: losses that are not finite are left out.

    Returns:
        None where too little was seen: no held-out loss, or fewer than FEWEST training losses after the start.
    """
    if not seen.steps_T.size or not seen.heldout_steps_H.size:
        return None
    now, last = float(max(seen.steps_T[-1], seen.heldout_steps_H[-1])), seen.heldout_steps_H[-1:]
    path_P = np.linspace(now, schedule.end, AHEAD + 1)[1:]
    found = ahead(seen, schedule, path_P, prior) if now < schedule.end else None
    if found is None:
        return None
    value_P, deviation_P = found

    # would half of what was seen have foreseen the present? if not, the law is not this run's, and less is known
    surprise = 1.0
    if (before := ahead(seen.until(now / 2), schedule, last, prior)) is not None:
        missed = abs(float(seen.heldout_H[-1] - before[0][0]))
        surprise = max(1.0, missed / (Z * float(before[1][0])))
    wide_P = Z * surprise * deviation_P
    if not np.isfinite(value_P).all() or not (value_P > 0).all():
        return None
    low_P, high_P = np.maximum(value_P - wide_P, 0.0), value_P + wide_P
    path = tuple(zip(path_P.tolist(), value_P.tolist(), low_P.tolist(), high_P.tolist(), strict=True))
    return Forecast(*path[-1][1:], path)


def ahead(seen: Seen, schedule: Schedule, path_P: Floats, prior: Prior) -> tuple[Floats, Floats] | None:
    """Mean and standard deviation of the held-out loss at the steps `path_P`, shapes (P,); None where too little was
    seen."""
    known_T, known_H = np.isfinite(seen.losses_T), np.isfinite(seen.heldout_H)
    steps_T, losses_T = seen.steps_T[known_T], seen.losses_T[known_T]
    steps_H, heldout_H = seen.heldout_steps_H[known_H], seen.heldout_H[known_H]
    if not steps_T.size or not steps_H.size:
        return None
    area_T, area_H = schedule.area(steps_T), schedule.area(steps_H)
    area_now = float(max(area_T[-1], area_H[-1]))
    if area_now <= 0:
        return None

    # what the law is fitted to: the curve after its beginning
    late_T, late_H = area_T >= prior.window * area_now, area_H >= prior.window * area_now
    late_H[-1] = True
    unit = float(heldout_H[-1])
    if late_T.sum() < FEWEST or not unit > 0:
        return None
    bin_steps, bin_losses, bin_noise = binned(steps_T[late_T], losses_T[late_T], area_T[late_T])
    training = (bin_steps, bin_losses / unit, np.hypot(bin_noise / unit, prior.training_noise))
    heldout = (steps_H[late_H], heldout_H[late_H] / unit)
    value_P, deviation_P = posterior(schedule, area_now, training, heldout, path_P, prior)
    return unit * value_P, unit * np.hypot(prior.widen * deviation_P, prior.least)


def binned(steps_T: Floats, losses_T: Floats, area_T: Floats) -> tuple[Floats, Floats, Floats]:
    """Means of the losses in bins of equal width in log area: their steps, their values, and the standard deviation of
    each mean by the scatter from one step to the next, shapes (B,)."""
    position = np.log(area_T / area_T[0])
    width = position[-1] / BINS or 1.0
    index = np.minimum((position / width).astype(np.int64), BINS - 1)
    count = np.bincount(index, minlength=BINS)
    there = count > 0
    mean = [np.bincount(index, values, BINS)[there] / count[there] for values in (steps_T, losses_T)]
    scatter = float(np.median(np.abs(np.diff(losses_T)))) / (0.6745 * math.sqrt(2))  # robust against spikes
    return mean[0], mean[1], scatter / np.sqrt(count[there])


def posterior(
    schedule: Schedule,
    area_now: float,
    training: tuple[Floats, Floats, Floats],
    heldout: tuple[Floats, Floats],
    path_P: Floats,
    prior: Prior,
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the held-out loss at the steps `path_P`, shapes (P,), relative to the present one.

    Args:
        training: steps, values and standard deviations, shapes (B,). heldout: steps and values, shapes (H,).
    """
    alpha_G = prior.alpha * np.exp(prior.alpha_width * np.linspace(-2.0, 2.0, 13))
    (steps_B, values_B, noise_B), (steps_H, values_H) = training, heldout
    steps = np.concatenate([steps_B, steps_H, path_P])
    is_training = np.arange(steps.size) < steps_B.size
    is_seen = np.arange(steps.size) < steps_B.size + steps_H.size

    # the design: one row a value, one column a coefficient; only that of A depends on alpha
    relative = np.log(np.maximum(schedule.area(steps), 1e-9) / area_now)
    columns = np.zeros((alpha_G.size, steps.size, 6))
    columns[:, :, 0] = 1.0
    columns[:, :, 2] = -schedule.fallen(steps, prior.onset)
    columns[:, :, 1] = np.exp(-alpha_G[:, None] * relative) + prior.steeper * alpha_G[:, None] * columns[0, :, 2]
    columns[:, :, 3] = np.where(is_training, 0.0, schedule.repeated(steps))
    columns[:, :, 4] = is_training
    columns[:, :, 5] = np.where(is_training, relative, 0.0)
    mean_C = np.array([prior.floor, 1.0 - prior.floor, prior.drop, prior.repeat, 0.0, 0.0])
    width_C = np.array(
        [
            prior.floor_width,
            prior.fall_width,
            prior.drop_width,
            prior.repeat_width,
            prior.level_width,
            prior.slope_width,
        ]
    )

    # the posterior of the coefficients for each alpha, and how well that alpha explains what was seen
    seen_GNC, ahead_GPC = columns[:, is_seen], columns[:, ~is_seen]
    values = np.concatenate([values_B, values_H])
    weight = np.concatenate([noise_B**-2, np.full(steps_H.size, prior.heldout_noise**-2)])
    precision_GCC = np.diag(width_C**-2) + np.einsum("gnc,n,gnd->gcd", seen_GNC, weight, seen_GNC)
    target_GC = mean_C * width_C**-2 + np.einsum("gnc,n->gc", seen_GNC, weight * values)
    found_GC = np.linalg.solve(precision_GCC, target_GC[:, :, None])[:, :, 0]
    missed = values - np.einsum("gnc,gc->gn", seen_GNC, found_GC)
    cost_G = (weight * missed**2).sum(1) + (((found_GC - mean_C) / width_C) ** 2).sum(1)
    cost_G += np.linalg.slogdet(precision_GCC)[1] + np.linspace(-2.0, 2.0, 13) ** 2
    share_G = np.exp(-0.5 * (cost_G - cost_G.min()))
    share_G /= share_G.sum()

    # the mixture over alpha
    mean_GP = np.einsum("gpc,gc->gp", ahead_GPC, found_GC)
    spread = np.linalg.solve(precision_GCC, np.swapaxes(ahead_GPC, 1, 2))
    variance_GP = np.einsum("gpc,gcp->gp", ahead_GPC, spread)
    mean_P = share_G @ mean_GP
    variance_P = share_G @ (variance_GP + (mean_GP - mean_P) ** 2)
    return mean_P, np.sqrt(np.maximum(variance_P, 0.0))
