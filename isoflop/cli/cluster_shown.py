"""How advice for machines that are not at hand looks on a terminal of 80 columns, and as JSON."""

from dataclasses import asdict
from typing import Any

from isoflop.budget import money_in_words
from isoflop.cli.laws_shown import count, loss_shown, say
from isoflop.plan.cluster.advise import NARROWEST, SHARES, WIDTHS, Advice
from isoflop.plan.cluster.machines import CLUSTERS
from isoflop.plan.law.bootstrap import Interval

REPEATS = 4  # times that a text may be read at hardly any loss
TIMES = (0.5, 1.0, 2.0)  # of the budget, next to each other


def show_advice(one: Advice, others: list[Advice], budget: str, law: str) -> None:
    """What to train, what it costs, and what half and twice the budget would give.

    Args:
        others: the advice for TIMES the budget.
    """
    job, shape, row = one.job, one.shape, one.row
    cluster = CLUSTERS[job.machine]
    nodes = -(-job.gpus // cluster.node)
    print(f"{job.gpus} x {job.machine} in {nodes} node{'s' if nodes > 1 else ''}, {budget}: calculated, not measured\n")

    line("model", f"{shape.layers} layers x {shape.d_model:,}, {count(one.parameters)} parameters")
    line("text", f"vocabulary {one.vocabulary:,}, context {shape.context:,}")
    line("parameters N", f"{count(one.n)}, as the law counts them")
    line("tokens D", f"{count(one.tokens)}, {one.tokens / one.n:.3g} per parameter{repeated(one)}")
    line("compute", f"{one.flops:.3g} FLOPs (6 N D, N: blocks and head)")
    passes = "one pass" if row.passes == 1 else f"{row.passes} passes"
    line("batch", f"{count(one.batch)} tokens: {row.sequences * row.passes} sequences per GPU in {passes}")
    line("mode", mode_in_words(one))
    line("memory", f"{row.held.total / 1e9:.0f} of {cluster.memory / 1e9:.0f} GB per GPU")
    line("speed", f"{one.speed:,.0f} tokens/s, {one.utilisation:.1%} MFU")
    line("loss", f"{loss_shown(one.loss.value)}{around(one.loss)} nats per token")
    if job.price:
        line("cost", f"{money_in_words(job.dollars)} for {job.gpus * job.seconds / 3600:,.0f} GPU hours")

    print("\n  budget      model      tokens     loss" + ("      dollars" if job.price else ""))
    for factor, other in zip(TIMES, others, strict=True):
        named = {0.5: "half", 1.0: "this", 2.0: "twice"}[factor]
        dollars = f"{money_in_words(other.job.dollars):>13}" if job.price else ""
        loss = loss_shown(other.loss.value)
        print(f"  {named:<10}{count(other.parameters):>7}{count(other.tokens):>12}{loss:>9}{dollars}")

    print()
    low, high = SHARES
    say(
        f"speed: one GPU alone is taken to reach {job.share:.0%} of its peak (published runs on H100: {low:.0%} to "
        f"{high:.0%}; --share, if you have measured yours); what the others cost it is off by less than 3 % for 19 of "
        "27 published runs",
        "  ",
    )
    if shape.d_model < NARROWEST:
        say(f"warning: models narrower than {NARROWEST} reach less than that; by how much was not measured", "  ")
    if one.tokens > REPEATS * one.unique:
        say(
            f"warning: the text that there is is read {one.tokens / one.unique:,.0f} times. Up to {REPEATS} times "
            "hardly cost anything (Muennighoff et al. 2023), far more is wasted: find more text, or spend less",
            "  ",
        )
    if shape.d_model == WIDTHS[-1]:
        say("warning: this is the largest shape that was tried; a larger one may be better", "  ")
    say(f"loss: {law}. Another text, tokenizer or recipe moves all of it; what stays is which model is better", "  ")
    launch = "isoflop" if job.gpus == 1 else f"torchrun --nproc-per-node {min(job.gpus, cluster.node)} -m isoflop"
    print(f"train there: {launch} train SOURCE --budget {budget.split()[0]}")


def line(what: str, value: str) -> None:
    print(f"  {what:<14}{value}")


def around(loss: Interval) -> str:
    return "" if loss.low == loss.high else f" ({loss_shown(loss.low)} to {loss_shown(loss.high)}, {loss.level:.0%})"


def repeated(one: Advice) -> str:
    return "" if one.unique >= one.tokens else f", {one.tokens / one.unique:,.1f} times the text that there is"


def mode_in_words(one: Advice) -> str:
    layout = one.row.layout
    words = {"none": "one process", "ddp": "ddp", "fsdp": f"fsdp over {layout.shards}"}
    words["hsdp"] = f"hsdp, {layout.replicas} replicas of {layout.shards} shards"
    return words[layout.mode] + (", recomputing activations" if one.way.recompute else "")


def advice_dict(one: Advice) -> dict[str, Any]:
    row = one.row
    return {
        "gpus": one.job.gpus,
        "machine": one.job.machine,
        "seconds": one.job.seconds,
        "dollars": one.job.dollars or None,
        "layers": one.shape.layers,
        "d_model": one.shape.d_model,
        "vocab_size": one.vocabulary,
        "context": one.shape.context,
        "parameters": one.parameters,
        "n": one.n,
        "tokens": one.tokens,
        "unique_tokens": one.unique,
        "flops": one.flops,
        "batch_tokens": one.batch,
        "mode": row.layout.mode,
        "shards": row.layout.shards,
        "replicas": row.layout.replicas,
        "sequences": row.sequences,
        "passes": row.passes,
        "recompute": one.way.recompute,
        "bytes_per_gpu": row.held.total,
        "seconds_per_step": row.step.seconds,
        "tokens_per_second": one.speed,
        "mfu": one.utilisation,
        "loss": asdict(one.loss),
    }
