"""The upper half of a run's page: the verdict, the key figures, how it learned, and the plan beside what happened.

Each function takes the Facts of a run and returns HTML. Whatever comes from a run goes through words.text.
"""

from isoflop.report import figures, words
from isoflop.report.facts import (
    Facts,
    Measures,
    chosen_candidate,
    column,
    first,
    machine,
    measured_peak,
    over,
    source_table,
    tokens_at,
)
from isoflop.report.figures import Interval, Mark
from isoflop.report.style import key, section, table
from isoflop.report.words import count, dig, duration, fixed, number, objects, percent, power, rate, text

JUDGEMENTS = {
    "inside": ("Inside the expected interval", "inside the interval"),
    "better": ("Better than expected", "better than the interval"),
    "worse": ("Worse than expected", "worse than the interval"),
}


def header(facts: Facts) -> str:
    run, expected = facts.run, expected_bits(facts)
    strip = f"<figure>{figures.verdict(facts.reached.bits_per_byte, expected)}</figure>" if expected else ""
    if facts.verdict:
        judgement = f'<p class="judgement {facts.verdict}">{JUDGEMENTS[facts.verdict][0]}</p>'
    elif facts.finished:
        judgement = ""
    else:
        judgement = f'<p class="judgement open">{"So far" if run.status == "running" else "Stopped before its end"}</p>'
    return (
        f'<header>\n<div class="top"><h1>{text(run.name)}</h1><span class="badge {run.status}">{run.status}</span></div>\n'
        f'<div class="verdict"><div><div class="big">{fixed(facts.reached.bits_per_byte)}</div>'
        f'<p class="unit">bits per byte of held-out text</p></div><div>{judgement}{strip}</div></div>\n'
        f'<p class="story">{story(facts)}</p>\n</header>'
    )


def story(facts: Facts) -> str:
    """The run in one or two sentences, of whatever is known by now."""
    run, reached = facts.run, facts.reached
    size = f"{count(facts.total_parameters)}-parameter GPT" if facts.total_parameters else "GPT"
    names = [name for name, _, _ in source_table(run)]
    bytes_ = number(run.data, "train", "bytes")
    kind = f"{names[0]} text" if len(names) == 1 else f"text ({', '.join(names)})" if names else "text"
    corpus = f" on {words.size(bytes_)} of {text(kind)}" if bytes_ else ""
    start = run.config.get("init")
    origin = f"trained on from {text(start)}" if isinstance(start, str) and start else "trained from scratch"
    spent = f" for {duration(reached.seconds)}" if reached.seconds else ""
    place = f" on {text(machine(run))}" if machine(run) else ""
    subject = f"{words.article(size).capitalize()} {size}, {origin}{corpus}{spent}{place}"
    bits = facts.reached.bits_per_byte
    if facts.finished:
        middle = f", reached {fixed(bits)} bits per byte" if bits is not None else ", finished without a held-out loss"
    elif not run.training:
        middle = ", has not made its first step" if run.status == "running" else ", was stopped before its first step"
    else:
        of = f" of {count(planned_steps(facts))}" if planned_steps(facts) else ""
        middle = f", {'is at' if run.status == 'running' else 'was stopped at'} step {count(reached.steps)}{of}"
        middle += f" with {fixed(bits)} bits per byte so far" if bits is not None else ""
    return subject + middle + expectation(facts) + "."


def expectation(facts: Facts) -> str:
    expected = expected_bits(facts)
    if expected is None:
        return ""
    tense = "expected" if facts.finished else "expects"
    said = f"; the plan {tense} {expected.value:.2f} ({expected.low:.2f} to {expected.high:.2f})"
    return said + (f": {JUDGEMENTS[facts.verdict][1]}" if facts.verdict else "" if facts.finished else " at the end")


def expected_bits(facts: Facts) -> Interval | None:
    value = facts.expected.bits_per_byte
    if value is None:
        return None
    return Interval(value, first(facts.low, value) or value, first(facts.high, value) or value)


def planned_steps(facts: Facts) -> float | None:
    """The steps of the plan, or of the last decision about it."""
    decided = [number(decision, "steps") for decision in facts.run.decisions]
    return first(*reversed(decided), facts.expected.steps)


