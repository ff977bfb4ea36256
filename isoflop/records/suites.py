"""suites/NAME.json: what a run came to on a whole suite, as `isoflop eval RUN --suite NAME` keeps it; card.json: what a
person said for the model card."""

from dataclasses import dataclass, field

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class PartScore(Record):
    """A score over some of the items, with the ends of its 95 % interval."""

    score: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class Contamination(Record):
    """Items that share 13 words in a row with the training text, and the score without them.

    Attributes:
        too_short: items of fewer words, of which that cannot be told.
    """

    overlapping: int = 0
    too_short: int = 0
    without: PartScore | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedScore(Record):
    """Another model's figure, by the suite's file."""

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
        chance: of one who guesses; None for a perplexity.
        seconds: that it took.
        cut: items whose context was too long for the model.
        metrics: by every metric; subsets: by the headline.
        source, licence: of the suite's items.
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


@dataclass(frozen=True, kw_only=True)
class CardSaid(Record):
    """card.json: what nobody but a person knows.

    Attributes:
        licence: of the model; sources: licences by source of its text.
    """

    licence: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
