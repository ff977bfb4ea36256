"""Extrapolates the loss curve of a run to the end of its schedule, by Bayesian regression.

    held-out(t) = E + A (S(t) / S(now))^-alpha - (B + rho alpha A) D(t) + c R(t)
    training(t) = the same without R(t), + g + k log(S(t) / S(now))

S   area under the learning rate, relative to its peak, in whole batches (Tissue et al. 2024, 2408.11029)
D   effect so far of the decay of the learning rate, 1 for a full decay from the peak to 0. Each small decrease takes
    effect over the area x that follows it, as x / (x + tau): the form of the multi-power law with one parameter (Luo et
    al. 2025, 2503.12811)
R   epochs after the first: repeated text lowers the held-out loss less than the training loss
g, k   difference of the training loss from the held-out loss, in level and in slope

For a given alpha the model is linear in E, A, B, c, g and k, which have normal priors, so the posterior is exact. Alpha
is integrated over a grid, weighted by its evidence. Where the data say nothing, such as about the effect of a decay
that has not begun, the priors decide: PRIOR was fitted to runs on several kinds of text, and its width to runs on texts
that were left out (bench/onway.py). All coefficients are relative to the present loss.

Shapes: K points of the schedule, T training losses, B bins of them, H held-out losses, P future points, C coefficients,
G values of alpha, N = B + H observations. Losses are in nats per token; steps count optimiser steps.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.9  # probability of the interval
FEWEST = 24  # training losses needed in the window that is fitted
BINS = 40  # of the training losses
PATH_POINTS = 8  # of the forecast, from the next to the last step
Z = 1.645  # two-sided 90 % of the normal distribution


@dataclass(frozen=True)
class Prior:
    """The prior of the coefficients, relative to the present loss: means, and standard deviations (`_width`).

    Attributes:
        window: share of the area so far that is not fitted, at the beginning, where no power law holds.
        alpha, alpha_width: median of alpha, and standard deviation of its logarithm.
        floor, floor_width: E. fall_width: of A, whose mean is 1 - floor.
        drop, drop_width: B. steeper: rho; a decay has a larger effect while the loss falls faster.
        onset: tau, in whole batches.
        repeat, repeat_width: c, per epoch.
        level_width, slope_width: of g and k, whose means are 0.
        heldout_noise, training_noise: of one held-out measurement, and of a bin in addition to the scatter inside it.
        widen: factor on the posterior's standard deviation; least: the smallest standard deviation of a forecast.
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
    """The learning rate of a run over all its steps, at K of them from 0 to the last.

    Attributes:
        steps_K: increasing.
        scale_K: the learning rate at these steps, relative to its peak.
        read_K: sequences read before these steps, in whole batches.
        epochs: passes over the text per whole batch.
        decay_worth: effect of a decay of the learning rate, relative to PRIOR; depends on the optimizer
            (optim/table.py).
    """

    steps_K: Floats
    scale_K: Floats
    read_K: Floats
    epochs: float = 0.0
    decay_worth: float = 1.0

    @cached_property
    def area_K(self) -> Floats:
        """S at `steps_K`, by the trapezoidal rule."""
        middle = 0.5 * (self.scale_K[1:] + self.scale_K[:-1])
        return np.concatenate([[0.0], np.cumsum(middle * np.diff(self.read_K))])

    @property
    def end(self) -> float:
        return float(self.steps_K[-1])

    def area(self, steps: Floats) -> Floats:
        """S at some steps."""
        return np.asarray(np.interp(steps, self.steps_K, self.area_K), dtype=np.float64)

    def decay_effect(self, steps: Floats, onset: float) -> Floats:
        """D at some steps."""
        fall = np.maximum(0.0, self.scale_K[:-1] - self.scale_K[1:])
        falls = fall > 0
        middle = 0.5 * (self.area_K[1:] + self.area_K[:-1])[falls]
        area_since = np.maximum(0.0, self.area(steps)[:, None] - middle[None, :])
        return np.asarray((area_since / (area_since + onset)) @ fall[falls] * self.decay_worth, dtype=np.float64)

    def repeated_epochs(self, steps: Floats) -> Floats:
        """R at some steps."""
        read = np.interp(steps, self.steps_K, self.read_K)
        return np.asarray(np.maximum(0.0, read * self.epochs - 1.0), dtype=np.float64)


