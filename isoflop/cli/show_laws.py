"""Prints fits of scaling laws, predictions and comparisons, on a terminal of 80 columns or as JSON."""

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
CLOSE = 0.095  # difference of log N up to which a size counts as the best one


def say(text: str, indent: str = "") -> None:
    """Print text, wrapped at WIDTH; `indent` is for all lines but the first."""
    print(textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def count(value: float) -> str:
    """A number of parameters or tokens with three digits, such as 70.1B."""
    if not math.isfinite(value):
        return "no bound"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            scaled = value / size
            return (
                f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{unit}" if scaled < 1e5 else f"{value:.2e}"
            )
    return f"{value:.3g}"


def flops(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no bound"


def number(value: float) -> str:
    """A constant of a law with four digits, without an exponent if that is short."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:.4g}"


def loss_text(value: float) -> str:
    return "no bound" if not math.isfinite(value) else f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"


def show_study(study: Study, name: str, stored: Path | None) -> None:
    """Print a fit: its constants, the exponents of other approaches, its error on held-out budgets, and warnings.

    Args:
        stored: the file that holds the fit; None: it was not stored.
    """
    fitted, points = study.fitted, study.fitted.points
    print(f"{len(points)} runs of {name}")
    cost = f"; {fitted.law.cost.words()}" if points.given_flops else ""
    say(f"counted: {points.counts.words()}{cost}", "  ")
    print("\nL(N, D) = E + A / N^alpha + B / D^beta         90 % interval   standard error")
    for constant in CONSTANTS:
        interval = study.samples.interval(lambda law, constant=constant: getattr(law, constant))  # type: ignore[misc]
        bounds = f"{number(interval.low)} to {number(interval.high)}"
        error = "-" if interval.error is None else number(interval.error)
        print(f"  {constant:<8}{number(interval.value):>12}{bounds:>38}{error:>17}")
    convergence = fitted.convergence
    say(
        f"Huber sum {fitted.objective:.5g}, at a minimum: {convergence.agreeing} of {convergence.starts} starts agree, "
        f"gradient {convergence.gradient:.0e}; {fitted.noise:.2%} noise per run",
        "  ",
    )

    print("\nexponent of N* in compute")
    for label, exponent in (("1, lower envelope", study.approach_1), ("2, parabolas", study.approach_2)):
        print(f"  approach {label:<22}{exponent_text(exponent)}")
    interval = study.samples.interval(lambda law: law.exponent)
    print(f"  approach 3, {'Huber':<19}{interval.value:.3f}   {interval.low:.3f} to {interval.high:.3f}")
    print(f"  approach 3, {'squared error':<19}{study.squared.law.exponent:.3f}")

    print("\nerror near the valley of the largest budgets, held out")
    for method in study.rolled:
        if method.cuts:
            chosen = "   predicts" if method.way == study.way else ""
            cuts = f"{len(method.cuts)} cut{'s' if len(method.cuts) > 1 else ''}"
            print(f"  {method.way!s:<33}{method.size:>7.2%}   {cuts}{chosen}")
    if not study.rolled[0].cuts:
        say(
            "  none: too few runs to hold any out; intervals beyond the runs do not include errors of the law itself",
            "  ",
        )
    for warning in study.warnings:
        say(f"warning: {warning}", "  ")
    if stored is not None:
        budget = f"{points.flops.max() * 10:.0e}"
        print(f"stored: {stored}\npredict with it: isoflop plan predict {quoted(stored)} --budget {budget}")
    else:
        print("store it for predictions: --out FIT.json")


def exponent_text(exponent: Exponent | None) -> str:
    if exponent is None:
        return "-       too few minima at equal compute"
    inside = sum(valley.inside for valley in exponent.valleys)
    bias = "" if exponent.bias is None else f"; bias {exponent.bias + 0.0:+.3f} here"
    return f"{exponent.a:.3f}   +- {exponent.error:.3f}, {inside} minima{bias}"


def show_prediction(prediction: Prediction, basis: Basis) -> None:
    """Print what a budget buys, with intervals."""
    head = "90 % interval" if basis.has_intervals else "no interval: published without a covariance"
    print(f"\n{prediction.flops:.3g} FLOPs buy{'':<16}{head}")
    line("N* by the law", count(prediction.n.value), prediction.n, count, basis)
    line("D* by the law", count(prediction.d.value), prediction.d, count, basis)
    ratio = prediction.take_d / prediction.take_n
    print(f"  {'take':<22}N {count(prediction.take_n)}, D {count(prediction.take_d)}: {ratio:.3g} tokens per parameter")
    line("loss of one run", loss_text(prediction.loss.value), prediction.loss, loss_text, basis)
    if basis.has_intervals:
        line("  by the law alone", loss_text(prediction.law.value), prediction.law, loss_text, basis)
    if prediction.beyond > 0:
        say(
            f"  {10**prediction.beyond:,.3g} times the largest budget fitted; the law's own error, from held-out "
            f"budgets, is {basis.per_decade:.2%} per factor of ten",
            "  ",
        )
    gain, rule_loss = prediction.gain, loss_text(prediction.rule_loss.value)
    rule = f"D = 20 N: N {count(prediction.rule_n)}, D {count(prediction.rule_d)}, loss {rule_loss}"
    if not basis.has_intervals:
        say(f"  {rule}, {gain.value:+.4f}", "    ")
        return

    verdict = f"a gain of {gain.value:.4f}" if prediction.gains else "inside the noise: no gain claimed"
    say(
        f"  {rule}, {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}; one run's noise "
        f"{prediction.noise:.4f}): {verdict}",
        "    ",
    )


def line(label: str, value: str, interval: Interval, form: Any, basis: Basis) -> None:
    bounds = f"{form(interval.low)} to {form(interval.high)}" if basis.has_intervals else ""
    print(f"  {label:<22}{value:<12}{bounds}".rstrip())


def show_needed(needed: Needed, basis: Basis) -> None:
    """Print the budget that a loss needs."""
    law = basis.law
    best = needed.flops.value
    print(f"\nloss {needed.loss:g} needs")
    line("FLOPs", flops(best), needed.flops, flops, basis)
    print(f"  {'parameters N':<22}{count(float(law.n_star(best)))}\n  {'tokens D':<22}{count(float(law.d_star(best)))}")
    at_20 = f"{flops(needed.rule_flops)} FLOPs" if math.isfinite(needed.rule_flops) else "never"
    print(f"  {'with D = 20 N':<22}{at_20}")
    if needed.share < 1:
        say(
            f"  {1 - needed.share:.0%} of the bootstrap's laws never reach it: their irreducible loss is higher", "    "
        )
    if (beyond := basis.beyond(best)) > 0:
        say(f"  {10**beyond:,.3g} times the largest budget fitted: the interval is the law's own", "    ")


def show_compared(runs: list[Compared], law: Law, way: str, counted: str) -> None:
    """Print a comparison of runs: the terms of their losses, and the best run at equal compute.

    Args:
        way: the name of the law; counted: its conventions of counting.
    """
    say(f"by {way}", "  ")
    say(counted, "  ")
    print(f"\nL = {law.E:.3f} + A/N^alpha + B/D^beta{'best at equal FLOPs':>46}")
    print(f"{'run':<18}{'N':>6}{'D':>7}{'D/N':>6}{'FLOPs':>9}{'N term':>7}{'D term':>7}{'L':>6}{'N':>7}{'L':>7}")
    for run in runs:
        print(
            f"{shorten(run.name, 17):<18}{count(run.n):>6}{count(run.d):>7}{run.d / run.n:>6.3g}{run.flops:>9.2e}"
            f"{run.n_term:>7.3f}{run.d_term:>7.3f}{run.loss:>6.3f}{count(run.n_star):>7}{run.loss_star:>7.3f}"
        )

    print()
    for run in runs:
        if abs(math.log(run.n / run.n_star)) < CLOSE:
            say(
                f"{run.name}: within {math.expm1(CLOSE):.0%} of the best size for its compute, {count(run.n_star)}",
                "  ",
            )
            continue
        side = "parameters" if run.n > run.n_star else "tokens"
        times = max(run.n / run.n_star, run.d / run.d_star)
        say(
            f"{run.name}: {times:.2g} times the {side} that its compute calls for; {run.enough:.0%} of its FLOPs would "
            f"have bought the same loss, at {count(run.n_star)} and {count(run.d_star)} tokens they buy "
            f"{run.loss - run.loss_star:.3f} less",
            "  ",
        )

    if len(runs) > 1:
        best = min(runs, key=lambda run: run.loss)
        rest = [run for run in runs if run is not best]
        largest = max(rest, key=lambda run: run.n)
        cause = "tokens" if best.d_term - largest.d_term < best.n_term - largest.n_term else "parameters"
        changes = (best.d_term - largest.d_term, best.n_term - largest.n_term)
        say(
            f"{best.name} has the least loss, {best.loss:.3f}, through its {cause}: next to {largest.name}, its tokens "
            f"change the loss by {changes[0]:+.3f} and its size by {changes[1]:+.3f}",
            "  ",
        )


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def prediction_dict(prediction: Prediction) -> dict[str, Any]:
    return finite_only({**asdict(prediction), "gain_claimed": prediction.gains})


def needed_dict(needed: Needed) -> dict[str, Any]:
    return finite_only(asdict(needed))


def finite_only(value: Any) -> Any:
    """A JSON value with null in place of non-finite numbers, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite_only(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
