"""Makes the runs of one size: a run, back to before its decay, on to twice its length, and so on.

    0 ────────────┬╲ 1                    each ╲ is a decay to the floor, and what was reached is measured at its end
                  └────────────┬╲ 2
                               └──────────────────────┬╲ 4

It is what `isoflop train --resume RUN --budget +...` does (job/extend.py), without report and samples. Each run is a
line of runs.jsonl when it ends; a piece that was killed continues from its last checkpoint.
"""

import hashlib
import json
import math
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop import checkpoint
from isoflop.config import to_key
from isoflop.data.manifest import Data
from isoflop.files import disk_errors
from isoflop.job.pilots import FinalMeasurement
from isoflop.model.registry import trust_code
from isoflop.optim.timetable import Decision
from isoflop.plan.settings import scaled
from isoflop.records import RunFolder, read_lines
from isoflop.records.ladder import LadderRun
from isoflop.records.ledger import append
from isoflop.trainer import RunConfig
from isoflop.trainer import train as train_steps
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.signals import Interrupted
from isoflop.trainer.task import Task, make_task
from isoflop.trainer.workload import matmul_weights

FORMAT = 1  # of what a run is: a higher one where the same configuration gives another run
MEASURED = 400_000  # held-out tokens, the same for every run; all of them where there are fewer
RUNS = "runs.jsonl"


@dataclass(frozen=True)
class Piece:
    """Runs of one size, one seed and one factor of the rates, which share their beginning.

    Attributes:
        config: of the shortest of all lengths, with `steps` for it.
        lengths: the runs to make, in ascending order.
        factor: what the learning rates of `config` are over the plan's. It decides nothing: the configuration has it.
        role: what it is for. It decides nothing.
        data: the folder of the prepared data; fingerprint: of them; unique_tokens: that they have.
        folder: of the ladder.
        done: keys of the runs that are on record.
        until: Unix seconds after which no further run is begun.
        trusted: packages whose blocks the configuration may name.
    """

    config: RunConfig
    lengths: tuple[int, ...]
    factor: float
    role: str
    data: str
    fingerprint: str
    unique_tokens: int
    folder: Path
    done: frozenset[str] = frozenset()
    until: float = math.inf
    trusted: tuple[str, ...] = ()

    def key(self, length: int) -> str:
        """Hexadecimal digits that stand for all that decides a run. Where and by how many threads it is computed does
        not."""
        plain = to_key(self.config)
        config = {name: value for name, value in plain.items() if name not in ("data", "runtime", "every", "guard")}
        deciding = [FORMAT, config, self.config.runtime.dtype, length, self.fingerprint]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def missing(self) -> tuple[int, ...]:
        """The lengths that are not on record."""
        return tuple(length for length in self.lengths if self.key(length) not in self.done)

    @property
    def path(self) -> Path:
        """The folder of its run while it is made."""
        return self.folder / "going" / self.key(self.lengths[0])

    def __str__(self) -> str:
        model = self.config.model
        return f"{model.layers} x {model.d_model}"


