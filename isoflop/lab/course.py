"""One call of `run_claim`: its clock, its workers, and what it says."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from isoflop.lab import stats
from isoflop.lab.arms import OVERHEAD, timed
from isoflop.lab.claim import Claim, Comparison
from isoflop.lab.procedures.job import Job
from isoflop.lab.study import NOISE_PAIRS, Study
from isoflop.lab.verdict import detectable, number
from isoflop.lab.workers import Performed, Pool

Say = Callable[[str], None]
ASSUMED_NOISE = 0.011  # bits per byte between runs of 3 x 96 that differ in their first weights, until it is measured
PURPOSES = {"rate": "rates x {0.factor:g}", "noise": "seed {0.order} again", "pair": "seed {0.order}"}


class Course:
    """One call of `run_claim`: its clock and its workers.

    Args:
        budget: seconds on the clock of the wall.
        started: when they began, by time.monotonic().
    """

    def __init__(self, study: Study, workers: Pool, budget: float, started: float, say: Say) -> None:
        self.study, self.workers, self.say = study, workers, say
        self.started = started
        self.budget, self.deadline = budget, self.started + budget
        self.known: dict[str, float] = {}  # seconds of a run, by arm

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def seconds_of(self, arm: str) -> float:
        return self.known.get(arm, 0.0)

    def time_arms(self) -> None:
        """Estimate how long a run of each arm takes: from what is on record, else from a short timing of the first, and
        of the others in proportion to their FLOPs. Each finished run corrects it."""
        base = self.study.arm(self.study.trained[0]) if self.study.trained else None
        for name in self.study.trained:
            rows, arm = self.study.rows(name, 1), self.study.arm(name)
            if rows:
                self.known[name] = rows[0].seconds
            elif base is not None and base.seconds and arm.flops:
                self.known[name] = base.seconds * arm.flops / base.flops + OVERHEAD
            else:
                base = timed(arm)
                self.known[name] = base.seconds + OVERHEAD

    def carry_out(self, jobs: Iterator[Job]) -> None:
        """Run what is not on record, each once, as long as the budget has room for one more."""
        begun: set[str] = set()

        def wanted() -> Iterator[Job]:
            for job in jobs:
                if self.study.store.find(job) is None and job.key not in begun:
                    if self.seconds_of(job.arm) > self.left():
                        return
                    begun.add(job.key)
                    yield job

        self.workers.run(wanted(), self.done)

    def done(self, job: Job, performed: Performed) -> None:
        measured, seconds = performed.measured, performed.seconds
        self.study.store.add(job, performed, self.study.claim.name)
        if job.arm in self.study.trained and not measured.diverged:
            self.known[job.arm] = seconds
            bits = measured.measures["bits_per_byte"]
            self.say(f"{job.arm:16} {PURPOSES[job.role].format(job):16} {bits:.4f} bits per byte  {seconds:.0f} s")
        elif measured.diverged:
            self.say(f"{job.arm:16} {PURPOSES[job.role].format(job):16} diverged, which counts as an outcome")


@dataclass(frozen=True)
class Planned:
    """What a claim would run, before anything is run.

    Attributes:
        pairs: the most that there may be.
        runs: the most in all, rates and noise included, as far as the budget goes; 0 where nothing is trained.
        run_seconds: of a run on one thread, on average.
        fit: pairs that the budget has room for; None where nothing is trained.
        effects: the smallest that these see, by the assumed noise, by how a comparison is named.
    """

    claim: Claim
    pairs: int
    at_once: int
    budget: float
    runs: int = 0
    run_seconds: float = 0.0
    fit: int | None = None
    effects: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For a program, in place of a verdict; an infinite number is null."""
        claim = self.claim
        return {
            "claim": claim.name,
            "statement": claim.statement,
            "question": claim.question,
            "hash": claim.hash,
            "dry_run": True,
            "verdict": None,
            "arms": list(claim.arms),
            "held_equal": list(claim.setup.equal),
            "rule": claim.setup.rule,
            "pairs": self.pairs,
            "pairs_that_fit": self.fit,
            "runs": self.runs,
            "run_seconds": round(self.run_seconds, 1),
            "at_once": self.at_once,
            "budget_seconds": round(self.budget, 1),
            "visible_effects": {name: number(effect) for name, effect in self.effects.items()},
        }


