"""`isoflop lab run` as one call: rates, noise, as many pairs as that asks for, a verdict.

    fix the claim ─> rates, arm by arm ─> A/A runs ─> how many pairs ─> the pairs ─> verdict ─> page
                     (3 to 5 values)      (noise)     (said and noted)   (looks only if the rule allows them)

Every run is on record when it ends and is not run again: stopped at any moment, the same command resumes.
"""

import math
import time

from isoflop.lab import stats
from isoflop.lab.claim import MOST_PAIRS, Claim
from isoflop.lab.course import Course, Planned, Say, announce, noise_told
from isoflop.lab.outcome import Outcome
from isoflop.lab.store import Store
from isoflop.lab.study import Study
from isoflop.lab.verdict import UNDECIDED, decide, number, pairs_for
from isoflop.lab.wording import measured_words
from isoflop.lab.workers import Pool, Workers

FEWEST = 5  # pairs of runs: a t interval of fewer is several times as wide


def run_claim(
    claim: Claim,
    store: Store,
    *,
    budget: float = 0.0,
    workers: int | Pool = 2,
    say: Say = lambda text: None,
    trusted: tuple[str, ...] = (),
    plan_only: bool = False,
    command: str = "",
) -> Outcome | Planned:
    """Put a claim to the test, or resume where it was left.

    Args:
        budget: seconds; 0: the claim's own.
        workers: runs at a time, of one thread each; 0: one after the other in this process; or who runs them.
        say: is given what happens, line by line.
        trusted: packages whose blocks the claim may name.
        plan_only: say what would be run, and run nothing.
        command: that repeats it, for the page.

    Returns:
        The result; with `plan_only` what would be run.

    Raises:
        UserError: for a claim that cannot be run, before its first run.
    """
    started = time.monotonic()
    study = Study.of(claim, store)
    _ = study.fingerprints
    study.choose()
    budget = budget or 60 * claim.setup.minutes
    with Workers(workers, trusted) if isinstance(workers, int) else workers as pool:
        course = Course(study, pool, budget, started, say)
        course.time_arms()
        planned = announce(course)
        if plan_only:
            return planned
        fixed = store.fix(claim, command)
        store.note_data(claim, study.fingerprints)
        say(f"fixed as {claim.hash[:12]}; results in {store.folder}/")
        pairs = collect(course)

    looks = [look for look in store.notes(claim, "verdict") if look.get("pairs") != pairs]
    decision = decide(claim, study.measured(pairs), len(looks))
    if pairs >= 2 and not any(look.get("pairs") == pairs for look in store.notes(claim, "verdict")):
        store.looked(claim, decision, pairs, cost=study.cost(pairs))
    seconds = time.monotonic() - course.started
    return Outcome(study, decision, pairs, seconds, fixed, len(looks), complete=pairs)


def collect(course: Course) -> int:
    """Run rates, noise and pairs. Returns how many pairs are complete."""
    study, claim = course.study, course.study.claim
    if not study.trained:
        course.carry_out(job for index in range(claim.setup.pairs) for job in study.pair(index))
        return study.complete(claim.setup.pairs)

    # the rates: rounds, since what is tried next depends on what came of the last
    while jobs := study.missing(list(study.tuning_jobs())):
        before = len(study.store.rows)
        course.carry_out(iter(jobs))
        if len(study.store.rows) == before:
            course.say("the budget ended before all rates were tried; the same command resumes")
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
    return study.complete(wanted)


def until_decided(course: Course, most: int) -> int:
    """As many pairs at a time as there are workers for, with a look after each time, until there is a verdict or the
    most pairs that there may be. Returns how many are complete."""
    study = course.study
    done = study.complete(most)
    while True:
        if done >= 2:
            decision = decide(study.claim, study.measured(done))
            for finding in decision.findings:
                course.say(f"after {done} pairs: {finding.comparison.sentence}: {measured_words(finding)}")
            if decision.verdict != UNDECIDED:
                return done
        if done >= most:
            return done

        reach = min(most, done + max(1, course.workers.at_once // len(study.arms)))
        course.carry_out(job for index in range(done, reach) for job in study.pair(index))
        before, done = done, study.complete(reach)
        if done == before:  # the budget ended
            return done


def wanted_pairs(course: Course) -> int:
    """How many pairs are compared: as many as the noise asks for, as far as the budget goes. The number is noted before
    the first pair is looked at, and kept: a stopped run of the claim resumes to the same number. After a verdict that
    left it open it is set anew, up to what that verdict said would settle it, which may be more than the claim's own
    limit."""
    study, claim, store = course.study, course.study.claim, course.study.store
    plans, verdicts = store.notes(claim, "plan"), store.notes(claim, "verdict")
    last = int(plans[-1].get("pairs", 0)) if plans else 0
    looked = max((int(look.get("pairs", 0)) for look in verdicts), default=0)
    if last >= 2 and (looked < last or (verdicts and verdicts[-1].get("verdict") != UNDECIDED)):
        return last

    needed, noise = needed_pairs(study)
    settles = int(verdicts[-1].get("pairs_to_settle", 0)) if verdicts else 0
    settles = settles if settles <= MOST_PAIRS else 0
    most = max(claim.setup.pairs, last, settles)
    each = sum(course.seconds_of(name) for name in study.trained)
    room = int(course.left() * course.workers.at_once / each) if each else most
    there = study.complete(most)
    pairs = min(max(needed, settles, FEWEST), there + max(room, 0), most)
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
    if any(math.isinf(min(tried.values())) for name in study.trained if (tried := study.tried(name))):
        # an arm diverges at every rate: signs will decide
        needed = max(needed, stats.pairs_for_signs(claim.setup.alpha, len(claim.comparisons)))
    for comparison in claim.comparisons:
        sd, limit = stats.noise(study.noise_of(comparison))
        noise[comparison.measure] = number(sd)
        if math.isfinite(limit):
            family = len(claim.comparisons)
            sd = comparison.spread * limit
            needed = max(needed, pairs_for(claim, comparison, sd, family, claim.setup.rule == "anytime"))
        else:
            needed = max(needed, claim.setup.pairs)
    return needed, noise