def config_for(config: RunConfig, steps: int, factor: float, seed: int) -> RunConfig:
    """The configuration of the shortest run of a size: nothing is written but the checkpoints that longer ones continue
    from."""
    made = scaled(config, factor) if factor != 1.0 else config
    every = replace(made.every, log=max(1, steps // 10), evaluate=0, sample=0, suite=0, diagnose=0, checkpoint=steps)
    return replace(
        made,
        steps=steps,
        seed=seed,
        seconds=0.0,
        every=replace(every, keep=2, keep_best=False, keep_every=0, background=False),
        guard=replace(made.guard, preflight=False),
        trackers=(),
    )


def perform(piece: Piece) -> tuple[LadderRun, ...]:
    """Make the runs of a piece that are missing, as long as there is time for one more.

    Returns:
        Those that were made now. A run that diverged is one of them, and the last.

    Raises:
        KeyboardInterrupt: a signal came; what was trained is saved, and the next call continues from there.
    """
    made: list[LadderRun] = []
    with trust_code(*piece.trusted):
        task = make_task(piece.config)
        data = task.open_data(Path(piece.data), verify_checksums=False)
        per_step = 0.0
        for length in piece.missing:
            steps = piece.config.steps * length
            if per_step * (steps - done_steps(piece)) > piece.until - time.time():
                break
            before, began = done_steps(piece), time.monotonic()
            run = one_run(piece, length, task, data)
            per_step = (time.monotonic() - began) / max(1, steps - before)
            with disk_errors(f"the ladder's folder {piece.folder}"):
                append(piece.folder / RUNS, run)
            made.append(run)
            if run.diverged:
                break
    if len(made) == len(piece.missing) or any(run.diverged for run in made):
        shutil.rmtree(piece.path, ignore_errors=True)
    return tuple(made)


def one_run(piece: Piece, length: int, task: Task, data: Data) -> LadderRun:
    """Make one run and measure it."""
    config, began = piece.config, time.monotonic()
    hook = FinalMeasurement(MEASURED)
    weights, steps = matmul_weights(config), config.steps * length
    tokens = config.tokens_before(steps)
    try:
        resume, decided = ready(piece, steps)
        train_steps(config, piece.path, hooks=[hook], prepared=data, task=task, resume=resume, decisions=decided)
        bits: float | None = hook.bits_per_byte
    except Diverged:
        bits = None
    except Interrupted as stop:
        signal.raise_signal(stop.signum)
        raise KeyboardInterrupt from None
    reached = bits if bits is not None and math.isfinite(bits) else None
    return LadderRun(
        key=piece.key(length),
        role=piece.role,
        layers=config.model.layers,
        d_model=config.model.d_model,
        parameters=weights,
        tokens=tokens,
        flops=6.0 * weights * tokens,
        steps=steps,
        length=length,
        unique_tokens=piece.unique_tokens,
        seed=config.seed,
        factor=piece.factor,
        bits_per_byte=reached,
        diverged=reached is None,
        seconds=round(time.monotonic() - began, 3),
        time=time.time(),
    )


def ready(piece: Piece, steps: int) -> tuple[bool, tuple[Decision, ...]]:
    """Make a piece's folder ready for the run that ends after `steps` steps.

    Returns:
        Whether it is resumed, and what is decided of a run that begins.
    """
    folder, config = RunFolder(piece.path), piece.config
    begin = () if steps == config.steps else (Decision(at_step=0, steps=steps, progress=0.0, reason="a longer run"),)
    if not folder.config.exists():
        shutil.rmtree(piece.path, ignore_errors=True)
        return False, begin
    taken = tuple(Decision.from_dict(line) for line in read_lines(folder.log("decisions")))
    timetable = config.timetable(taken)
    if timetable.total_steps == steps:
        return True, ()

    # back to before the decay, as job/extend.py does
    at, saved = timetable.decay_step, checkpoint.steps(folder.checkpoints)
    if at is None or at not in saved:
        shutil.rmtree(piece.path, ignore_errors=True)
        return False, begin
    with folder.locked():
        for step in saved:
            if step > at:
                checkpoint.remove(checkpoint.at_step(folder.checkpoints, step))
        folder.drop_lines_after(at, drop_skips=True)
        progress = min(timetable.read(at) / timetable.read(steps), 0.999)
        decision = Decision(at_step=at, steps=steps, progress=progress, reason="a longer run")
        folder.append("decisions", decision.line(time.time()), durable=True)
    return True, ()


def done_steps(piece: Piece) -> int:
    """Steps that a piece has taken and that its next run need not take again; about, for an estimate of time."""
    saved = checkpoint.steps(RunFolder(piece.path).checkpoints)
    return saved[0] if saved else 0


def rows(folder: Path) -> dict[str, LadderRun]:
    """The runs on record in a ladder's folder, by key.

    Raises:
        UserError: for a broken line that is not the last.
    """
    found: dict[str, LadderRun] = {}
    for line in read_lines(folder / RUNS):
        run = LadderRun.read(line)
        if run.key and run.parameters and run.tokens and run.flops and (run.bits_per_byte or run.diverged):
            found[run.key] = run
    return found
