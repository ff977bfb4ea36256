"""What a run is on course for, said while it trains: a hook that makes forecasts (curve.py) from its records.

A forecast is a line of metrics.jsonl, made after each held-out measurement and every LOOKS-th of the run. It is a
function of the lines before it and of the decisions, so that a resumed run makes the same ones. It speaks of the loss
on all that is held out. If it leaves the interval that the plan stated, that is said once, with what can be done.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.budget import parse_budget
from isoflop.errors import UserError
from isoflop.optim.schedules import Decision, Timetable
from isoflop.records import EventLine, ForecastLine, HeldOutLine, Plan, TrainingLine
from isoflop.records.plan import Expectation
from isoflop.trainer.curve import LEVEL, Forecast, Schedule, Seen, forecast
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

LOOKS = 40  # forecasts in a run, beside those after held-out measurements
EARLIEST = 0.1  # progress
POINTS = 240  # of the schedule
MOST_HELD_OUT = 4_000_000  # tokens that a run is judged by in the end, at most
WINDOW, SCATTER = 256, 0.08  # standard deviation of the loss on so many tokens from place to place, as a share of it
OFF_COURSE = "off course"  # the event
IN_A_ROW, SAY_FROM = 2, 0.1  # forecasts outside of the plan's interval, and progress, before that is said
FEWER_STEPS = 0.9  # of the planned ones: then the machine is what is told of
MANY_EPOCHS = 4.0  # from which on repeated text is worth clearly less (Muennighoff et al. 2023, 2305.16264)


def schedule_of(timetable: Timetable, epochs: float, worth: float = 1.0) -> Schedule:
    """A timetable as curve.py needs it.

    Args:
        epochs: passes over the text in the whole run.
        worth: of a fall of the rate with the run's optimizer.
    """
    end, early = timetable.total_steps, timetable.warmup_steps
    steps = np.unique(np.concatenate([np.linspace(0, end, POINTS), np.linspace(0, min(2 * early, end), 16)]).round())
    unit = timetable.read(end) - timetable.read(end - 1)
    scale = [timetable.scale(min(int(step), end - 1)) for step in steps]
    read = [timetable.read(int(step)) / unit for step in steps]
    return Schedule(steps, np.array(scale), np.array(read), epochs / read[-1] if read[-1] else 0.0, worth)


@dataclass(frozen=True)
class Scale:
    """How the loss measured along the way becomes bits per byte on all that is held out.

    Attributes:
        bits: per byte, for one nat per token along the way.
        doubt: standard deviation of that factor, as a share of it: what is measured is a part.
    """

    bits: float
    doubt: float

    @classmethod
    def of(cls, lines: Sequence[HeldOutLine], measured: int, there: int) -> "Scale | None":
        """Read off the held-out lines so far.

        Args:
            measured: held-out tokens that each measurement reads; 0: all.
            there: held-out tokens in all; 0: unknown.
        """
        known = [line for line in lines if line.heldout_loss and line.heldout_bits_per_byte]
        if not known:
            return None
        whole = min(there, MOST_HELD_OUT)
        wide = next((line for line in reversed(known) if line.wide_bits_per_byte and line.wide_tokens), None)
        line, part = (wide, wide.wide_tokens) if wide is not None else (known[-1], measured or whole)
        assert line.heldout_loss
        bits = (line.wide_bits_per_byte if wide is not None else line.heldout_bits_per_byte) or 0.0
        left_out = max(0.0, 1 / part - 1 / whole) if part and whole else 0.0
        return cls(bits / line.heldout_loss, SCATTER * math.sqrt(WINDOW * left_out))


def look(seen: Seen, schedule: Schedule, scale: Scale | None) -> Forecast | None:
    """The forecast in bits per byte on all that is held out; None where too little was seen."""
    found = forecast(seen, schedule) if scale is not None else None
    if found is None or scale is None:
        return None
    found = found.doubted(scale.doubt)
    bits = scale.bits
    path = tuple((step, bits * value, bits * low, bits * high) for step, value, low, high in found.path)
    return Forecast(bits * found.value, bits * found.low, bits * found.high, path)


def seen_in(training: Sequence[TrainingLine], heldout: Sequence[HeldOutLine]) -> Seen:
    """What the lines of a log show."""
    losses = [(line.step, line.loss) for line in training if line.step is not None and line.loss is not None]
    measured = [(line.step, line.heldout_loss) for line in heldout if line.step is not None and line.heldout_loss]
    both = (np.array(pairs, dtype=np.float64).reshape(-1, 2).T for pairs in (losses, measured))
    return Seen(*next(both), *next(both))


class Course(Hook):
    """Makes the forecasts of a run, writes them, and tells the other hooks. In the first process alone.

    Args:
        plan: what was expected of the run.
        listeners: told of each forecast.
        say: gets one line if the run leaves the plan's interval.
    """

    def __init__(self, plan: Plan, listeners: Sequence[Hook], say: Callable[[str], None]) -> None:
        self.plan, self.listeners, self.say = plan, listeners, say
        self._steps, self._losses = array("d"), array("d")
        self._heldout: list[HeldOutLine] = []
        self._measured = -1
        self._outside: list[str] = []
        self._said = False

    def started(self, state: RunState) -> None:
        """Take up what is on record of a run that is resumed."""
        training = state.folder.lines("metrics", TrainingLine)
        logged = [line for line in training if line.loss is not None and line.step is not None]
        self._steps = array("d", [float(line.step or 0) for line in logged])
        self._losses = array("d", [float(line.loss or 0.0) for line in logged])
        heldout = state.folder.lines("metrics", HeldOutLine)
        self._heldout = [line for line in heldout if line.heldout_loss is not None]
        said = [event.event for event in state.folder.lines("events", EventLine)]
        since = len(said) - said[::-1].index("extended") if "extended" in said else 0
        self._said = OFF_COURSE in said[since:]

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._heldout.append(line)
        self._measured = state.step

    def stepped(self, state: RunState) -> None:
        line, timetable = state.line, state.timetable
        while self._steps and self._steps[-1] >= state.step:  # after a rollback
            self._steps.pop()
            self._losses.pop()
        if line is not None and line.step == state.step and state.due(state.config.every.log):
            self._steps.append(state.step)
            self._losses.append(line.loss if line.loss is not None else math.nan)

        every = max(1, timetable.total_steps // LOOKS)
        due = self._measured == state.step or state.step % every == 0
        if not due or state.done or timetable.progress(state.step) < EARLIEST:
            return
        self._heldout = [line for line in self._heldout if (line.step or 0) <= state.step]
        found = self.look(state, timetable)
        if found is None:
            return
        outlook = self.line(state, found)
        state.folder.append("metrics", outlook)
        for listener in self.listeners:
            listener.forecast(state, outlook)
        self.compare(state, found)

    def look(self, state: RunState, timetable: Timetable) -> Forecast | None:
        heldout = np.array([(line.step, line.heldout_loss) for line in self._heldout], dtype=np.float64)
        seen = Seen(np.array(self._steps), np.array(self._losses), *heldout.reshape(-1, 2).T)
        there = state.prepared.account().heldout.tokens or 0
        scale = Scale.of(self._heldout, state.config.evaluate_tokens, there)
        schedule = schedule_of(timetable, epochs_of(state, timetable), state.config.optim.entry.decay_worth)
        return look(seen, schedule, scale)

    @staticmethod
    def line(state: RunState, found: Forecast) -> ForecastLine:
        fan = [
            (state.batches.tokens(round(step)), *(round(value, 5) for value in values)) for step, *values in found.path
        ]
        return ForecastLine(
            step=state.step,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            end_step=state.timetable.total_steps,
            forecast_bits_per_byte=found.value,
            forecast_low=found.low,
            forecast_high=found.high,
            forecast_level=LEVEL,
            fan=tuple(fan),
        )

    def compare(self, state: RunState, found: Forecast) -> None:
        """Say once that the forecast has left the plan's interval, after IN_A_ROW forecasts that did."""
        expected = self.plan.expected
        if self._said or expected is None or expected.low is None or expected.high is None:
            return
        where = "better" if found.high < expected.low else "worse" if found.low > expected.high else ""
        self._outside = [*self._outside, where] if where else []
        lately = self._outside[-IN_A_ROW:]
        if lately != [where] * IN_A_ROW or state.timetable.progress(state.step) < SAY_FROM:
            return
        self._said = True
        reason = f"{told(found, expected, where)}: {self.advice(state, where)}"
        state.folder.event(OFF_COURSE, step=state.step, reason=reason)
        self.say(f"step {state.step:,}: {reason}")

    def advice(self, state: RunState, where: str) -> str:
        """Why a run may have left its plan's interval, by what is on record, and what to do."""
        if where == "better":
            return "nothing is wrong, the plan expected too little of this text"
        config, plan, out = state.config, self.plan, state.folder.path
        lost = sum(line.action in ("skip", "rollback") for line in state.skips)
        if lost > 0.01 * state.step:
            return f"{lost:,} steps went wrong and were left out; begin again with a {lower_rates(state)}"
        losses = [line.heldout_loss for line in self._heldout if line.heldout_loss]
        epochs = epochs_of(state, state.timetable)
        rising = len(losses) > 2 and losses[-1] > 1.01 * min(losses)
        if rising and epochs > 1:
            return f"held-out loss rises, the text is learned by heart in {epochs:.0f} epochs; name more text"
        if rising:
            return f"held-out loss rises; begin again with a {lower_rates(state)}"
        total = state.timetable.total_steps
        if config.seconds and plan.steps and total < FEWER_STEPS * plan.steps:
            share = f"{total:,} of {plan.steps:,} planned steps fit into the time"
            return f"{share}; stop what runs beside it, or add time in the end: {more(self.plan, out)}"
        if epochs > MANY_EPOCHS:
            return f"the text will be read {epochs:.0f} times; name more text"
        if not config.schedule.entry.stable:
            return "this text or these settings are harder than the plan took them for; a larger --budget helps"
        doubled = self.look(state, longer(state.timetable, state.step, 2))
        gain = f"twice the steps would be on course for {doubled.value:.2f}; " if doubled else ""
        return f"this text or these settings are harder than the plan took them for; {gain}{more(self.plan, out)}"


