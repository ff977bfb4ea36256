"""`isoflop lab run` as one call: rates, noise, as many pairs as that asks for, a verdict.

    fix the claim ─> rates, arm by arm ─> A/A runs ─> how many pairs ─> the pairs ─> verdict ─> page
                     (3 to 5 values)      (noise)     (said and noted)   (looks only if the rule allows them)

Every run is on record when it ends and is not run again: ended at any moment, the same command goes on.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from isoflop.lab import stats
from isoflop.lab.arms import timed
from isoflop.lab.claim import Claim
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.store import Store
from isoflop.lab.study import NOISE_PAIRS, Study
from isoflop.lab.verdict import EXIT_CODES, UNDECIDED, Decision, decide, number, pairs_for
from isoflop.lab.workers import Workers

Say = Callable[[str], None]
ASSUMED_NOISE = (
    0.011  # bits per byte between two runs of 3 x 96 that differ in their first weights, until it is measured
)
FEWEST = 5  # pairs of runs: a t interval of fewer is several times as wide
OVERHEAD = 3.0  # seconds of a run beside its steps: reading, measuring, the curve


PURPOSES = {"rate": "rates x {0.factor:g}", "noise": "seed {0.order} again", "pair": "seed {0.order}"}


@dataclass(frozen=True)
class Outcome:
    """What came of a claim.

    Attributes:
        pairs: that the verdict rests on.
        seconds: that this call took.
        fixed: when the claim was fixed, in Unix seconds.
        looks: verdicts that were given before, with fewer pairs.
    """

    study: Study
    decision: Decision
    pairs: int
    seconds: float
    fixed: float
    looks: int = 0

    def in_family(self, comparisons: int) -> str:
        """The verdict where Holm's correction is over so many comparisons, those of several claims together."""
        measured = self.study.measured(self.pairs)
        return decide(self.study.claim, measured, self.looks, comparisons).verdict

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.decision.verdict]

    def to_dict(self) -> dict[str, Any]:
        """For a program: the verdict, and what it rests on. `effect` and `interval` are those of the comparison that
        decided it."""
        claim, decision = self.study.claim, self.decision
        deciding = next(one for one in decision.findings if one.verdict == decision.verdict)
        needs = decision.needs
        return {
            "claim": claim.name,
            "statement": claim.statement,
            "hash": claim.hash,
            "verdict": decision.verdict,
            "exit_code": self.exit_code,
            "measure": deciding.comparison.measure,
            "effect": number(deciding.estimate.value),
            "interval": [number(deciding.estimate.low), number(deciding.estimate.high)],
            "smallest": deciding.comparison.smallest,
            "error_spent": decision.error_spent,
            "pairs": self.pairs,
            "pairs_to_settle": needs if needs < stats.MOST_PAIRS else None,
            "seconds": round(self.seconds, 1),
            "cost": self.study.cost(self.pairs),
            "rates": {
                arm: {"factor": self.study.factors.get(arm, 1.0), "bracketed": self.study.bracketed(arm)}
                for arm in self.study.trained
            },
            "comparisons": [finding.to_dict() for finding in decision.findings],
        }


class Course:
    """One call of `run_claim`: its clock and its workers.

    Args:
        budget: seconds on the clock of the wall.
        started: when they began, by time.monotonic().
    """

    def __init__(self, study: Study, workers: Workers, budget: float, started: float, say: Say) -> None:
        self.study, self.workers, self.say = study, workers, say
        self.started = started
        self.budget, self.deadline = budget, self.started + budget
        self.known: dict[str, float] = {}  # seconds of a run, by arm

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def seconds_of(self, arm: str) -> float:
        return self.known.get(arm, 0.0)

    def time_arms(self) -> None:
        """About how long a run of each arm takes: by what is on record, else one is timed for a moment, and the others
        take as many times as long as they have FLOPs. What is run corrects it."""
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

    def done(self, job: Job, measured: Measured, seconds: float) -> None:
        self.study.store.add(job, measured, seconds, self.study.claim.name)
        if job.arm in self.study.trained and not measured.diverged:
            self.known[job.arm] = seconds
            bits = measured.measures["bits_per_byte"]
            self.say(f"{job.arm:16} {PURPOSES[job.role].format(job):16} {bits:.4f} bits per byte  {seconds:.0f} s")
        elif measured.diverged:
            self.say(f"{job.arm:16} {PURPOSES[job.role].format(job):16} diverged, which counts as an outcome")


