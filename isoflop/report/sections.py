"""The middle of a run's page: how it learned, and the plan beside what happened.

Each function takes the Facts of a run and returns HTML. Whatever comes from a run goes through words.text.
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
    outlook,
    over,
    tokens_at,
)
from isoflop.report.figures import Interval, Mark
from isoflop.report.style import key, section, table
from isoflop.report.words import count, duration, fixed, percent, text

DECISIONS_TOLD, RESUMED_TOLD = 4, 6  # beside the curve; more would hide it


def learning(facts: Facts) -> str:
    run, ratio, expected = facts.run, facts.bits_per_nat, facts.expected_bits
    if not run.training:
        return section("Learning", "No step has been logged yet.", "")
    tokens, loss, lr = (column(run.training, key) for key in ("tokens", "loss", "lr"))
    held_tokens, held = column(run.heldout, "tokens"), column(run.heldout, "heldout_loss")
    nats = Interval(expected.value / ratio, expected.low / ratio, expected.high / ratio) if expected and ratio else None
    marks = moments(facts)
    end = tokens_at(run, facts.planned_steps or 0.0) or facts.expected.tokens
    drawn, above, ahead = [], 0, fan(facts)
    for css, width in (("wide", 980), ("narrow", 420)):
        svg, above = figures.learning(
            tokens,
            loss,
            lr,
            held_tokens,
            held,
            bits_per_nat=ratio,
            expected=nats,
            end_tokens=end,
            marks=marks,
            fan=ahead,
            width=width,
        )
        drawn.append(f'<div class="{css}">{svg}</div>')
    legend = [key("train", "training loss, each record and smoothed"), key("heldout", "held-out loss")]
    legend += [key("expected", "expected at the end, with its interval", band=True)] if nats else []
    if ahead:
        legend.append(key("heldout", f"{outlook(run)} bits per byte in the end", band=True))
    if above:
        legend.append(
            f"<span>The first {count(above)} records, from {fixed(loss[0])} nats, lie above the picture.</span>"
        )
    legend += decisions_told(facts)
    if facts.starts - 1 > RESUMED_TOLD:
        legend.append(f"<span>Dotted: where it was gone on with, {count(facts.starts - 1)} times.</span>")
    small = []
    for name, title, column_name in (
        ("gradient", "Gradient norm", "grad_norm"),
        ("speed", "Tokens per second", "tokens_per_second"),
    ):
        values = column(run.training, column_name)
        if values.size and not all(values != values):  # NaN alone: nothing was logged
            svg = figures.trace(tokens, values, name, f"{title} against tokens read", marks)
            small.append(f'<figure><figcaption class="above">{title}</figcaption>{svg}</figure>')
    small += foreseen(facts)
    body = (
        f"<figure>{''.join(drawn)}<figcaption>{''.join(legend)}</figcaption></figure>\n"
        + '<div class="pair">'
        + "".join(small)
        + "</div>"
    )
    said = "Loss in nats per token; the right-hand axis reads the held-out curve in bits per byte."
    return section("Learning", f"{said} {bad_steps(facts)}".rstrip(), body)


def fan(facts: Facts) -> list[list[float]]:
    """The newest forecast of a run that has not ended: rows of (tokens, nats per token, low, high), the first of them
    the held-out loss that there is; empty where there is none."""
    run, ratio = facts.run, bits_per_measured_nat(facts.run, facts.bits_per_nat)
    if facts.finished or not run.forecasts or not run.heldout or not ratio:
        return []
    now = run.heldout[-1]
    ahead = [list(point) for point in run.forecasts[-1].fan if len(point) == 4 and point[0] > (now.tokens or 0)]
    if not ahead or now.tokens is None or now.heldout_loss is None:
        return []
    begun = [float(now.tokens), now.heldout_loss, now.heldout_loss, now.heldout_loss]
    return [begun, *([tokens, *(value / ratio for value in values)] for tokens, *values in ahead)]


def foreseen(facts: Facts) -> list[str]:
    """The figure of what the run was on course for along the way, if it said so."""
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
    title = "On course for, in bits per byte"
    level = percent(lines[-1].forecast_level, 0)
    legend = [key("heldout", f"forecast along the way, {level} interval", band=True)]
    legend += [key("expected", "the plan's", band=True)] if facts.expected_bits else []
    legend += [key("ink", "reached")] if facts.finished else []
    return [
        f'<figure><figcaption class="above">{title}</figcaption>{svg}'
        f"<figcaption>{''.join(legend)}</figcaption></figure>"
    ]


def bad_steps(facts: Facts) -> str:
    """One line on the steps whose numbers went wrong; empty where none did."""
    actions = [line.action for line in facts.run.skips]
    names = (("skip", "left out"), ("rollback", "rolled back, their data passed over"), ("keep", "spikes, kept"))
    parts = [f"{count(actions.count(action))} {said}" for action, said in names if action in actions]
    return f"Steps whose numbers went wrong: {', '.join(parts)}; the history tells of them." if parts else ""


def moments(facts: Facts) -> list[Mark]:
    """What happened on the way: the decay's start, resumptions, decisions of the clock."""
    run = facts.run
    found: list[tuple[float | None, str, bool]] = [(facts.decay_step, "decay starts", False)]
    back = [event for event in run.events if event.event in ("resumed", "extended")]
    few = len(back) <= RESUMED_TOLD
    found += [(event.step, event.event if few else "", False) for event in back]
    few = len(run.decisions) <= DECISIONS_TOLD
    found += [(line.at_step, f"decision {index}" if few else "", True) for index, line in enumerate(run.decisions, 1)]
    placed = [(tokens_at(run, step), label, strong) for step, label, strong in found if step is not None]
    return [Mark(tokens, label, strong) for tokens, label, strong in placed if tokens is not None]


