"""Errors and coverage of the running forecasts that runs make of their final loss.

    python bench/onway.py RUN [RUN ...]             errors and coverage at 1/8, 1/4, 1/2 and 3/4 of finished runs
    python bench/onway.py RUN [RUN ...] --each      with a line per run
    python bench/onway.py RUN [RUN ...] --unprobed  without the measurements of the average of the weights
    python bench/onway.py RUN [RUN ...] --fit 400   fit the prior of trainer/curve_law.py, corpora left out in turn

A forecast is made again from the records up to a step, with the decisions taken by then and nothing later. It is
compared with the bits per byte that the finished run reached on all of its held-out text. A corpus is the name of a
run's first source; the runs of a corpus are left out together. `--fit N` draws N priors around the present one, makes
every forecast with each, and takes for each corpus the prior that is best for all others. Then it prints the prior that
is best for all corpora, which is copied into curve_law.py by hand.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from isoflop.config import from_dict
from isoflop.data.corpus import parse_sources
from isoflop.optim.timetable import Decision, Timetable
from isoflop.records import Run, read_run
from isoflop.trainer import RunConfig
from isoflop.trainer.curve import Observed, extrapolate
from isoflop.trainer.curve_law import PRIOR, Prior, Schedule
from isoflop.trainer.running_forecast import BitsConversion, observed_losses, sample_schedule
from record import record

SHARES = (0.125, 0.25, 0.5, 0.75)
# The fields of the prior to draw, with the standard deviation of the logarithm of the factor
DRAWN = {
    "window": 0.5,
    "alpha": 0.4,
    "alpha_width": 0.4,
    "floor": 0.2,
    "floor_width": 0.5,
    "drop": 0.2,
    "drop_width": 0.4,
    "steeper": 0.6,
    "onset": 0.7,
    "repeat": 0.7,
    "repeat_width": 0.5,
    "slope_width": 0.7,
    "share": 0.2,
    "settled": 0.6,
    "averaged_width": 0.5,
    "averaged_noise": 0.4,
    "heldout_noise": 0.4,
    "training_noise": 0.4,
}
TAIL = 4.0  # degrees of freedom of the score, so that a single unpredictable run does not decide the prior


@dataclass(frozen=True)
class Moment:
    """A run at a share of its steps: the input of a forecast, and the outcome.

    Attributes:
        reached: the final held-out bits per byte.
    """

    run: str
    corpus: str
    share: float
    observed: Observed
    schedule: Schedule
    conversion: BitsConversion
    reached: float

    def error(self, prior: Prior = PRIOR) -> tuple[float, float] | None:
        """The forecast's error and the half-width of its interval, both relative to the outcome."""
        forecast = extrapolate(self.observed, self.schedule, prior)
        if forecast is None:
            return None
        forecast = forecast.widened(self.conversion.deviation)
        bits = self.conversion.bits
        return bits * forecast.value / self.reached - 1, bits * (forecast.high - forecast.low) / 2 / self.reached


def timetable_at(run: Run, config: RunConfig, step: int) -> Timetable:
    """A run's timetable as of a step."""
    taken = [Decision.from_dict(line.to_dict()) for line in run.decisions if (line.at_step or 0) <= step]
    return config.timetable(taken)


def moments_of(path: Path) -> Iterator[Moment]:
    """A finished run at each of SHARES."""
    run = read_run(path)
    reached, end, unique = run.result.heldout.bits_per_byte, run.result.step, run.data.train.tokens
    if not reached or not end or not run.result.tokens:
        print(f"{path}: not finished, left out")
        return
    config = from_dict(RunConfig, run.config)
    corpus = parse_sources(config.data.sources)[0].name if config.data.sources else "prepared"
    for share in SHARES:
        step = round(share * end)
        timetable = timetable_at(run, config, step)
        epochs = run.result.tokens / end * timetable.total_steps / unique if unique else 0.0
        training = [line for line in run.training if (line.step or 0) <= step]
        heldout = [line for line in run.heldout if (line.step or 0) <= step]
        conversion = BitsConversion.of(heldout, config.evaluate_tokens, run.data.heldout.tokens or 0)
        if conversion is not None:
            observed, schedule = (
                observed_losses(training, heldout),
                sample_schedule(timetable, epochs, config.optim.entry.decay_worth),
            )
            yield Moment(run.name, corpus, share, observed, schedule, conversion, reached)


def summary(moments: Sequence[Moment], prior: Prior = PRIOR) -> list[dict[str, float]]:
    """One row per share: mean and 80 % quantile of the absolute error, coverage, mean half-width."""
    rows = []
    for share in SHARES:
        there = [moment for moment in moments if moment.share == share]
        found = [one for moment in there if (one := moment.error(prior)) is not None]
        if not found:
            continue
        errors, halves = np.array(found).T
        rows.append(
            {
                "share": share,
                "runs": len(there),
                "forecasts": len(found),
                "mean_error": float(np.abs(errors).mean()),
                "error_of_four_in_five": float(np.quantile(np.abs(errors), 0.8)),
                "within_1.5_percent": float((np.abs(errors) <= 0.015).mean()),
                "bias": float(errors.mean()),
                "covered": float((np.abs(errors) <= halves).mean()),
                "half_width": float(halves.mean()),
            }
        )
    return rows


