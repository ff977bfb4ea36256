"""Records of a run's machine, settings and profile: environment.json, config.json, profile/profile.json."""

from dataclasses import dataclass, field

from isoflop.records.record import Record, rare


@dataclass(frozen=True, kw_only=True)
class Environment(Record):
    """environment.json: the machine and the versions when the run started (runtime.describe_machine). Only values that
    code reads have fields; the others are kept.

    Attributes:
        threads: CPU threads.
        launch: identifies the launch of torchrun that the run started in.
        peak: the machine's peak FLOP/s, by dtype.
    """

    processor: str | None = None
    gpu: str | None = None
    threads: int | None = None
    launch: str | None = None
    peak: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings(Record):
    """`runtime` of config.json, as resolved."""

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Settings(Record):
    """The part of config.json that a report reads; trainer.RunConfig has all of it."""

    task: str | None = None
    init: str | None = None
    seed: int | None = None
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)


@dataclass(frozen=True, kw_only=True)
class Call(Record):
    """A call in the tree of a profile; `microseconds` includes the calls `inside` it."""

    name: str = ""
    microseconds: float | None = None
    inside: tuple["Call", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operation(Record):
    """A row of a profile's table: microseconds in the operation itself, without those that it calls."""

    name: str = ""
    calls: int | None = None
    microseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProfileSummary(Record):
    """profile/profile.json: the time spent in a few steps (trainer/profile.py), `microseconds` in total."""

    first_step: int | None = None
    steps: int | None = None
    microseconds: float | None = rare()
    operations: tuple[Operation, ...] = ()
    tree: tuple[Call, ...] = ()
