"""Suites during training: scored every `config.every.suite` steps, on as many items as there is time for.

Suites take at most `config.suite.share` of the run's seconds: the number of items follows from the time per item so
far. The items are shuffled once, evenly over the subsets, and each score is on the first ones, so that scores are
comparable. A score on fewer than FEWEST items per subset says little, and is put off until there is time for more. The
first items, which measure the time per item, wait until there is time for one training step and for PROBE_SECONDS. A
score is planned to take at most PLANNED of what is allowed.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from isoflop.errors import UserError
from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Asked, Scores, ask, score
from isoflop.evaluate.suite import names as built_in
from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.parallel.failures import CutShort
from isoflop.records import SuiteLine, read_lines
from isoflop.trainer.config import RunConfig
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

FEWEST = 10  # items per subset; a suite without subsets needs four times as many
PROBE = 1  # items per subset that are scored first, to measure the time per item
PROBE_SECONDS = 0.05  # that the first items are expected to take at most: the first pass of a process is slow
PLANNED = 0.8  # of the seconds that are allowed


class Suites(Hook):
    """Scores suites during training and writes a line of suites.jsonl for each. Scoring that a signal interrupted is
    left out.

    Args:
        suites: the suites with all their items.
        share: the share of the run's seconds that scoring may take.
    """

    def __init__(self, suites: list[Asked], share: float, seed: int = 0) -> None:
        self.suites = [shuffle_evenly(suite_items, seed) for suite_items in suites]
        self.share = share
        self.spent = 0.0  # seconds of scoring, including those before an interruption
        self.per_item: dict[str, float] = {}  # seconds, by suite

    def started(self, state: RunState) -> None:
        lines = read_lines(state.folder.log("suites")) if state.layout.group.first else []
        times = [line["spent"] for line in lines if isinstance(line.get("spent"), int | float)]
        self.spent = float(max(times, default=0.0))

    def stepped(self, state: RunState) -> None:
        if not state.due(state.config.every.suite):
            return
        try:
            with state.averaged(), state.may_be_cut_short():
                for suite_items in self.suites:
                    self.score(state, suite_items)
        except CutShort:
            return

    def score(self, state: RunState, suite_items: Asked) -> None:
        """Score as many items as there is time for, if they are enough."""
        groups = max(1, len(suite_items.subsets))
        fewest = min(len(suite_items.items), groups * FEWEST if suite_items.subsets else 4 * FEWEST)
        if suite_items.suite.name not in self.per_item:
            step_seconds = (state.seconds - state.aside_seconds) / max(1, state.step)
            if not self.agreed(state, self.allowed(state) > max(step_seconds, PROBE_SECONDS)):
                return
            self.score_timed(state, first_items(suite_items, min(fewest, max(8, groups * PROBE))))
        affordable = PLANNED * self.allowed(state) / max(1e-9, self.per_item[suite_items.suite.name])
        count = self.agreed(state, min(len(suite_items.items), max(0, int(affordable))))
        if count >= fewest:
            scores = self.score_timed(state, first_items(suite_items, count))
            state.folder.append("suites", line_of(state, scores).updated(spent=round(self.spent, 3)))

    def allowed(self, state: RunState) -> float:
        """Seconds that one suite may take now."""
        return (self.share * state.seconds - self.spent) / len(self.suites)

    def agreed(self, state: RunState, number: int) -> int:
        """Rank 0's number, in all processes, since their clocks differ."""
        return int(state.layout.group.broadcast(int(number)))

    def score_timed(self, state: RunState, suite_items: Asked) -> Scores:
        """Score items and record the time that it took."""
        started = time.monotonic()
        model = state.model
        assert isinstance(model, GPT)  # see make_suites
        scores = score(model, state.prepared.tokenizer, suite_items, state.runtime, state.layout.group)
        seconds = time.monotonic() - started
        self.spent += seconds
        self.per_item[suite_items.suite.name] = seconds / len(suite_items.items)
        return scores


def make_suites(config: RunConfig) -> list[Suites]:
    """The hook for the suites of a configuration; none if `every.suite` is 0.

    Raises:
        UserError: if a suite or its items cannot be read, or the task's model is not a GPT.
    """
    if not config.every.suite:
        return []
    if MODELS[config.task].build is not GPT:
        raise UserError(f"every.suite = {config.every.suite} is for models that continue a text, not for {config.task}")
    items = Path(config.suite.items) if config.suite.items else None
    try:
        suites = [ask(name, items) for name in config.suite.names]
    except UserError as error:
        message = str(error).replace("--items ", "--set suite.items=")
        raise UserError(f"every.suite = {config.every.suite}: {message}") from None
    names = [suite_items.suite.name for suite_items in suites]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"suite.names = {list(config.suite.names)} has {repeated} twice")
    return [Suites(suites, config.suite.share)] if suites else []


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """A configuration whose own suite files and their items are named by absolute paths, so that the run can be resumed
    from any folder."""
    suite = config.suite
    if not config.every.suite:
        return config
    names = tuple(name if name in built_in() else str(Path(name).absolute()) for name in suite.names)
    items = str(Path(suite.items).absolute()) if suite.items else ""
    return replace(config, suite=replace(suite, names=names, items=items))


def shuffle_evenly(suite_items: Asked, seed: int) -> Asked:
    """The items in a random order in which any number of first items has about equally many of each subset."""
    generator = np.random.default_rng(seed)
    keys = np.empty(len(suite_items.items))
    for rows in suite_items.subsets.values() or [np.arange(len(suite_items.items))]:
        keys[rows] = generator.permutation(len(rows)) + generator.random(len(rows))
    return Asked(suite_items.suite, tuple(suite_items.items[i] for i in np.argsort(keys, kind="stable")))


def first_items(suite_items: Asked, count: int) -> Asked:
    return Asked(suite_items.suite, suite_items.items[:count])


def line_of(state: RunState, scores: Scores) -> SuiteLine:
    """A score as a line of suites.jsonl."""
    subsets = scores.asked.subsets
    return SuiteLine(
        step=state.step,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        suite=scores.asked.suite.name,
        metric=scores.metric,
        score=scores.score().value,
        chance=scores.asked.chance if METRICS[scores.metric].shares else None,
        items=len(scores.asked.items),
        subset_scores={name: scores.score(rows=rows).value for name, rows in subsets.items()},
        subset_items={name: len(rows) for name, rows in subsets.items()},
    )
