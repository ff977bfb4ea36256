"""The middle of a run's page: the loss curves, and the plan compared with the outcome.

Each function takes the Facts of a run and returns HTML. Strings from a run are escaped by words.text.
"""

from dataclasses import fields

from isoflop.records import DecisionLine
from isoflop.report import figures, laws, words
from isoflop.report.facts import (
    Facts,
    Measures,
    bits_per_measured_nat,
    chosen_candidate,
    column,
    divide,
    running_forecast,
    tokens_at,
)
from isoflop.report.figures import Interval, LossCurves, Mark
from isoflop.report.style import key, section, table
from isoflop.report.words import count, duration, fixed, percent, text

DECISIONS_LABELLED, RESUMES_LABELLED = 4, 6  # at most, next to the curve: more labels would hide it


def loss(facts: Facts) -> str:
    """The loss curves, gradient norm, speed and running forecasts against tokens read."""
    run, ratio, expected = facts.run, facts.bits_per_nat, facts.expected_bits
    if not run.training:
        return section("Learning", "No step has been logged yet.", "")

    tokens, training_loss, lr = (column(run.training, key) for key in ("tokens", "loss", "lr"))
    nats = Interval(expected.value / ratio, expected.low / ratio, expected.high / ratio) if expected and ratio else None
    curves = LossCurves(
        tokens,
        training_loss,
        lr,
        column(run.heldout, "tokens"),
        column(run.heldout, "heldout_loss"),
        bits_per_nat=ratio,
        expected=nats,
        end_tokens=tokens_at(run, facts.planned_steps or 0.0) or facts.expected.tokens,
        marks=event_marks(facts),
        fan=forecast_fan(facts),
    )
    drawn, above = [], 0
    for css, width in (("wide", 980), ("narrow", 420)):
        svg, above = figures.loss_curves(curves, width)
        drawn.append(f'<div class="{css}">{svg}</div>')

    legend = [key("train", "training loss, each log line and smoothed"), key("heldout", "held-out loss")]
    legend += [key("expected", "expected at the end, with its interval", band=True)] if nats else []
    if len(curves.fan):
        legend.append(key("heldout", f"{running_forecast(run)} bits per byte at the end", band=True))
    if above:
        lines = f"The first {count(above)} log lines are" if above > 1 else "The first log line is"
        highest = fixed(training_loss[0])
        legend.append(f"<span>{lines} above the upper limit of the axis, from {highest} nats on.</span>")
    legend += decision_legend(facts)
    if facts.starts - 1 > RESUMES_LABELLED:
        legend.append(f"<span>Dotted lines: the run was resumed {count(facts.starts - 1)} times.</span>")

    small = []
    for name, title, column_name in (
        ("gradient", "Gradient norm", "grad_norm"),
        ("speed", "Tokens per second", "tokens_per_second"),
    ):
        values = column(run.training, column_name)
        if values.size and not all(values != values):  # NaN alone: nothing was logged
            svg = figures.trace(tokens, values, name, f"{title} against tokens read", curves.marks)
            small.append(f'<figure><figcaption class="above">{title}</figcaption>{svg}</figure>')
    small += forecast_figure(facts)

    body = (
        f"<figure>{''.join(drawn)}<figcaption>{''.join(legend)}</figcaption></figure>\n"
        + '<div class="pair">'
        + "".join(small)
        + "</div>"
    )
    lead = "Loss in nats per token; the right-hand axis gives the held-out loss in bits per byte."
    return section("Learning", f"{lead} {bad_steps(facts)}".rstrip(), body)


def forecast_fan(facts: Facts) -> list[list[float]]:
    """The latest running forecast of an unfinished run: rows of (tokens, nats per token, low, high), beginning at the
    last held-out loss; empty if there is none."""
    run, ratio = facts.run, bits_per_measured_nat(facts.run, facts.bits_per_nat)
    if facts.finished or not run.forecasts or not run.heldout or not ratio:
        return []

    last = run.heldout[-1]
    ahead = [list(point) for point in run.forecasts[-1].fan if len(point) == 4 and point[0] > (last.tokens or 0)]
    if not ahead or last.tokens is None or last.heldout_loss is None:
        return []
    now = [float(last.tokens), last.heldout_loss, last.heldout_loss, last.heldout_loss]
    return [now, *([tokens, *(value / ratio for value in values)] for tokens, *values in ahead)]


