"""Makes the pilots of a planned run: tiny complete runs on its prepared text. Uses recorded ones if there are any.

Rank 0 makes them alone, before anything of the run itself exists. Each leaves only a line in
$ISOFLOP_HOME/pilots-2.jsonl, where a later plan for the same text and recipe finds it. Their time is part of the
budget. The run sets its random seeds when it starts, so its bits do not depend on whether there were pilots.
"""

import contextlib
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from isoflop.data.fewer_merges import FewerMerges, has_merges
from isoflop.data.manifest import Data
from isoflop.data.prepare import Prepared
from isoflop.errors import UserError
from isoflop.files import abandoned, home, locked, spool
from isoflop.parallel.mesh import ALONE
from isoflop.plan.advice import Advice
from isoflop.plan.pilot import OVERHEAD, SHARE, TOO_SMALL, Pilots, design_pilot, measured_tokens
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

PILOTS_FILE = "pilots-2.jsonl"  # pilots.jsonl was that of versions whose pilots had the run's vocabulary
MARGIN = 2  # times the tokens that a pilot reads: the text that is kept for it
REUSE_RATIO = 0.5  # compute of the largest recorded pilot, relative to the largest planned one, that suffices


@dataclass
class FinalMeasurement(Hook):
    """Measures the held-out loss after the last step."""

    tokens: int
    bits_per_byte: float = math.nan

    def ended(self, state: RunState) -> None:
        if state.done:
            with state.averaged():
                heldout = state.task.measure(state.model, state.prepared, state.runtime, self.tokens)
            self.bits_per_byte = heldout.bits_per_byte


@dataclass
class PilotMaker:
    """Makes the pilots of a plan, once: a second plan reuses those of the first.

    Attributes:
        say: called with one line of text at a time.
        pilots: the results; None before they are made.
        fingerprint: of the data that they were made on.
    """

    say: Callable[[str], None]
    pilots: Pilots | None = None
    fingerprint: str = ""

    def __call__(self, advice: Advice, data: Data) -> Pilots:
        if self.pilots is None:
            self.pilots, self.fingerprint = make_pilots(advice, data, self.say), data.fingerprint
        return self.pilots

    @property
    def seconds(self) -> float:
        """The part of the budget that pilots took."""
        return self.pilots.spent if self.pilots else 0.0

    def reuse(self, advice: Advice, data: Data) -> Pilots:
        """The pilots of the first plan, at no further cost, if the second plan has the same text; otherwise none."""
        pilots = self.pilots or Pilots()
        return replace(pilots, spent=0.0) if self.fingerprint == data.fingerprint else Pilots()


def make_pilots(advice: Advice, data: Data, say: Callable[[str], None]) -> Pilots:
    """Find the pilot of a plan among the recorded ones, or make it.

    Raises:
        KeyboardInterrupt: a signal arrived.
    """
    import_module("torch._dynamo")  # torch's first optimiser does: a second that every run pays, and no pilot should
    started, other_recipe = time.monotonic(), bool(advice.differences)
    design = design_pilot(advice, other_recipe, isinstance(data, Prepared) and has_merges(data.tokenizer))
    if design is None:
        return Pilots(note=TOO_SMALL)

    key = recipe_key(advice.config, advice.differences)
    recorded = recorded_pilot(data.fingerprint, key)
    if recorded and (recorded.flops or 0.0) >= REUSE_RATIO * 6.0 * design.tokens * matmul_weights(design):
        say("pilot: one on this text is on record")
        return Pilots((recorded,))

    say(f"pilot: a tiny run on this text, to forecast the loss: at most {SHARE:.0%} of the budget")
    in_seconds = advice.budget.kind == "seconds"
    runs: tuple[PilotRun, ...] = ()
    text, unique_tokens = text_of(design, data, int(advice.unique_tokens or 0))
    left = SHARE * advice.budget.amount - (time.monotonic() - started)
    pilot = fit_to_time(design, left) if in_seconds else design
    note = "" if pilot else "no time was left for it"
    if pilot:
        try:
            runs = (train_pilot(pilot, text, unique_tokens),)
            record_pilot(runs[0], data.fingerprint, key)
        except (Diverged, UserError) as error:
            note = f"it ended early ({error})"
    return Pilots(runs, time.monotonic() - started if in_seconds else 0.0, note)


def fit_to_time(pilot: RunConfig, remaining: float) -> RunConfig | None:
    """A pilot with as many steps as fit into the remaining seconds; None if they are fewer than half of the planned."""
    seconds = (1 - OVERHEAD) * remaining
    if seconds < 0.5 * pilot.seconds:
        return None
    return replace(pilot, seconds=seconds, steps=max(1, round(pilot.steps * seconds / pilot.seconds)))


def text_of(pilot: RunConfig, data: Data, unique_tokens: int) -> tuple[Data, int]:
    """The text of a run with the vocabulary of a pilot, and about how many tokens all of it has.

    Args:
        unique_tokens: the same with the run's vocabulary.
    """
    if not isinstance(data, Prepared) or pilot.model.vocab_size >= data.vocab_size:
        return data, unique_tokens
    most = MARGIN * pilot.tokens + pilot.model.context, MARGIN * measured_tokens(pilot.tokens)
    text = FewerMerges(data, pilot.model.vocab_size, most)
    return text, text.unique_tokens


def train_pilot(pilot: RunConfig, data: Data, unique_tokens: int) -> PilotRun:
    """Train and evaluate one pilot.

    Args:
        unique_tokens: tokens in its text.

    Raises:
        Diverged, UserError: it ended early.
        KeyboardInterrupt: a signal arrived. There is nothing of the main run to resume yet, so the signal ends the
            process as anywhere else in planning.
    """
    started = time.monotonic()
    hook = FinalMeasurement(measured_tokens(pilot.tokens))
    try:
        with scratch_folder() as folder:
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
        seconds=round(time.monotonic() - started, 3),
    )


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder. Deletes those of earlier pilots whose process was killed, too."""
    top = spool()
    for old in top.glob("pilot-*"):
        with contextlib.suppress(OSError):
            if abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="pilot-", dir=top))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recorded_pilot(fingerprint: str, key: str) -> PilotRun | None:
    """The largest recorded pilot of a text and recipe; None without one, or if the file cannot be read."""
    try:
        lines = read_lines(home() / PILOTS_FILE)
    except UserError:
        return None
    runs = [PilotRun.read(line) for line in lines if (line.get("of"), line.get("recipe")) == (fingerprint, key)]
    runs = [run for run in runs if run.flops and run.bits_per_byte]
    if not runs:
        return None
    return replace(max(runs, key=lambda run: run.flops or 0.0), others={}, keys=None, reused=True)


def record_pilot(run: PilotRun, fingerprint: str, key: str) -> None:
    line = replace(run, others={"of": fingerprint, "recipe": key})
    with contextlib.suppress(OSError):  # it is then made again by the next plan
        append(home() / PILOTS_FILE, line)
