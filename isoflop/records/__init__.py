"""The run folder: what its files are called, adding to them, and reading a finished or a running run back.

    RUN/
      config.json       the resolved RunConfig; runs again with `isoflop train --config`
      environment.json  machine, versions, threads, measured peak
      plan.json         what was planned and why, and the loss expected
      data.json         the data's account: documents, duplicates, skipped, tokens by source
      tokenizer.json
      metrics.jsonl     one JSON object per line; training lines have `step` and `loss`, held-out lines `heldout_loss`,
                        forecasts on the way `forecast_bits_per_byte`
      samples.jsonl     text written by the model along the way
      decisions.jsonl   what the clock decided, each written before it took effect; replayed by --resume
      diagnostics.jsonl with --diagnose: gradients, activations and the like by layer
      skips.jsonl       steps whose numbers went wrong and what was done, written before it was done; replayed likewise
      events.jsonl      started, resumed, stopped, finished, with the wall-clock time and how many processes there are
      suites.jsonl      with every.suite: what the model came to on suites along the way
      card.json         with --card --licence: what a person said for the model card
      suites/NAME.json  what it came to on a whole suite, as `isoflop eval RUN --suite NAME` keeps it
      result.json       what the finished run reached
      heldout.json      its held-out loss stretch by stretch, to compare runs on the same text
      checkpoints/step-00001000/
      profile/          with --profile: where the time of a few steps went (trainer/profile.py)
      report.html

This package is the only way to read a run; nothing else parses these files. Each file has one definition, a frozen
dataclass that its writer builds and its readers get:

record        what they have in common: written with the same keys and order always, read back tolerantly
plan · account · result · logs · suites · surroundings     the records themselves   · ledger   what is kept of all runs
lines         JSON-lines files   · folder   the names in a run folder, adding to it, its lock   · run   a run read back
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
    Interval,
    PilotRun,
    Plan,
    TextPredictability,
)
from isoflop.records.record import Record
from isoflop.records.result import BadSteps, HeldOutFigures, HeldOutPieces, Result
from isoflop.records.run import Run, find_runs, read_run
from isoflop.records.suites import CardSaid, Contamination, PartScore, PublishedScore, SuiteScore
from isoflop.records.surroundings import Environment, ProfileSeen, Settings

__all__ = [
    "BadSteps",
    "Calibration",
    "CandidateShape",
    "CardSaid",
    "Choice",
    "Contamination",
    "DataAccount",
    "DataRead",
    "DecisionLine",
    "DiagnosticsLine",
    "Environment",
    "EventLine",
    "Expectation",
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
    "ProfileSeen",
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
