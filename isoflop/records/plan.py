"""plan.json: what was planned and why, and the loss expected."""

from dataclasses import dataclass, field
from typing import Any

from isoflop.records.record import Record, rare

VERDICTS = ("inside", "better", "worse")
# What fields of the plan are called among its choices. A file says no more of a choice than its label.
LABELS = {"steps": "steps", "tokens": "tokens D"}


@dataclass(frozen=True, kw_only=True)
class Interval(Record):
    """The bits per byte between which a run should end in `level` of all cases."""

    level: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Expectation(Record):
    """Bits per byte expected on held-out text, with the interval that should hold it in `level` of all cases.

    Attributes:
        intervals: the same at several levels, that of `low` and `high` included.
        source: what it was made from, in words.
    """

    bits_per_byte: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    source: str | None = None
    intervals: tuple[Interval, ...] | None = rare()

    def between(self, level: float) -> Interval | None:
        """The interval of a level; None if there is none."""
        mine = Interval(level=self.level, low=self.low, high=self.high)
        return next((one for one in (mine, *(self.intervals or ())) if one.level == level), None)

    def verdict(self, reached: float | None) -> str | None:
        """Where a reached loss lies: "inside" the interval, "better" (below it) or "worse" (above it); None if one of
        them is not known."""
        if reached is None or self.low is None or self.high is None:
            return None
        return "better" if reached < self.low else "worse" if reached > self.high else "inside"


@dataclass(frozen=True)
class Choice(Record):
    """One line of the plan, for display only: what code needs of a plan has a field of its own."""

    name: str = ""
    value: Any = None
    reason: str = ""

    @classmethod
    def of(cls, field: str, value: Any, reason: str) -> "Choice":
        """The line of a field of the plan that is also shown among the choices (LABELS)."""
        return cls(LABELS[field], value, reason)


@dataclass(frozen=True, kw_only=True)
class CandidateShape(Record):
    """A shape that was considered.

    Attributes:
        parameters: N of 6ND.
        tokens_per_second: as timed; None where nothing was timed (a budget not in seconds).
        tokens: that the budget buys it.
        expected_bits_per_byte: None where no loss is expected beforehand.
        extrapolated: the speed was not timed but extrapolated from smaller shapes.
    """

    layers: int | None = None
    d_model: int | None = None
    parameters: int | None = None
    tokens_per_second: float | None = None
    tokens: int | None = None
    expected_bits_per_byte: float | None = None
    chosen: bool = False
    extrapolated: bool | None = rare()


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """What timing the machine decided.

    Attributes:
        reason: of the dtype.
        flops_per_second: 6ND, that steps of the shape with which threads were chosen reached.
        doubt: what spoke against what was timed, such as another program's work; None: nothing did.
        seconds: that it took; written by earlier versions.
    """

    reason: str | None = rare()
    device: str | None = rare()
    dtype: str | None = rare()
    threads: int | None = rare()
    doubt: str | None = rare()
    flops_per_second: float | None = rare()
    seconds: float | None = rare()


@dataclass(frozen=True, kw_only=True)
class TextPredictability(Record):
    """How predictable the text is before any model has seen it (plan/predictability.py), in bits per byte."""

    ngram: float | None = None
    lzma: float | None = None
    doubt: float | None = rare()  # of a sample too small to say


@dataclass(frozen=True, kw_only=True)
class PilotRun(Record):
    """A tiny complete run on the text of a larger one, made to forecast that one's loss.

    Attributes:
        parameters: N of 6ND; tokens: read; flops: 6ND.
        unique_tokens: that its text has.
        bits_per_byte: reached on held-out text.
        seconds: that it took, with all that is around its steps.
        reused: it was on record, and took nothing now.
    """

    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    unique_tokens: int | None = None
    bits_per_byte: float | None = None
    layers: int | None = None
    d_model: int | None = None
    steps: int | None = None
    seconds: float | None = None
    reused: bool | None = rare()


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """plan.json.

    A plan that was made for a budget has all keys; one of a configuration that is given (`kind` "given") and that of an
    imported model ("imported") have few, see `given` and `imported`.

    Attributes:
        budget: as the command line takes it, such as "3m"; what the plan was made for.
        kind: "prior", "given" or "imported".
        choices: for display only.
        parameters: N of 6ND (block and head weights); total_parameters: every weight.
        tokens: read in training; flops: 6ND; seconds: of training, None where the budget is not in seconds.
        peak: FLOP/s that this machine reached at best, by dtype.
        predictability, unique_tokens, pilots: what the expectation was made from, to make it again for a larger budget.
        recipe: what the recipe differs in from that of the prior's runs.
        forecast: the name of the line in the ledger that says what was expected.
        phases: seconds by phase before training.
        init_bits_per_byte: of the weights that the run started from (--init), on what it holds out.
        source, format: where an imported model came from.
        like: the run that this one repeats but for what was set (`--like`).
    """

    budget: str | None = None
    kind: str | None = None
    choices: tuple[Choice, ...] = ()
    parameters: int | None = None
    total_parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    steps: int | None = None
    seconds: float | None = None
    expected: Expectation | None = None
    candidates: tuple[CandidateShape, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    peak: dict[str, float] = field(default_factory=dict)
    predictability: TextPredictability | None = rare()
    unique_tokens: int | None = rare()
    pilots: tuple[PilotRun, ...] | None = rare()
    recipe: tuple[str, ...] | None = rare()
    forecast: str | None = rare()
    phases: dict[str, float] | None = rare()
    init_bits_per_byte: float | None = rare()
    source: str | None = rare()
    format: str | None = rare()
    like: str | None = rare()

    @classmethod
    def given(cls, steps: int, tokens: int, expected: Expectation | None = None) -> "Plan":
        """The plan of a run whose configuration was decided elsewhere."""
        plan = cls(kind="given", steps=steps, tokens=tokens, expected=expected)
        return plan.written_as("kind", "steps", "tokens", *(("expected",) if expected else ()))

    @classmethod
    def imported(cls, source: str, format: str, parameters: int, total_parameters: int) -> "Plan":
        """The plan of a model from elsewhere, which was not trained here."""
        plan = cls(
            kind="imported", source=source, format=format, parameters=parameters, total_parameters=total_parameters
        )
        return plan.written_as("kind", "source", "format", "parameters", "total_parameters")

    def shown(self, field: str, value: Any, reason: str) -> "Plan":
        """The plan with another value and reason among its choices for a field in LABELS; a `{}` in the reason stands
        for the value before."""
        return self.updated(
            choices=tuple(
                choice.updated(value=value, reason=reason.format(choice.value))
                if choice.name == LABELS[field]
                else choice
                for choice in self.choices
            )
        )
