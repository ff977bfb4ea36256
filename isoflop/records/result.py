"""result.json: what the finished run reached."""

from dataclasses import dataclass, field

from isoflop.records.account import DataRead
from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures(Record):
    """The last held-out measurement, plain cross-entropy, and what else the task is judged by.

    Attributes:
        tokens: ends of documents included; bytes: of text that they stand for.
        unit_error_rate: edits over reference_units; exact_match: share of inputs with an output that is right as a
            whole; inputs: decoded; unit: what is counted (all seq2seq).
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
    """heldout.json: the last held-out measurement stretch by stretch, in the order of the text. Runs on the same data
    have the same stretches where `fingerprint`, `tokens` and `bytes` are the same.

    Attributes:
        fingerprint: of the data.
        nats: summed cross-entropy of each stretch; tokens, bytes: of each.
    """

    fingerprint: str | None = None
    nats: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    bytes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BadSteps(Record):
    """What went wrong in a run, counted. `left_out_tokens` were read and not learned from, `passed_over_tokens` are
    those that rollbacks kept from being read."""

    spikes_kept: int = 0
    steps_left_out: int = 0
    left_out_tokens: int = 0
    rollbacks: int = 0
    passed_over_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Result(Record):
    """result.json.

    Attributes:
        loss: mean of what was trained on over the last tenth of the steps logged, nats per token.
        seconds: of training; aside_seconds: of these, spent next to the steps: on measuring, sampling, checkpoints.
        tokens: read; flops: 6ND; tokens_per_second: of the steps alone.
        peak_share: of the FLOP/s that this machine reached at best; mfu: of its data sheet (runtime.utilisation).
        peak_flops: these FLOP/s, where the run's own steps were faster than what had been measured.
        guard: bad steps, counted.
        phases: seconds by phase.
        verdict: "inside", "better" or "worse" than the interval expected; None without one.
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
