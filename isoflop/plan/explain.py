"""The plan's explanation: each choice with its reason on one line."""

from isoflop.model.config import ModelConfig
from isoflop.model.count import parameters
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.optim.table import rates
from isoflop.plan.advice import Facts, Proposal
from isoflop.plan.candidates import Candidate
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, WORN_OUT
from isoflop.records.plan import LABELS, Choice, Exports
from isoflop.runtime import utilisation
from isoflop.trainer import RunConfig
from isoflop.trainer.config import RuntimeConfig
from isoflop.values import counted

BY_YOU = "set by you"
# For each line of the plan: the fields that alone determine it, and those that influence it
DECIDE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "device": ((), ("runtime.device", "runtime.threads", "runtime.compile", "runtime.kernels")),
    "context": (("model.context",), ()),
    "shape": (("model.layers", "model.d_model"), ("model.encoder_layers", "model.heads", "model.head_dim")),
    "batch": (("batch.sequences",), ("batch.ramp_from", "batch.context_from")),
    "steps": (("steps",), ()),
    "optimiser": ((), ("optim",)),
    "schedule": ((), ("schedule",)),
    "tokenizer": ((), ("data.tokenizer",)),
}
OF_MODEL, OF_RATES = ("context", "shape"), ("batch", "optimiser", "schedule")


def line(name: str, value: str, reason: str) -> Choice:
    return Choice(name=name, value=value, reason=reason)


def export_line(exports: Exports) -> Choice:
    """The formats that the model can go to; the first line of a plan, since it cannot be changed after training."""
    return line("export", exports.words or "none", exports.reason or "")


def choices_of(proposal: Proposal, facts: Facts, config: RunConfig, best: Candidate, tokens: int) -> tuple[Choice, ...]:
    """All choices of a plan, each with its actual reason: that of `reasons_of`, or who set it instead."""
    choices = reasons_of(proposal, facts, config, best, tokens)
    return tuple(with_origin(choice, proposal) for choice in choices)


def with_origin(choice: Choice, proposal: Proposal) -> Choice:
    """The choice with "set by you" for what the user has set, and with its source if the planner did not choose it."""
    asked, keep, budget = proposal.asked, proposal.keep, proposal.budget.kind
    alone, partly = DECIDE.get(choice.name, ((), ()))
    measured = "; ".join(part for part in choice.reason.split("; ") if part.endswith("measured"))
    if alone and all(asked.within(field) for field in alone):
        return choice.updated(reason="; ".join(part for part in (BY_YOU, measured) if part))
    if (choice.name, budget) in (("steps", "steps"), (LABELS["tokens"], "tokens")):
        return choice.updated(reason=f"{BY_YOU}, by the budget" + (f"; {choice.reason}" if budget == "tokens" else ""))

    names = [name for field in (*alone, *partly) for name in asked.within(field)]
    reason = choice.reason
    if (keep.model and choice.name in OF_MODEL) or (keep.rates and choice.name in OF_RATES):
        where = "the configuration that you named" if keep.rates else "the model that training starts from"
        reason = "; ".join(part for part in (f"as in {where}", measured) if part)
    if names:
        reason = f"{', '.join(dict.fromkeys(names))} {BY_YOU}; {reason}" if reason != BY_YOU else reason
    return choice.updated(reason=reason)


def reasons_of(proposal: Proposal, facts: Facts, config: RunConfig, best: Candidate, tokens: int) -> tuple[Choice, ...]:
    """The choices about device, data, shape, size and schedule, with the planner's reasons.

    Args:
        config: of the planned run, which reads `tokens` tokens.
        best: the candidate that was chosen.
    """
    runtime, workload = config.runtime, proposal.workload
    device = f"{runtime.device}, {runtime.dtype}, {counted(runtime.threads, 'thread')}"

    if workload.text is None:
        notes = workload.notes
        return (
            line("device", device, device_reason(proposal, notes.device)),
            line("tokenizer", f"{facts.tokenizer}, {facts.vocab_size:,} ids", notes.tokenizer),
            *choices_of_size(proposal, facts, config, best, tokens),
            line("context", f"{config.model.context} positions", notes.context),
            *choices_of_course(config),
        )

    source = "measured on the prepared text" if facts.measured else "estimated: a dry run does not prepare so much text"
    return (
        line("device", device + how_compiled(runtime), device_reason(proposal)),
        vocabulary_choice(proposal, facts.vocab_size, workload.text.size),
        line(
            "context",
            f"{config.model.context} tokens",
            "grows with compute; long contexts cost small models more than they give",
        ),
        *choices_of_size(proposal, facts, config, best, tokens),
        *choices_of_course(config),
        line("tokenizer", f"{facts.bytes_per_token:.2f} bytes per token", source),
    )


def how_compiled(runtime: RuntimeConfig) -> str:
    """What of a step is compiled, in words that follow the device's; "" if nothing is."""
    if runtime.compile:
        return ", compiled"
    return ", compiled kernels" if runtime.kernels == "compiled" else ""


def device_reason(proposal: Proposal, given: str = "") -> str:
    """The reason for device, dtype and threads, with any doubt about the timing behind it."""
    reason, doubt = given or proposal.calibration.reason or "", proposal.calibration.doubt
    return f"{reason}; timed while {doubt}" if doubt else reason


