"""The top of a run's page: the verdict, the run in a sentence, and the key figures.

Each function takes the Facts of a run and returns HTML. Whatever comes from a run goes through words.text.
"""

from isoflop.report import figures, words
from isoflop.report.facts import Facts, machine, measured_peak, outlook, over, source_table
from isoflop.report.words import count, duration, fixed, percent, power, rate, text

JUDGEMENTS = {
    "inside": ("Inside the expected interval", "inside the interval"),
    "better": ("Better than expected", "better than the interval"),
    "worse": ("Worse than expected", "worse than the interval"),
}


def header(facts: Facts) -> str:
    run, expected = facts.run, facts.expected_bits
    strip = f"<figure>{figures.verdict(facts.reached.bits_per_byte, expected)}</figure>" if expected else ""
    if facts.verdict:
        judgement = f'<p class="judgement {facts.verdict}">{JUDGEMENTS[facts.verdict][0]}</p>'
    elif facts.finished or run.status == "imported":
        judgement = ""
    else:
        judgement = f'<p class="judgement open">{"So far" if run.status == "running" else "Stopped before its end"}</p>'
    badge = f'<span class="badge {run.status}">{run.status}</span>'
    return (
        f'<header>\n<div class="top"><h1>{text(run.name)}</h1>{badge}</div>\n'
        f'<div class="verdict"><div><div class="big">{fixed(facts.reached.bits_per_byte)}</div>'
        f'<p class="unit">bits per byte of held-out text</p></div><div>{judgement}{strip}</div></div>\n'
        f'<p class="story">{story(facts)}</p>\n</header>'
    )


def story(facts: Facts) -> str:
    """The run in one or two sentences, of whatever is known by now."""
    run, reached = facts.run, facts.reached
    kind = words.model_kind(run.settings.task)
    size = f"{count(facts.total_parameters)}-parameter {kind}" if facts.total_parameters else kind
    if run.status == "imported":
        source = text(run.plan.source or "elsewhere")
        return f"{words.article(size).capitalize()} {size}, imported from {source}; it was not trained here."
    names = [name for name, _, _ in source_table(run)]
    bytes_ = run.data.train.bytes
    about = f"{names[0]} text" if len(names) == 1 else f"text ({', '.join(names)})" if names else "text"
    corpus = f" on {words.size(bytes_)} of {text(about)}" if bytes_ else ""
    start = run.settings.init
    origin = (
        f"trained on from {text(start)}"
        if start
        else "trained from scratch"
        if run.training
        else "to be trained from scratch"
    )
    spent = f" for {duration(reached.seconds)}" if reached.seconds else ""
    place = f" on {text(machine(run))}" if machine(run) else ""
    subject = f"{words.article(size).capitalize()} {size}, {origin}{corpus}{spent}{place}"
    bits = facts.reached.bits_per_byte
    if facts.finished:
        middle = f", reached {fixed(bits)} bits per byte" if bits is not None else ", finished without a held-out loss"
    elif not run.training:
        middle = ", has not made its first step" if run.status == "running" else ", was stopped before its first step"
    else:
        of = f" of {count(facts.planned_steps)}" if facts.planned_steps else ""
        middle = f", {'is at' if run.status == 'running' else 'was stopped at'} step {count(reached.steps)}{of}"
        middle += f" with {fixed(bits)} bits per byte so far" if bits is not None else ""
        middle += f", {outlook(run)}" if outlook(run) else ""
    return subject + middle + expectation(facts) + "."


def expectation(facts: Facts) -> str:
    expected = facts.expected_bits
    if expected is None:
        return ""
    tense = "expected" if facts.finished else "expects"
    said = f"; the plan {tense} {expected.value:.2f} ({expected.low:.2f} to {expected.high:.2f})"
    return said + (f": {JUDGEMENTS[facts.verdict][1]}" if facts.verdict else "" if facts.finished else " at the end")


def tiles(facts: Facts) -> str:
    reached, expected = facts.reached, facts.expected
    shares = [f"{words.short(reached.tokens / facts.parameters)} N"] if reached.tokens and facts.parameters else []
    shares += [f"{words.short(facts.epochs)} epochs"] if facts.epochs else []
    peak = measured_peak(facts.run)
    used = facts.run.result.mfu
    shown = [f"peak {rate(peak)}"] if peak else []
    shown += [f"MFU {percent(used)} of the card's data sheet"] if used else []
    bits = [f"expected {fixed(expected.bits_per_byte)}"] if expected.bits_per_byte else []
    nats = [f"{fixed(reached.nats_per_token, 3)} nats per token"] if reached.nats_per_token else []
    perplexity = words.MISSING if facts.perplexity is None else words.short(facts.perplexity)
    matmul = [f"N = {count(facts.parameters)} in blocks and head"] if facts.parameters else []
    speed = over(reached.flops, reached.seconds)
    entries: list[tuple[str, str, list[str]]] = [
        ("Held-out bits per byte", fixed(reached.bits_per_byte, 3), bits),
        ("Perplexity per token", perplexity, nats),
        ("Parameters", count(facts.total_parameters), matmul),
        ("Tokens read", count(reached.tokens), shares),
        ("Training time", duration(reached.seconds), [*budget_note(facts), *starts_note(facts)]),
        ("FLOPs", power(reached.flops), ["C = 6 N D"]),
        ("Tokens per second", count(facts.tokens_per_second), [rate(speed)] if speed else []),
        ("Share of measured peak", percent(reached.peak_share), shown),
    ]
    held = facts.run.result.heldout
    if held.unit_error_rate is not None:
        exact = f"{percent(held.exact_match)} of {count(held.inputs)} inputs exact"
        entries.insert(0, ("Unit error rate", percent(held.unit_error_rate), [exact]))
    body = "\n".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{"<br>".join(notes)}</dd></div>'
        for name, value, notes in entries
    )
    return f'<dl class="tiles">\n{body}\n</dl>'


def starts_note(facts: Facts) -> list[str]:
    """In how many parts the time was spent, where it was not spent at once."""
    return [f"in {facts.starts:,} parts, see the history"] if facts.starts > 1 else []


def budget_note(facts: Facts) -> list[str]:
    """How far off the budget the run ended, in the budget's own unit."""
    budget = facts.budget
    if budget is None:
        said = facts.run.plan.budget
        return [f"budget {text(said)}"] if said else []
    spent = {
        "seconds": facts.seconds_spent,
        "tokens": facts.reached.tokens,
        "flops": facts.flops_spent,
        "steps": facts.reached.steps,
    }
    amount = {"seconds": duration, "tokens": count, "flops": power, "steps": count}[budget.kind](budget.amount)
    named = amount if budget.kind == "seconds" else f"{amount} {budget.kind if budget.kind != 'flops' else 'FLOPs'}"
    if not facts.finished:
        used = over(spent[budget.kind], budget.amount)
        return [f"budget {named}"] + ([f"{percent(used, 0)} used"] if used is not None else [])
    return [f"budget {named}", f"{words.change(spent[budget.kind], budget.amount)} off"]
