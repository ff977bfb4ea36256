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
from isoflop.config import override, to_dict
from isoflop.errors import UserError
from isoflop.model.count import parameters
from isoflop.model.presets import heads_for
from isoflop.plan.candidates import Candidate, candidate_line, nearest_rungs, rough_flops, tokens_for
from isoflop.plan.explain import Choice, choices_of, vocabulary_choice
from isoflop.plan.machine import choose_runtime, worth_compiling
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import Expectation, expect
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, reducible_loss
from isoflop.plan.shapes import batch_tokens_for, context_for, vocabulary_for
from isoflop.runtime import choose_device, cores, measure_peak
from isoflop.trainer import RunConfig, throughput

BYTES_PER_TOKEN = 3.0  # before there is a tokenizer; small vocabularies make 2 to 3 of English and code
SECONDS_EACH = 2.0  # for timing one, in turns with the others
MIN_STEPS = 20  # fewer are no training; a budget that buys fewer is refused


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
    machines: int = 1


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
    machines: int = 1,
    fixed_vocabulary: int = 0,
) -> Sketch:
    """Time the machine where the budget is in seconds, and choose what the text has to be prepared with.

    Args:
        base: the configuration whose shape, batch, rates and length are to be chosen.
        assignments: `--set` strings; they hold in every candidate, so that what is timed is what will run.
        corpus_bytes: about how much text there is.
        fixed_model: keep base.model as it is (--init, a recipe).
        fixed_rates: keep its batch and learning rates too (a recipe).
        machines: how many like this one train together; what they lose to one another, the clock finds out.
        fixed_vocabulary: the ids of a tokenizer that is given; 0: one is trained, and its size chosen here.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    device = choose_device(override(base, assignments).runtime.device)
    say(f"measuring this machine ({device})")
    peak = measure_peak(device)
    flops = budget.amount if budget.kind == "flops" else rough_flops(budget, peak, device, machines)
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
        config = override(replace(base, model=model), assignments)  # the batch goes with the context asked for
        return config if fixed_rates else override(with_batch(config, tokens), assignments)

    target = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    rungs = nearest_rungs(target, lambda rung: shaped(rung, 1e6))
    tokens = flops / (6 * target)
    first = shaped(rungs[0], tokens)
    runtime, calibration = choose_runtime(first, device, first.runtime.threads or cores(), peak)
    compiled = first.runtime.compile or ("runtime.compile" not in asked and worth_compiling(device, budget))
    base = replace(base, runtime=replace(first.runtime, **runtime, compile=compiled))
    shapes: list[RunConfig] = []
    for config in (shaped(rung, tokens) for rung in rungs):
        if all(config.model != known.model for known in shapes):
            shapes.append(throughput.fitting(config, machines))
    rates = [0.0] * len(shapes)
    if budget.kind == "seconds":
        rates = [machines * timed.tokens_per_second for timed in throughput.time_in_turns(shapes, SECONDS_EACH)]
        for config, rate in zip(shapes, rates, strict=True):
            say(f"{config.model.layers} layers x {config.model.d_model}: {rate:,.0f} tokens/s")
    candidates = [
        Candidate(config, parameters(config.model).matmul, rate) for config, rate in zip(shapes, rates, strict=True)
    ]
    most = max(tokens_for(budget, candidate) for candidate in candidates)
    buys_enough(budget, min(candidates, key=lambda candidate: candidate.parameters))
    choices = (
        Choice(
            "device",
            f"{runtime['device']}, {runtime['dtype']}, {runtime['threads']} threads{', compiled' if compiled else ''}",
            calibration["reason"],
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
        machines=machines,
    )


def settle(
    sketch: Sketch,
    unique_tokens: int,
    vocab_size: int,
    bytes_per_token: float,
    text: Predictability,
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
    asked = [text for text in sketch.assignments if not text.startswith(("data.vocab_size", "runtime."))]
    if not sketch.fixed_rates:
        config = override(with_rates(with_batch(config, wanted)), asked)  # what is asked for comes before the counting
    config = throughput.fitting(config, sketch.machines)
    steps = buys_enough(budget, replace(best, config=config))
    seconds = budget.amount if budget.kind == "seconds" else 0.0
    config = override(with_intervals(replace(config, steps=max(1, steps), seconds=seconds)), asked)
    count = parameters(config.model).matmul
    flops = float(config.tokens) * config.flops_per_token
    expected = expect(count, config.tokens, unique_tokens, text) if from_scratch else None
    epochs = config.tokens / max(1, unique_tokens)
    return Advice(
        config=config,
        budget=budget,
        parameters=count,
        tokens=config.tokens,
        flops=flops,
        seconds=seconds or None,
        expected=expected,
        choices=(*sketch.choices, *choices_of(config, count, epochs, bytes_per_token, best, sketch.machines)),
        candidates=tuple(
            candidate_line(c, budget, unique_tokens, text, c is best, from_scratch) for c in sketch.candidates
        ),
        calibration=sketch.calibration,
        peak=sketch.peak,
    )


def buys_enough(budget: Budget, candidate: Candidate) -> int:
    """The steps that the budget buys a candidate.

    Raises:
        UserError: if they are fewer than MIN_STEPS and were not asked for as such.
    """
    if budget.kind == "steps":
        return int(budget.amount)
    steps = int(tokens_for(budget, candidate) / candidate.config.tokens_per_step)
    if steps < MIN_STEPS:
        raise UserError(
            f"budget {str(budget)!r} is too small: it buys {steps} steps of {candidate.config.tokens_per_step} tokens "
            f"for {candidate.parameters:,} parameters, and fewer than {MIN_STEPS} train nothing; give it more"
        )
    return steps


def with_batch(config: RunConfig, tokens: float) -> RunConfig:
    """The batch that goes with a run of `tokens` tokens. On a GPU, which may have to take it in several passes, it is a
    multiple of 8 sequences."""
    least = 8 if config.runtime.device.startswith("cuda") else 1
    sequences = max(4, least * round(batch_tokens_for(tokens) / config.model.context / least))
    return replace(config, batch=replace(config.batch, sequences=sequences, micro_sequences=0))


def with_rates(config: RunConfig) -> RunConfig:
    """The peak learning rates of a size, by the rule of its optimiser (optim/table.py), from those of width 128; see
    LAB.md for the runs behind them."""
    changed = config.optim.entry.at_width(config.model.d_model, config.model.tied_head)
    return replace(config, optim=replace(config.optim, **changed))  # type: ignore[arg-type]


def with_intervals(config: RunConfig) -> RunConfig:
    """Some 12 held-out measurements, 3 samples, 10 checkpoints a run, together less than a fiftieth of its time
    (bench/overhead.py). The measurements read an eightieth of what training reads, each at least 8,192 tokens."""
    every = replace(
        config.every,
        evaluate=max(1, math.ceil(config.steps / 12)),
        sample=max(1, math.ceil(config.steps / 3)),
        checkpoint=max(1, math.ceil(config.steps / 10)),
    )
    measured = min(max(config.tokens // 1000, 8192), 2**20)
    return replace(config, every=every, evaluate_tokens=measured)
