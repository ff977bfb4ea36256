"""What a ladder says before it starts, on its way and at its end, line by line."""

import math
from collections.abc import Sequence
from typing import Any

from isoflop.ladder.begin import Ladder
from isoflop.ladder.fit import Climbed
from isoflop.ladder.pace import Pace
from isoflop.ladder.rates import Bracket, Transfer
from isoflop.ladder.rungs import FACTORS, Planned, Rung, budgets, tuned
from isoflop.plan.cluster.advise import MISS
from isoflop.plan.fitted import LEAST_PER_DECADE
from isoflop.records.ladder import LadderRun
from isoflop.report.words import count, duration
from isoflop.values import counted

ASSUMED_NOISE = 0.006  # standard deviation of log bits per byte between seeds, until it is measured (LAB.md, 3 x 96)


def ahead(rungs: Sequence[Rung], works: Sequence[Planned], pace: Pace, seconds: float, there: int) -> list[str]:
    """What will be run, for how long, and what it will be able to say.

    Args:
        works: everything, of which `there` runs are on record.
        seconds: until the rest is done.
    """
    total = sum(len(one.lengths) for one in works)
    sizes = ", ".join(f"{rung.size.layers} x {rung.size.d_model}" for rung in rungs)
    first, middle, last = rungs[0], tuned(rungs)[1], rungs[-1]
    factors = ", ".join(f"{factor:g}" for factor in FACTORS)
    off = 1.645 * math.hypot(ASSUMED_NOISE, MISS)
    longest = max(rung.flops * max(rung.lengths) for rung in rungs)
    threads = counted(pace.threads, "thread")
    at_once = f"{pace.at_once} at a time with {threads} each" if pace.at_once > 1 else f"one after the other, {threads}"
    known = f", {there} of them on record" if there else ""
    several = sum(number >= 3 for number in budgets(rungs).values())
    return [
        f"{total} runs{known}, about {duration(seconds)}, {at_once}",
        f"  sizes: {sizes}: {count(first.size.parameters)} to {count(last.size.parameters)} parameters (N)",
        f"  lengths: {count(first.tokens)} to {count(max(r.tokens * max(r.lengths) for r in rungs))} tokens, from 5 to "
        f"40 per parameter, {first.flops:.2g} to {longest:.2g} FLOPs; {several} budgets with three sizes or more",
        f"  learning rates times {factors} at {count(first.size.parameters)} and {count(middle.size.parameters)} "
        "parameters, further out if the best is at the edge; repeated seeds at both",
        "  it will say: E, A, B, alpha and beta with intervals, the noise between seeds, whether the learning rates "
        f"carry over, and the loss of runs up to about {30 * longest:.0e} FLOPs; at 10 times its largest run to about "
        f"{off:.0%} either way, if its law misses as much as others did",
    ]


def run_line(run: LadderRun) -> str:
    """A run that has ended."""
    shape = f"{run.layers} x {run.d_model}"
    what = {"rate": f"rates x {run.factor:g}", "repeat": f"seed {run.seed}"}.get(run.role or "", "")
    reached = "diverged, which counts as an outcome" if run.diverged else f"{run.bits_per_byte:.4f} bits per byte"
    tokens = f"{count(run.tokens)} tokens"
    return f"{shape:9} {tokens:>16}  {what:12} {reached}  {duration(run.seconds)}"


def rate_line(one: Bracket) -> str:
    """The best rates at a size."""
    where = f"{one.best:.2f} times the plan's ({one.low:.2f} to {one.high:.2f})"
    edge = "" if one.inside else "; no worse rate was found on one side, so it may lie further out"
    gain = f", which gain {one.gain:.2%}" if one.gain > 0 else ""
    return f"best rates at {count(one.parameters)} parameters: {where}{gain}{edge}"


def transfer_lines(found: Transfer) -> list[str]:
    """The best rates at each size, and whether the plan's rule carries over."""
    lines = [rate_line(one) for one in found.brackets]
    if len(found.brackets) < 2:
        return [*lines, "too few learning rates were tried to say whether the plan's rule carries over"]
    if found.holds:
        return [*lines, "the plan's rule for the rates carries over between these sizes, as far as the noise lets see"]
    return [
        *lines,
        f"warning: the best rates move by a factor of {2.0**found.moves:.2g} for each factor of ten in parameters, so "
        f"that the plan's rule does not carry over: larger runs lose about {found.per_decade:.1%} more for each factor "
        "of ten in compute, which the intervals of forecasts have in them; another recipe, or rates of your own with "
        "--set, may mend it",
    ]


def law_lines(found: Climbed) -> list[str]:
    """The law with its intervals, the noise, and what it missed of the budgets held out."""
    samples = found.study.samples
    intervals = {
        name: samples.interval(lambda one, name=name: getattr(one, name))  # type: ignore[misc]
        for name in ("E", "A", "B", "alpha", "beta", "a")
    }
    constants = ", ".join(
        f"{name} {shown(i.value)} ({shown(i.low)} to {shown(i.high)})" for name, i in intervals.items()
    )
    lines = [f"law of {len(found.used)} runs: bits per byte = E + A/N^alpha + B/D^beta", f"  {constants}; 90 %"]
    if str(found.study.way) != "chinchilla":
        lines.append(f"  predicts by another form, which predicted held-out budgets better: {found.study.way}")
    if math.isfinite(found.noise):
        lines.append(f"  noise between seeds {found.noise:.2%}; about the law {found.study.fitted.noise:.2%}")
    rolled = next((one for one in found.study.rolled if one.way == found.study.way), found.study.rolled[0])
    if rolled.cuts:
        lines.append(f"  error at the largest budgets, held out: {rolled.size:.2%} ({len(rolled.cuts)} cuts)")
    else:
        lines.append(
            f"  too few runs to hold any out: {LEAST_PER_DECADE:.0%} for each factor of ten beyond them is assumed"
        )
    if found.diverged:
        lines.append(f"  {len(found.diverged)} runs diverged and are not in it")
    return [*lines, *(f"  warning: {warning}" for warning in found.study.warnings)]


def shown(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.3g}" if abs(value) < 1e4 else f"{value:.2e}"


def to_dict(made: Ladder | None) -> dict[str, Any]:
    """What came of a ladder as JSON; no law where too few runs have ended."""
    if made is None or made.law is None or made.climbed is None:
        return {"law": None, "left": made.left if made else None}
    law = made.law.law
    return {
        "law": {name: getattr(law, name) for name in ("E", "A", "B", "alpha", "beta", "gamma", "a")},
        "fit": str(made.folder.fit),
        "stored": str(made.law.path),
        "runs": len(made.climbed.used),
        "diverged": len(made.climbed.diverged),
        "left": made.left,
        "seed_noise": made.law.about.seed_noise,
        "rates_carry_over": made.climbed.transfer.holds if len(made.climbed.transfer.brackets) > 1 else None,
        "targets": [target.to_dict() for target in made.targets],
        "warnings": list(made.climbed.study.warnings),
    }