def forecast_figure(facts: Facts) -> list[str]:
    """The figure of all running forecasts, if there are any."""
    lines = [line for line in facts.run.forecasts if line.tokens is not None]
    if not lines:
        return []

    names = ("tokens", "forecast_bits_per_byte", "forecast_low", "forecast_high")
    end = tokens_at(facts.run, facts.planned_steps or 0.0) or facts.expected.tokens or facts.reached.tokens or 1.0
    svg = figures.forecasts(
        *(column(lines, name) for name in names),
        reached=facts.reached.bits_per_byte if facts.finished else None,
        expected=facts.expected_bits,
        end_tokens=facts.reached.tokens or end if facts.finished else end,
    )

    title = "Running forecasts of the final loss, in bits per byte"
    level = percent(lines[-1].forecast_level, 0)
    legend = [key("heldout", f"forecast during training, {level} interval", band=True)]
    legend += [key("expected", "forecast of the plan", band=True)] if facts.expected_bits else []
    legend += [key("ink", "reached")] if facts.finished else []
    return [
        f'<figure><figcaption class="above">{title}</figcaption>{svg}'
        f"<figcaption>{''.join(legend)}</figcaption></figure>"
    ]


def bad_steps(facts: Facts) -> str:
    """One line on the bad steps and how they were handled; empty if there were none."""
    actions = [line.action for line in facts.run.skips]
    names = (("skip", "discarded"), ("rollback", "rolled back, their data skipped"), ("keep", "loss spikes, kept"))
    parts = [f"{count(actions.count(action))} {handling}" for action, handling in names if action in actions]
    return f"Bad steps (non-finite loss or spikes): {', '.join(parts)}; see the history." if parts else ""


def event_marks(facts: Facts) -> list[Mark]:
    """The events to mark on the curves: start of the decay, resumes and extensions, decisions about the run's end."""
    run = facts.run
    resumes = [event for event in run.events if event.event in ("resumed", "extended")]
    label_resumes = len(resumes) <= RESUMES_LABELLED
    label_decisions = len(run.decisions) <= DECISIONS_LABELLED

    steps: list[tuple[float | None, str, bool]] = [(facts.decay_step, "decay starts", False)]
    steps += [(event.step, event.event if label_resumes else "", False) for event in resumes]
    steps += [
        (line.at_step, f"decision {index}" if label_decisions else "", True)
        for index, line in enumerate(run.decisions, 1)
    ]
    positions = [(tokens_at(run, step), label, strong) for step, label, strong in steps if step is not None]
    return [Mark(tokens, label, strong) for tokens, label, strong in positions if tokens is not None]


def decision_legend(facts: Facts) -> list[str]:
    decisions = facts.run.decisions
    if len(decisions) > DECISIONS_LABELLED:
        last = decision_sentence(decisions[-1])
        return [key("mark", f"{len(decisions)} decisions about the run's end, all in the history; the last: {last}")]
    return [
        key("mark", f"decision {index}: {decision_sentence(decision)}") for index, decision in enumerate(decisions, 1)
    ]


def decision_sentence(decision: DecisionLine) -> str:
    """What was decided, at which step, and why."""
    sentence = f"at step {count(decision.at_step)}"
    sentence += f" the end was set to step {count(decision.steps)}" if decision.steps is not None else ""
    return sentence + (f": {text(decision.reason)}" if decision.reason else "")


def plan(facts: Facts) -> str:
    recorded = facts.run.plan
    if recorded.missing:
        return ""

    expected, reached = facts.expected, facts.reached
    rows = []
    for field in fields(Measures):
        title, show = field.metadata["title"], field.metadata["show"]
        planned, outcome = getattr(expected, field.name), getattr(reached, field.name)
        if planned is None and outcome is None:
            continue
        interval = (
            f"<br><small>{fixed(facts.low)} to {fixed(facts.high)}</small>"
            if field.name == "bits_per_byte" and facts.low is not None
            else ""
        )
        rows.append(
            [
                title,
                f"{show(planned)}{interval}",
                show(outcome),
                words.change(outcome, planned) if facts.finished else percent(divide(outcome, planned), 0),
            ]
        )
    body = table(
        ["", "expected", "reached" if facts.finished else "so far", "difference" if facts.finished else "of the plan"],
        rows,
        {1, 2, 3},
    )

    if recorded.choices:
        lines = [[text(c.name), f"<b>{text(words.plain(c.value))}</b>", text(c.reason)] for c in recorded.choices]
        body += "<h3>The plan's choices and their reasons</h3>\n" + table(["choice", "value", "reason"], lines)
    elif exports := recorded.exports:
        body += f"<p>Exports to: {text(exports.words)} ({text(exports.reason)}).</p>"
    return section("Plan and outcome", source_of_expectation(facts), body + shapes(facts))


