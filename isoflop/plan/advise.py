"""Budget -> parameters, tokens, shape, vocabulary, context, batch, learning rate, each with its reason.

The first planner. It knows three things: how fast real steps of a few shapes run here (trainer/throughput.py), that
about 20 tokens a parameter are compute-optimal (Hoffmann et al. 2022) unless they have to be repeated (repetition.py),
and what our own runs reached (prior.py). In two parts, since the vocabulary has to be known before the text can be
prepared:

    sketch  = draw(budget, ...)           machine timed, candidates listed, vocabulary and share of the text chosen
    advice  = settle(sketch, prepared)    tokens known: shape, steps, batch, learning rates, expected loss
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.budget import Budget
from isoflop.config import load_json, override, to_dict
from isoflop.errors import UserError
from isoflop.files import home, write_json
from isoflop.model.count import flops_per_token, parameters
from isoflop.model.presets import heads_for
from isoflop.plan.prior import Expectation, expect
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, reducible_loss
from isoflop.plan.shapes import LADDER, batch_tokens_for, context_for, vocabulary_for
from isoflop.runtime import choose_device, cores, describe_machine, measure_peak
from isoflop.trainer import RunConfig, throughput

BYTES_PER_TOKEN = 3.0  # before there is a tokenizer; small vocabularies make 2 to 3 of English and code
TIMED = 4  # candidate shapes that are timed
SECONDS_EACH = 1.2  # for timing one
MIN_STEPS = 20  # fewer are no training; a budget that buys fewer is refused
HOOKS_SHARE = 0.03  # of the time, for held-out measurements, samples and checkpoints


@dataclass(frozen=True)
class Choice:
    """One line of the plan."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A shape that was considered. `tokens_per_second` is 0 where nothing was timed (a budget not in seconds)."""

    config: RunConfig
    parameters: int
    tokens_per_second: float


@dataclass(frozen=True)
class Sketch:
    """What is known before the text is prepared."""

    budget: Budget
    base: RunConfig
    assignments: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    vocabulary: int
    train_bytes: float
    calibration: dict[str, Any]
    peak: dict[str, float]
    choices: tuple[Choice, ...]
    fixed_rates: bool


@dataclass(frozen=True)
class Advice:
    """The plan: a configuration that is ready to train, what it should cost and reach, and why it is as it is."""

    config: RunConfig
    budget: Budget
    parameters: int
    tokens: int
    flops: float
    seconds: float | None
    expected: Expectation | None
    choices: tuple[Choice, ...]
    candidates: tuple[dict[str, Any], ...]
    calibration: dict[str, Any] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """plan.json."""
        return {
            "budget": str(self.budget),
            "kind": "prior",
            "choices": [to_dict(choice) for choice in self.choices],
            "parameters": self.parameters,
            "total_parameters": parameters(self.config.model, self.config.task).total,
            "tokens": self.tokens,
            "flops": self.flops,
            "steps": self.config.steps,
            "seconds": self.seconds,
            "expected": self.expected.to_dict() if self.expected else None,
            "candidates": list(self.candidates),
            "calibration": self.calibration,
            "peak": self.peak,
        }