def vocabulary_choice(proposal: Proposal, made: int, text_bytes: float) -> Choice:
    """The number of ids of the trained or given tokenizer; fewer than planned if the text has no more pairs to
    merge."""
    if proposal.workload.vocab_size or proposal.keep.rates:
        reason = "the tokenizer that was given"
    elif proposal.asked.names("data.vocab_size"):
        reason = BY_YOU
    else:
        reason = f"chosen for {proposal.flops:.2g} FLOPs and {text_bytes / 1e6:.3g} MB of text; "
        reason += "more ids would be most of the weights"
    if made < proposal.vocabulary:
        reason += f", but {proposal.vocabulary:,} were planned and the text gives no more"
    return line("vocabulary", f"{made:,} ids", reason)


def choices_of_size(
    proposal: Proposal, facts: Facts, config: RunConfig, best: Candidate, tokens: int
) -> tuple[Choice, ...]:
    """Shape, parameters, tokens and batch."""
    model, workload = config.model, proposal.workload
    counted = parameters(model, config.task)
    count = counted.matmul

    by_loss = proposal.budget.kind in ("seconds", "flops")  # see Candidate.score
    rule = "the lowest expected loss" if by_loss else f"the closest to {TOKENS_PER_PARAMETER:g} tokens per parameter"
    shape = f"{rule} of the shapes considered{speed_in_words(config, best, proposal.machines)}"
    if workload.notes.shape:
        shape += f"; {workload.notes.shape}"

    size = "weights in matrix products, shared ones counted once; C = 6 N D"
    if int(best.weights) != count and not workload.static_shapes:
        size = f"block and head weights; {int(best.weights):,} multiply a token on average, C = 6 of them per token"
    size += f"; {counted.total:,} parameters in all"

    sequences, epochs = config.batch.sequences, tokens / max(1, facts.unique_tokens)
    if workload.text is None:
        read = f"{workload.notes.tokens}; {epochs:,.1f} epochs of the {workload.sequences}"
        per_step = sequences * workload.tokens_per_sequence(config)
        batch = f"{sequences} {workload.sequences} = {per_step:,.0f} tokens"
    else:
        optimal = f"about {TOKENS_PER_PARAMETER:.0f} N are compute-optimal, fewer if N is mostly head"
        read = f"{tokens / count:,.1f} N ({optimal})"
        read += f", {epochs:,.2f} epochs of the text" if epochs > 1 else f", {epochs:.0%} of the text"
        if epochs > WORN_OUT:
            read += "; so many teach next to nothing: find more text, or spend less"
        batch = f"{sequences} x {model.context} = {config.tokens_per_step:,} tokens"
        if config.batch.ramp_share:
            batch += f", growing from {config.batch.ramp_from} x {model.context}"
        if config.batch.context_from:
            batch += f", at first in windows of {config.batch.context_from}"
    described = f"{workload.depth(model)} x {model.d_model}, heads: {model.heads}{values_in_words(model)}"
    return (
        line("shape", described, shape),
        line("parameters N", f"{count:,}", size),
        Choice.of("tokens", f"{tokens:,}", read),
        line("batch", batch, "0.573 D^0.571 (Step Law)"),
    )


def values_in_words(model: ModelConfig) -> str:
    """Which layers have a value embedding; "" if none has."""
    every = model.value_embedding
    return f", value embeddings in every {'' if every == 1 else f'{every}. '}layer" if every else ""


def speed_in_words(config: RunConfig, best: Candidate, machines: int) -> str:
    """A candidate's measured speed, on a GPU with the share of the data sheet's; "" if it was not measured."""
    if not best.tokens_per_second:
        return ""
    how = "extrapolated from smaller shapes" if best.extrapolated else "measured"
    words = f"; {best.tokens_per_second:,.0f} tokens/s {how}"
    if flops := best.workload.palm_flops_per_token(config):
        speed = flops * best.tokens_per_second / machines
        if mfu := utilisation(speed, config.runtime.device, config.runtime.dtype):
            words += f", MFU {mfu:.0%} of the card's data sheet"
    return words


def rates_in_words(optim: OptimConfig) -> str:
    each = [f"{name.replace('_', ' ')} {rate:.3g}" for name, rate in rates(optim.entry).items() if rate]
    decay = optim.weight_decay * optim.weight_decay_factor
    repeated = [f"weight decay {decay:.2g}"] if optim.weight_decay_factor != 1.0 else []
    return ", ".join([optim.name, *each, *repeated])


def course_in_words(schedule: ScheduleConfig) -> str:
    parts = [schedule.name, f"warm-up {schedule.warmup:.0%}", schedule.entry.explained()]
    return ", ".join(part for part in parts if part)


def choices_of_course(config: RunConfig) -> tuple[Choice, ...]:
    """The choices about steps, optimiser, schedule and average, which are the same for every task."""
    average = config.average.entry.explained()
    averaged = (line("average", average, "of the weights; evaluated and saved in their place"),) if average else ()
    return (
        Choice.of("steps", f"{config.steps:,}", "D over the batch"),
        line(
            "optimiser",
            rates_in_words(config.optim),
            "measured at small sizes, see LAB.md",
        ),
        line(
            "schedule",
            course_in_words(config.schedule),
            "ends at the budget" + ("; can be extended from before the decay" if config.schedule.entry.stable else ""),
        ),
        *averaged,
    )