def run_claim(
    claim: Claim,
    store: Store,
    *,
    budget: float = 0.0,
    workers: int = 2,
    say: Say = lambda text: None,
    trusted: tuple[str, ...] = (),
    plan_only: bool = False,
) -> Outcome | None:
    """Put a claim to the test, or go on where it was left.

    Args:
        budget: seconds; 0: the claim's own.
        workers: runs at a time, of one thread each; 0: one after the other in this process.
        say: is given what happens, line by line.
        trusted: packages whose blocks the claim may name.
        plan_only: say what would be run, and run nothing.

    Returns:
        What came of it; None with `plan_only`.

    Raises:
        UserError: for a claim that cannot be run, before its first run.
    """
    started = time.monotonic()
    study = Study.of(claim, store)
    _ = study.fingerprints
    study.choose()
    budget = budget or 60 * claim.setup.minutes
    with Workers(workers, trusted) as pool:
        course = Course(study, pool, budget, started, say)
        course.time_arms()
        announce(course)
        if plan_only:
            return None
        fixed = store.fix(claim)
        say(f"fixed as {claim.hash[:12]}; results in {store.folder}/")
        pairs = collect(course)

    looks = [look for look in store.notes(claim, "verdict") if look.get("pairs") != pairs]
    decision = decide(claim, study.measured(pairs), len(looks))
    if pairs >= 2 and not any(look.get("pairs") == pairs for look in store.notes(claim, "verdict")):
        store.looked(claim, decision, pairs, cost=study.cost(pairs))
    return Outcome(study, decision, pairs, time.monotonic() - course.started, fixed, len(looks))


def collect(course: Course) -> int:
    """Run rates, noise and pairs. Returns how many pairs are complete."""
    study, claim = course.study, course.study.claim
    if not study.trained:
        course.carry_out(job for index in range(claim.setup.pairs) for job in study.pair(index))
        return whole_pairs(study, claim.setup.pairs)

    # the rates: rounds, since what is tried next depends on what came of the last
    while jobs := study.missing(list(study.tuning_jobs())):
        before = len(study.store.rows)
        course.carry_out(iter(jobs))
        if len(study.store.rows) == before:
            course.say("the budget ended before all rates were tried; the same command goes on from here")
            return 0
    study.choose()
    for name in study.trained:
        if claim.setup.rates and len(claim.setup.rates) > 1:
            said = "" if study.bracketed(name) else ", and no worse one was found on one side of it"
            course.say(f"rates of {name}: {study.factors[name]:g} times the plan's{said}")

    # the noise, and how many pairs it asks for; a number that was set before is kept
    course.carry_out(iter(study.noise_jobs()))
    wanted = wanted_pairs(course)
    course.say(f"{wanted} pairs of {len(study.arms)} runs")

    if claim.setup.rule == "anytime":
        return until_decided(course, wanted)
    course.carry_out(job for index in range(wanted) for job in study.pair(index))
    return whole_pairs(study, wanted)


def until_decided(course: Course, most: int) -> int:
    """Pair after pair, with a look after each, until the verdict is there or there are as many as may be."""
    study = course.study
    for index in range(most):
        course.carry_out(iter(study.pair(index)))
        done = whole_pairs(study, index + 1)
        if done <= index:
            return done
        if done >= 2 and decide(study.claim, study.measured(done)).verdict != UNDECIDED:
            return done
    return most


def whole_pairs(study: Study, most: int) -> int:
    """How many of the first pairs all arms have, without a gap."""
    return next((index for index in range(most) if study.missing(study.pair(index))), most)


