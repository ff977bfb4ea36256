"""plan.json: what was planned and why, and the expected loss."""

from dataclasses import dataclass, field
from typing import Any

from isoflop.records.ladder import LadderSeen
from isoflop.records.record import Record, rare

VERDICTS = ("inside", "better", "worse")
# field of the plan -> its label among the choices; in the file a choice is identified by its label only
LABELS = {"steps": "steps", "tokens": "tokens D"}


@dataclass(frozen=True, kw_only=True)
class Interval(Record):
    """An interval of bits per byte that should contain the run's final loss in a share `level` of all cases."""

    level: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Expectation(Record):
    """Expected bits per byte on held-out text, with the interval that should contain it in a share `level` of cases.

    Attributes:
        intervals: intervals of several levels, including that of `low` and `high`.
        source: what the expectation is based on, in words.
    """

    bits_per_byte: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    source: str | None = None
    intervals: tuple[Interval, ...] | None = rare()

    def between(self, level: float) -> Interval | None:
        """The interval of a level; None if there is none."""
        main = Interval(level=self.level, low=self.low, high=self.high)
        return next((interval for interval in (main, *(self.intervals or ())) if interval.level == level), None)

    def verdict(self, reached: float | None) -> str | None:
        """Where the reached loss lies: "inside" the interval, "better" (below it) or "worse" (above it); None if the
        loss or the interval is unknown."""
        if reached is None or self.low is None or self.high is None:
            return None
        return "better" if reached < self.low else "worse" if reached > self.high else "inside"


@dataclass(frozen=True)
class Choice(Record):
    """One line of the plan, for display only: values that code needs have fields of their own."""

    name: str = ""
    value: Any = None
    reason: str = ""

    @classmethod
    def of(cls, field: str, value: Any, reason: str) -> "Choice":
        """The choice that displays a field of the plan (one of LABELS)."""
        return cls(LABELS[field], value, reason)


@dataclass(frozen=True, kw_only=True)
class CandidateShape(Record):
    """A shape that was considered.

    Attributes:
        parameters: N of 6ND.
        tokens_per_second: as timed; None if nothing was timed (a budget not in seconds).
        tokens: D, the tokens that the budget allows.
        expected_bits_per_byte: None if no loss is forecast.
        extrapolated: the speed was extrapolated from smaller shapes, not timed.
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
    """The settings chosen by timing the machine.

    Attributes:
        reason: for the dtype.
        flops_per_second: 6ND per second, of the shape that the number of threads was chosen with.
        doubt: why the timings may be wrong, such as another program's load; None if there is no reason.
        seconds: duration of the calibration; written by earlier versions.
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
    """How predictable the text is before any model has seen it (plan/predictability.py), in bits per byte.

    Attributes:
        doubt: uncertainty due to a small sample.
    """

    ngram: float | None = None
    lzma: float | None = None
    doubt: float | None = rare()


@dataclass(frozen=True, kw_only=True)
class PilotRun(Record):
    """A pilot: a tiny complete run on the text of a larger run, made to forecast the loss of that run.

    Attributes:
        parameters: N of 6ND; tokens: read; flops: 6ND.
        unique_tokens: tokens in its text.
        bits_per_byte: reached on held-out text.
        seconds: its whole duration, including the work around its steps.
        reused: it was on record from an earlier plan, and took no time now.
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
class Exports(Record):
    """The formats that a model can be exported to.

    Attributes:
        formats: format -> architecture, both by their names in `isoflop export`.
        own_code: those of them that hold the model with modeling code of isoflop's own.
        words, reason: the same as a line of the plan.
        low, high, source: bits per byte on held-out text that `--set model=portable` loses against this model, at the
            sizes where that was measured; None if it was not, or if the model needs no code of its own.
    """

    formats: dict[str, str] = field(default_factory=dict)
    own_code: tuple[str, ...] = ()
    words: str | None = None
    reason: str | None = None
    low: float | None = rare()
    high: float | None = rare()
    source: str | None = rare()


@dataclass(frozen=True, kw_only=True)
class Plan(Record):
    """plan.json.

    A plan that was made for a budget has all keys; that of a given configuration (`kind` "given") and that of an
    imported model ("imported") have few, see `given` and `imported`.

    Attributes:
        budget: what the plan was made for, as on the command line, such as "3m".
        kind: "prior", "ladder" (by a law of the user's own text), "given" or "imported".
        choices: for display only.
        parameters: N of 6ND (block and head weights); total_parameters: all weights.
        tokens: read in training; flops: 6ND; seconds: of training, None if the budget is not in seconds.
        peak: the machine's peak FLOP/s, by dtype.
        predictability, unique_tokens, pilots: what the expectation is based on, to compute it again for a larger
            budget.
        recipe: how the run's recipe differs from that of the prior's runs.
        ladder: the ladder whose law the expectation is based on.
        forecast: the id of the forecast in the ledger.
        phases: seconds per phase before training.
        init_bits_per_byte: of the initial weights (--init), on the run's held-out text.
        source, format: where an imported model came from.
        like: the run that this one repeats, except for what was set (`--like`).
        exports: the formats that the model can be exported to.
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
    ladder: LadderSeen | None = rare()
    forecast: str | None = rare()
    phases: dict[str, float] | None = rare()
    init_bits_per_byte: float | None = rare()
    source: str | None = rare()
    format: str | None = rare()
    like: str | None = rare()
    exports: Exports | None = rare()

    @classmethod
    def given(
        cls, steps: int, tokens: int, expected: Expectation | None = None, exports: Exports | None = None
    ) -> "Plan":
        """The plan of a run whose configuration was given."""
        plan = cls(kind="given", steps=steps, tokens=tokens, expected=expected)
        plan = plan.written_as("kind", "steps", "tokens", *(("expected",) if expected else ()))
        return plan.updated(exports=exports) if exports else plan

    @classmethod
    def imported(cls, source: str, format: str, parameters: int, total_parameters: int) -> "Plan":
        """The plan of an imported model, which was not trained here."""
        plan = cls(
            kind="imported", source=source, format=format, parameters=parameters, total_parameters=total_parameters
        )
        return plan.written_as("kind", "source", "format", "parameters", "total_parameters")

    def shown(self, field: str, value: Any, reason: str) -> "Plan":
        """The plan with another displayed value and reason for a field in LABELS; `{}` in the reason stands for the
        previous value."""
        return self.updated(
            choices=tuple(
                choice.updated(value=value, reason=reason.format(choice.value))
                if choice.name == LABELS[field]
                else choice
                for choice in self.choices
            )
        )
