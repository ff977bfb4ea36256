"""`isoflop ladder` as one call: plan the target, choose the rungs, make the runs, fit and store the law, draw it.

    plan of the largest target ─> text prepared ─> sizes timed ─> rungs ─> runs, rates, seeds ─> law ─> targets, page
    (vocabulary, context, recipe)                  (said and fixed)   (each once, on record)

Ended at any moment, the same command continues: what is on record is not run again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from isoflop.budget import parse_budget
from isoflop.data.corpus import parse_sources
from isoflop.errors import UserError, quoted
from isoflop.files import try_folder
from isoflop.job.listener import Listener
from isoflop.job.workers import Workers
from isoflop.ladder import fit, messages, page, rungs
from isoflop.ladder.begin import Ladder, Wanted, begun, pace_of, recorded, reopened, rungs_of, seconds_of
from isoflop.ladder.pace import Pace, shaped
from isoflop.ladder.rungs import Planned
from isoflop.ladder.runs import Piece, perform
from isoflop.ladder.store import Folder
from isoflop.ladder.targets import look
from isoflop.records.ladder import LadderRun

SPARE = 1.15  # times the budget up to which a run may be begun, if it is expected to end by then


def climb(wanted: Wanted, listener: Listener | None = None) -> Ladder | None:
    """Make a ladder, or continue one.

    Returns:
        The ladder with what came of it; None with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
        KeyboardInterrupt: it was stopped; the same command continues.
    """
    listener = listener or Listener()
    say, began = listener.say, time.monotonic()
    budget = seconds_of(wanted.budget)
    folder = Folder(wanted.out or Path("ladders") / parse_sources(wanted.sources)[0].name)
    before = folder.begun()
    try_folder(folder.path, f"--out {folder.path}")
    one = reopened(wanted, folder, before, listener) if before else begun(wanted, folder, budget, listener)
    one.known = folder.rows()

    pace = pace_of(one, before, say)
    one.rungs = tuple(rungs_of(one, before, pace, budget))
    one.begun = one.begun.updated(
        budget=wanted.budget,
        targets=wanted.targets or one.begun.targets,
        workers=pace.workers,
        threads=pace.threads,
        rungs=tuple(recorded(rung) for rung in one.rungs),
    )
    works = rungs.pieces(one.rungs, one.decay, pace.at_once)
    missing = [work for work in works if one.piece(work).missing]
    there = sum(len(work.lengths) - len(one.piece(work).missing) for work in works)
    costs = [rungs.seconds_of(work, one.decay, one.measured) for work in missing]
    for line in messages.ahead(one.rungs, works, pace, rungs.wall(costs, pace.at_once), there):
        say(line)
    if wanted.dry_run:
        return None

    say(f"measuring and preparing took {time.monotonic() - began:.0f} s, outside the budget")
    with folder.held():
        folder.begin(one.begun)
        try:
            make_runs(one, missing, pace, time.time() + budget, say)
        except KeyboardInterrupt:
            say("stopped; the same command continues from here")
            raise
        conclude(one, listener)
    return one


def make_runs(one: Ladder, works: Sequence[Planned], pace: Pace, ends: float, say: Callable[[str], None]) -> None:
    """Make what is missing, as long as it fits into the time; then the further learning rates."""
    late = ends + (SPARE - 1) * (ends - time.time())
    ratio = [1.0]  # of the seconds that pieces took to those estimated
    shown = set(one.known)

    def tick() -> None:
        """Say what has ended."""
        one.known = one.folder.rows()
        for key in one.known.keys() - shown:
            shown.add(key)
            say(messages.run_line(one.known[key]))

    def fitting(planned: Sequence[Planned]) -> Iterator[Piece]:
        for work in planned:
            piece = one.piece(work, late)
            seconds = ratio[-1] * rungs.seconds_of(replace(work, lengths=work.lengths[:1]), one.decay, one.measured)
            if piece.missing and time.time() + seconds <= late:
                yield piece

    def done(piece: Piece, made: tuple[LadderRun, ...]) -> None:
        seconds = sum(run.seconds or 0.0 for run in made)
        estimated = sum(run.flops or 0.0 for run in made) / pace.speed(piece.config.model.d_model)
        if len(made) == 1 and estimated > 1.0:
            ratio.append(max(0.3, min(3.0, seconds / estimated)))

    with Workers(perform, pace.workers, str, pace.threads) as pool:
        pool.run(fitting(works), done, tick)
        while following_rates := [work for work in one.further() if one.piece(work).missing]:
            before = len(one.known)
            pool.run(fitting(following_rates), done, tick)
            if len(one.known) == before:
                break
    one.left = sum(len(one.piece(work).missing) for work in (*works, *one.further()))


def conclude(one: Ladder, listener: Listener) -> None:
    """Fit and store the law, say what it says, and draw it."""
    say = listener.say
    if one.left:
        say(f"the budget left no time for {one.left} runs; the same command makes them")
    try:
        one.climbed = fit.climbed(list(one.known.values()))
    except UserError as error:
        say(f"no law yet: {error}")
        return
    config = shaped(one.base, (one.base.model.layers, one.base.model.d_model), 1e6, one.workload, one.asked)
    unique = sum(one.data.train_tokens(name) for name in one.data.sources)
    holds_for = fit.about(
        one.climbed,
        config,
        text=one.begun.text,
        fingerprint=one.data.fingerprint,
        corpus="+".join(one.data.sources),
        unique_tokens=unique,
        folder=str(one.folder.path.resolve()),
    )
    one.law = fit.keep(one.climbed, holds_for, config)
    for line in (*messages.law_lines(one.climbed), *messages.transfer_lines(one.climbed.transfer)):
        say(line)
    wanted = [parse_budget(text) for text in one.begun.targets]
    one.targets = tuple(look(target, one.base, one.workload, one.data, one.asked, one.law) for target in wanted)
    for target in one.targets:
        say(target.line())
    page.write(one.folder, one.climbed, one.law, one.targets)
    say(f"stored: {one.law.path}")
    say(f"ask it: isoflop plan predict {quoted(one.folder.fit)} --budget {30 * one.law.largest:.0e}")
    say(f"page: {one.folder.report}")
