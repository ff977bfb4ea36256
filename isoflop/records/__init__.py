"""The run folder: the names of its files, appending to them, and reading a finished or running run.

    RUN/
      config.json       the resolved RunConfig; runs again with `isoflop train --config`
      environment.json  machine, versions, threads, measured peak
      plan.json         what was planned and why, and the expected loss
      data.json         the account of the data: documents, duplicates, skipped files, tokens per source
      tokenizer.json
      metrics.jsonl     one JSON object per line; training lines have `step` and `loss`, held-out lines `heldout_loss`,
                        running forecasts `forecast_bits_per_byte`
      samples.jsonl     text generated during training
      decisions.jsonl   changes of the run's end, each written before it takes effect; replayed by --resume
      diagnostics.jsonl with --diagnose: gradients, activations and other measures by layer
      skips.jsonl       bad steps and how they were handled, each written before it is handled; replayed by --resume
      events.jsonl      started, resumed, stopped, finished, with the wall-clock time and the number of processes
      suites.jsonl      with every.suite: scores on suites during training
      card.json         with --card --licence: a person's notes for the model card
      suites/NAME.json  the score on a whole suite, from `isoflop eval RUN --suite NAME`
      result.json       the results of the finished run
      heldout.json      its held-out loss by stretch of text, to compare runs on the same text
      checkpoints/step-00001000/
      profile/          with --profile: the time spent in a few steps (trainer/profile.py)
      report.html

This package is the only way to read a run; nothing else parses these files. Each file has one definition, a frozen
dataclass that its writer builds and its readers receive:

record        the base class: always writes the same keys in the same order, reads tolerantly
plan · account · result · logs · suites · surroundings     the records   · ledger   forecasts and outcomes of all runs
lines         JSON-lines files   · folder   a run folder: its names, appending, its lock   · run   reads a run folder
"""

from isoflop.records.account import (
    DataAccount,
    DataRead,
    NotUsed,
    PreparedSource,
    Side,
    SkippedFile,
    SourceRead,
    Unused,
    not_used,
)
from isoflop.records.folder import Lock, RunFolder
from isoflop.records.ledger import Ledger, LedgerForecast, LedgerLine, read_ledger
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
from isoflop.records.plan import (
    Calibration,
    CandidateShape,
    Choice,
    Expectation,
    Exports,
    Interval,
    PilotRun,
    Plan,
    TextPredictability,
)
from isoflop.records.record import Record
from isoflop.records.result import BadSteps, HeldOutFigures, HeldOutPieces, Result
from isoflop.records.run import Run, find_runs, read_run
from isoflop.records.suites import CardNotes, Contamination, PartScore, PublishedScore, SuiteScore
from isoflop.records.surroundings import Environment, ProfileSummary, Settings

__all__ = [
    "BadSteps",
    "Calibration",
    "CandidateShape",
    "CardNotes",
    "Choice",
    "Contamination",
    "DataAccount",
    "DataRead",
    "DecisionLine",
    "DiagnosticsLine",
    "Environment",
    "EventLine",
    "Expectation",
    "Exports",
    "ForecastLine",
    "HeldOutFigures",
    "HeldOutLine",
    "HeldOutPieces",
    "Interval",
    "Ledger",
    "LedgerForecast",
    "LedgerLine",
    "Lock",
    "NotUsed",
    "PartScore",
    "PilotRun",
    "Plan",
    "PreparedSource",
    "ProfileSummary",
    "PublishedScore",
    "Record",
    "Result",
    "Run",
    "RunFolder",
    "SampleLine",
    "Settings",
    "Side",
    "SkipLine",
    "SkippedFile",
    "SourceRead",
    "SuiteLine",
    "SuiteScore",
    "TextPredictability",
    "TrainingLine",
    "Unused",
    "find_runs",
    "not_used",
    "read_ledger",
    "read_lines",
    "read_object",
    "read_run",
]
