"""What to train on the machine at hand within a budget: the plan of `isoflop train`, each choice with what it rests on
and how sure that is, and what the shapes next to it would give.

Nothing is decided here: it is the plan of a dry run. What is added is the comparison of shapes at equal seconds and at
equal FLOPs. The two differ where small models use the machine badly: the one that is best at equal FLOPs is too small
by the clock, as a larger one gets more FLOPs from the same seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from isoflop.budget import Budget
from isoflop.data.prepare import Progress
from isoflop.errors import UserError
from isoflop.optim.table import rates
from isoflop.plan.advice import Advice
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.by_law import forecast_of
from isoflop.plan.candidates import HEAD_WORTH, Candidate
from isoflop.plan.pilot import NO_PILOTS, observations
from isoflop.plan.planner import plan
from isoflop.plan.repetition import R_D, WORN_OUT, effective, reducible_loss
from isoflop.trainer import RunConfig

SLOW = 0.5  # of the share of the peak that the largest shape reaches, below which a shape counts as slow
DECIDE = {  # the fields of the configuration that decide a choice
    "vocabulary": ("data.vocab_size", "data.tokenizer"),
    "shape": ("model.layers", "model.d_model", "model.heads"),
    "batch": ("batch.sequences",),
    "rates": ("optim",),
    "context": ("model.context",),
}
EASY = 4.0  # times that a text may be read at hardly any loss (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Point:
    """A choice with what it rests on and how sure that is."""

    name: str
    value: str
    source: str
    doubt: str


@dataclass(frozen=True)
class Option:
    """A shape that was considered.

    Attributes:
        tokens_per_second: as timed, or extrapolated.
        peak_share: of the machine's measured peak, by 6 N D; None where that is not known.
        tokens, expected: what it reads in the budget's seconds, and the bits per byte to expect then; None where
            nothing can be expected.
        flops_tokens, flops_expected: the same with the FLOPs of the shape that was chosen.
        score, flops_score: what is compared where nothing is expected: the reducible loss.
    """

    layers: int
    d_model: int
    parameters: float
    tokens_per_second: float
    peak_share: float | None
    tokens: float
    expected: float | None
    flops_tokens: float
    flops_expected: float | None
    score: float
    flops_score: float


@dataclass(frozen=True)
class Here:
    """Advice for the machine at hand.

    Attributes:
        advice: the plan.
        points: one per choice.
        options: the shapes that were considered, smallest first; at the places `by_seconds` and `by_flops` those that
            are best at equal seconds and at equal FLOPs.
    """

    advice: Advice
    points: tuple[Point, ...]
    options: tuple[Option, ...]
    by_seconds: int
    by_flops: int


def advise_here(
    budget: Budget,
    config: RunConfig,
    asked: Asked = NOTHING,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Here:
    """Advice for a budget of seconds on text.

    Raises:
        UserError: for a budget of another kind, and for text that cannot be used.
    """
    if budget.kind != "seconds" or budget.more:
        raise UserError(
            f"--budget {budget} is in {budget.kind}, which no clock decides: write a time, as in 2h; of FLOPs `isoflop "
            "train --dry-run` shows the plan"
        )
    advice, _ = plan(budget, config, asked, say=say, progress=progress, dry=True, make_pilots=lambda *_: NO_PILOTS)
    options = sorted(options_of(advice), key=lambda one: one.parameters)
    return Here(
        advice,
        tuple(by_whom(point, asked) for point in points_of(advice)),
        tuple(options),
        best([one.expected for one in options], [one.score for one in options]),
        best([one.flops_expected for one in options], [one.flops_score for one in options]),
    )


def best(expected: list[float | None], scores: list[float]) -> int:
    """The place of the least: of what is expected where all of it is known, else of the scores."""
    known = [value for value in expected if value is not None]
    values = known if len(known) == len(scores) else scores
    return values.index(min(values))


def options_of(advice: Advice) -> list[Option]:
    """The shapes that were considered, at equal seconds and at equal FLOPs."""
    proposal, unique = advice.proposal, advice.unique_tokens or 0
    assert proposal is not None
    pilots = observations(advice.pilots)
    forecast = forecast_of(advice.law, unique, advice.text, pilots, advice.differences)
    peak = advice.peak.get(advice.config.runtime.dtype)

    def option(one: Candidate) -> Option:
        per_token = one.workload.flops_per_token(one.config)
        tokens, at_flops = one.tokens(proposal.budget), advice.flops / per_token
        losses = [forecast(one.weights, count).bits_per_byte if forecast else None for count in (tokens, at_flops)]
        return Option(
            layers=one.config.model.layers,
            d_model=one.config.model.d_model,
            parameters=one.weights,
            tokens_per_second=one.tokens_per_second,
            peak_share=one.tokens_per_second * per_token / (peak * proposal.machines) if peak else None,
            tokens=tokens,
            expected=losses[0],
            flops_tokens=at_flops,
            flops_expected=losses[1],
            score=reducible_loss(one.capacity, tokens, unique),
            flops_score=reducible_loss(one.capacity, at_flops, unique),
        )

    return [option(one) for one in proposal.candidates]


def points_of(advice: Advice) -> list[Point]:
    """Each choice in one line."""
    config, unique = advice.config, max(1, advice.unique_tokens or 1)
    model, tokens, count = config.model, advice.tokens, advice.parameters
    law = advice.law
    of_size = (
        "20 tokens per parameter (Hoffmann et al. 2022) at equal FLOPs, the head's weights worth "
        f"{HEAD_WORTH:g} of others (LAB.md); here equal seconds decide, by timed steps"
    )
    size_doubt = "published optima lie at 5 to 80 tokens per parameter; `isoflop ladder` measures yours"
    if law is not None:
        of_size = f"the law of a ladder on this text, {law.about.runs} runs; equal seconds decide, by timed steps"
        size_doubt = f"{advice.flops / law.largest:.2g} times the compute of the ladder's largest run"
    return [
        Point(
            "vocabulary",
            f"{model.vocab_size:,} ids",
            "the quarter power of compute, 4,500 at 1e13 FLOPs (after Tao et al. 2024; docs/recipe.md)",
            "4,096 gained 0.030 bits per byte on 2,048 at 3 x 96 on books; 8,192 as much, and lost "
            "0.021 on 4,096 on code",
        ),
        Point(
            "shape",
            f"{model.layers} x {model.d_model}, heads: {model.heads}",
            "width leads depth as in GPT-2 and GPT-3; the loss is flat in the ratio (Kaplan et al. 2020, figure 5)",
            "deeper and narrower shapes of the same N were not compared at these sizes",
        ),
        Point("parameters N", f"{count:,}", of_size, size_doubt),
        Point(
            "tokens D",
            f"{tokens:,}, {tokens / count:.3g} per parameter",
            "what the seconds are enough for",
            "balanced with N by the exponents of C4 (0.35, Muennighoff et al. 2023), which your text need not have",
        ),
        repetition(tokens, unique),
        Point(
            "batch",
            f"{config.tokens_per_step:,} tokens",
            "0.573 D^0.571 (Step Law, Li et al. 2025)",
            "fitted at 1e9 tokens and more; twice the batch lost 0.045 bits per byte at 2 x 48, half of it at 3 x 96 "
            "was within the noise",
        ),
        Point(
            "rates",
            ", ".join(f"{name} {value:.3g}" for name, value in rates_shown(config)),
            "the best of those tried at width 128, moved to this width by muP's rule (Yang et al. 2022)",
            "half of Muon's rate lost 0.038 bits per byte at 2 x 48, twice it was within the noise; `isoflop ladder` "
            "brackets them at two sizes of your text",
        ),
        Point(
            "context",
            f"{model.context} tokens",
            "256 below 3e15 FLOPs, then what GPT-2 and GPT-3 had at their compute",
            "half the context gained 0.015 (-0.001 to 0.032) bits per byte at 3 x 96 at equal seconds: not shown",
        ),
    ]


def by_whom(point: Point, asked: Asked) -> Point:
    """A choice that the user has made rests on that alone."""
    named = [name for field in DECIDE.get(point.name, ()) for name in asked.within(field)]
    return replace(point, source=f"{', '.join(dict.fromkeys(named))} set by you") if named else point


def repetition(tokens: int, unique: int) -> Point:
    """How often the text is read, and what that is worth."""
    epochs = tokens / unique
    source = f"the data-constrained law, R_D = {R_D:g} (Muennighoff et al. 2023)"
    if epochs <= 1:
        return Point("text", f"{epochs:.0%} of it is read", "nothing is read twice", "none")
    worth = effective(tokens, unique, R_D) / tokens
    doubt = "R_D is from C4 and larger models, and was not measured here"
    if epochs > WORN_OUT:
        doubt = "so many epochs teach next to nothing: find more text, or spend less"
    elif epochs <= EASY:
        doubt = "up to four epochs hardly differ from new text"
    return Point("text", f"read {epochs:,.1f} times, worth {worth:.0%} of new tokens", source, doubt)


def rates_shown(config: RunConfig) -> list[tuple[str, float]]:
    named = {
        "matrix_lr": "matrices",
        "head_lr": "head",
        "embedding_lr": "embedding",
        "value_lr": "values",
        "lr": "rest",
    }
    return [(named.get(name, name), value) for name, value in rates(config.optim.entry).items() if value]


def slow(options: tuple[Option, ...], at: int) -> bool:
    """Whether a shape uses the machine far worse than the largest one does."""
    share, largest = options[at].peak_share, options[-1].peak_share
    return share is not None and largest is not None and share < SLOW * largest