def draw(
    budget: Budget,
    base: RunConfig,
    assignments: Sequence[str],
    corpus_bytes: float,
    say: Callable[[str], None] = lambda line: None,
    fixed_model: bool = False,
    fixed_rates: bool = False,
    fixed_vocabulary: int = 0,
) -> Sketch:
    """Time the machine where the budget is in seconds, and choose what the text has to be prepared with.

    Args:
        base: the configuration whose shape, batch, rates and length are to be chosen.
        assignments: `--set` strings; they hold in every candidate, so that what is timed is what will run.
        corpus_bytes: about how much text there is.
        fixed_model: keep base.model as it is (--init, a recipe).
        fixed_rates: keep its batch and learning rates too (a recipe).
        fixed_vocabulary: the ids of a tokenizer that is given; 0: one is trained, and its size chosen here.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    device = choose_device(override(base, assignments).runtime.device)
    say(f"measuring this machine ({device})")
    peak = measure_peak(device)
    flops = budget.amount if budget.kind == "flops" else rough_flops(budget, peak, device)
    asked = {text.partition("=")[0].strip() for text in assignments}
    vocabulary = fixed_vocabulary or vocabulary_for(flops, corpus_bytes)
    context = base.model.context if fixed_model else context_for(flops)
    if "data.vocab_size" in asked and not fixed_vocabulary:
        vocabulary = override(base, assignments).data.vocab_size

    def shaped(rung: tuple[int, int], tokens: float) -> RunConfig:
        layers, d_model = rung
        model = base.model
        if not fixed_model:
            heads = heads_for(d_model)
            model = replace(
                model, vocab_size=vocabulary, layers=layers, d_model=d_model, heads=heads, head_dim=0, context=context
            )
        config = replace(base, model=model)
        return override(config if fixed_rates else with_batch(config, tokens), assignments)

    target = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    rungs = nearest_rungs(target, lambda rung: shaped(rung, 1e6))
    tokens = flops / (6 * target)
    first = shaped(rungs[0], tokens)
    runtime, calibration = choose_runtime(first, device, first.runtime.threads or cores())
    base = replace(base, runtime=replace(base.runtime, **runtime))
    candidates: list[Candidate] = []
    for rung in rungs:
        config = shaped(rung, tokens)
        count = parameters(config.model).matmul
        if any(known.config.model == config.model for known in candidates):
            continue
        rate = 0.0
        if budget.kind == "seconds":
            rate = throughput.time_steps(config, SECONDS_EACH).tokens_per_second
            say(f"{config.model.layers} layers x {config.model.d_model}: {rate:,.0f} tokens/s")
        candidates.append(Candidate(config, count, rate))
    most = max(tokens_for(budget, candidate) for candidate in candidates)
    choices = (
        Choice(
            "device", f"{runtime['device']}, {runtime['dtype']}, {runtime['threads']} threads", calibration["reason"]
        ),
        vocabulary_choice(vocabulary, fixed_vocabulary, "data.vocab_size" in asked, flops, corpus_bytes),
        Choice(
            "context",
            f"{candidates[0].config.model.context} tokens",
            "grows with compute; long contexts cost small models more than they give",
        ),
    )
    return Sketch(
        budget=budget,
        base=base,
        assignments=tuple(assignments),
        candidates=tuple(candidates),
        vocabulary=vocabulary,
        train_bytes=most * BYTES_PER_TOKEN * 2,
        calibration=calibration,
        peak=peak,
        choices=choices,
        fixed_rates=fixed_rates,
    )


def settle(
    sketch: Sketch,
    unique_tokens: int,
    vocab_size: int,
    bytes_per_token: float,
    lzma_bpb: float,
    from_scratch: bool = True,
) -> Advice:
    """Choose among the candidates now that the tokens are counted, and state the loss to expect.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    budget = sketch.budget

    def score(candidate: Candidate) -> float:
        tokens = tokens_for(budget, candidate)
        if budget.kind in ("tokens", "steps"):  # more parameters would always be better and cost more: keep the balance
            return abs(math.log(tokens / candidate.parameters / TOKENS_PER_PARAMETER))
        return reducible_loss(candidate.parameters, tokens, unique_tokens)

    best = min(sketch.candidates, key=score)
    wanted = tokens_for(budget, best)
    model = replace(best.config.model, vocab_size=max(vocab_size, 2)) if from_scratch else best.config.model
    data = replace(sketch.base.data, vocab_size=vocab_size)
    config = replace(best.config, model=model, data=data, runtime=sketch.base.runtime)
    if not sketch.fixed_rates:
        config = with_rates(with_batch(config, wanted))
    steps = int(budget.amount) if budget.kind == "steps" else int(wanted / config.tokens_per_step)
    if steps < MIN_STEPS and budget.kind != "steps":
        raise UserError(
            f"budget {str(budget)!r} is too small: it buys {max(0, steps)} steps of {config.tokens_per_step} tokens "
            f"for {best.parameters:,} parameters, and fewer than {MIN_STEPS} train nothing; give it more"
        )
    seconds = budget.amount if budget.kind == "seconds" else 0.0
    config = with_intervals(replace(config, steps=max(1, steps), seconds=seconds))
    config = override(config, [text for text in sketch.assignments if not text.startswith("data.vocab_size")])
    config = replace(config, runtime=sketch.base.runtime)
    count = parameters(config.model).matmul
    flops = float(config.tokens) * flops_per_token(config.model, convention="6n")
    expected = expect(count, config.tokens, unique_tokens, lzma_bpb) if from_scratch else None
    epochs = config.tokens / max(1, unique_tokens)
    return Advice(
        config=config,
        budget=budget,
        parameters=count,
        tokens=config.tokens,
        flops=flops,
        seconds=seconds or None,
        expected=expected,
        choices=(*sketch.choices, *choices_of(config, count, epochs, bytes_per_token, best)),
        candidates=tuple(
            candidate_line(c, budget, unique_tokens, lzma_bpb, c is best, from_scratch) for c in sketch.candidates
        ),
        calibration=sketch.calibration,
        peak=sketch.peak,
    )


