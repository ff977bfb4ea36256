"""Reads a run folder, and finds the runs below a folder."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.records.account import DataAccount
from isoflop.records.folder import RunFolder
from isoflop.records.lines import read_lines, read_object
from isoflop.records.logs import (
    DecisionLine,
    DiagnosticsLine,
    EventLine,
    ForecastLine,
    HeldOutLine,
    SampleLine,
    SkipLine,
    SuiteLine,
    TrainingLine,
)
from isoflop.records.plan import Plan
from isoflop.records.result import HeldOutPieces, Result
from isoflop.records.suites import SuiteScore
from isoflop.records.surroundings import Environment, ProfileSummary, Settings


@dataclass(frozen=True)
class Run:
    """The contents of a run folder. Missing files are empty records: a run that is still training has no result yet.

    Attributes:
        config: a RunConfig as JSON.
        training, heldout, forecasts, diagnostics, samples, decisions, skips, events: the lines of the logs.
        suite_lines: scores on suites during training (suites.jsonl); suites: on whole suites, afterwards.
        profile: the time spent in a few steps (trainer/profile.py), if the run was profiled.
        pieces: the last held-out measurement, by stretch of text.
        status: "running", "finished", "stopped", "imported" for imported weights, or "damaged".
    """

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment.blank)
    plan: Plan = field(default_factory=Plan.blank)
    data: DataAccount = field(default_factory=DataAccount.blank)
    result: Result = field(default_factory=Result.blank)
    training: list[TrainingLine] = field(default_factory=list, repr=False)
    heldout: list[HeldOutLine] = field(default_factory=list, repr=False)
    forecasts: list[ForecastLine] = field(default_factory=list, repr=False)
    diagnostics: list[DiagnosticsLine] = field(default_factory=list, repr=False)
    samples: list[SampleLine] = field(default_factory=list, repr=False)
    decisions: list[DecisionLine] = field(default_factory=list, repr=False)
    skips: list[SkipLine] = field(default_factory=list, repr=False)
    events: list[EventLine] = field(default_factory=list, repr=False)
    status: str = "stopped"
    profile: ProfileSummary = field(default_factory=ProfileSummary.blank, repr=False)
    suite_lines: list[SuiteLine] = field(default_factory=list, repr=False)
    suites: list[SuiteScore] = field(default_factory=list, repr=False)
    pieces: HeldOutPieces = field(default_factory=HeldOutPieces.blank, repr=False)

    @cached_property
    def settings(self) -> Settings:
        """The part of the configuration that a report reads."""
        return Settings.read(self.config)

    @property
    def name(self) -> str:
        return self.folder.path.resolve().name


def read_run(path: Path | str) -> Run:
    """Read the folder of a finished or running run.

    Raises:
        UserError: if `path` holds no run.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise UserError(
            f"{path} holds no run: there is no config.json in it; `isoflop runs` lists the runs of a folder"
        )

    plan, result = Plan.read(read_object(folder.plan)), Result.read(read_object(folder.result))
    status_at_rest = "finished" if not result.missing else "imported" if plan.kind == "imported" else "stopped"
    metrics = read_lines(folder.log("metrics"))

    return Run(
        folder=folder,
        config=read_object(folder.config),
        environment=Environment.read(read_object(folder.environment)),
        plan=plan,
        data=DataAccount.read(read_object(folder.data)),
        result=result,
        training=[TrainingLine.read(line) for line in metrics if "loss" in line],
        heldout=[HeldOutLine.read(line) for line in metrics if "heldout_loss" in line],
        forecasts=[ForecastLine.read(line) for line in metrics if "forecast_bits_per_byte" in line],
        diagnostics=folder.lines("diagnostics", DiagnosticsLine),
        samples=folder.lines("samples", SampleLine),
        decisions=folder.lines("decisions", DecisionLine),
        skips=folder.lines("skips", SkipLine),
        events=folder.lines("events", EventLine),
        status="running" if folder.is_locked() else status_at_rest,
        profile=ProfileSummary.read(read_object(folder.profile / "profile.json")),
        suite_lines=folder.lines("suites", SuiteLine),
        suites=[SuiteScore.read(read_object(path)) for path in sorted(folder.suites.glob("*.json"))],
        pieces=HeldOutPieces.read(read_object(folder.pieces)),
    )


def find_runs(path: Path | str) -> list[Run]:
    """All runs in `path`, up to two folders deep, ordered by path.

    Raises:
        UserError: if `path` is not a folder.
    """
    top = Path(path)
    if not top.is_dir():
        raise UserError(f"{path} is not a folder; name the folder that holds your runs, as in `isoflop runs runs`")
    folders = sorted({p.parent for depth in ("", "*/", "*/*/") for p in top.glob(f"{depth}config.json")})
    return [read_or_damaged(folder) for folder in folders if (folder / "environment.json").is_file()]


def read_or_damaged(path: Path) -> Run:
    """A run, with status "damaged" if its files cannot be read, so that one damaged run does not hide the others."""
    try:
        return read_run(path)
    except UserError:
        return Run(RunFolder(path), status="damaged")
