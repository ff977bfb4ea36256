"""Prints advice for other machines, on a terminal of 80 columns or as JSON."""

from dataclasses import asdict
from typing import Any

from isoflop.budget import money_in_words
from isoflop.cli.show_laws import count, loss_text, say
from isoflop.plan.cluster.advise import NARROWEST, SHARES, WIDTHS, Advice
from isoflop.plan.cluster.machines import CLUSTERS
from isoflop.plan.law.bootstrap import Interval

REPEATS = 4  # epochs up to which repeated text is worth nearly as much as new text
TIMES = (0.5, 1.0, 2.0)  # factors of the budget that are compared


def show_advice(advice: Advice, alternatives: list[Advice], budget: str, law: str) -> None:
    """Print what to train, its cost, and what half and twice the budget would give.

    Args:
        alternatives: the advice for each factor in TIMES.
        law: the name of the scaling law.
    """
    job, shape, row = advice.job, advice.shape, advice.row
    cluster = CLUSTERS[job.machine]
    nodes = -(-job.gpus // cluster.node)
    print(f"{job.gpus} x {job.machine} in {nodes} node{'s' if nodes > 1 else ''}, {budget}: calculated, not measured\n")

    line("model", f"{shape.layers} layers x {shape.d_model:,}, {count(advice.parameters)} parameters")
    line("text", f"vocabulary {advice.vocabulary:,}, context {shape.context:,}")
    line("parameters N", f"{count(advice.n)}, as the law counts them")
    line("tokens D", f"{count(advice.tokens)}, {advice.tokens / advice.n:.3g} per parameter{repetitions(advice)}")
    line("compute", f"{advice.flops:.3g} FLOPs (6 N D, N: blocks and head)")
    passes = "one pass" if row.passes == 1 else f"{row.passes} passes"
    line("batch", f"{count(advice.batch)} tokens: {row.sequences * row.passes} sequences per GPU in {passes}")
    line("mode", mode_text(advice))
    line("memory", f"{row.held.total / 1e9:.0f} of {cluster.memory / 1e9:.0f} GB per GPU")
    line("speed", f"{advice.speed:,.0f} tokens/s, {advice.utilisation:.1%} MFU")
    line("loss", f"{loss_text(advice.loss.value)}{interval_text(advice.loss)} nats per token")
    if job.price:
        line("cost", f"{money_in_words(job.dollars)} for {job.gpus * job.seconds / 3600:,.0f} GPU hours")

    print("\n  budget      model      tokens     loss" + ("      dollars" if job.price else ""))
    for factor, alternative in zip(TIMES, alternatives, strict=True):
        label = {0.5: "half", 1.0: "this", 2.0: "twice"}[factor]
        dollars = f"{money_in_words(alternative.job.dollars):>13}" if job.price else ""
        loss = loss_text(alternative.loss.value)
        print(f"  {label:<10}{count(alternative.parameters):>7}{count(alternative.tokens):>12}{loss:>9}{dollars}")

    print()
    low, high = SHARES
    say(
        f"speed: assumes that one GPU alone reaches {job.share:.0%} of its peak (published runs on H100: {low:.0%} to "
        f"{high:.0%}; set --share if you have measured yours). The loss of speed on many GPUs is within 3 % of the "
        "published one for 19 of 27 runs",
        "  ",
    )
    if shape.d_model < NARROWEST:
        say(f"warning: models narrower than {NARROWEST} reach less than that; how much less was not measured", "  ")
    if advice.tokens > REPEATS * advice.unique:
        say(
            f"warning: the text is read {advice.tokens / advice.unique:,.0f} times. Up to {REPEATS} times is nearly as "
            "good as new text (Muennighoff et al. 2023), far more is wasted: find more text, or spend less",
            "  ",
        )
    if shape.d_model == WIDTHS[-1]:
        say("warning: this is the largest shape considered; a larger one may be better", "  ")
    say(
        f"loss: {law}. With other text, tokenizer or recipe all losses change, but the comparison of models holds", "  "
    )
    launch = "isoflop" if job.gpus == 1 else f"torchrun --nproc-per-node {min(job.gpus, cluster.node)} -m isoflop"
    print(f"train there: {launch} train SOURCE --budget {budget.split()[0]}")


def line(label: str, value: str) -> None:
    print(f"  {label:<14}{value}")


def interval_text(loss: Interval) -> str:
    return "" if loss.low == loss.high else f" ({loss_text(loss.low)} to {loss_text(loss.high)}, {loss.level:.0%})"


def repetitions(advice: Advice) -> str:
    return "" if advice.unique >= advice.tokens else f", {advice.tokens / advice.unique:,.1f} times the available text"


def mode_text(advice: Advice) -> str:
    layout = advice.row.layout
    words = {"none": "one process", "ddp": "ddp", "fsdp": f"fsdp over {layout.shards}"}
    words["hsdp"] = f"hsdp, {layout.replicas} replicas of {layout.shards} shards"
    return words[layout.mode] + (", recomputing activations" if advice.way.recompute else "")


def advice_dict(advice: Advice) -> dict[str, Any]:
    row = advice.row
    """Advice as JSON, for `plan advise --json`."""
    return {
        "gpus": advice.job.gpus,
        "machine": advice.job.machine,
        "seconds": advice.job.seconds,
        "dollars": advice.job.dollars or None,
        "layers": advice.shape.layers,
        "d_model": advice.shape.d_model,
        "vocab_size": advice.vocabulary,
        "context": advice.shape.context,
        "parameters": advice.parameters,
        "n": advice.n,
        "tokens": advice.tokens,
        "unique_tokens": advice.unique,
        "flops": advice.flops,
        "batch_tokens": advice.batch,
        "mode": row.layout.mode,
        "shards": row.layout.shards,
        "replicas": row.layout.replicas,
        "sequences": row.sequences,
        "passes": row.passes,
        "recompute": advice.way.recompute,
        "bytes_per_gpu": row.held.total,
        "seconds_per_step": row.step.seconds,
        "tokens_per_second": advice.speed,
        "mfu": advice.utilisation,
        "loss": asdict(advice.loss),
    }
