"""What a person sees while isoflop works: progress bars on a terminal, plain lines elsewhere."""

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from isoflop.optim.schedules import Decision
from isoflop.plan.advice import Advice
from isoflop.records import BadSteps, DataAccount, HeldOutLine, SampleLine, SkipLine, TrainingLine, read_run
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

PLAIN_WIDTH = 200  # columns where there is no terminal to ask
LINES = 20  # plain lines a run prints where there is no terminal


class Terminal(Console):
    """A console whose other end may go away (a closed window, `| head`): then nothing more is shown, and what is being
    trained goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Screen(Hook):
    """Shows preparation and training. `quiet` shows nothing.

    Attributes:
        peak: FLOP/s that this machine reaches at best in the run's dtype; 0 leaves the share out.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Terminal(quiet=quiet, highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self.live_bars = self.console.is_terminal and not quiet
        self.peak = 0.0
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._heldout = ""
        self._shown = 0.0

    def say(self, text: str) -> None:
        """One line, above the bars if there are any. The text is shown as it is, markup and all."""
        self.console.print(escape(text), soft_wrap=True)

    def table(self, rows: list[tuple[str, ...]], title: str = "") -> None:
        """Rows in columns."""
        table = Table(
            box=None, title=title or None, title_justify="left", show_header=False, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for index in range(max(len(row) for row in rows)):
            table.add_column(no_wrap=index < 2, overflow="fold", style="dim" if index == 2 else None)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    def progress(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show how far a stage is, in bytes: what isoflop.data.prepare calls."""
        if not self.live_bars:
            if stage != self._stage:
                self.say(f"{stage} ...")
            self._stage = stage
            return
        bars = self._open(stage)
        assert self._task is not None
        shown = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB {note}" if total else note
        bars.update(self._task, completed=done, total=total or None, text=escape(shown))
        if total and done >= total:
            self.close()

    def started(self, state: RunState) -> None:
        self._stage = ""
        self._shown = -math.inf
        if state.step:
            self.say(f"going on from step {state.step:,}")

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
            bars.update(self._task, completed=state.step, total=total, text=self._words(state, line))
        elif state.step * LINES // total != (state.step - 1) * LINES // total or state.done:
            self.say(f"step {state.step:,}/{total:,}  {self._words(state, line)}  {left(state)} left")
        if state.done:
            self.close()

    def measured(self, state: RunState, line: HeldOutLine) -> None:
        self._heldout = f"  held-out {line.heldout_bits_per_byte:.3f} bits/byte"

    def noticed(self, state: RunState, text: str) -> None:
        self.say(text)

    def troubled(self, state: RunState, line: SkipLine) -> None:
        if line.action != "keep":  # spikes that change nothing are counted at the end
            self.say(trouble_told(line))

    def decided(self, state: RunState, decision: Decision) -> None:
        self.say(f"step {decision.at_step:,}: the end moves to step {decision.steps:,}: {decision.reason}")

    def ended(self, state: RunState) -> None:
        self.close()

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._task = None, None

    def _open(self, stage: str) -> Progress:
        if self._bars is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=stage != "training",
            )
            self._bars.start()
            self._task = self._bars.add_task(stage, text="", total=None)
        return self._bars

    def _words(self, state: RunState, line: TrainingLine) -> str:
        rate = line.tokens_per_second or 0.0
        speed = rate * state.flops_per_token
        share = f" ({speed / self.peak:.0%} of peak)" if self.peak else ""
        epochs = state.tokens / max(1, sum(state.prepared.train_tokens(name) for name in state.prepared.sources))
        return (
            f"loss {line.loss:.3f}{self._heldout}  {rate:,.0f} tok/s  {speed / 1e9:,.0f} GFLOP/s{share}  "
            f"{state.tokens / 1e6:.2f}M tokens, {epochs:.2f} epochs"
        )


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
        (counted.spikes_kept, "spikes, kept"),
    ]
    parts = [f"{count:,} {words}" for count, words in said if count]
    return f"numbers gone wrong: {', '.join(parts)}" if parts else ""


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
    screen.table([head, *(tuple(cell(value) for value in row.values()) for row in rows)])


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def show_plan(screen: Screen, advice: Advice) -> None:
    screen.close()
    screen.say(f"plan for {advice.budget}")
    screen.table([(f"  {choice.name}", choice.value, choice.reason) for choice in advice.choices])
    if advice.expected:
        e = advice.expected
        screen.say(
            f"  expected: {e.bits_per_byte:.3f} bits per byte held-out, {e.low:.3f} to {e.high:.3f} ({e.level:.0%})"
        )
        screen.say(f"            {e.source}")
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
    screen.say(reached)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.phases.items())
    screen.say(f"spent: {spent}; {result.tokens:,} tokens, {result.flops:.3g} FLOPs")
    if bad := bad_steps_told(result.guard):
        screen.say(bad)
    if run.samples:
        screen.say(f"a sample:\n{shown_sample(run.samples[-1])}\n")
    screen.say(f"report: {run.folder.report}")
    screen.say(f"talk to it: isoflop sample {folder} --prompt TEXT")
