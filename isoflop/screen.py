"""What a person sees while isoflop works: progress bars on a terminal, plain lines elsewhere."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from isoflop.errors import quoted
from isoflop.job.listener import Listener
from isoflop.optim.schedules import Decision
from isoflop.parallel.launch import is_main
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import no_forecast
from isoflop.records import (
    BadSteps,
    DataAccount,
    ForecastLine,
    HeldOutLine,
    SampleLine,
    SkipLine,
    TrainingLine,
    read_run,
)
from isoflop.terminal import OutputLost, Shown, fitted, listing, reasons, width_without_terminal, wrapped
from isoflop.trainer import RunResult
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

Done = TypeVar("Done")
LINES = 20  # plain lines a run prints where there is no terminal
BAR, BAR_FROM = 24, 76  # columns of a progress bar, and of the terminal from which on there is one
AROUND_BAR = 16  # columns of percentage, time left and the blanks between them
FAR_MOVE = 0.1  # an end that moves by this share of the run is told at once; less is counted


class Screen(Hook):
    """Shows preparation and training.

    Args:
        quiet: show nothing.
        is_product: the output is what the command is for: where some cannot be written, `require_shown` says so.

    Attributes:
        peak: FLOP/s that this machine reaches at best in the run's dtype; 0 leaves the share out.
    """

    def __init__(self, quiet: bool = False, is_product: bool = False) -> None:
        self._shown_on = Shown(tells=not is_product)
        self.console = Console(file=cast(IO[str], self._shown_on), quiet=quiet, highlight=False, force_jupyter=False)
        self.live_bars = self._shown_on.isatty() and not self.console.is_dumb_terminal and not quiet
        self.peak = 0.0
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._heldout = ""
        self._course: tuple[str, str] = ("", "")  # what the run is on course for, and the interval
        self._shown = 0.0
        self._moves, self._end = 0, 0

    @property
    def width(self) -> int | None:
        """Columns that lines are wrapped to; None: they are not."""
        return self.console.width if self._shown_on.isatty() else width_without_terminal()

    def say(self, text: str, as_it_is: bool = False) -> None:
        """Text above the bars if there are any, markup and all, wrapped at blanks (or left alone: `as_it_is`)."""
        for line in text.split("\n") if as_it_is else wrapped(text, self.width, indent=2):
            self._print(Text(line))

    def reasons(self, rows: list[tuple[str, str, str]]) -> None:
        """Names, values and their reasons, in columns."""
        for first, why in reasons(rows, self.width):
            self._print(Text.assemble(first, (why, "dim")))

    def require_shown(self) -> None:
        """For a command whose output is its product.

        Raises:
            OutputLost: if some of it could not be written.
        """
        lost = self._shown_on.lost
        if isinstance(lost, OSError):
            raise OutputLost(lost.errno, lost.strerror)

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show how far a stage is, in bytes: what isoflop.data.prepare calls."""
        if not self.live_bars:
            if stage != self._stage:
                self.say(f"{stage} ...")
            self._stage = stage
            return
        bars = self._open(stage)
        assert self._task is not None
        size = [f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"] if total else []
        text = escape(self._fitted([*size, *([note] if note else [])]))
        bars.update(self._task, completed=done, total=total or None, text=text)
        if total and done >= total:
            self.close()

    def started(self, state: RunState) -> None:
        self._stage = ""
        self._shown = -math.inf
        self._course = "", ""
        self._moves, self._end = 0, state.timetable.total_steps
        if state.step:
            self.say(f"resumes from step {state.step:,}")

    def stepped(self, state: RunState) -> None:
        line = state.line
        if line is None:
            return
        total = state.timetable.total_steps
        if self.live_bars:
            if time.monotonic() - self._shown < 0.1 and not state.done:
                return
            self._shown = time.monotonic()
            bars = self._open("training")
            assert self._task is not None
            bars.update(self._task, completed=state.step, total=total, text=self._training(state, line))
        elif state.step * LINES // total != (state.step - 1) * LINES // total or state.done:
            words = "  ".join(self._words(state, line))
            self.say(f"step {state.step:,}/{total:,}  {words}  {left(state)} left")
        if state.done:
            self.close()

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._heldout = f"held-out {line.heldout_bits_per_byte:.3f} bits/byte"

    def forecast(self, state: RunState, line: ForecastLine) -> None:
        value, low, high = (line.forecast_bits_per_byte or 0.0, line.forecast_low or 0.0, line.forecast_high or 0.0)
        digits = 2 if value >= 1 else 3
        self._course = f"on course for {value:.{digits}f}", f" ({low:.{digits}f} to {high:.{digits}f})"

    def noticed(self, state: RunState, text: str) -> None:
        self.say(text)

    def troubled(self, state: RunState, line: SkipLine) -> None:
        if line.action != "keep":  # spikes that change nothing are counted at the end
            self.say(trouble_told(line))

    def decided(self, state: RunState, decision: Decision) -> None:
        self._moves += 1
        if self._moves == 1 or abs(decision.steps - self._end) > FAR_MOVE * self._end:
            self._end = decision.steps
            self.say(f"step {decision.at_step:,}: the end moves to step {decision.steps:,}: {decision.reason}")

    def ended(self, state: RunState) -> None:
        self.close()
        end = state.timetable.total_steps
        if self._moves > 1 and end != self._end:
            self.say(f"the end moved {self._moves:,} times in all, with the speed of the steps: to step {end:,}")

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None

    def _open(self, stage: str) -> Progress:
        if self._bars is None or stage != self._stage:
            self.close()
            self._stage = stage
            bar = [BarColumn(bar_width=BAR)] if self.console.width >= BAR_FROM else []
            self._bars = Progress(
                TextColumn("{task.description}"),
                *bar,
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=stage != "training",
            )
            self._bars.start()
            self._task = self._bars.add_task(stage, text="", total=None)
        return self._bars

    def _training(self, state: RunState, line: TrainingLine) -> str:
        """The text next to a bar: a forecast without its interval where that has no room."""
        whole, short = (self._fitted(self._words(state, line, interval)) for interval in (True, False))
        return whole if "".join(self._course) in whole else short

    def _words(self, state: RunState, line: TrainingLine, interval: bool = True) -> list[str]:
        """How the run is, what matters most first."""
        rate = line.tokens_per_second or 0.0
        speed = rate * state.flops_per_token
        share = f" ({speed / self.peak:.0%} of peak)" if self.peak > speed else ""
        epochs = state.tokens / max(1, sum(state.prepared.train_tokens(name) for name in state.prepared.sources))
        return [
            f"loss {line.loss:.3f}",
            *(["".join(self._course) if interval else self._course[0]] if self._course[0] else []),
            *([self._heldout] if self._heldout else []),
            f"{rate:,.0f} tok/s",
            f"{speed / 1e9:,.0f} GFLOP/s{share}",
            f"{state.tokens / 1e6:.2f}M tokens, {epochs:.2f} epochs",
        ]

    def _fitted(self, parts: list[str]) -> str:
        """Parts of a bar's text, as many as the terminal has room for next to the bar."""
        width = self.console.width
        return fitted(parts, width - len(self._stage) - AROUND_BAR - (BAR + 1 if width >= BAR_FROM else 0))


def listener_for(screen: Screen, hooks: Sequence[Hook] = ()) -> Listener:
    """A job's listener that shows everything on a screen.

    Args:
        hooks: further ones, told before the screen.
    """
    return Listener(
        say=screen.say,
        progress=screen.progress,
        planned=lambda advice: show_plan(screen, advice),
        prepared=lambda account: show_account(screen, account),
        hooks=(*hooks, screen),
        peak=lambda flops: setattr(screen, "peak", flops),
    )


@dataclass
class ShownJob:
    """A job called from Python, and who is told of it.

    Attributes:
        screen: None where the caller has a listener of its own.
    """

    listener: Listener
    screen: Screen | None = None

    def outcome(self, done: Done) -> Done:
        """Show what a run came to, and pass it on."""
        if self.screen is not None and isinstance(done, RunResult):
            show_outcome(self.screen, done.folder)
        return done


@contextlib.contextmanager
def shown(listener: Listener | None, quiet: bool) -> Iterator[ShownJob]:
    """Who is told of a job called from Python: its own `listener`, else a screen, unless `quiet` or another process of
    the same job shows it."""
    if listener is not None or quiet or not is_main():
        yield ShownJob(listener or Listener())
        return
    screen = Screen()
    try:
        yield ShownJob(listener_for(screen), screen)
    finally:
        screen.close()


def trouble_told(line: SkipLine) -> str:
    """A bad step and what was done about it: a line of skips.jsonl as a sentence."""
    done = {
        "skip": "the step is left out",
        "rollback": f"back to the last checkpoint, and {line.tokens:,} tokens from that step on are passed over",
        "stop": "the run stops",
    }
    return f"step {line.step:,}: {line.reason}: {done[line.action]}"


def bad_steps_told(counted: BadSteps) -> str:
    """The bad steps of a run as a sentence; empty if there were none."""
    said = [
        (counted.steps_left_out, f"steps left out ({counted.left_out_tokens:,} tokens)"),
        (counted.rollbacks, f"rollbacks ({counted.passed_over_tokens:,} tokens passed over)"),
    ]
    parts = [f"{count:,} {words}" for count, words in said if count]
    told = f"bad steps: {', '.join(parts)}" if parts else ""
    if counted.spikes_kept:
        one = counted.spikes_kept == 1
        spikes = f"{counted.spikes_kept:,} step{'' if one else 's'} with an unusually high loss or gradient norm"
        told += f"{'; ' if told else ''}{spikes}, trained on as usual"
    return told


def left(state: RunState) -> str:
    """Training time left at the average speed so far."""
    if not state.step:
        return "?"
    seconds = (state.timetable.total_steps - state.step) * state.seconds / state.step
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def show_runs(screen: Screen, folder: Path, rows: list[dict[str, Any]]) -> None:
    if not rows:
        screen.say(f"no runs in {folder}")
        return
    head = ("run", "status", "parameters", "steps", "tokens", "seconds", "bits/byte", "expected")
    for line in listing(head, [tuple(cell(value) for value in row.values()) for row in rows], screen.width):
        screen.say(line, as_it_is=True)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def show_plan(screen: Screen, advice: Advice) -> None:
    screen.close()
    screen.say(f"plan for {advice.budget.words()}")
    screen.reasons([(f"  {choice.name}", str(choice.value), choice.reason) for choice in advice.choices])
    if advice.expected:
        e = advice.expected
        screen.say(
            f"  expected: {e.bits_per_byte:.3f} bits per byte held-out, {e.low:.3f} to {e.high:.3f} ({e.level:.0%})"
        )
        screen.say(f"            {e.source}")
    elif advice.differences:
        screen.say(f"  expected: nothing is stated, as no such run was made yet: {'; '.join(advice.differences)}")
        screen.say(f"            {no_forecast(advice)}")
    else:
        screen.say("  expected: nothing is stated; the prior knows GPTs from scratch with a planned model only")


def show_account(screen: Screen, account: DataAccount) -> None:
    """What became of the text, and what of it was not used."""
    screen.close()
    held = account.heldout
    empty = f"{account.empty:,} empty, " if account.empty else ""
    screen.say(
        f"{account.documents or 0:,} documents, {empty}{account.duplicates or 0:,} duplicates dropped; "
        f"{account.train.tokens or 0:,} tokens to train on, {held.tokens or 0:,} held out ({held.how}), "
        f"{account.bytes_per_token or 0.0:.2f} bytes per token"
    )
    for line in account.not_used().all():
        screen.say(line)


def shown_sample(sample: SampleLine) -> str:
    """What a model wrote: on from a prompt, or for an input whose output is known."""
    if sample.reference is None:
        return f"{sample.prompt}{sample.text}"
    return f"{sample.prompt} -> {sample.text} (reference: {sample.reference})"


def show_outcome(screen: Screen, folder: Path) -> None:
    run = read_run(folder)
    result, held, expected = run.result, run.result.heldout, run.plan.expected
    reached = f"reached {held.bits_per_byte:.3f} bits per byte held-out (perplexity {held.perplexity:.1f})"
    if held.unit_error_rate is not None:
        reached += f"; {held.unit_error_rate:.1%} unit errors, {held.exact_match:.1%} of outputs exact"
    if expected and result.verdict:
        where = {
            "inside": "inside the interval",
            "better": "better than the interval",
            "worse": "worse than the interval",
        }
        reached += f"; expected {expected.bits_per_byte:.3f} ({expected.low:.3f} to {expected.high:.3f}): "
        reached += where[result.verdict]
    if run.plan.init_bits_per_byte is not None:
        reached += f"; {run.plan.init_bits_per_byte:.3f} before training, on the same text"
    screen.say(reached)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.phases.items())
    screen.say(f"spent: {spent}; {result.tokens:,} tokens, {result.flops:.3g} FLOPs")
    if bad := bad_steps_told(result.guard):
        screen.say(bad)
    if run.samples:
        screen.say(f"a sample:\n{shown_sample(run.samples[-1])}\n", as_it_is=True)
    screen.say(f"report: {run.folder.report}")
    screen.say(f"talk to it: isoflop sample {quoted(folder)} --prompt TEXT")
