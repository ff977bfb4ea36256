"""The plan of an encoder-decoder: budget -> shape, batch, steps and rates, each with its reason.

Simpler than that of a GPT (advise.py): the pairs are prepared already, their lengths known and few, so that each
candidate is timed on its own first batches. No loss is stated beforehand: the table of prior.py has GPTs on text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from isoflop.budget import Budget
from isoflop.config import override
from isoflop.data.pair_loader import PairLoader
from isoflop.data.prepared_pairs import PreparedPairs
from isoflop.errors import UserError
from isoflop.model.count import pair_flops_per_token, parameters
from isoflop.plan.advise import MIN_STEPS, SECONDS_EACH, Advice, with_intervals
from isoflop.plan.candidates import HOOKS_SHARE, rough_flops
from isoflop.plan.explain import Choice, choices_of_course
from isoflop.plan.repetition import TOKENS_PER_PARAMETER, reducible_loss
from isoflop.plan.shapes import batch_tokens_for
from isoflop.runtime import choose_device, cores, default_dtype, measure_peak
from isoflop.trainer import RunConfig, throughput

# (blocks of the encoder and of the decoder, d_model)
LADDER: tuple[tuple[int, int], ...] = ((1, 64), (2, 64), (2, 128), (3, 192), (4, 256), (6, 384), (6, 512), (6, 768))
HEAD_WIDTH = 16  # narrow, unlike a GPT's: 4 heads of 16 in place of 1 of 64 took a quarter off the error rate (LAB.md)
TIMED = 3  # candidates, those nearest to what the budget feeds


def advise_pairs(
    budget: Budget,
    base: RunConfig,
    assignments: Sequence[str],
    prepared: PreparedPairs,
    say: Callable[[str], None] = lambda line: None,
    fixed_model: bool = False,
    fixed_rates: bool = False,
    machines: int = 1,
) -> Advice:
    """Choose what `budget` should train on these pairs.

    Args:
        base: the configuration whose shape, batch, rates and length are to be chosen.
        assignments: `--set` strings; they hold in every candidate.
        fixed_model: keep base.model (--init, a recipe).
        fixed_rates: keep its batch and rates (a recipe).
        machines: as in `advise.draw`.

    Raises:
        UserError: if the budget buys less than MIN_STEPS steps.
    """
    device = choose_device(override(base, assignments).runtime.device)
    say(f"measuring this machine ({device})")
    peak = measure_peak(device)
    flops = budget.amount if budget.kind == "flops" else rough_flops(budget, peak, device, machines)
    base = replace(base, runtime=runtime_for(override(base, assignments), device))
    lengths = prepared.mean_lengths()
    kept = [text for text in assignments if not text.startswith("data.")]

    def shaped(rung: tuple[int, int], tokens: float) -> RunConfig:
        layers, d_model = rung
        config = base
        if not fixed_model:
            model = replace(
                base.model,
                vocab_size=prepared.vocab_size,
                context=prepared.longest(),
                layers=layers,
                d_model=d_model,
                heads=d_model // HEAD_WIDTH,
                head_dim=0,
            )
            config = replace(base, model=model)
        if not fixed_rates:
            config = with_pair_batch(config, tokens, sum(lengths))
        return override(config, kept)

    target = math.sqrt(flops / (6 * TOKENS_PER_PARAMETER))
    tokens = flops / (6 * target)
    shapes = [shaped(rung, tokens) for rung in LADDER]
    shapes = [config for i, config in enumerate(shapes) if config.model not in [c.model for c in shapes[:i]]]
    configs = sorted(shapes, key=lambda config: abs(math.log(weights_of(config, lengths) / target)))[:TIMED]
    rates = [0.0] * len(configs)
    if budget.kind == "seconds":
        data = [PairLoader(prepared, c.model.context, c.batch.sequences, c.seed) for c in configs]
        rates = [machines * timed.tokens_per_second for timed in throughput.time_in_turns(configs, SECONDS_EACH, data)]
        for config, rate in zip(configs, rates, strict=True):
            say(f"{config.model.layers} + {config.model.layers} layers x {config.model.d_model}: {rate:,.0f} tokens/s")
    unique = prepared.train_tokens(prepared.sources[0])
    lines: list[dict[str, Any]] = []
    for config, rate in zip(configs, rates, strict=True):
        weights, bought = weights_of(config, lengths), tokens_bought(budget, config, rate, lengths)
        lines.append(
            {
                "layers": config.model.layers,
                "d_model": config.model.d_model,
                "parameters": int(weights),
                "tokens_per_second": rate or None,
                "tokens": int(bought),
                "score": reducible_loss(weights, bought, unique),
            }
        )
    best = min(range(len(lines)), key=lambda i: score_of(budget, lines[i]))
    config = configs[best]
    bought = float(lines[best]["tokens"])
    if not fixed_rates:
        config = override(with_pair_batch(config, bought, sum(lengths)), kept)
    per_step = config.batch.sequences * sum(lengths)
    steps = int(budget.amount) if budget.kind == "steps" else int(bought / per_step)
    if steps < MIN_STEPS and budget.kind != "steps":
        raise UserError(
            f"budget {str(budget)!r} is too small: it buys {max(0, steps)} steps of {config.batch.sequences} pairs, "
            f"and fewer than {MIN_STEPS} train nothing; give it more"
        )
    config = replace(config, steps=max(1, steps), seconds=budget.amount if budget.kind == "seconds" else 0.0)
    config = override(with_intervals(config), kept)
    batches = PairLoader(prepared, config.model.context, config.batch.sequences, config.seed)
    read = batches.tokens(config.steps)
    for number, line in enumerate(lines):
        line["chosen"] = number == best
        del line["score"]
    return Advice(
        config=config,
        budget=budget,
        parameters=parameters(config.model, "seq2seq").matmul,
        tokens=read,
        flops=read * pair_flops_per_token(config.model, *lengths),
        seconds=config.seconds or None,
        expected=None,
        choices=choices_of(config, prepared, read, lines[best]),
        candidates=tuple(lines),
        calibration={"reason": "float32 on a CPU: products of short sequences are small"},
        peak=peak,
    )


def weights_of(config: RunConfig, lengths: tuple[float, float]) -> float:
    """N of 6 N D where D counts the tokens of both sides: the weights that one of them is multiplied by on average."""
    return pair_flops_per_token(config.model, *lengths) / 6


def tokens_bought(budget: Budget, config: RunConfig, rate: float, lengths: tuple[float, float]) -> float:
    """Tokens of both sides that the budget lets a candidate read."""
    match budget.kind:
        case "seconds":
            return budget.amount * (1 - HOOKS_SHARE) * rate
        case "flops":
            return budget.amount / pair_flops_per_token(config.model, *lengths)
        case "steps":
            return budget.amount * config.batch.sequences * sum(lengths)
        case _:
            return budget.amount


def score_of(budget: Budget, line: dict[str, Any]) -> float:
    """What the best candidate has least of: reducible loss or, where more parameters cost nothing, distance from the
    balance of tokens and parameters."""
    if budget.kind in ("tokens", "steps"):
        return abs(math.log(line["tokens"] / line["parameters"] / TOKENS_PER_PARAMETER))
    return float(line["score"])


def runtime_for(config: RunConfig, device: str) -> Any:
    """Device, dtype and threads, as asked for or as fits the device."""
    dtype = config.runtime.dtype
    if dtype == "auto":
        dtype = default_dtype(device)
    return replace(config.runtime, device=device, dtype=dtype, threads=config.runtime.threads or cores())


def with_pair_batch(config: RunConfig, tokens: float, pair_tokens: float) -> RunConfig:
    """The batch that goes with a run of `tokens` tokens, in pairs."""
    pairs = max(8, 8 * round(batch_tokens_for(tokens) / pair_tokens / 8))
    return replace(config, batch=replace(config.batch, sequences=pairs, micro_sequences=0))


def choices_of(config: RunConfig, prepared: PreparedPairs, read: int, best: dict[str, Any]) -> tuple[Choice, ...]:
    model, account, runtime = config.model, prepared.account(), config.runtime
    source, target = prepared.mean_lengths()
    timed = f"; {best['tokens_per_second']:,.0f} tokens/s measured" if best["tokens_per_second"] else ""
    count = parameters(model, "seq2seq")
    return (
        Choice("device", f"{runtime.device}, {runtime.dtype}, {runtime.threads} threads", "products here are small"),
        Choice("tokenizer", f"{account['tokenizer']}, {prepared.vocab_size:,} ids", "by what the two sides look like"),
        Choice(
            "shape",
            f"{model.encoder_layers or model.layers} + {model.layers} layers x {model.d_model}, heads: {model.heads}",
            f"the candidate that the budget feeds best{timed}; heads of {HEAD_WIDTH}, see LAB.md",
        ),
        Choice(
            "parameters N",
            f"{count.matmul:,}",
            f"block and head weights; {best['parameters']:,} multiply a token on average, C = 6 of them a token",
        ),
        Choice(
            "tokens D",
            f"{read:,}",
            f"of inputs and outputs, no padding; {read / prepared.train_tokens(''):.1f} epochs of the pairs",
        ),
        Choice(
            "batch",
            f"{config.batch.sequences} pairs = {config.batch.sequences * (source + target):,.0f} tokens",
            "0.573 D^0.571 (Step Law)",
        ),
        Choice("context", f"{model.context} positions", "the longest side of a pair and its end"),
        *choices_of_course(config),
    )
