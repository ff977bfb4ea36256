"""suites/NAME.json: a run's score on a whole suite, from `isoflop eval RUN --suite NAME`; card.json: a person's notes
for the model card."""

from dataclasses import dataclass, field

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class PartScore(Record):
    """A score over some of the items, with its 95 % interval."""

    score: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class Contamination(Record):
    """Items that share 13 words in a row with the training text, and the score without them.

    Attributes:
        too_short: items of fewer than 13 words, which cannot be checked.
    """

    overlapping: int = 0
    too_short: int = 0
    without: PartScore | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedScore(Record):
    """A published score of another model, from the suite file."""

    model: str = ""
    metric: str = ""
    score: float | None = None
    source: str = ""
    note: str | None = rare()


@dataclass(frozen=True, kw_only=True)
class SuiteScore(Record):
    """A run's score on a suite, by its headline metric (evaluate/methods.py).

    Attributes:
        step: of the checkpoint that was scored.
        chance: the score of random guesses; None for a perplexity.
        seconds: duration of scoring.
        cut: number of items that were longer than the model's context.
        metrics: by every metric; subsets: by the headline metric.
        source, licence: of the suite's items.
        digest: of the items as the model was asked them.
    """

    suite: str = ""
    step: int | None = None
    metric: str = ""
    score: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    items: int | None = None
    seconds: float | None = None
    cut: int = 0
    metrics: dict[str, PartScore] = field(default_factory=dict)
    subsets: dict[str, PartScore] = field(default_factory=dict)
    contamination: Contamination | None = rare()
    references: tuple[PublishedScore, ...] = ()
    source: str = ""
    licence: str = ""
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class CardNotes(Record):
    """card.json: the facts of a model card that only a person knows.

    Attributes:
        licence: of the model; sources: the licence of each source of its text.
    """

    licence: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