def tiles(facts: Facts) -> str:
    reached, expected = facts.reached, facts.expected
    shares = (
        [f"{words.short(reached.tokens / facts.parameters)} per parameter"]
        if reached.tokens and facts.parameters
        else []
    )
    shares += [f"{words.short(facts.epochs)} epochs"] if facts.epochs else []
    peak = measured_peak(facts.run)
    entries = [
        (
            "Held-out bits per byte",
            fixed(reached.bits_per_byte, 3),
            [f"expected {fixed(expected.bits_per_byte)}"] if expected.bits_per_byte else [],
        ),
        (
            "Perplexity per token",
            words.short(facts.perplexity) if facts.perplexity else words.MISSING,
            [f"{fixed(reached.nats_per_token, 3)} nats per token"],
        ),
        ("Parameters", count(facts.total_parameters), [f"N = {count(facts.parameters)} in blocks and head"]),
        ("Tokens read", count(reached.tokens), shares),
        ("Training time", duration(reached.seconds), budget_note(facts)),
        ("FLOPs", power(reached.flops), ["C = 6 N D"]),
        ("Tokens per second", count(facts.tokens_per_second), [rate(over(reached.flops, reached.seconds))]),
        ("Share of measured peak", percent(reached.peak_share), [f"peak {rate(peak)}"] if peak else []),
    ]
    body = "\n".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{"<br>".join(notes)}</dd></div>'
        for name, value, notes in entries
    )
    return f'<dl class="tiles">\n{body}\n</dl>'


def budget_note(facts: Facts) -> list[str]:
    """How far off the budget the run ended, in the budget's own unit."""
    budget = facts.budget
    if budget is None:
        said = dig(facts.run.plan, "budget")
        return [f"budget {text(said)}"] if said else []
    spent = {
        "seconds": facts.reached.seconds,
        "tokens": facts.reached.tokens,
        "flops": facts.reached.flops,
        "steps": facts.reached.steps,
    }
    amount = {"seconds": duration, "tokens": count, "flops": power, "steps": count}[budget.kind](budget.amount)
    named = amount if budget.kind == "seconds" else f"{amount} {budget.kind if budget.kind != 'flops' else 'FLOPs'}"
    if not facts.finished:
        used = over(spent[budget.kind], budget.amount)
        return [f"budget {named}"] + ([f"{percent(used, 0)} used"] if used is not None else [])
    return [f"budget {named}", f"{words.change(spent[budget.kind], budget.amount)} off"]


def learning(facts: Facts) -> str:
    run, ratio, expected = facts.run, facts.bits_per_nat, expected_bits(facts)
    if not run.training and not run.heldout:
        return section("Learning", "No step has been logged yet.", "")
    tokens, loss, lr = (column(run.training, key) for key in ("tokens", "loss", "lr"))
    held_tokens, held = column(run.heldout, "tokens"), column(run.heldout, "heldout_loss")
    nats = Interval(expected.value / ratio, expected.low / ratio, expected.high / ratio) if expected and ratio else None
    marks = moments(facts)
    end = tokens_at(run, planned_steps(facts) or 0.0) or facts.expected.tokens
    drawn, above = [], 0
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
            width=width,
        )
        drawn.append(f'<div class="{css}">{svg}</div>')
    legend = [key("train", "training loss, each record and smoothed"), key("heldout", "held-out loss")]
    legend += [key("expected", "expected at the end, with its interval", band=True)] if nats else []
    if above:
        legend.append(
            f"<span>The first {count(above)} records, from {fixed(loss[0])} nats, lie above the picture.</span>"
        )
    legend += decisions_told(facts)
    small = []
    for name, title, column_name in (
        ("gradient", "Gradient norm", "grad_norm"),
        ("speed", "Tokens per second", "tokens_per_second"),
    ):
        values = column(run.training, column_name)
        if values.size and not all(values != values):  # NaN alone: nothing was logged
            svg = figures.trace(tokens, values, name, f"{title} against tokens read", marks)
            small.append(f'<figure><figcaption class="above">{title}</figcaption>{svg}</figure>')
    body = (
        f"<figure>{''.join(drawn)}<figcaption>{''.join(legend)}</figcaption></figure>\n"
        + '<div class="pair">'
        + "".join(small)
        + "</div>"
    )
    return section(
        "Learning", "Loss in nats per token; the right-hand axis reads the held-out curve in bits per byte.", body
    )


def moments(facts: Facts) -> list[Mark]:
    """What happened on the way: the decay's start, resumptions, decisions of the clock."""
    run = facts.run
    found: list[tuple[float | None, str, bool]] = [(facts.decay_step, "decay starts", False)]
    for event in run.events:
        if event.get("event") in ("resumed", "extended"):
            found.append((number(event, "step"), str(event["event"]), False))
    for index, decision in enumerate(run.decisions, 1):
        found.append((number(decision, "at_step"), f"decision {index}", True))
    placed = [(tokens_at(run, step), label, strong) for step, label, strong in found if step is not None]
    return [Mark(tokens, label, strong) for tokens, label, strong in placed if tokens is not None]


