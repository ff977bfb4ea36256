"""Suites on the way: what the model knows so far, scored every `config.every.suite` steps on as many items as there is
time for.

All that suites take of a run stays below `config.suite.share` of its seconds: how many items are scored follows from
how long items took so far. Their order is drawn once, as many from each subset, so that each score is on the first of
the same items. A score on fewer than FEWEST items a subset says little and waits until there is time for more; before
anything is known of how long items take, until there is time for a step of training.
"""

import time
from pathlib import Path

import numpy as np

from isoflop.errors import UserError
from isoflop.evaluate.methods import METRICS
from isoflop.evaluate.scores import Asked, Scores, ask, score
from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.parallel.failures import CutShort
from isoflop.records import SuiteLine, read_lines
from isoflop.trainer.config import RunConfig
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

FEWEST = 10  # items of each subset, and of a suite without subsets four times as many
PROBE = 1  # items of each subset that are scored first, to find out how long they take


class Suites(Hook):
    """Scores suites on the way; a line of suites.jsonl for each. What a signal cut short is left out.

    Args:
        asked: the suites with all their items.
        share: of the run's seconds that they may take.
    """

    def __init__(self, asked: list[Asked], share: float, seed: int = 0) -> None:
        self.asked = [in_order(one, seed) for one in asked]
        self.share = share
        self.spent = 0.0  # seconds that scoring took, those before an interruption too
        self.per_item: dict[str, float] = {}

    def started(self, state: RunState) -> None:
        lines = read_lines(state.folder.log("suites")) if state.layout.group.first else []
        times = [line["spent"] for line in lines if isinstance(line.get("spent"), int | float)]
        self.spent = float(max(times, default=0.0))

    def stepped(self, state: RunState) -> None:
        if not state.due(state.config.every.suite):
            return
        try:
            with state.may_be_cut_short():
                for one in self.asked:
                    self.score(state, one)
        except CutShort:
            return

    def score(self, state: RunState, one: Asked) -> None:
        """Score as many items as there is time for, if that is enough of them."""
        parts = max(1, len(one.subsets))
        fewest = min(len(one.items), parts * FEWEST if one.subsets else 4 * FEWEST)
        if one.suite.name not in self.per_item:
            a_step = (state.seconds - state.aside) / max(1, state.step)
            if not self.agreed(state, self.allowed(state) > a_step):
                return
            self.timed(state, first(one, min(fewest, max(8, parts * PROBE))))
        there_is_time_for = self.allowed(state) / max(1e-9, self.per_item[one.suite.name])
        count = self.agreed(state, min(len(one.items), max(0, int(there_is_time_for))))
        if count >= fewest:
            found = self.timed(state, first(one, count))
            state.folder.append("suites", line_of(state, found).updated(spent=round(self.spent, 3)))

    def allowed(self, state: RunState) -> float:
        """Seconds that one suite may take now."""
        return (self.share * state.seconds - self.spent) / len(self.asked)

    def agreed(self, state: RunState, number: int) -> int:
        """The first process's number, in all: their clocks differ."""
        return int(state.layout.group.broadcast(int(number)))

    def timed(self, state: RunState, asked: Asked) -> Scores:
        """Scores, with what they took noted."""
        started = time.monotonic()
        model = state.model
        assert isinstance(model, GPT)  # of the task, see make_suites
        found = score(model, state.prepared.tokenizer, asked, state.runtime, state.layout.group)
        took = time.monotonic() - started
        self.spent += took
        self.per_item[asked.suite.name] = took / len(asked.items)
        return found


def make_suites(config: RunConfig) -> list[Suites]:
    """The hook that a configuration asks for, none where `every.suite` is 0.

    Raises:
        UserError: if a suite or its items cannot be read, or the task's model does not continue texts.
    """
    if not config.every.suite:
        return []
    if MODELS[config.task].build is not GPT:
        raise UserError(f"every.suite = {config.every.suite} is for models that continue a text, not for {config.task}")
    place = Path(config.suite.items) if config.suite.items else None
    try:
        asked = [ask(name, place) for name in config.suite.names]
    except UserError as error:
        said = str(error).replace("--items ", "--set suite.items=")
        raise UserError(f"every.suite = {config.every.suite}: {said}") from None
    return [Suites(asked, config.suite.share)] if asked else []


def in_order(asked: Asked, seed: int) -> Asked:
    """The items in an order in which each beginning has as many of each subset, as near as there are."""
    generator = np.random.default_rng(seed)
    keys = np.empty(len(asked.items))
    for rows in asked.subsets.values() or [np.arange(len(asked.items))]:
        keys[rows] = generator.permutation(len(rows)) + generator.random(len(rows))
    return Asked(asked.suite, tuple(asked.items[i] for i in np.argsort(keys, kind="stable")))


def first(asked: Asked, count: int) -> Asked:
    return Asked(asked.suite, asked.items[:count])


def line_of(state: RunState, found: Scores) -> SuiteLine:
    """A score as a line of suites.jsonl."""
    subsets = found.asked.subsets
    return SuiteLine(
        step=state.step,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        suite=found.asked.suite.name,
        metric=found.metric,
        score=found.score().value,
        chance=found.asked.chance if METRICS[found.metric].shares else None,
        items=len(found.asked.items),
        subset_scores={name: found.score(rows=rows).value for name, rows in subsets.items()},
        subset_items={name: len(rows) for name, rows in subsets.items()},
    )