def decisions_told(facts: Facts) -> list[str]:
    decisions = facts.run.decisions
    if len(decisions) > DECISIONS_TOLD:
        return [
            key("mark", f"{len(decisions)} decisions of the clock, each told in the history; {tell(decisions[-1])}")
        ]
    return [key("mark", f"decision {index}: {tell(decision)}") for index, decision in enumerate(decisions, 1)]


def tell(decision: DecisionLine) -> str:
    """A decision as a sentence: what was decided, when, and why."""
    said = f"at step {count(decision.at_step)}"
    said += f" the end was set to step {count(decision.steps)}" if decision.steps is not None else ""
    return said + (f": {text(decision.reason)}" if decision.reason else "")


def plan(facts: Facts) -> str:
    made = facts.run.plan
    if made.missing:
        return ""
    expected, reached = facts.expected, facts.reached
    rows = []
    for field in fields(Measures):
        title, show = field.metadata["title"], field.metadata["show"]
        before, after = getattr(expected, field.name), getattr(reached, field.name)
        if before is None and after is None:
            continue
        interval = (
            f"<br><small>{fixed(facts.low)} to {fixed(facts.high)}</small>"
            if field.name == "bits_per_byte" and facts.low is not None
            else ""
        )
        rows.append(
            [
                title,
                f"{show(before)}{interval}",
                show(after),
                words.change(after, before) if facts.finished else percent(over(after, before), 0),
            ]
        )
    body = table(
        ["", "expected", "reached" if facts.finished else "so far", "difference" if facts.finished else "of the plan"],
        rows,
        {1, 2, 3},
    )
    if made.choices:
        lines = [[text(c.name), f"<b>{text(words.plain(c.value))}</b>", text(c.reason)] for c in made.choices]
        body += "<h3>What was chosen, and why</h3>\n" + table(["choice", "value", "reason"], lines)
    return section("Plan and outcome", source_of_expectation(facts), body + shapes(facts))


def source_of_expectation(facts: Facts) -> str:
    """Where the expected loss comes from: a reader should know a prior from a fit."""
    made = facts.run.plan
    said = f"Planned for a budget of {text(made.budget)}. " if made.budget else ""
    if facts.expected.bits_per_byte is None:
        return said + "No loss was expected beforehand."
    kind = (
        "The expected loss is a prior, not a fit" if made.kind == "prior" and not made.pilots else "The expected loss"
    )
    source = ((made.expected and made.expected.source) or "").removeprefix("a prior, not a fit: ")  # said already
    level = f"; the interval is meant to hold in {percent(facts.level, 0)} of runs" if facts.level is not None else ""
    return said + kind + (f" (from {text(source)})" if source else "") + level + "."


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
    listed, chosen = facts.run.plan.candidates, chosen_candidate(facts.run)
    if not listed:
        return ""
    rows = [
        [
            f"{count(c.layers)} × {count(c.d_model)}" + (" ✓" if index == chosen else ""),
            count(c.parameters),
            count(c.tokens_per_second),
            count(c.tokens),
            fixed(c.expected_bits_per_byte, 3),
        ]
        for index, c in enumerate(listed)
    ]
    columns = ["shape", "parameters N", "tokens/s", "tokens", "bits/byte"]
    body = table(columns, rows, {1, 2, 3, 4}, chosen)
    drawable = [i for i, c in enumerate(listed) if c.parameters and c.expected_bits_per_byte is not None]
    figure = ""
    if len(drawable) > 1:
        picked = [listed[i] for i in drawable]
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