def wanted_pairs(course: Course) -> int:
    """How many pairs are compared. By the noise, as far as the budget goes; noted before the first is looked at, and
    kept: a run of the claim that was broken off goes on to the same number. After a verdict that left it open, the
    number is set anew."""
    study, claim, store = course.study, course.study.claim, course.study.store
    plans, verdicts = store.notes(claim, "plan"), store.notes(claim, "verdict")
    last = int(plans[-1].get("pairs", 0)) if plans else 0
    looked = max((int(look.get("pairs", 0)) for look in verdicts), default=0)
    if last >= 2 and (looked < last or (verdicts and verdicts[-1].get("verdict") != UNDECIDED)):
        return last

    needed, noise = needed_pairs(study)
    each = sum(course.seconds_of(name) for name in study.trained)
    room = int(course.left() * course.workers.at_once / each) if each else claim.setup.pairs
    there = whole_pairs(study, claim.setup.pairs)
    pairs = min(max(needed, FEWEST), there + max(room, 0), max(claim.setup.pairs, last))
    pairs = max(pairs, looked)
    if pairs >= 2:
        store.note(claim, "plan", pairs=pairs, needed=needed, affordable=there + room, noise=noise)
    for line in noise_told(study, pairs, needed):
        course.say(line)
    return pairs


def needed_pairs(study: Study) -> tuple[int, dict[str, float | None]]:
    """Pairs that the smallest interesting effects need by the A/A noise, and the noise of each measure."""
    claim, needed = study.claim, FEWEST
    noise: dict[str, float | None] = {}
    for comparison in claim.comparisons:
        sd, limit = stats.noise(study.noise_of(comparison))
        noise[comparison.measure] = number(sd)
        if math.isfinite(limit):
            family = len(claim.comparisons)
            needed = max(needed, pairs_for(claim, comparison, limit, family, claim.setup.rule == "anytime"))
        else:
            needed = max(needed, claim.setup.pairs)
    return needed, noise


def noise_told(study: Study, pairs: int, needed: int) -> list[str]:
    lines = []
    for comparison in study.claim.comparisons:
        sd, limit = stats.noise(study.noise_of(comparison))
        if math.isfinite(sd):
            family = len(study.claim.comparisons)
            seen = stats.detectable(pairs, limit, study.claim.setup.alpha / family, study.claim.setup.power)
            lines.append(
                f"noise of {comparison.measure}: {sd:.4f} between runs that differ in their first weights alone "
                f"({NOISE_PAIRS} A/A pairs); {pairs} pairs see a difference of {seen:.4f}"
            )
    if not lines:
        lines.append("the budget ended before the noise was measured; the same command goes on from here")
    elif needed > pairs:
        lines.append(f"the smallest effects that the claim asks about need {needed} pairs: it may stay undecided")
    return list(dict.fromkeys(lines))


def announce(course: Course) -> None:
    """Say what will be run, what it will take and which effect it can see, before anything is."""
    study, claim, say = course.study, course.study.claim, course.say
    setup = claim.setup
    say(f"claim: {claim.statement}")
    say(f"question: {claim.question}")
    arms = ", ".join(claim.words(arm.name) for arm in study.arms)
    equal = ", ".join(setup.equal) or "nothing but the seeds"
    say(f"{len(study.arms)} arm{'s' if len(study.arms) > 1 else ''}: {arms}; held equal: {equal}")
    if not study.trained:
        say(f"{setup.pairs} seeds or cases of each; nothing is trained, and it takes seconds to a few minutes")
        return

    values, pairs = len(setup.rates), setup.pairs
    tune = len(study.missing(list(study.tuning_jobs())))
    each = sum(course.seconds_of(name) for name in study.trained)
    longest = max(course.seconds_of(name) for name in study.trained)
    before = tune * each / max(1, len(study.trained)) + NOISE_PAIRS * course.seconds_of(study.reference)
    room = max(0, int((course.budget * course.workers.at_once - before) / each)) if each else pairs
    said = f"rates: {values} to 5 values an arm; " if values > 1 else ""
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
    if bits and min(room, pairs) >= 2:
        alpha = setup.alpha / len(claim.comparisons)
        seen = stats.detectable(min(room, pairs), ASSUMED_NOISE, alpha, setup.power)
        say(f"with a noise of {ASSUMED_NOISE} bits per byte, until it is measured, they see an effect of {seen:.3f}")
