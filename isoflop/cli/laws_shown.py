"""How fits, predictions and comparisons look on a terminal of 80 columns, and as JSON."""

import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isoflop.errors import quoted
from isoflop.plan.law.bootstrap import Interval
from isoflop.plan.law.forms import Law
from isoflop.plan.law.isoflop import Exponent
from isoflop.plan.law.predict import Basis, Compared, Needed, Prediction
from isoflop.plan.law.study import CONSTANTS, Study

WIDTH = 80
CLOSE = 0.095  # difference of log N up to which a size is the best one


def say(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def count(value: float) -> str:
    """70.1B; a number of parameters or tokens in three digits."""
    if not math.isfinite(value):
        return "no bound"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            shown = value / size
            return f"{shown:.3g}{unit}" if shown < 999.5 else f"{shown:,.0f}{unit}" if shown < 1e5 else f"{value:.2e}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no bound"


def number(value: float) -> str:
    """A constant of a law: four digits, without an exponent where that stays short."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:.4g}"


def loss_shown(value: float) -> str:
    return "no bound" if not math.isfinite(value) else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def show_study(found: Study, name: str, stored: Path | None) -> None:
    """A fit: constants, what other approaches say, how it predicts held-out budgets, and its doubts."""
    fitted, points = found.fitted, found.fitted.points
    print(f"{len(points)} runs of {name}")
    cost = f"; {fitted.law.cost.words()}" if points.given_flops else ""
    say(f"counted: {points.counts.words()}{cost}", "  ")
    print("\nL(N, D) = E + A / N^alpha + B / D^beta         90 % interval   standard error")
    for constant in CONSTANTS:
        interval = found.samples.interval(lambda law, constant=constant: getattr(law, constant))  # type: ignore[misc]
        around = f"{number(interval.low)} to {number(interval.high)}"
        error = "-" if interval.error is None else number(interval.error)
        print(f"  {constant:<8}{number(interval.value):>12}{around:>38}{error:>17}")
    shown = fitted.convergence
    say(
        f"Huber sum {fitted.objective:.5g}, at a minimum: {shown.agreeing} of {shown.starts} starts agree, gradient "
        f"{shown.gradient:.0e}; {fitted.noise:.2%} noise per run",
        "  ",
    )

    print("\nexponent of N* in compute")
    for label, exponent in (("1, lower envelope", found.approach_1), ("2, parabolas", found.approach_2)):
        print(f"  approach {label:<22}{exponent_shown(exponent)}")
    interval = found.samples.interval(lambda law: law.exponent)
    print(f"  approach 3, {'Huber':<19}{interval.value:.3f}   {interval.low:.3f} to {interval.high:.3f}")
    print(f"  approach 3, {'squared error':<19}{found.squared.law.exponent:.3f}")

    print("\nerror near the valley of the largest budgets, held out")
    for one in found.rolled:
        if one.cuts:
            chosen = "   predicts" if one.way == found.way else ""
            cuts = f"{len(one.cuts)} cut{'s' if len(one.cuts) > 1 else ''}"
            print(f"  {one.way!s:<33}{one.size:>7.2%}   {cuts}{chosen}")
    if not found.rolled[0].cuts:
        say(
            "  none: too few runs to hold any out; intervals beyond the runs know nothing of the law's own faults", "  "
        )
    for warning in found.warnings:
        say(f"warning: {warning}", "  ")
    if stored is not None:
        print(f"stored: {stored}\nask it: isoflop plan predict {quoted(stored)} --budget {points.flops.max() * 10:.0e}")
    else:
        print("store it to ask what a budget buys: --out FIT.json")


def exponent_shown(found: Exponent | None) -> str:
    if found is None:
        return "-       too few minima at equal compute"
    inside = sum(valley.inside for valley in found.valleys)
    bias = "" if found.bias is None else f"; bias {found.bias + 0.0:+.3f} here"
    return f"{found.a:.3f}   +- {found.error:.3f}, {inside} minima{bias}"


def show_prediction(one: Prediction, basis: Basis) -> None:
    """What a budget buys, with intervals."""
    head = "90 % interval" if basis.has_intervals else "no interval: published without a covariance"
    print(f"\n{one.flops:.3g} FLOPs buy{'':<16}{head}")
    line("N* by the law", count(one.n.value), one.n, count, basis)
    line("D* by the law", count(one.d.value), one.d, count, basis)
    each = one.take_d / one.take_n
    print(f"  {'take':<22}N {count(one.take_n)}, D {count(one.take_d)}: {each:.3g} tokens per parameter")
    line("loss of one run", loss_shown(one.loss.value), one.loss, loss_shown, basis)
    if basis.has_intervals:
        line("  by the law alone", loss_shown(one.law.value), one.law, loss_shown, basis)
    if one.beyond > 0:
        say(
            f"  {10**one.beyond:,.3g} times the largest budget fitted; held-out budgets say {basis.per_decade:.2%} "
            "more per factor of ten",
            "  ",
        )
    rule = f"D = 20 N: N {count(one.rule_n)}, D {count(one.rule_d)}, loss {loss_shown(one.rule_loss.value)}"
    if not basis.has_intervals:
        say(f"  {rule}, {one.gain.value:+.4f}", "    ")
        return
    verdict = f"a gain of {one.gain.value:.4f}" if one.gains else "inside the noise: no gain claimed"
    say(
        f"  {rule}, {one.gain.value:+.4f} ({one.gain.low:+.4f} to {one.gain.high:+.4f}; one run's noise "
        f"{one.noise:.4f}): {verdict}",
        "    ",
    )


def line(label: str, value: str, interval: Interval, form: Any, basis: Basis) -> None:
    around = f"{form(interval.low)} to {form(interval.high)}" if basis.has_intervals else ""
    print(f"  {label:<22}{value:<12}{around}".rstrip())


def show_needed(one: Needed, basis: Basis) -> None:
    """The budget that a loss needs."""
    law = basis.law
    best = one.flops.value
    print(f"\nloss {one.loss:g} needs")
    line("FLOPs", flops(best), one.flops, flops, basis)
    print(f"  {'parameters N':<22}{count(float(law.n_star(best)))}\n  {'tokens D':<22}{count(float(law.d_star(best)))}")
    more = f"{flops(one.rule_flops)} FLOPs" if math.isfinite(one.rule_flops) else "never"
    print(f"  {'with D = 20 N':<22}{more}")
    if one.share < 1:
        say(f"  {1 - one.share:.0%} of the bootstrap's laws never reach it: their irreducible loss is higher", "    ")
    if (beyond := basis.beyond(best)) > 0:
        say(f"  {10**beyond:,.3g} times the largest budget fitted: the interval is the law's own", "    ")


def show_compared(runs: list[Compared], law: Law, way: str, counted: str) -> None:
    """Runs side by side: the terms of their losses, and the best at equal compute."""
    say(f"by {way}", "  ")
    say(counted, "  ")
    print(f"\nL = {law.E:.3f} + A/N^alpha + B/D^beta{'best at equal FLOPs':>46}")
    print(f"{'run':<18}{'N':>6}{'D':>7}{'D/N':>6}{'FLOPs':>9}{'N term':>7}{'D term':>7}{'L':>6}{'N':>7}{'L':>7}")
    for one in runs:
        print(
            f"{shorter(one.name, 17):<18}{count(one.n):>6}{count(one.d):>7}{one.d / one.n:>6.3g}{one.flops:>9.2e}"
            f"{one.n_term:>7.3f}{one.d_term:>7.3f}{one.loss:>6.3f}{count(one.n_star):>7}{one.loss_star:>7.3f}"
        )
    print()
    for one in runs:
        if abs(math.log(one.n / one.n_star)) < CLOSE:
            say(
                f"{one.name}: within {math.expm1(CLOSE):.0%} of the best size for its compute, {count(one.n_star)}",
                "  ",
            )
            continue
        side = "parameters" if one.n > one.n_star else "tokens"
        times = max(one.n / one.n_star, one.d / one.d_star)
        say(
            f"{one.name}: {times:.2g} times the {side} that its compute calls for; {one.enough:.0%} of its FLOPs would "
            f"have bought the same loss, at {count(one.n_star)} and {count(one.d_star)} tokens they buy "
            f"{one.loss - one.loss_star:.3f} less",
            "  ",
        )
    if len(runs) > 1:
        best = min(runs, key=lambda one: one.loss)
        others = [one for one in runs if one is not best]
        most = max(others, key=lambda one: one.n)
        by = "tokens" if best.d_term - most.d_term < best.n_term - most.n_term else "parameters"
        given = (best.d_term - most.d_term, best.n_term - most.n_term)
        say(
            f"{best.name} has the least loss, {best.loss:.3f}, through its {by}: next to {most.name}, its tokens "
            f"change the loss by {given[0]:+.3f} and its size by {given[1]:+.3f}",
            "  ",
        )


def shorter(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def prediction_dict(one: Prediction) -> dict[str, Any]:
    return finite_only({**asdict(one), "gain_claimed": one.gains})


def needed_dict(one: Needed) -> dict[str, Any]:
    return finite_only(asdict(one))


def finite_only(value: Any) -> Any:
    """JSON has no infinity: null stands for no bound."""
    if isinstance(value, dict):
        return {name: finite_only(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
