"""The top of a run's page: the verdict, a summary of the run in one sentence, and the key figures.

Each function takes the Facts of a run and returns HTML. Strings from a run are escaped by words.text.
"""

from isoflop.report import figures, words
from isoflop.report.facts import Facts, divide, machine, measured_peak, running_forecast, source_table
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
    """A summary of the run in one or two sentences, from what is known so far."""
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
        f"trained further from {text(start)}"
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
        outcome = f", reached {fixed(bits)} bits per byte" if bits is not None else ", finished without a held-out loss"
    elif not run.training:
        outcome = ", has not made its first step" if run.status == "running" else ", was stopped before its first step"
    else:
        of = f" of {count(facts.planned_steps)}" if facts.planned_steps else ""
        outcome = f", {'is at' if run.status == 'running' else 'was stopped at'} step {count(reached.steps)}{of}"
        outcome += f" with {fixed(bits)} bits per byte so far" if bits is not None else ""
        outcome += f", {running_forecast(run)}" if running_forecast(run) else ""

    return subject + outcome + expectation(facts) + "."


def expectation(facts: Facts) -> str:
    expected = facts.expected_bits
    if expected is None:
        return ""
    tense = "expected" if facts.finished else "expects"
    clause = f"; the plan {tense} {expected.value:.2f} ({expected.low:.2f} to {expected.high:.2f})"
    return clause + (f": {JUDGEMENTS[facts.verdict][1]}" if facts.verdict else "" if facts.finished else " at the end")


def tiles(facts: Facts) -> str:
    reached, expected = facts.reached, facts.expected
    shares = [f"{words.short(reached.tokens / facts.parameters)} N"] if reached.tokens and facts.parameters else []
    shares += [f"{words.short(facts.epochs)} epochs"] if facts.epochs else []
    peak, mfu = measured_peak(facts.run), facts.run.result.mfu
    peaks = [f"peak {rate(peak)}"] if peak else []
    peaks += [f"MFU {percent(mfu)} of the GPU's data sheet"] if mfu else []
    bits = [f"expected {fixed(expected.bits_per_byte)}"] if expected.bits_per_byte else []
    nats = [f"{fixed(reached.nats_per_token, 3)} nats per token"] if reached.nats_per_token else []
    perplexity = words.MISSING if facts.perplexity is None else words.short(facts.perplexity)
    in_matrices = [f"N = {count(facts.parameters)} in blocks and head"] if facts.parameters else []
    speed = divide(reached.flops, reached.seconds)

    entries: list[tuple[str, str, list[str]]] = [
        ("Held-out bits per byte", fixed(reached.bits_per_byte, 3), bits),
        ("Perplexity per token", perplexity, nats),
        ("Parameters", count(facts.total_parameters), in_matrices),
        ("Tokens read", count(reached.tokens), shares),
        ("Training time", duration(reached.seconds), [*budget_note(facts), *starts_note(facts)]),
        ("FLOPs", power(reached.flops), ["C = 6 N D"]),
        ("Tokens per second", count(facts.tokens_per_second), [rate(speed)] if speed else []),
        ("Share of measured peak", percent(reached.peak_share), peaks),
    ]
    heldout = facts.run.result.heldout
    if heldout.unit_error_rate is not None:
        exact = f"{percent(heldout.exact_match)} of {count(heldout.inputs)} inputs exact"
        entries.insert(0, ("Unit error rate", percent(heldout.unit_error_rate), [exact]))

    body = "\n".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="note">{"<br>".join(notes)}</dd></div>'
        for name, value, notes in entries
    )
    return f'<dl class="tiles">\n{body}\n</dl>'


def starts_note(facts: Facts) -> list[str]:
    """The number of parts that the training time consists of, if the run was resumed."""
    return [f"in {facts.starts:,} parts; see the history"] if facts.starts > 1 else []


def budget_note(facts: Facts) -> list[str]:
    """How far the run ended from its budget, or how much of it is used so far, in the unit of the budget."""
    budget = facts.budget
    if budget is None:
        unparsed = facts.run.plan.budget
        return [f"budget {text(unparsed)}"] if unparsed else []

    spent = {
        "seconds": facts.seconds_spent,
        "tokens": facts.reached.tokens,
        "flops": facts.flops_spent,
        "steps": facts.reached.steps,
    }
    amount = {"seconds": duration, "tokens": count, "flops": power, "steps": count}[budget.kind](budget.amount)
    unit = {"seconds": "", "flops": " FLOPs"}.get(budget.kind, f" {budget.kind}")

    if not facts.finished:
        used = divide(spent[budget.kind], budget.amount)
        return [f"budget {amount}{unit}"] + ([f"{percent(used, 0)} used"] if used is not None else [])
    return [f"budget {amount}{unit}", f"{words.change(spent[budget.kind], budget.amount)} off"]