def tokens_for(budget: Budget, candidate: Candidate) -> float:
    """Tokens that the budget lets this candidate read."""
    match budget.kind:
        case "seconds":
            return budget.amount * (1 - HOOKS_SHARE) * candidate.tokens_per_second
        case "flops":
            return budget.amount / flops_per_token(candidate.config.model, convention="6n")
        case "steps":
            return budget.amount * candidate.config.tokens_per_step
        case _:
            return budget.amount


def rough_flops(budget: Budget, peak: dict[str, float], device: str) -> float:
    """About how much compute a budget is, before anything is timed: to know where on the ladder to look."""
    match budget.kind:
        case "seconds":
            share = 0.35 if device == "cpu" else 0.25
            return budget.amount * share * (peak["float32"] if device == "cpu" else max(peak.values()))
        case "steps":  # tokens that a batch of that size would be chosen for: the inverse of batch_tokens_for, roughly
            return 6 * (budget.amount * 8192) ** 2 / TOKENS_PER_PARAMETER
        case _:
            return 6 * budget.amount**2 / TOKENS_PER_PARAMETER


def nearest_rungs(target: float, shaped: Callable[[tuple[int, int]], RunConfig]) -> list[tuple[int, int]]:
    """The rungs of the ladder nearest to `target` parameters, nearest first."""

    def distance(rung: tuple[int, int]) -> float:
        layers, d_model = rung
        rough = 12 * layers * d_model**2 + shaped(rung).model.vocab_size * d_model
        return abs(math.log(rough / target))

    return sorted(LADDER, key=distance)[:TIMED]


