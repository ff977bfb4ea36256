"""The pilots of a planned run, made: tiny complete runs on its prepared text, or those that are on record.

They are made by the first process alone, before anything of the run itself exists, and leave nothing but a line each in
$ISOFLOP_HOME/pilots.jsonl, by which a second plan for the same text and recipe finds them. What they took is part of
the budget. A run's seeds are set when it begins, so that its bits do not depend on whether there were pilots.
"""

import contextlib
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.files import abandoned, held, home, spool
from isoflop.parallel.mesh import ALONE
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import AROUND, PARTS, SHARE, Pilots, designs, measured_tokens
from isoflop.plan.recipe import recipe_key
from isoflop.records import PilotRun
from isoflop.records.ledger import append
from isoflop.records.lines import read_lines
from isoflop.trainer import RunConfig
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import Hook
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.signals import Interrupted
from isoflop.trainer.state import RunState
from isoflop.trainer.task import make_task
from isoflop.trainer.workload import matmul_weights

KEPT = "pilots.jsonl"
AS_LARGE = 0.5  # times the compute of the largest pilot meant that one on record must have to be used in its place


@dataclass
class Measured(Hook):
    """Measures the model at the end of the last step."""

    tokens: int
    bits_per_byte: float = math.nan

    def ended(self, state: RunState) -> None:
        if state.done:
            found = state.task.measure(state.model, state.prepared, state.runtime, self.tokens)
            self.bits_per_byte = found.bits_per_byte


@dataclass
class PilotMaker:
    """Makes the pilots of a plan, once: a run that begins anew takes those that were made for its first plan.

    Attributes:
        say: gets one line of text at a time.
        found: what came of them.
        of: the fingerprint of the data that they were made on.
    """

    say: Callable[[str], None]
    found: Pilots | None = None
    of: str = ""

    def __call__(self, advice: Advice, data: Data) -> Pilots:
        if self.found is None:
            self.found, self.of = make(advice, data, self.say), data.fingerprint
        return self.found

    def again(self, advice: Advice, data: Data) -> Pilots:
        """Those of the first plan, where the second one has the same text; they take nothing more."""
        known = self.found or Pilots()
        return replace(known, spent=0.0) if self.of == data.fingerprint else Pilots()


def make(advice: Advice, data: Data, say: Callable[[str], None]) -> Pilots:
    """Find the pilots of a plan on record, or make them.

    Raises:
        KeyboardInterrupt: a signal came; nothing is left of them but the lines of those that ended.
    """
    began, strange = time.monotonic(), bool(advice.differences)
    meant = designs(advice, strange)
    if not meant:
        return Pilots(note="the share of the budget that they may take is too small for a run")
    key = recipe_key(advice.config)
    largest = max(pilot.tokens * float(matmul_weights(pilot)) * 6 for pilot in meant)
    known = on_record(data.fingerprint, key)
    if known and max(run.flops or 0.0 for run in known) >= AS_LARGE * largest:
        say(f"pilots: {len(known)} on this text are on record")
        return Pilots(known)

    say(f"pilots: {len(meant)} tiny runs on this text, at most {SHARE:.0%} of the budget")
    timed = advice.budget.kind == "seconds"
    ends = began + SHARE * advice.budget.amount if timed else math.inf
    runs: list[PilotRun] = []
    note = ""
    for number, design in enumerate(meant):
        last = number == len(meant) - 1
        pilot = in_time(design, ends - time.monotonic(), last) if timed else design
        if pilot is None:
            note = "what the first one took left no time for another"
            break
        try:
            run = one_pilot(pilot, data, int(advice.unique_tokens or 0))
        except (Diverged, UserError) as error:
            note = f"one ended early ({error})"
            break
        runs.append(run)
        keep(run, data.fingerprint, key)
    return Pilots(tuple(runs), time.monotonic() - began if timed else 0.0, note)


def in_time(pilot: RunConfig, left: float, last: bool) -> RunConfig | None:
    """A pilot held to what is left of the time for them; None where that is too little for it."""
    seconds = (1 - AROUND) * left if last else min(pilot.seconds, (1 - AROUND) * left)
    if seconds < 0.5 * pilot.seconds:
        return None
    return replace(pilot, seconds=seconds, steps=max(1, round(pilot.steps * seconds / pilot.seconds)))


def one_pilot(pilot: RunConfig, data: Data, unique_tokens: int) -> PilotRun:
    """Train one and measure it.

    Raises:
        Diverged, UserError: it ended early.
        KeyboardInterrupt: a signal came. Nothing of the run is there that could be resumed, so it ends what is going on
            as it would anywhere else in planning.
    """
    began = time.monotonic()
    hook = Measured(measured_tokens(pilot.tokens))
    try:
        with scratch() as folder:
            result = train_steps(
                pilot,
                folder / "run",
                hooks=[hook],
                prepared=data,
                task=make_task(pilot),
                group=ALONE,
                saved=False,
            )
    except Interrupted as stop:
        signal.raise_signal(stop.signum)
        raise KeyboardInterrupt from None
    if not math.isfinite(hook.bits_per_byte):
        raise UserError("its held-out loss is not finite")
    return PilotRun(
        parameters=matmul_weights(pilot),
        tokens=result.tokens,
        flops=result.flops,
        unique_tokens=unique_tokens,
        bits_per_byte=hook.bits_per_byte,
        layers=pilot.model.layers,
        d_model=pilot.model.d_model,
        steps=result.step,
        seconds=round(time.monotonic() - began, 3),
    )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards; what a kill left of earlier ones goes first."""
    top = spool()
    for left in top.glob("pilot-*"):
        with contextlib.suppress(OSError):
            if abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="pilot-", dir=top))
    try:
        with held(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def on_record(fingerprint: str, key: str) -> tuple[PilotRun, ...]:
    """The pilots that were made on a text with a recipe, the largest two; none where the file cannot be read."""
    try:
        lines = read_lines(home() / KEPT)
    except UserError:
        return ()
    found = [PilotRun.read(line) for line in lines if (line.get("of"), line.get("recipe")) == (fingerprint, key)]
    found = [run for run in found if run.flops and run.bits_per_byte]
    largest = sorted(found, key=lambda run: run.flops or 0.0)[-len(PARTS) :]
    return tuple(replace(run, others={}, keys=None, reused=True) for run in largest)


def keep(run: PilotRun, fingerprint: str, key: str) -> None:
    line = replace(run, others={"of": fingerprint, "recipe": key})
    with contextlib.suppress(OSError):  # then it is made again the next time
        append(home() / KEPT, line)