@dataclass(frozen=True)
class Observed:
    """The losses of a run so far, after some of its steps, in order."""

    steps_T: Floats
    losses_T: Floats
    heldout_steps_H: Floats
    heldout_H: Floats

    def until(self, step: float) -> "Observed":
        """The losses known after `step` steps."""
        before_T, before_H = self.steps_T <= step, self.heldout_steps_H <= step
        return Observed(
            self.steps_T[before_T], self.losses_T[before_T], self.heldout_steps_H[before_H], self.heldout_H[before_H]
        )


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
    finite_T, finite_H = np.isfinite(observed.losses_T), np.isfinite(observed.heldout_H)
    steps_T, losses_T = observed.steps_T[finite_T], observed.losses_T[finite_T]
    steps_H, heldout_H = observed.heldout_steps_H[finite_H], observed.heldout_H[finite_H]
    if not steps_T.size or not steps_H.size:
        return None
    area_T, area_H = schedule.area(steps_T), schedule.area(steps_H)
    area_now = float(max(area_T[-1], area_H[-1]))
    if area_now <= 0:
        return None

    # the law is fitted to the curve after its beginning
    late_T, late_H = area_T >= prior.window * area_now, area_H >= prior.window * area_now
    late_H[-1] = True
    present = float(heldout_H[-1])
    if late_T.sum() < FEWEST or not present > 0:
        return None
    bin_steps, bin_losses, bin_noise = binned(steps_T[late_T], losses_T[late_T], area_T[late_T])
    training = (bin_steps, bin_losses / present, np.hypot(bin_noise / present, prior.training_noise))
    heldout = (steps_H[late_H], heldout_H[late_H] / present)
    value_P, deviation_P = posterior(schedule, area_now, training, heldout, path_P, prior)
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
    is_observed = np.arange(steps.size) < steps_B.size + steps_H.size

    # the design matrix: one row per value, one column per coefficient; only the column of A depends on alpha
    relative = np.log(np.maximum(schedule.area(steps), 1e-9) / area_now)
    columns = np.zeros((alpha_G.size, steps.size, 6))
    columns[:, :, 0] = 1.0
    columns[:, :, 2] = -schedule.decay_effect(steps, prior.onset)
    columns[:, :, 1] = np.exp(-alpha_G[:, None] * relative) + prior.steeper * alpha_G[:, None] * columns[0, :, 2]
    columns[:, :, 3] = np.where(is_training, 0.0, schedule.repeated_epochs(steps))
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

    # the posterior of the coefficients for each alpha, and the evidence of that alpha
    observed_GNC, future_GPC = columns[:, is_observed], columns[:, ~is_observed]
    values = np.concatenate([values_B, values_H])
    weight = np.concatenate([noise_B**-2, np.full(steps_H.size, prior.heldout_noise**-2)])
    precision_GCC = np.diag(width_C**-2) + np.einsum("gnc,n,gnd->gcd", observed_GNC, weight, observed_GNC)
    target_GC = mean_C * width_C**-2 + np.einsum("gnc,n->gc", observed_GNC, weight * values)
    coefficients_GC = np.linalg.solve(precision_GCC, target_GC[:, :, None])[:, :, 0]
    residual_GN = values - np.einsum("gnc,gc->gn", observed_GNC, coefficients_GC)
    cost_G = (weight * residual_GN**2).sum(1) + (((coefficients_GC - mean_C) / width_C) ** 2).sum(1)
    cost_G += np.linalg.slogdet(precision_GCC)[1] + np.linspace(-2.0, 2.0, 13) ** 2
    share_G = np.exp(-0.5 * (cost_G - cost_G.min()))
    share_G /= share_G.sum()

    # the mixture over alpha
    mean_GP = np.einsum("gpc,gc->gp", future_GPC, coefficients_GC)
    spread = np.linalg.solve(precision_GCC, np.swapaxes(future_GPC, 1, 2))
    variance_GP = np.einsum("gpc,gcp->gp", future_GPC, spread)
    mean_P = share_G @ mean_GP
    variance_P = share_G @ (variance_GP + (mean_GP - mean_P) ** 2)
    return mean_P, np.sqrt(np.maximum(variance_P, 0.0))
