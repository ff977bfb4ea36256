"""Running forecasts: a hook that extrapolates the held-out loss to the end of the run (curve.py), from its records.

A forecast is a line of metrics.jsonl, written after each held-out measurement and at PER_RUN further steps. It is a
function of the earlier lines and of the decisions only, so a resumed run writes the same ones. It is about the loss on
all held-out text. If the forecast leaves the plan's interval, the user is told once, with advice.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.measure import FINAL_TOKENS
from isoflop.optim.timetable import Decision, Timetable
from isoflop.records import EventLine, ForecastLine, HeldOutLine, Plan, TrainingLine
from isoflop.records.plan import Expectation
from isoflop.trainer.curve import LEVEL, Forecast, Observed, extrapolate
from isoflop.trainer.curve_law import Schedule
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

PER_RUN = 40  # forecasts in a run, besides those after held-out measurements
EARLIEST = 0.1  # progress of the first forecast
POINTS = 240  # at which the schedule is sampled
WINDOW, SCATTER = 256, 0.08  # the loss on WINDOW tokens varies by this share of its mean between places in the text
OFF_COURSE = "off course"  # name of the event
IN_A_ROW, SAY_FROM = 2, 0.1  # forecasts outside the plan's interval, and progress, before the user is told
FEWER_STEPS = 0.9  # share of the planned steps; a run with fewer is slower than planned, and the advice is about that
MANY_EPOCHS = 4.0  # above it, repeated text is worth clearly less (Muennighoff et al. 2023, 2305.16264)


def sample_schedule(timetable: Timetable, epochs: float, decay_worth: float = 1.0) -> Schedule:
    """A timetable as curve.py needs it.

    Args:
        epochs: passes over the text in the whole run.
        decay_worth: the effect of a fall of the learning rate with the run's optimizer, relative to Muon.
    """
    end, warmup = timetable.total_steps, timetable.warmup_steps
    steps = np.unique(np.concatenate([np.linspace(0, end, POINTS), np.linspace(0, min(2 * warmup, end), 16)]).round())
    batch = timetable.read(end) - timetable.read(end - 1)
    scale = [timetable.scale(min(int(step), end - 1)) for step in steps]
    read = [timetable.read(int(step)) / batch for step in steps]
    return Schedule(steps, np.array(scale), np.array(read), epochs / read[-1] if read[-1] else 0.0, decay_worth)


@dataclass(frozen=True)
class BitsConversion:
    """Converts the held-out loss measured during training to bits per byte on all held-out text.

    Attributes:
        bits: bits per byte on all held-out text, per nat per token of the measurements during training.
        deviation: relative standard deviation of that factor, since the measurements read only a part of the text.
    """

    bits: float
    deviation: float

    @classmethod
    def of(cls, lines: Sequence[HeldOutLine], measured: int, available: int) -> "BitsConversion | None":
        """The conversion according to the held-out lines so far; None if there are none.

        Args:
            measured: held-out tokens that each measurement reads; 0: all.
            available: held-out tokens in all; 0: unknown.
        """
        valid = [line for line in lines if line.heldout_loss and line.heldout_bits_per_byte]
        if not valid:
            return None

        total = min(available, FINAL_TOKENS)
        wide = next((line for line in reversed(valid) if line.wide_bits_per_byte and line.wide_tokens), None)
        line, part = (wide, wide.wide_tokens) if wide is not None else (valid[-1], measured or total)
        assert line.heldout_loss
        bits = (line.wide_bits_per_byte if wide is not None else line.heldout_bits_per_byte) or 0.0
        unread = max(0.0, 1 / part - 1 / total) if part and total else 0.0
        return cls(bits / line.heldout_loss, SCATTER * math.sqrt(WINDOW * unread))


def forecast_bits(observed: Observed, schedule: Schedule, conversion: BitsConversion | None) -> Forecast | None:
    """The forecast in bits per byte on all held-out text; None if too little was observed."""
    forecast = extrapolate(observed, schedule) if conversion is not None else None
    if forecast is None or conversion is None:
        return None
    forecast = forecast.widened(conversion.deviation)
    bits = conversion.bits
    path = tuple((step, bits * value, bits * low, bits * high) for step, value, low, high in forecast.path)
    return Forecast(bits * forecast.value, bits * forecast.low, bits * forecast.high, path)


def observed_losses(training: Sequence[TrainingLine], heldout: Sequence[HeldOutLine]) -> Observed:
    """The losses in the lines of a log."""
    losses = [(line.step, line.loss) for line in training if line.step is not None and line.loss is not None]
    steps, values = np.array(losses, dtype=np.float64).reshape(-1, 2).T
    return Observed(steps, values, *measured_losses(heldout))


def measured_losses(lines: Sequence[HeldOutLine]) -> Iterator[NDArray[np.float64]]:
    """Steps and losses of the held-out measurements, then those of the average of the weights."""
    for name in ("heldout_loss", "averaged_loss"):
        found = [(line.step, getattr(line, name)) for line in lines if line.step is not None and getattr(line, name)]
        yield from np.array(found, dtype=np.float64).reshape(-1, 2).T


class RunningForecast(Hook):
    """Makes the forecasts of a run, writes them and notifies the other hooks. On rank 0 only.

    Args:
        plan: the plan of the run, with the expected loss.
        listeners: notified of each forecast.
        say: called with one line if the run leaves the plan's interval.
    """

    def __init__(self, plan: Plan, listeners: Sequence[Hook], say: Callable[[str], None]) -> None:
        self.plan, self.listeners, self.say = plan, listeners, say
        self._steps, self._losses = array("d"), array("d")
        self._heldout: list[HeldOutLine] = []
        self._last_measured_step = -1
        self._outside: list[str] = []
        self._said = False

    def started(self, state: RunState) -> None:
        """Read the lines of a resumed run."""
        training = state.folder.lines("metrics", TrainingLine)
        logged = [line for line in training if line.loss is not None and line.step is not None]
        self._steps = array("d", [float(line.step or 0) for line in logged])
        self._losses = array("d", [float(line.loss or 0.0) for line in logged])
        heldout = state.folder.lines("metrics", HeldOutLine)
        self._heldout = [line for line in heldout if line.heldout_loss is not None]

        events = [event.event for event in state.folder.lines("events", EventLine)]
        since = len(events) - events[::-1].index("extended") if "extended" in events else 0
        self._said = OFF_COURSE in events[since:]

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._heldout.append(line)
        self._last_measured_step = state.step

    def stepped(self, state: RunState) -> None:
        line, timetable = state.line, state.timetable
        while self._steps and self._steps[-1] >= state.step:  # after a rollback
            self._steps.pop()
            self._losses.pop()
        if line is not None and line.step == state.step and state.due(state.config.every.log):
            self._steps.append(state.step)
            self._losses.append(line.loss if line.loss is not None else math.nan)

        interval = max(1, timetable.total_steps // PER_RUN)
        due = self._last_measured_step == state.step or state.step % interval == 0
        if not due or state.done or timetable.progress(state.step) < EARLIEST:
            return

        self._heldout = [line for line in self._heldout if (line.step or 0) <= state.step]
        forecast = self.make_forecast(state, timetable)
        if forecast is None:
            return
        forecast_line = self.line(state, forecast)
        state.folder.append("metrics", forecast_line)
        for listener in self.listeners:
            listener.forecast(state, forecast_line)
        self.compare(state, forecast)

    def make_forecast(self, state: RunState, timetable: Timetable) -> Forecast | None:
        """The forecast after `state.step` if the rest of the run follows `timetable`."""
        observed = Observed(np.array(self._steps), np.array(self._losses), *measured_losses(self._heldout))
        available = state.prepared.account().heldout.tokens or 0
        conversion = BitsConversion.of(self._heldout, state.config.evaluate_tokens, available)
        schedule = sample_schedule(timetable, epochs_of(state, timetable), state.config.optim.entry.decay_worth)
        return forecast_bits(observed, schedule, conversion)

    @staticmethod
    def line(state: RunState, forecast: Forecast) -> ForecastLine:
        fan = [
            (state.batches.tokens(round(step)), *(round(value, 5) for value in values))
            for step, *values in forecast.path
        ]
        return ForecastLine(
            step=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            end_step=state.timetable.total_steps,
            forecast_bits_per_byte=forecast.value,
            forecast_low=forecast.low,
            forecast_high=forecast.high,
            forecast_level=LEVEL,
            fan=tuple(fan),
        )

    def compare(self, state: RunState, forecast: Forecast) -> None:
        """Tell the user, once, that the forecast is outside the plan's interval, after IN_A_ROW forecasts that were."""
        expected = self.plan.expected
        if self._said or expected is None or expected.low is None or expected.high is None:
            return
        side = "better" if forecast.high < expected.low else "worse" if forecast.low > expected.high else ""
        self._outside = [*self._outside, side] if side else []
        recent = self._outside[-IN_A_ROW:]
        if recent != [side] * IN_A_ROW or state.timetable.progress(state.step) < SAY_FROM:
            return
        self._said = True
        reason = f"{comparison(forecast, expected, side)}: {self.advice(state, side)}"
        state.folder.event(OFF_COURSE, step=state.step, reason=reason)
        self.say(f"step {state.step:,}: {reason}")

    def advice(self, state: RunState, side: str) -> str:
        """Why the run may have left the plan's interval, according to its records, and what to do."""
        if side == "better":
            return "nothing is wrong, the plan expected too little of this text"
        config, plan, out = state.config, self.plan, state.folder.path
        discarded = sum(line.action in ("skip", "rollback") for line in state.skips)
        if discarded > 0.01 * state.step:
            return f"{discarded:,} bad steps were discarded; start again with a {lower_rates(state)}"

        # overfitting, or a diverging run
        losses = [line.heldout_loss for line in self._heldout if line.heldout_loss]
        epochs = epochs_of(state, state.timetable)
        rising = len(losses) > 2 and losses[-1] > 1.01 * min(losses)
        if rising and epochs > 1:
            return f"the held-out loss rises: the model overfits in {epochs:.0f} epochs of the text; name more text"
        if rising:
            return f"the held-out loss rises; start again with a {lower_rates(state)}"

        # fewer steps than planned, or too little text
        total = state.timetable.total_steps
        if config.seconds and plan.steps and total < FEWER_STEPS * plan.steps:
            share = f"{total:,} of {plan.steps:,} planned steps fit into the time"
            return f"{share}; stop other programs on this machine, or add time: {extend_command(self.plan, out)}"
        if epochs > MANY_EPOCHS:
            return f"the text will be read {epochs:.0f} times; name more text"

        harder = "this text or these settings are harder than the plan assumed"
        if not config.schedule.entry.stable:
            return f"{harder}; a larger --budget helps"
        doubled = self.make_forecast(state, lengthened(state.timetable, state.step, 2))
        gain = f"with twice the steps it would be on course for {doubled.value:.2f}; " if doubled else ""
        return f"{harder}; {gain}{extend_command(self.plan, out)}"


