"""Output for a person while isoflop works: progress bars on a terminal, plain lines elsewhere."""

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
from isoflop.optim.timetable import Decision
from isoflop.parallel.launch import is_main
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import why_no_forecast
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

Outcome = TypeVar("Outcome")
LINES = 20  # plain lines that a run prints without a terminal
BAR, BAR_FROM = 24, 76  # columns of a progress bar, and of the narrowest terminal that has one
AROUND_BAR = 16  # columns of percentage, time left and the blanks between them
LARGE_MOVE = 0.1  # share of the run; a larger move of its end is reported at once, smaller ones are counted


class Screen(Hook):
    """Shows preparation and training.

    Args:
        quiet: show nothing.
        is_result: the output is the result of the command; `require_shown` raises if it cannot be written.

    Attributes:
        live_bars: whether progress is shown as bars.
        peak: the machine's peak FLOP/s in the run's dtype; 0: unknown.
    """

    def __init__(self, quiet: bool = False, is_result: bool = False) -> None:
        self._output = Shown(reports=not is_result)
        self.console = Console(file=cast(IO[str], self._output), quiet=quiet, highlight=False, force_jupyter=False)
        self.live_bars = self._output.isatty() and not self.console.is_dumb_terminal and not quiet
        self.peak = 0.0
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._heldout = ""
        self._forecast: tuple[str, str] = ("", "")  # what the run is on course for, and the interval
        self._last_update = 0.0
        self._end_moves, self._end = 0, 0

    @property
    def width(self) -> int | None:
        """Columns that lines are wrapped to; None: no wrapping."""
        return self.console.width if self._output.isatty() else width_without_terminal()

    def say(self, text: str, verbatim: bool = False) -> None:
        """Print text above the bars, if there are any. Markup is not interpreted.

        Args:
            verbatim: do not wrap lines.
        """
        for line in text.split("\n") if verbatim else wrapped(text, self.width, indent=2):
            self._print(Text(line))

    def reasons(self, rows: list[tuple[str, str, str]]) -> None:
        """Print rows of name, value and reason, in columns."""
        for first, why in reasons(rows, self.width):
            self._print(Text.assemble(first, (why, "dim")))

    def require_shown(self) -> None:
        """Check that all output was written, for a command whose output is its result.

        Raises:
            OutputLost: if some of it could not be written.
        """
        lost = self._output.lost
        if isinstance(lost, OSError):
            raise OutputLost(lost.errno, lost.strerror)

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show the progress of a stage, in bytes. Called by isoflop.data.prepare."""
        if not self.live_bars:
            if stage != self._stage:
                self.say(f"{stage} ...")
            self._stage = stage
            return
        bars = self._open(stage)
        assert self._task is not None
        size = [f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"] if total else []
        text = escape(self._fit([*size, *([note] if note else [])]))
        bars.update(self._task, completed=done, total=total or None, text=text)
        if total and done >= total:
            self.close()

    def started(self, state: RunState) -> None:
        self._stage = ""
        self._last_update = -math.inf
        self._forecast = "", ""
        self._end_moves, self._end = 0, state.timetable.total_steps
        if state.step:
            self.say(f"resumes from step {state.step:,}")

    def stepped(self, state: RunState) -> None:
        line = state.line
        if line is None:
            return
        total = state.timetable.total_steps
        if self.live_bars:
            if time.monotonic() - self._last_update < 0.1 and not state.done:
                return
            self._last_update = time.monotonic()
            bars = self._open("training")
            assert self._task is not None
            bars.update(self._task, completed=state.step, total=total, text=self._training_text(state, line))
        elif state.step * LINES // total != (state.step - 1) * LINES // total or state.done:
            status = "  ".join(self._status_parts(state, line))
            self.say(f"step {state.step:,}/{total:,}  {status}  {time_left(state)} left")
        if state.done:
            self.close()

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._heldout = f"held-out {line.heldout_bits_per_byte:.3f} bits/byte"

    def forecast(self, state: RunState, line: ForecastLine) -> None:
        value, low, high = (line.forecast_bits_per_byte or 0.0, line.forecast_low or 0.0, line.forecast_high or 0.0)
        digits = 2 if value >= 1 else 3
        self._forecast = f"on course for {value:.{digits}f}", f" ({low:.{digits}f} to {high:.{digits}f})"

    def noticed(self, state: RunState, text: str) -> None:
        self.say(text)

    def troubled(self, state: RunState, line: SkipLine) -> None:
        if line.action != "keep":  # kept spikes are counted at the end
            self.say(describe_bad_step(line))

    def decided(self, state: RunState, decision: Decision) -> None:
        self._end_moves += 1
        if self._end_moves == 1 or abs(decision.steps - self._end) > LARGE_MOVE * self._end:
            self._end = decision.steps
            self.say(f"step {decision.at_step:,}: the end moves to step {decision.steps:,}: {decision.reason}")

    def ended(self, state: RunState) -> None:
        self.close()
        last_step = state.timetable.total_steps
        if self._end_moves > 1 and last_step != self._end:
            moves = f"the end moved {self._end_moves:,} times in all"
            self.say(f"{moves}, with the speed of the steps: to step {last_step:,}")

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

    def _training_text(self, state: RunState, line: TrainingLine) -> str:
        """The text next to a bar. The interval of the forecast is omitted if there is no room for it."""
        full, short = (self._fit(self._status_parts(state, line, interval)) for interval in (True, False))
        return full if "".join(self._forecast) in full else short

    def _status_parts(self, state: RunState, line: TrainingLine, interval: bool = True) -> list[str]:
        """The parts of a status line, the most important first."""
        rate = line.tokens_per_second or 0.0
        speed = rate * state.flops_per_token
        share = f" ({speed / self.peak:.0%} of peak)" if self.peak > speed else ""
        epochs = state.tokens / max(1, sum(state.prepared.train_tokens(name) for name in state.prepared.sources))
        return [
            f"loss {line.loss:.3f}",
            *(["".join(self._forecast) if interval else self._forecast[0]] if self._forecast[0] else []),
            *([self._heldout] if self._heldout else []),
            f"{rate:,.0f} tok/s",
            f"{speed / 1e9:,.0f} GFLOP/s{share}",
            f"{state.tokens / 1e6:.2f}M tokens, {epochs:.2f} epochs",
        ]

    def _fit(self, parts: list[str]) -> str:
        """As many parts of a bar's text as fit next to the bar."""
        width = self.console.width
        return fitted(parts, width - len(self._stage) - AROUND_BAR - (BAR + 1 if width >= BAR_FROM else 0))


