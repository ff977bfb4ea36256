"""The law of a run's loss curve, and the Bayesian regression of its coefficients.

    held-out(t) = E + A (S(t) / S(now))^-alpha - (B + rho alpha A) D(t) + c R(t)
    training(t) = the same without R(t), + g + k log(S(t) / S(now))
    averaged(t) = held-out(t), with (1 - lag) S(t) in place of S(t) and D_a(t) in place of D(t), + b

S   area under the learning rate, relative to its peak, in whole batches (Tissue et al. 2024, 2408.11029)
D   effect so far of the decay of the learning rate, 1 for a full decay from the peak to 0. Each small decrease takes
    effect over the area x that follows it, as x / (x + tau): the form of the multi-power law with one parameter (Luo et
    al. 2025, 2503.12811)
D_a what the average of the weights shows of the effect of a full decay: a share of it, S / (S + s) of that while the
    window of the average is short
R   epochs after the first: repeated text lowers the held-out loss less than the training loss
g, k   difference of the training loss from the held-out loss, in level and in slope
b   what the average of the weights (decay_probe.py) shows more or less than its share of the effect of a decay

For a given alpha the model is linear in E, A, B, c, g, k and b, which have normal priors, so the posterior is exact.
Alpha is integrated over a grid, weighted by its evidence. Where the data say nothing, such as about the effect of a
decay that has not begun and that no average has shown, the priors decide: PRIOR was fitted to runs on several kinds of
text, and its width to runs on texts that were left out (bench/onway.py). All coefficients are relative to the present
loss.

Shapes: K points of the schedule, N losses, P future points, C coefficients, G values of alpha. Losses are in nats per
token; steps count optimiser steps.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TRAINING, HELD_OUT, AVERAGED = 0, 1, 2  # kinds of losses
GRID = np.linspace(-2.0, 2.0, 13)  # values of alpha, in standard deviations of its prior


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
        share, settled: what the average of the weights shows of the effect of a full decay, and s in whole batches.
        lag: of that average; its window fixes it (decay_probe.LAG). averaged_width: of b, whose mean is 0.
        heldout_noise, averaged_noise, training_noise: of one measurement, and of a bin in addition to the scatter
            inside it.
        widen: factor on the posterior's standard deviation; least: the smallest standard deviation of a forecast.
    """

    window: float = 0.31
    alpha: float = 0.37
    alpha_width: float = 0.37
    floor: float = 0.71
    floor_width: float = 0.2
    fall_width: float = 0.5
    drop: float = 0.093
    drop_width: float = 0.035
    steeper: float = 0.35
    onset: float = 13.0
    repeat: float = 0.004
    repeat_width: float = 0.005
    level_width: float = 0.3
    slope_width: float = 0.0015
    share: float = 0.72
    settled: float = 175.0
    lag: float = 1 / 6
    averaged_width: float = 0.0025
    heldout_noise: float = 0.008
    averaged_noise: float = 0.005
    training_noise: float = 0.0009
    widen: float = 1.55
    least: float = 0.003

    @cached_property
    def coefficients(self) -> tuple[Floats, Floats]:
        """Means and standard deviations of E, A, B, c, g, k and b, shapes (C,)."""
        means = [self.floor, 1.0 - self.floor, self.drop, self.repeat, 0.0, 0.0, 0.0]
        widths = [self.floor_width, self.fall_width, self.drop_width, self.repeat_width]
        widths += [self.level_width, self.slope_width, self.averaged_width]
        return np.array(means), np.array(widths)


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
class Losses:
    """N losses, relative to the present one.

    Attributes:
        kind_N: TRAINING, HELD_OUT or AVERAGED.
        noise_N: standard deviations.
    """

    steps_N: Floats
    kind_N: NDArray[np.int64]
    values_N: Floats
    noise_N: Floats

    @classmethod
    def of(cls, kind: int, steps_N: Floats, values_N: Floats, noise_N: Floats | float) -> "Losses":
        """Losses of one kind."""
        return cls(steps_N, np.full(steps_N.size, kind), values_N, np.broadcast_to(noise_N, steps_N.shape))

    def __add__(self, other: "Losses") -> "Losses":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Losses(*(np.concatenate(pair) for pair in pairs))


def design(
    schedule: Schedule, area_now: float, steps_N: Floats, kind_N: NDArray[np.int64], alpha_G: Floats, prior: Prior
) -> Floats:
    """The design matrix, shape (G, N, C): the factors of E, A, B, c, g, k and b. Only that of A depends on alpha."""
    averaged, training = kind_N == AVERAGED, kind_N == TRAINING
    area = schedule.area(steps_N)
    effect = schedule.decay_effect(steps_N, prior.onset)
    shown = (schedule.decay_worth - effect) * prior.share * area / (area + prior.settled)
    effect = np.where(averaged, effect + shown, effect)
    relative = np.log(np.maximum(np.where(averaged, 1.0 - prior.lag, 1.0) * area, 1e-9) / area_now)

    columns = np.zeros((alpha_G.size, steps_N.size, 7))
    columns[:, :, 0] = 1.0
    columns[:, :, 1] = np.exp(-alpha_G[:, None] * relative) - prior.steeper * alpha_G[:, None] * effect
    columns[:, :, 2] = -effect
    columns[:, :, 3] = np.where(training, 0.0, schedule.repeated_epochs(steps_N))
    columns[:, :, 4] = training
    columns[:, :, 5] = np.where(training, relative, 0.0)
    columns[:, :, 6] = averaged
    return columns


def posterior(
    schedule: Schedule, area_now: float, losses: Losses, path_P: Floats, prior: Prior
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the held-out loss at the steps `path_P`, shapes (P,), relative to the present one.

    Args:
        area_now: S at present.
    """
    alpha_G = prior.alpha * np.exp(prior.alpha_width * GRID)
    observed_GNC = design(schedule, area_now, losses.steps_N, losses.kind_N, alpha_G, prior)
    future_GPC = design(schedule, area_now, path_P, np.full(path_P.size, HELD_OUT), alpha_G, prior)
    mean_C, width_C = prior.coefficients

    # the posterior of the coefficients for each alpha, and the evidence of that alpha
    weight_N = losses.noise_N**-2
    weighted_GCN = np.swapaxes(observed_GNC, 1, 2) * weight_N
    precision_GCC = np.diag(width_C**-2) + weighted_GCN @ observed_GNC
    target_GC = mean_C * width_C**-2 + weighted_GCN @ losses.values_N
    coefficients_GC = np.linalg.solve(precision_GCC, target_GC[:, :, None])[:, :, 0]
    residual_GN = losses.values_N - (observed_GNC @ coefficients_GC[:, :, None])[:, :, 0]
    cost_G = (weight_N * residual_GN**2).sum(1) + (((coefficients_GC - mean_C) / width_C) ** 2).sum(1)
    cost_G += np.linalg.slogdet(precision_GCC)[1] + GRID**2
    share_G = np.exp(-0.5 * (cost_G - cost_G.min()))
    share_G /= share_G.sum()

    # the mixture over alpha
    mean_GP = (future_GPC @ coefficients_GC[:, :, None])[:, :, 0]
    spread_GCP = np.linalg.solve(precision_GCC, np.swapaxes(future_GPC, 1, 2))
    variance_GP = (np.swapaxes(future_GPC, 1, 2) * spread_GCP).sum(1)
    mean_P = share_G @ mean_GP
    variance_P = share_G @ (variance_GP + (mean_GP - mean_P) ** 2)
    return mean_P, np.sqrt(np.maximum(variance_P, 0.0))