def decisions_told(facts: Facts) -> list[str]:
    return [key("mark", f"decision {index}: {tell(decision)}") for index, decision in enumerate(facts.run.decisions, 1)]


def tell(decision: dict[str, object]) -> str:
    """A decision as a sentence: what was decided, when, and why."""
    step, steps, reason = number(decision, "at_step"), number(decision, "steps"), decision.get("reason")
    said = f"at step {count(step)}" + (f" the end was set to step {count(steps)}" if steps is not None else "")
    return said + (f": {text(reason)}" if reason else "")


def plan(facts: Facts) -> str:
    made = facts.run.plan
    if not made:
        return ""
    expected, reached = facts.expected, facts.reached
    names = {
        "bits_per_byte": ("Held-out bits per byte", lambda value: fixed(value, 3)),
        "nats_per_token": ("Held-out nats per token", lambda value: fixed(value, 3)),
        "seconds": ("Training time", duration),
        "tokens": ("Tokens", count),
        "flops": ("FLOPs (6 N D)", power),
        "steps": ("Steps", count),
        "peak_share": ("Share of measured peak", percent),
    }
    rows = []
    for field in Measures.__dataclass_fields__:
        title, show = names[field]
        before, after = getattr(expected, field), getattr(reached, field)
        if before is None and after is None:
            continue
        interval = (
            f" ({fixed(facts.low)} to {fixed(facts.high)})"
            if field == "bits_per_byte" and facts.low is not None
            else ""
        )
        rows.append([title, f"{show(before)}{interval}", show(after), words.change(after, before)])
    body = table(["", "expected", "reached" if facts.finished else "so far", "difference"], rows, {1, 2, 3})
    choices = objects(made.get("choices"))
    if choices:
        lines = [
            [text(c.get("name", "")), f"<b>{text(words.plain(c.get('value')))}</b>", text(c.get("reason", ""))]
            for c in choices
        ]
        body += "<h3>What was chosen, and why</h3>\n" + table(["choice", "value", "reason"], lines)
    return section("Plan and outcome", source_of_expectation(facts), body + shapes(facts))


def source_of_expectation(facts: Facts) -> str:
    """Where the expected loss comes from: a reader should know a prior from a fit."""
    made = facts.run.plan
    said = f"Planned for a budget of {text(made['budget'])}. " if made.get("budget") else ""
    if facts.expected.bits_per_byte is None:
        return said + "No loss was expected beforehand."
    kind = "The expected loss is a prior, not a fit" if made.get("kind") == "prior" else "The expected loss"
    source = dig(made, "expected", "source")
    level = f"; the interval is meant to hold in {percent(facts.level, 0)} of runs" if facts.level is not None else ""
    return said + kind + (f" (from {text(source)})" if source else "") + level + "."


def shapes(facts: Facts) -> str:
    """The candidates timed in calibration, drawn and listed."""
    listed, chosen = objects(dig(facts.run.plan, "candidates")), chosen_candidate(facts.run)
    if not listed:
        return ""
    rows = [
        [
            f"{count(number(c, 'layers'))} × {count(number(c, 'd_model'))}" + (" ✓" if index == chosen else ""),
            count(number(c, "parameters")),
            count(number(c, "tokens_per_second")),
            count(number(c, "tokens")),
            fixed(number(c, "expected_bits_per_byte"), 3),
        ]
        for index, c in enumerate(listed)
    ]
    columns = ["shape", "parameters", "tokens/s", "tokens", "bits/byte"]
    body = table(columns, rows, {1, 2, 3, 4}, chosen)
    drawable = [
        i for i, c in enumerate(listed) if number(c, "parameters") and number(c, "expected_bits_per_byte") is not None
    ]
    figure = ""
    if len(drawable) > 1:
        picked = [listed[i] for i in drawable]
        labels = [f"{count(number(c, 'layers'))}×{count(number(c, 'd_model'))}" for c in picked]
        svg = figures.candidates(
            column(picked, "parameters"),
            column(picked, "expected_bits_per_byte"),
            labels,
            drawable.index(chosen) if chosen in drawable else None,
        )
        figure = f'<figure><figcaption class="above">Expected bits per byte of each shape</figcaption>{svg}</figure>'
    seconds = number(facts.run.plan, "calibration", "seconds")
    timed = f" in {duration(seconds)}" if seconds is not None else ""
    return f"<h3>Shapes timed on this machine{timed}</h3>\n" + f'<div class="pair">{figure}<div>{body}</div></div>'