def show(rows: Sequence[dict[str, float]]) -> None:
    print("share of run | runs | mean error | 4 in 5 within | within 1.5 % | bias | in the interval | half-width")
    for row in rows:
        print(
            f"{row['share']:>12.3f} | {row['forecasts']:>4.0f} | {row['mean_error']:>10.2%} | "
            f"{row['error_of_four_in_five']:>13.2%} | {row['within_1.5_percent']:>12.0%} | {row['bias']:>+6.2%} | "
            f"{row['covered']:>15.0%} | {row['half_width']:.2%}"
        )


def show_each(moments: Sequence[Moment], prior: Prior = PRIOR) -> None:
    for moment in moments:
        found = moment.error(prior)
        said = "none" if found is None else f"{found[0]:+.2%} of +-{found[1]:.2%}"
        print(f"{moment.corpus:20} {moment.run:28} {moment.share:.3f}  reached {moment.reached:.3f}  {said}")


def drawn(prior: Prior, times: float, generator: np.random.Generator) -> Prior:
    """A random prior near the given one."""
    factors = {name: math.exp(times * width * generator.normal()) for name, width in DRAWN.items()}
    values = {name: getattr(prior, name) * factor for name, factor in factors.items()}
    return replace(prior, **{**values, "window": min(values["window"], 0.6), "floor": min(values["floor"], 0.9)})


def scores(moments: Sequence[Moment], prior: Prior) -> np.ndarray:
    """Negative log-likelihood of each outcome under Student's t with TAIL degrees of freedom, shape (M,). A missing
    forecast scores like one with a standard deviation of a tenth."""
    found = [moment.error(prior) or (0.1, 0.16) for moment in moments]
    errors, halves = np.array(found).T
    deviation = halves / 1.645
    return np.asarray(np.log(deviation) + 0.5 * (TAIL + 1) * np.log1p((errors / deviation) ** 2 / TAIL))


def fit(moments: Sequence[Moment], count: int) -> None:
    """Draw priors, score them with corpora left out, and print the best one."""
    generator, best = np.random.default_rng(0), PRIOR
    corpora = np.array([moment.corpus for moment in moments])
    weight = np.array([1 / (corpora == corpus).sum() for corpus in corpora])  # all corpora weigh alike
    tried, table = [PRIOR], [scores(moments, PRIOR)]
    for number in range(count):
        times = 1.0 if number < count / 2 else 0.4  # first far from the present prior, then near the best
        tried.append(drawn(best if number >= count / 2 else PRIOR, times, generator))
        table.append(scores(moments, tried[-1]))
        best = tried[int(np.argmin(np.array(table) @ weight))]
    every = np.array(table)

    print("left out, each corpus with the prior that is best for the others:")
    errors: dict[float, list[tuple[float, float]]] = {share: [] for share in SHARES}
    for corpus in np.unique(corpora):
        chosen = tried[int(np.argmin(every[:, corpora != corpus] @ weight[corpora != corpus]))]
        for moment in moments:
            if moment.corpus == corpus and (found := moment.error(chosen)) is not None:
                errors[moment.share].append(found)
    for share, found in errors.items():
        missed, halves = np.array(found).T
        deviations = np.abs(missed) / halves * 1.645
        print(
            f"{share:.3f}: {len(found)} runs, mean {np.abs(missed).mean():.2%}, 4 in 5 within "
            f"{np.quantile(np.abs(missed), 0.8):.2%}, in the interval {(np.abs(missed) <= halves).mean():.0%}, "
            f"half-width {halves.mean():.2%}; 90 % of errors within {np.quantile(deviations, 0.9):.2f} deviations"
        )
    print(f"\nbest for all ({every.min(0) @ weight:.3f} if each were known, {(every @ weight).min():.3f}):")
    for name, value in asdict(best).items():
        print(f"    {name}: float = {value:.3g}")
    show(summary(moments, best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--unprobed", action="store_true")
    parser.add_argument("--fit", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true", help="record the result in bench/results/")
    given = parser.parse_args()
    moments = [moment for path in given.runs for moment in moments_of(path)]
    if given.unprobed:
        moments = [replace(moment, observed=moment.observed.unprobed()) for moment in moments]
    if given.each:
        show_each(moments)
    show(summary(moments))
    if given.fit:
        fit(moments, given.fit)
    if given.json:
        corpora = sorted({moment.corpus for moment in moments})
        record("onway", {"corpora": corpora, "shares": summary(moments)})


if __name__ == "__main__":
    main()
