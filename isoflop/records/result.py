"""result.json: the results of a finished run."""

from dataclasses import dataclass, field

from isoflop.records.account import DataRead
from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures(Record):
    """The final held-out measurement: plain cross-entropy, and the task's other metrics.

    Attributes:
        tokens: including end-of-text; bytes: of the text that they encode.
        unit_error_rate: edits / reference_units; exact_match: share of inputs whose whole output is correct; inputs:
            number of inputs decoded; unit: what is counted (all seq2seq).
    """

    nats_per_token: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    tokens: int | None = None
    bytes: int | None = None
    unit_error_rate: float | None = rare()
    exact_match: float | None = rare()
    inputs: int | None = rare()
    edits: int | None = rare()
    reference_units: int | None = rare()
    unit: str | None = rare()


@dataclass(frozen=True, kw_only=True)
class HeldOutPieces(Record):
    """heldout.json: the final held-out measurement by stretch of text, in the order of the text. Two runs have the same
    stretches if `fingerprint`, `tokens` and `bytes` are equal.

    Attributes:
        fingerprint: of the data.
        nats: summed cross-entropy per stretch; tokens, bytes: per stretch.
    """

    fingerprint: str | None = None
    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BadSteps(Record):
    """The bad steps of a run, counted. `left_out_tokens` were read in discarded steps; `passed_over_tokens` were
    skipped by rollbacks and not read."""

    spikes_kept: int = 0
    steps_left_out: int = 0
    left_out_tokens: int = 0
    rollbacks: int = 0
    passed_over_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """result.json.

    Attributes:
        loss: mean training loss over the last tenth of the steps logged, nats per token.
        seconds: of training; aside_seconds: of these, those not spent on steps but on evaluation, samples and
            checkpoints.
        tokens: read; flops: 6ND; tokens_per_second: of the steps alone.
        peak_share: share of the machine's measured peak FLOP/s; mfu: share of its data sheet's (runtime.utilisation).
        peak_flops: the peak FLOP/s, if the run's own steps were faster than the measured peak.
        guard: counts of bad steps.
        phases: seconds per phase.
        verdict: "inside" the expected interval, or "better" or "worse"; None without an expectation.
    """

    step: int | None = None
    loss: float | None = None
    heldout: HeldOutFigures = field(default_factory=HeldOutFigures)
    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None
    aside_seconds: float | None = None
    tokens_per_second: float | None = None
    peak_share: float | None = None
    peak_flops: float | None = rare()
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    data: DataRead = field(default_factory=DataRead)
    guard: BadSteps = field(default_factory=BadSteps)
    phases: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