def source_of_expectation(facts: Facts) -> str:
    """The budget, and the source of the expected loss, so that a reader can tell a prior from a fit."""
    recorded = facts.run.plan
    lead = f"Planned for a budget of {text(recorded.budget)}. " if recorded.budget else ""
    if facts.expected.bits_per_byte is None:
        return lead + "No loss was forecast."

    unfitted = recorded.kind == "prior" and not recorded.pilots
    kind = "The expected loss is a prior, not a fit" if unfitted else "The expected loss"
    source = (recorded.expected and recorded.expected.source) or ""
    source = source.removeprefix("a prior, not a fit: ")  # `kind` has these words
    level = f"; the interval should hold for {percent(facts.level, 0)} of runs" if facts.level is not None else ""
    return lead + kind + (f" (from {text(source)})" if source else "") + level + "."


def ladder(facts: Facts) -> str:
    """The ladder whose law the forecast was made from: loss against compute, with this run."""
    run = facts.run
    seen = run.plan.ladder
    frontier = [row for row in (seen and seen.frontier) or () if len(row) == 4 and min(row) > 0]
    if not frontier:
        return ""
    made = [row for row in (seen and seen.runs) or () if len(row) == 2 and min(row) > 0]
    one = run.plan.expected
    about = (run.plan.flops, one.bits_per_byte, one.low, one.high) if one else ()
    target = [known] if len(known := [value for value in about if value]) == 4 else []
    reached = run.result.heldout.bits_per_byte
    there = [(run.result.flops, reached)] if reached and run.result.flops else []
    svg = laws.frontier([row[0] for row in made], [row[1] for row in made], frontier, target, there)
    legend = [
        key("train", f"{count(len(made))} runs of the ladder"),
        key("expected", "the least loss at each compute by their law, and what was expected of this run", band=True),
        *([key("heldout", "what this run reached")] if there else []),
    ]
    lead = "Where this run lies next to the small ones on this text that its forecast was made from."
    return section("The ladder", lead, f"<figure>{svg}<figcaption>{''.join(legend)}</figcaption></figure>")


def shapes(facts: Facts) -> str:
    """The candidates timed in calibration, drawn and listed."""
    candidates, chosen = facts.run.plan.candidates, chosen_candidate(facts.run)
    if not candidates:
        return ""

    rows = [
        [
            f"{count(c.layers)} × {count(c.d_model)}" + (" ✓" if index == chosen else ""),
            count(c.parameters),
            count(c.tokens_per_second),
            count(c.tokens),
            fixed(c.expected_bits_per_byte, 3),
        ]
        for index, c in enumerate(candidates)
    ]
    columns = ["shape", "parameters N", "tokens/s", "tokens", "bits/byte"]
    body = table(columns, rows, {1, 2, 3, 4}, chosen)

    drawable = [i for i, c in enumerate(candidates) if c.parameters and c.expected_bits_per_byte is not None]
    figure = ""
    if len(drawable) > 1:
        picked = [candidates[i] for i in drawable]
        labels = [f"{count(c.layers)}×{count(c.d_model)}" for c in picked]
        svg = figures.candidates(
            column(picked, "parameters"),
            column(picked, "expected_bits_per_byte"),
            labels,
            drawable.index(chosen) if chosen in drawable else None,
        )
        figure = f'<figure><figcaption class="above">Expected bits per byte of each shape</figcaption>{svg}</figure>'

    seconds = facts.run.plan.calibration.seconds
    timed = f" in {duration(seconds)}" if seconds is not None else ""
    return f"<h3>Shapes timed on this machine{timed}</h3>\n" + f'<div class="pair">{figure}<div>{body}</div></div>'