def listener_for(screen: Screen, hooks: Sequence[Hook] = ()) -> Listener:
    """A job's listener that shows everything on a screen.

    Args:
        hooks: further hooks, called before the screen.
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
class JobScreen:
    """The listener of a job called from Python, and its screen.

    Attributes:
        screen: None if the caller has its own listener.
    """

    listener: Listener
    screen: Screen | None = None

    def outcome(self, outcome: Outcome) -> Outcome:
        """Show the result of a run. Returns `outcome`."""
        if self.screen is not None and isinstance(outcome, RunResult):
            show_outcome(self.screen, outcome.folder)
        return outcome


@contextlib.contextmanager
def open_screen(listener: Listener | None, quiet: bool) -> Iterator[JobScreen]:
    """A context with the listener of a job called from Python: its own `listener`; otherwise a screen, unless `quiet`
    or another process of the same job shows it."""
    if listener is not None or quiet or not is_main():
        yield JobScreen(listener or Listener())
        return
    screen = Screen()
    try:
        yield JobScreen(listener_for(screen), screen)
    finally:
        screen.close()


def describe_bad_step(line: SkipLine) -> str:
    """A line of skips.jsonl as a sentence: the bad step and how it was handled."""
    actions = {
        "skip": "the step is discarded",
        "rollback": f"returns to the last checkpoint and skips {line.tokens:,} tokens from that step on",
        "stop": "the run stops",
    }
    return f"step {line.step:,}: {line.reason}: {actions[line.action]}"


def describe_bad_steps(counted: BadSteps) -> str:
    """The bad steps of a run as a sentence; empty if there were none."""
    counts = [
        (counted.steps_left_out, f"steps discarded ({counted.left_out_tokens:,} tokens)"),
        (counted.rollbacks, f"rollbacks ({counted.passed_over_tokens:,} tokens skipped)"),
    ]
    parts = [f"{count:,} {words}" for count, words in counts if count]
    text = f"bad steps: {', '.join(parts)}" if parts else ""
    if counted.spikes_kept:
        single = counted.spikes_kept == 1
        spikes = f"{counted.spikes_kept:,} step{'' if single else 's'} with an unusually high loss or gradient norm"
        text += f"{'; ' if text else ''}{spikes}, kept"
    return text


def time_left(state: RunState) -> str:
    """The remaining training time at the average speed so far, in tokens."""
    if not state.step:
        return "?"
    read, end = state.timetable.read, state.timetable.total_steps
    seconds = (read(end) - read(state.step)) * state.seconds / read(state.step)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def show_runs(screen: Screen, folder: Path, rows: list[dict[str, Any]]) -> None:
    """Show a table of runs, see job.list_runs."""
    if not rows:
        screen.say(f"no runs in {folder}")
        return
    head = ("run", "status", "parameters", "steps", "tokens", "seconds", "bits/byte", "expected")
    for line in listing(head, [tuple(format_cell(value) for value in row.values()) for row in rows], screen.width):
        screen.say(line, verbatim=True)


def format_cell(value: Any) -> str:
    """A value in the table of runs."""
    if value is None:
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def show_plan(screen: Screen, advice: Advice) -> None:
    screen.close()
    screen.say(f"plan for {advice.budget.words()}")
    screen.reasons([(f"  {choice.name}", str(choice.value), choice.reason) for choice in advice.choices])
    if advice.expected:
        expected = advice.expected
        screen.say(
            f"  expected: {expected.bits_per_byte:.3f} bits per byte held-out, "
            f"{expected.low:.3f} to {expected.high:.3f} ({expected.level:.0%})"
        )
        screen.say(f"            {expected.source}")
    elif advice.differences:
        screen.say(f"  expected: no forecast, since the prior has no run like this: {'; '.join(advice.differences)}")
        screen.say(f"            {why_no_forecast(advice)}")
    else:
        screen.say("  expected: no forecast; the prior is only for planned GPTs with random initial weights")


def show_account(screen: Screen, account: DataAccount) -> None:
    """Show the account of the data: documents, tokens, and what was not used."""
    screen.close()
    heldout = account.heldout
    empty_documents = f"{account.empty:,} empty, " if account.empty else ""
    screen.say(
        f"{account.documents or 0:,} documents, {empty_documents}{account.duplicates or 0:,} duplicates dropped; "
        f"{account.train.tokens or 0:,} tokens to train on, {heldout.tokens or 0:,} held out ({heldout.how}), "
        f"{account.bytes_per_token or 0.0:.2f} bytes per token"
    )
    for line in account.not_used().all():
        screen.say(line)


def format_sample(sample: SampleLine) -> str:
    """A sample: the continuation of a prompt, or (seq2seq) an input, its output and the reference."""
    if sample.reference is None:
        return f"{sample.prompt}{sample.text}"
    return f"{sample.prompt} -> {sample.text} (reference: {sample.reference})"


def show_outcome(screen: Screen, folder: Path) -> None:
    """Show the results of a finished run."""
    run = read_run(folder)
    result, heldout, expected = run.result, run.result.heldout, run.plan.expected
    text = f"reached {heldout.bits_per_byte:.3f} bits per byte held-out (perplexity {heldout.perplexity:.1f})"
    if heldout.unit_error_rate is not None:
        text += f"; {heldout.unit_error_rate:.1%} unit errors, {heldout.exact_match:.1%} of outputs exact"
    if expected and result.verdict:
        verdicts = {
            "inside": "inside the interval",
            "better": "better than the interval",
            "worse": "worse than the interval",
        }
        text += f"; expected {expected.bits_per_byte:.3f} ({expected.low:.3f} to {expected.high:.3f}): "
        text += verdicts[result.verdict]
    if run.plan.init_bits_per_byte is not None:
        text += f"; {run.plan.init_bits_per_byte:.3f} before training, on the same text"
    screen.say(text)

    durations = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.phases.items())
    screen.say(f"spent: {durations}; {result.tokens:,} tokens, {result.flops:.3g} FLOPs")
    if bad_steps := describe_bad_steps(result.guard):
        screen.say(bad_steps)
    if run.samples:
        screen.say(f"a sample:\n{format_sample(run.samples[-1])}\n", verbatim=True)
    screen.say(f"report: {run.folder.report}")
    screen.say(f"talk to it: isoflop sample {quoted(folder)} --prompt TEXT")
