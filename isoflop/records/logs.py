"""The lines of a run's logs: metrics, samples, decisions, skips, events, suites. `time` is in Unix seconds."""

from dataclasses import dataclass, field

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class TrainingLine(Record):
    """A step, in metrics.jsonl: the lines with a `loss`.

    Attributes:
        step: steps done.
        loss: the training loss, with auxiliary losses and smoothing, in nats per token.
        grad_norm: before clipping.
        lr: of the parameters that AdamW trains with optim.lr.
        tokens, flops: so far; FLOPs are 6ND.
        seconds: of training so far, without the time between an interruption and its resumption.
        tokens_per_second: over the last steps.
    """

    step: int | None = None
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    flops: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOutLine(Record):
    """A held-out measurement, in metrics.jsonl: the lines with a `heldout_loss`. Readings of the model's parts, such as
    `load_entropy`, are in `others`.

    Attributes:
        heldout_loss: plain cross-entropy, nats per token.
        wide_loss, wide_bits_per_byte, wide_tokens: the same model on more of the held-out text, once per run.
        averaged_loss: that of the average of the weights (trainer/decay_probe.py), on the text of heldout_loss.
    """

    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    flops: float | None = None
    heldout_loss: float | None = None
    heldout_bits_per_byte: float | None = None
    wide_loss: float | None = rare()
    wide_bits_per_byte: float | None = rare()
    wide_tokens: int | None = rare()
    averaged_loss: float | None = rare()


@dataclass(frozen=True, kw_only=True)
class ForecastLine(Record):
    """A running forecast (trainer/running_forecast.py), in metrics.jsonl: the lines with a `forecast_bits_per_byte`.

    Attributes:
        tokens, seconds: when it was made, as in a training line; end_step: of the schedule at that time.
        forecast_bits_per_byte: at the end of the run, on all held-out text; forecast_low, forecast_high: the interval
            that should contain it in a share `forecast_level` of all cases.
        fan: (tokens, bits per byte, low, high) at some steps from then to the end.
    """

    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    end_step: int | None = None
    forecast_bits_per_byte: float | None = None
    forecast_low: float | None = None
    forecast_high: float | None = None
    forecast_level: float | None = None
    fan: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiagnosticsLine(Record):
    """Measures of the model's inside after a step, a line of diagnostics.jsonl (trainer/diagnose/measures.py).

    Attributes:
        by_layer: measure -> layer's name -> value; whole: values for the whole model.
    """

    step: int | None = None
    tokens: int | None = None
    by_layer: dict[str, dict[str, float]] = field(default_factory=dict)
    whole: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleLine(Record):
    """Text that the model generated after a step, a line of samples.jsonl.

    Attributes:
        reference: a correct output (seq2seq).
        cut: the text was ended early because of the run's time limit.
    """

    step: int | None = None
    prompt: str = ""
    text: str = ""
    reference: str | None = rare()
    cut: bool | None = rare()


@dataclass(frozen=True, kw_only=True)
class DecisionLine(Record):
    """A decision of the clock or an extension, a line of decisions.jsonl: from `at_step` on, the run ends at `steps`
    (optim.timetable.Decision).

    Attributes:
        progress: at `at_step`, from 0 to 1; None keeps the run's own.
        seconds: the run's total time limit after an extension; 0: none.
        replayed: it was another run's (`--like`), known before the first step.
    """

    at_step: int | None = None
    steps: int | None = None
    progress: float | None = None
    reason: str = ""
    seconds: float | None = rare()
    time: float | None = None
    replayed: bool | None = rare()


@dataclass(frozen=True, kw_only=True)
class SkipLine(Record):
    """A bad step and how it was handled, a line of skips.jsonl.

    Attributes:
        step: the number that it would have had.
        kind: "non-finite" or "spike".
        action: "keep", "skip", "rollback" or "stop".
        loss, grad_norm: None if not finite.
        tokens: the number of tokens skipped.
        first, sequences: the range of sequences that a rollback skips (data/gaps.py).
    """

    step: int = 0
    kind: str = ""
    action: str = ""
    reason: str = ""
    loss: float | None = None
    grad_norm: float | None = None
    tokens: int = 0
    time: float | None = None
    first: int | None = rare()
    sequences: int | None = rare()


@dataclass(frozen=True, kw_only=True)
class EventLine(Record):
    """An event of a run, a line of events.jsonl. Each event has some of the fields.

    Attributes:
        event: "started", "resumed", "extended", "rolled back", "stopped", "trained", "finished" and the like.
        processes, hosts, mode, copies, launch: the processes that train from there on (trainer/processes.py).
        taken_again: steps since the checkpoint that are repeated.
        changed: differences from the run's start, one line each.
        signal: the number of the signal that stopped it; a name in older files.
        from_step: the step that a rollback started from.
        budget, steps: of an extension.
    """

    event: str = ""
    time: float | None = None
    step: int | None = rare()
    processes: int | None = rare()
    hosts: int | None = rare()
    mode: str | None = rare()
    copies: int | None = rare()
    launch: str | None = rare()
    taken_again: int | None = rare()
    changed: tuple[str, ...] | None = rare()
    signal: int | str | None = rare()
    reason: str | None = rare()
    seconds: float | None = rare()
    from_step: int | None = rare()
    budget: str | None = rare()
    steps: int | None = rare()
    source: str | None = rare()
    format: str | None = rare()
    kept_as: str | None = rare()
    tracker: str | None = rare()


@dataclass(frozen=True, kw_only=True)
class SuiteLine(Record):
    """A score on some items of a suite during training, a line of suites.jsonl.

    Attributes:
        suite, metric: the suite and its metric (evaluate/methods.py).
        score: over the items; chance: the score of random guesses, None for a perplexity.
        items: their number.
        subset_scores, subset_items: by subset, if the suite has subsets.
        spent: seconds of the run that suites have taken so far.
    """

    step: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    suite: str = ""
    metric: str = ""
    score: float | None = None
    chance: float | None = None
    items: int | None = None
    subset_scores: dict[str, float] = field(default_factory=dict)
    subset_items: dict[str, int] = field(default_factory=dict)
    spent: float | None = None