def announce(course: Course) -> Planned:
    """Say what will be run, what it will take and which effect it can see, before anything is run."""
    study, claim, say = course.study, course.study.claim, course.say
    setup = claim.setup
    say(f"claim: {claim.statement}")
    say(f"question: {claim.question}")
    arms = ", ".join(claim.words(arm.name) for arm in study.arms)
    equal = ", ".join(setup.equal) or "nothing but the seeds"
    say(f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}: {arms}; held equal: {equal}")
    for arm in study.arms:
        if unlike := study.unlike(arm.name):
            say(f"not held equal: {claim.words(arm.name)} has {unlike}")
    if not study.trained:
        say(f"{setup.pairs} seeds or cases of each; nothing is trained, and it takes seconds to a few minutes")
        return Planned(claim, setup.pairs, course.workers.at_once, course.budget)

    values, pairs = len(setup.rates), setup.pairs
    tune = len(study.missing(list(study.tuning_jobs())))
    each = sum(course.seconds_of(name) for name in study.trained)
    longest = max(course.seconds_of(name) for name in study.trained)
    before = tune * each / max(1, len(study.trained)) + NOISE_PAIRS * course.seconds_of(study.reference)
    room = max(0, int((course.budget * course.workers.at_once - before) / each)) if each else pairs
    said = f"rates: {values} to 5 values per arm; " if values > 1 else ""
    most = tune + NOISE_PAIRS + min(room, pairs) * len(study.arms)
    say(
        f"{said}noise: {NOISE_PAIRS} A/A pairs; then up to {pairs} pairs, one seed each, as many as the noise asks "
        f"for: some {most} runs"
    )
    say(
        f"a run takes about {each / len(study.trained):.0f} s on one thread, {course.workers.at_once} at a time; of "
        f"{course.budget / 60:g} min some {before / course.workers.at_once / 60:.0f} go to rates and noise, and "
        f"{min(room, pairs)} pairs fit"
    )
    if longest > course.budget:
        say("not even one run fits into that budget: what can be said is said, and the verdict is undecided")
    bits = [c for c in claim.comparisons if c.measure == "bits_per_byte"]
    effects = {}
    if bits and min(room, pairs) >= 2:
        effects = {c.sentence: detectable(claim, c.spread * ASSUMED_NOISE, min(room, pairs)) for c in bits}
        sees = {c.spread: effects[c.sentence] for c in bits}
        said = " and ".join(
            f"{sees_words(sees[spread], 3)}{' that is an interaction' if spread > 1 else ''}" for spread in sorted(sees)
        )
        say(f"with a noise of {ASSUMED_NOISE} bits per byte, until it is measured, they see {said}")
    return Planned(
        claim=claim,
        pairs=pairs,
        at_once=course.workers.at_once,
        budget=course.budget,
        runs=most,
        run_seconds=each / len(study.trained),
        fit=min(room, pairs),
        effects=effects,
    )


def sees_words(effect: float, digits: int) -> str:
    return f"an effect of {effect:.{digits}f}" if math.isfinite(effect) else "no effect, however large"


def differences_of(comparison: Comparison) -> tuple[str, str]:
    """The two differences that an interaction compares."""
    return f"{comparison.arm} - {comparison.against}", " - ".join(comparison.beyond)


def noise_told(study: Study, pairs: int, needed: int) -> list[str]:
    lines = []
    for comparison in study.claim.comparisons:
        sd, limit = stats.noise(study.noise_of(comparison))
        if math.isfinite(sd):
            sees = sees_words(detectable(study.claim, comparison.spread * limit, pairs), 4)
            of = f" between {' and '.join(differences_of(comparison))}" if comparison.beyond else ""
            lines.append(
                f"noise of {comparison.measure}: {sd:.4f} between runs that differ in their first weights alone "
                f"({NOISE_PAIRS} A/A pairs); {pairs} pairs see {sees}{of}"
            )
    if not lines:
        lines.append("the budget ended before the noise was measured; the same command resumes")
    elif needed > pairs:
        lines.append(f"the smallest effects that the claim asks about need {needed} pairs: it may stay undecided")
    return list(dict.fromkeys(lines))