def choose_runtime(config: RunConfig, device: str, threads: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Device, dtype and threads: what the user asked for, else what timed steps say.

    bfloat16 has to be 1.15 times as fast to be chosen. The choice is kept in $ISOFLOP_HOME/dtype.json for this machine
    and shape: were it made anew each time, noise could give the same command different bits.
    """
    asked = config.runtime
    runtime: dict[str, Any] = {"device": device, "dtype": asked.dtype, "threads": threads}
    if asked.dtype != "auto":
        return runtime, {"reason": "as asked for", **runtime}
    machine = describe_machine(device)
    shape = f"{config.model.layers} x {config.model.d_model}, {config.tokens_per_step} tokens"
    key = ", ".join([machine["processor"], device, f"{threads} threads", f"torch {machine['torch']}", shape])
    stored = home() / "dtype.json"
    known: dict[str, float] = load_json(stored) if stored.is_file() else {}
    if key not in known:
        rates = {}
        for dtype in ("float32", "bfloat16"):
            trial = replace(config, runtime=replace(asked, device=device, dtype=dtype, threads=threads))
            rates[dtype] = throughput.time_steps(trial, SECONDS_EACH).tokens_per_second
        known = {**known, key: rates["bfloat16"] / rates["float32"]}
        write_json(stored, known)
    runtime["dtype"] = "bfloat16" if known[key] > 1.15 else "float32"
    return runtime, {"reason": f"a step in bfloat16 ran at {known[key]:.2f} times float32's speed", **runtime}


def with_batch(config: RunConfig, tokens: float) -> RunConfig:
    """The batch that goes with a run of `tokens` tokens."""
    sequences = max(4, round(batch_tokens_for(tokens) / config.model.context))
    return replace(config, batch=replace(config.batch, sequences=sequences, micro_sequences=0))


def with_rates(config: RunConfig) -> RunConfig:
    """The peak learning rates of a size; see LAB.md for the runs behind them."""
    width = config.model.d_model
    scale = (width / 128) ** -0.5
    return replace(config, optim=replace(config.optim, lr=config.optim.lr * scale))


def with_intervals(config: RunConfig) -> RunConfig:
    """Some 20 held-out measurements, 5 samples, 10 checkpoints a run."""
    every = replace(
        config.every,
        evaluate=max(1, math.ceil(config.steps / 20)),
        sample=max(1, math.ceil(config.steps / 5)),
        checkpoint=max(1, math.ceil(config.steps / 10)),
    )
    return replace(config, every=every)


def vocabulary_choice(vocabulary: int, given: int, asked: bool, flops: float, corpus_bytes: float) -> Choice:
    if given:
        reason = "the tokenizer that was given"
    elif asked:
        reason = "as asked for"
    else:
        reason = f"goes with {flops:.2g} FLOPs and {corpus_bytes / 1e6:.3g} MB of text; more would be most of the model"
    return Choice("vocabulary", f"{vocabulary:,} ids", reason)


def choices_of(
    config: RunConfig, count: int, epochs: float, bytes_per_token: float, best: Candidate
) -> tuple[Choice, ...]:
    model = config.model
    ratio = config.tokens / count
    repeated = f", {epochs:.2f} epochs of the text" if epochs > 1 else f", {epochs:.0%} of the text"
    timed = f"; {best.tokens_per_second:,.0f} tokens/s measured" if best.tokens_per_second else ""
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
        Choice("steps", f"{config.steps:,}", "D over the batch"),
        Choice(
            "optimiser",
            f"{config.optim.name}, lr {config.optim.lr:.3g}, matrix lr {config.optim.matrix_lr:.3g}",
            "measured at small sizes, see LAB.md",
        ),
        Choice(
            "schedule",
            f"{config.schedule.name}, warm-up {config.schedule.warmup:.0%}, decay {config.schedule.decay:.0%}",
            "ends at the budget; can be extended from before the decay",
        ),
        Choice("tokenizer", f"{bytes_per_token:.2f} bytes a token", "measured on the prepared text"),
    )


def candidate_line(
    candidate: Candidate, budget: Budget, unique_tokens: int, lzma_bpb: float, chosen: bool, from_scratch: bool
) -> dict[str, Any]:
    tokens = tokens_for(budget, candidate)
    return {
        "layers": candidate.config.model.layers,
        "d_model": candidate.config.model.d_model,
        "parameters": candidate.parameters,
        "tokens_per_second": candidate.tokens_per_second or None,
        "tokens": int(tokens),
        "expected_bits_per_byte": expect(candidate.parameters, tokens, unique_tokens, lzma_bpb).bits_per_byte
        if from_scratch
        else None,
        "chosen": chosen,
    }
