"""How a ladder begins: planned for its largest target, or opened again as it was."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from isoflop.budget import Budget, parse_budget
from isoflop.data.manifest import Data
from isoflop.errors import UserError
from isoflop.job.listener import Listener
from isoflop.job.start import with_sources
from isoflop.ladder import fit, rungs
from isoflop.ladder.fit import Climbed
from isoflop.ladder.pace import Pace, find_pace, shaped, sizes_of, timed_shapes
from isoflop.ladder.rates import following
from isoflop.ladder.rungs import AT, RATE_SEED, Planned, Rung, Size
from isoflop.ladder.runs import MEASURED, Piece, config_for
from isoflop.ladder.store import Begun, Folder
from isoflop.ladder.targets import Target
from isoflop.plan.asked import Asked
from isoflop.plan.fitted import Fitted, text_key
from isoflop.plan.planner import plan
from isoflop.records.ladder import LadderRun, LadderRung
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task
from isoflop.trainer.workload import Workload

AHEAD = 6.0  # times the budget that the target is, unless one is named
FEWEST_STEPS = 20  # of the shortest run of a size


@dataclass(frozen=True)
class Wanted:
    """What was asked for.

    Attributes:
        budget: seconds for all runs together.
        targets: budgets of the runs to forecast, the largest of which decides vocabulary and context.
        workers: at a time; None: as many as train most.
    """

    sources: tuple[str, ...] = ()
    budget: str = "20m"
    targets: tuple[str, ...] = ()
    out: Path | None = None
    heldout: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    strict: bool = False
    workers: int | None = None
    trusted: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass
class Ladder:
    """A ladder on its way, and what came of it.

    Attributes:
        base: what all sizes share; data: prepared.
        climbed, law: what the runs say, and the law as it is stored; None: too few runs have ended.
        targets: what runs of the budgets that were asked about should reach.
        left: runs that the budget left no time for.
    """

    wanted: Wanted
    folder: Folder
    begun: Begun
    base: RunConfig
    data: Data
    workload: Workload
    climbed: Climbed | None = None
    law: Fitted | None = None
    targets: tuple[Target, ...] = ()
    left: int = 0
    rungs: tuple[Rung, ...] = ()
    known: dict[str, LadderRun] = field(default_factory=dict)

    @property
    def asked(self) -> Asked:
        return Asked.of(self.wanted.assignments)

    @property
    def decay(self) -> float | None:
        """The share of a run in which the rate falls, where longer runs can continue from before that; else None."""
        schedule = self.base.schedule
        return schedule.decay if schedule.entry.stable and 0 < schedule.decay < 1 else None

    @property
    def measured(self) -> float:
        """Held-out tokens that each run is measured on."""
        return float(min(MEASURED, self.data.account().heldout.tokens or MEASURED))

    def piece(self, planned: Planned, until: float = math.inf) -> Piece:
        """What a worker does for a planned piece."""
        rung, ladder = planned.rung, self.begun
        middle = rung.tokens * math.sqrt(rung.lengths[0] * rung.lengths[-1])
        made = shaped(self.base, (rung.size.layers, rung.size.d_model), middle, self.workload, self.asked)
        alone = planned.lengths[0] if self.decay is None else 1
        steps = max(FEWEST_STEPS, round(alone * rung.tokens / made.tokens_per_step))
        if made.batch.ramp_share:
            steps = max(FEWEST_STEPS, made.batch.steps_for(alone * rung.tokens / made.model.context))
        made = replace(made, runtime=replace(made.runtime, threads=ladder.threads or 1))
        unique = sum(self.data.train_tokens(name) for name in self.data.sources)
        piece = Piece(
            config=config_for(made, steps, planned.factor, planned.seed),
            lengths=tuple(length // alone for length in planned.lengths),
            factor=planned.factor,
            role=planned.role,
            data=self.data.account().folder or "",
            fingerprint=self.data.fingerprint,
            unique_tokens=unique,
            folder=self.folder.path,
            done=frozenset(self.known),
            until=until,
            trusted=self.wanted.trusted,
        )
        # a run that continues one that diverged diverges as well
        lost = [length for length in piece.lengths if self.diverged(piece.key(length))]
        return replace(piece, lengths=piece.lengths[: piece.lengths.index(lost[0]) + 1]) if lost else piece

    def diverged(self, key: str) -> bool:
        return key in self.known and self.known[key].diverged

    def further(self) -> list[Planned]:
        """The learning rates that are to be tried next."""
        found = []
        for rung in rungs.tuned(self.rungs):
            count = round(rung.size.parameters)
            tried = fit.tried(list(self.known.values()), count)
            wanted = following(tried) if tried else []
            found += [Planned(rung, (AT,), "rate", factor, RATE_SEED) for factor in wanted]
        return found


def seconds_of(budget: str) -> float:
    parsed = parse_budget(budget)
    if parsed.kind != "seconds" or parsed.more:
        raise UserError(f"--budget {budget} is in {parsed.kind}; a ladder's is time for all runs together, as in 20m")
    return parsed.amount


def targets_of(wanted: Wanted) -> list[Budget]:
    """The budgets of the runs to forecast.

    Raises:
        UserError: for one that says how long a run is and not what it may cost.
    """
    found = [parse_budget(text) for text in wanted.targets]
    for text, one in zip(wanted.targets, found, strict=True):
        if one.kind not in ("seconds", "flops") or one.more:
            raise UserError(f"--targets {text} is in {one.kind}; a target is time or FLOPs, as in 2h or 1e17")
    return found or [Budget("seconds", AHEAD * seconds_of(wanted.budget))]


def begun(wanted: Wanted, folder: Folder, budget: float, listener: Listener) -> Ladder:
    """A new ladder: what the plan of its largest target has in common with all sizes, and the text prepared for it."""
    targets, asked = targets_of(wanted), Asked.of(wanted.assignments)
    config = asked.apply(with_sources(RunConfig(), wanted.sources, wanted.heldout, wanted.strict))
    if config.task != RunConfig.task:
        raise UserError(f"task = {config.task}: a ladder is for text alone; leave it out")
    largest = max(targets, key=lambda one: (one.kind == "flops", one.amount))
    listener.say(f"a ladder towards {', '.join(one.words() for one in targets)}")
    advice, data = plan(largest, config, asked, say=listener.say, progress=listener.progress)
    assert data is not None and advice.proposal is not None  # no dry run
    listener.prepared(data.account())
    runtime = replace(advice.config.runtime, compile=False)
    base = replace(advice.config, optim=advice.proposal.config.optim, runtime=runtime, seed=0)
    record = Begun(
        sources=wanted.sources,
        heldout=wanted.heldout,
        assignments=wanted.assignments,
        targets=tuple(str(one) for one in targets),
        fingerprint=data.fingerprint,
        text=text_key(advice.proposal.workload),
    ).with_base(base)
    return Ladder(wanted, folder, record, base, data, advice.proposal.workload)


def reopened(wanted: Wanted, folder: Folder, before: Begun, listener: Listener) -> Ladder:
    """A ladder that was begun: its configuration and its text, as they were.

    Raises:
        UserError: if it is another one than the command asks for, or its text changed.
    """
    for name, here, now in (
        ("sources", before.sources, wanted.sources),
        ("--heldout", before.heldout, wanted.heldout),
        ("--set", before.assignments, wanted.assignments),
    ):
        if tuple(here) != tuple(now):
            said = " ".join(here) or "none"
            raise UserError(
                f"{folder.path} holds a ladder with other {name} ({said}): give the same, or name another --out"
            )
    targets_of(wanted)
    base = before.base()
    task = make_task(base)
    data = task.prepare_data(base.data, listener.progress)
    if data.fingerprint != before.fingerprint:
        raise UserError(
            f"the text of the ladder in {folder.path} changed ({before.fingerprint and before.fingerprint[:12]}, now "
            f"{data.fingerprint[:12]}): bring it back, or name another --out"
        )
    listener.say(f"going on with the ladder in {folder.path}")
    return Ladder(wanted, folder, before, base, data, task.workload(base))


def pace_of(one: Ladder, before: Begun | None, say: Callable[[str], None]) -> Pace:
    """How fast the sizes train here, timed now. What was decided of workers and threads when the ladder began is kept
    unless it is asked for anew."""
    shapes = timed_shapes(one.base, one.workload, one.asked)
    workers = one.wanted.workers
    if workers is None and before is not None and before.workers is not None:
        workers = before.workers
    say(f"timing {len(shapes)} sizes with each number of threads")
    found = find_pace(shapes, [one.workload.flops_per_token(config) for config in shapes], workers)
    if found.doubt:
        say(f"note: this machine was not left alone while it was timed ({found.doubt})")
    return found


def rungs_of(one: Ladder, before: Begun | None, pace: Pace, budget: float) -> list[Rung]:
    """The rungs that were fixed when the ladder began; with another budget they are chosen anew, and what is on record
    counts where it is among them."""
    if before is not None and before.rungs and before.budget == one.wanted.budget:
        return [
            Rung(
                Size(
                    rung.layers or 1,
                    rung.d_model or 1,
                    float(rung.parameters or 1),
                    pace.speed(rung.d_model or 1),
                ),
                rung.tokens or 1.0,
                rung.lengths,
            )
            for rung in before.rungs
        ]
    sizes = sizes_of(one.base, one.workload, one.asked, pace)
    return rungs.choose(sizes, budget, pace.at_once, one.decay, one.measured, one.wanted.budget)


def recorded(rung: Rung) -> LadderRung:
    size = rung.size
    return LadderRung(
        layers=size.layers,
        d_model=size.d_model,
        parameters=int(size.parameters),
        tokens=rung.tokens,
        lengths=rung.lengths,
    )