def comparison(forecast: Forecast, expected: Expectation, side: str) -> str:
    """A forecast next to the plan's interval, in words. `side`: "better" or "worse"."""
    outlook = f"on course for {forecast.value:.2f} bits per byte ({forecast.low:.2f} to {forecast.high:.2f})"
    return f"{outlook}, {side} than the plan's {expected.low:.2f} to {expected.high:.2f}"


def extend_command(plan: Plan, out: object) -> str:
    """The command that doubles the run's budget once it is finished."""
    try:
        budget = parse_budget(plan.budget or "")
    except UserError:
        return f"once it is finished: isoflop train --resume {out} --budget +10m"
    return f"once it is finished: isoflop train --resume {out} --budget +{budget}"


def lower_rates(state: RunState) -> str:
    """The options that halve the peak learning rates."""
    optim = state.config.optim
    names = [name for name in ("lr", "matrix_lr") if hasattr(optim.entry, name)]
    return "lower learning rate: --set " + " ".join(f"optim.{name}={getattr(optim, name) / 2:.3g}" for name in names)


def lengthened(timetable: Timetable, step: int, factor: int) -> Timetable:
    """The timetable from `step` on if the run had `factor` times as many steps."""
    end = factor * timetable.total_steps
    progress = min(timetable.read(step) / timetable.read(end), 0.999)
    return timetable.decide(Decision(at_step=step, steps=end, progress=progress))


def epochs_of(state: RunState, timetable: Timetable) -> float:
    """Passes over the text by the end of the run, all sources together."""
    unique = sum(state.prepared.train_tokens(name) for name in state.prepared.sources)
    return state.batches.tokens(timetable.total_steps) / unique if unique else 0.0
