"""How advice for the machine at hand looks on a terminal, and as JSON."""

from dataclasses import asdict
from typing import Any

from isoflop.plan.here import Here, Option, slow
from isoflop.report.words import count, fixed, percent
from isoflop.screen import Screen
from isoflop.terminal import listing
from isoflop.values import counted


def show_here(screen: Screen, one: Here) -> None:
    """Each choice with what it rests on, then the shapes at equal seconds and at equal FLOPs."""
    advice, runtime = one.advice, one.advice.config.runtime
    screen.close()
    threads = counted(runtime.threads, "thread")
    screen.say(f"{advice.budget.words()} on this machine: {runtime.device}, {runtime.dtype}, {threads}")
    if (exports := advice.exports) is not None:
        screen.say(f"exports to: {exports.words} ({exports.reason})")
    screen.reasons([(f"  {p.name}", p.value, f"{p.source}; doubt: {p.doubt}") for p in one.points])
    if advice.expected is not None:
        e = advice.expected
        around = f"{e.low:.3f} to {e.high:.3f} ({e.level:.0%})"
        screen.say(f"  expected: {e.bits_per_byte:.3f} bits per byte held-out, {around}")
        screen.say(f"            {e.source}")

    screen.say("")
    budget = str(advice.budget)
    head = ("shape", "N", "tokens/s", "of peak", f"D in {budget}", "bits/byte", f"D of {advice.flops:.1g}", "bits/byte")
    for line in listing(head, [cells(each) for each in one.options], screen.width):
        screen.say(line, verbatim=True)
    for line in verdict(one):
        screen.say(line)


def cells(one: Option) -> tuple[str, ...]:
    return (
        f"{one.layers} x {one.d_model}",
        count(one.parameters),
        f"{one.tokens_per_second:,.0f}",
        percent(one.peak_share, 0),
        count(one.tokens),
        fixed(one.expected, 3),
        count(one.flops_tokens),
        fixed(one.flops_expected, 3),
    )


def verdict(one: Here) -> list[str]:
    """Which shape is best at equal seconds and which at equal FLOPs, and why they differ."""
    by_seconds, by_flops = one.options[one.by_seconds], one.options[one.by_flops]
    name = f"{by_seconds.layers} x {by_seconds.d_model}"
    if one.by_seconds == one.by_flops:
        said = [f"{name} is best at equal seconds and at equal FLOPs ({one.advice.flops:.2g})"]
    else:
        said = [
            f"best at equal seconds: {name}; at equal FLOPs ({one.advice.flops:.2g}): {by_flops.layers} x "
            f"{by_flops.d_model}, which reaches {percent(by_flops.peak_share, 0)} of the peak and not "
            f"{percent(by_seconds.peak_share, 0)}; the seconds decide"
        ]
    if slow(one.options, one.by_seconds):
        said.append(
            f"{name} uses less than half of what the largest of these reaches of the machine: a larger batch or fewer "
            "threads may be faster"
        )
    chosen = one.advice.config.model
    if (chosen.layers, chosen.d_model) != (by_seconds.layers, by_seconds.d_model):
        said.append(
            f"the plan takes {chosen.layers} x {chosen.d_model}: by the rule of 20 tokens per parameter with what "
            "the head and repetition cost, and not by the expected loss alone"
        )
    return said


def here_dict(one: Here) -> dict[str, Any]:
    advice = one.advice
    return {
        "budget": str(advice.budget),
        "device": advice.config.runtime.device,
        "dtype": advice.config.runtime.dtype,
        "threads": advice.config.runtime.threads,
        "layers": advice.config.model.layers,
        "d_model": advice.config.model.d_model,
        "vocab_size": advice.config.model.vocab_size,
        "context": advice.config.model.context,
        "parameters": advice.parameters,
        "tokens": advice.tokens,
        "unique_tokens": advice.unique_tokens,
        "flops": advice.flops,
        "expected": advice.expected.to_dict() if advice.expected else None,
        "exports": advice.exports.to_dict() if advice.exports else None,
        "choices": [asdict(point) for point in one.points],
        "shapes": [asdict(option) for option in one.options],
        "best_at_equal_seconds": one.by_seconds,
        "best_at_equal_flops": one.by_flops,
        "ladder": str(advice.law.path) if advice.law else None,
    }