def told(found: Forecast, expected: Expectation, where: str) -> str:
    """A forecast beside the plan's interval, in words."""
    outlook = f"on course for {found.value:.2f} bits per byte ({found.low:.2f} to {found.high:.2f})"
    return f"{outlook}, {where} than the plan's {expected.low:.2f} to {expected.high:.2f}"


def more(plan: Plan, out: object) -> str:
    """The command that doubles a run's budget when it has ended."""
    try:
        budget = parse_budget(plan.budget or "")
    except UserError:
        return f"when it has ended: isoflop train --resume {out} --budget +10m"
    return f"when it has ended: isoflop train --resume {out} --budget +{budget}"


def lower_rates(state: RunState) -> str:
    """Half of the peak rates, as they are set."""
    optim = state.config.optim
    names = [name for name in ("lr", "matrix_lr") if hasattr(optim.entry, name)]
    return "lower rate: --set " + " ".join(f"optim.{name}={getattr(optim, name) / 2:.3g}" for name in names)


def longer(timetable: Timetable, step: int, times: int) -> Timetable:
    """A run's timetable from `step` on if it had so many times the steps."""
    end = times * timetable.total_steps
    progress = min(timetable.read(step) / timetable.read(end), 0.999)
    return timetable.decide(Decision(at_step=step, steps=end, progress=progress))


def epochs_of(state: RunState, timetable: Timetable) -> float:
    """Passes over the text by the end of a run, all sources together."""
    unique = sum(state.prepared.train_tokens(name) for name in state.prepared.sources)
    return state.batches.tokens(timetable.total_steps) / unique if unique else 0.0
