"""The plan in words: each choice with its reason in one line."""

from dataclasses import dataclass

from isoflop.model.count import flops_per_token
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.optim.table import rates
from isoflop.plan.candidates import Candidate
from isoflop.plan.repetition import TOKENS_PER_PARAMETER
from isoflop.runtime import utilisation
from isoflop.trainer import RunConfig


@dataclass(frozen=True)
class Choice:
    """One line of the plan."""

    name: str
    value: str
    reason: str


def vocabulary_choice(vocabulary: int, given: int, asked: bool, flops: float, corpus_bytes: float) -> Choice:
    if given:
        reason = "the tokenizer that was given"
    elif asked:
        reason = "as asked for"
    else:
        reason = f"goes with {flops:.2g} FLOPs and {corpus_bytes / 1e6:.3g} MB of text; more would be most of the model"
    return Choice("vocabulary", f"{vocabulary:,} ids", reason)


def choices_of(
    config: RunConfig, count: int, epochs: float, bytes_per_token: float, best: Candidate, machines: int = 1
) -> tuple[Choice, ...]:
    model = config.model
    ratio = config.tokens / count
    repeated = f", {epochs:.2f} epochs of the text" if epochs > 1 else f", {epochs:.0%} of the text"
    timed = f"; {best.tokens_per_second:,.0f} tokens/s measured" if best.tokens_per_second else ""
    flops = flops_per_token(model, convention="palm") * best.tokens_per_second / machines
    if timed and (mfu := utilisation(flops, config.runtime.device, config.runtime.dtype)):
        timed += f", MFU {mfu:.0%} of the card's data sheet"
    return (
        Choice(
            "shape",
            f"{model.layers} layers x {model.d_model}, heads: {model.heads}",
            f"the candidate that the budget feeds best{timed}",
        ),
        Choice("parameters N", f"{count:,}", "block and head weights, each that multiplies counted once; C = 6 N D"),
        Choice(
            "tokens D",
            f"{config.tokens:,}",
            f"{ratio:.1f} a parameter (about {TOKENS_PER_PARAMETER:.0f} are compute-optimal){repeated}",
        ),
        Choice(
            "batch",
            f"{config.batch.sequences} x {model.context} = {config.tokens_per_step:,} tokens",
            "0.573 D^0.571 (Step Law)",
        ),
        *choices_of_course(config),
        Choice("tokenizer", f"{bytes_per_token:.2f} bytes a token", "measured on the prepared text"),
    )


def rates_in_words(optim: OptimConfig) -> str:
    told = [f"{name.replace('_', ' ')} {rate:.3g}" for name, rate in rates(optim.entry).items() if rate]
    return ", ".join([optim.name, *told])


def course_in_words(schedule: ScheduleConfig) -> str:
    told = [schedule.name, f"warm-up {schedule.warmup:.0%}", schedule.entry.explained()]
    return ", ".join(part for part in told if part)


def choices_of_course(config: RunConfig) -> tuple[Choice, ...]:
    """How long and at which rates, whatever is trained."""
    return (
        Choice("steps", f"{config.steps:,}", "D over the batch"),
        Choice(
            "optimiser",
            rates_in_words(config.optim),
            "measured at small sizes, see LAB.md",
        ),
        Choice(
            "schedule",
            course_in_words(config.schedule),
            "ends at the budget" + ("; can be extended from before the decay" if config.schedule.entry.stable else ""),
        ),
    )
