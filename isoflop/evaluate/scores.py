"""The scores of a model on a suite, with intervals."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate.items import Item, read_items
from isoflop.evaluate.likelihood import Likelihood, Progress, Request, likelihoods
from isoflop.evaluate.methods import METRICS, Judged, Method, Write, method_of, metrics_of
from isoflop.evaluate.statistics import Interval, bootstrap, wilson
from isoflop.evaluate.suite import Suite, find_suite
from isoflop.generate.engine import generate_all
from isoflop.model.gpt import GPT
from isoflop.parallel.mesh import ALONE, Group
from isoflop.runtime import Runtime


@dataclass(frozen=True)
class Asked:
    """A suite with its items, ready to be scored."""

    suite: Suite
    items: tuple[Item, ...]

    @cached_property
    def method(self) -> Method:
        return method_of(self.suite)

    @property
    def metric(self) -> str:
        """The headline."""
        return metrics_of(self.suite)[0]

    @property
    def is_whole(self) -> bool:
        """Whether there are as many items as the suite's file says that it has, if it does."""
        return self.suite.items in (0, len(self.items))

    @property
    def digest(self) -> str:
        """The same for the same items only, in the same order and with the same templates."""
        texts = hashlib.sha256()
        for item in self.items:
            texts.update(repr(item).encode())
        return texts.hexdigest()[:16]

    @property
    def chance(self) -> float:
        """The expected score of a random choice."""
        return float(np.mean([self.method.chance(item) for item in self.items]))

    @cached_property
    def subsets(self) -> dict[str, npt.NDArray[np.int64]]:
        """Indices of the items of each subset, in the order of names; empty where the suite has none."""
        names = np.array([item.subset for item in self.items])
        return {str(name): np.flatnonzero(names == name) for name in np.unique(names)} if self.suite.subset else {}


@dataclass(frozen=True)
class Scores:
    """The scores of a model on a suite.

    Attributes:
        asked: the suite and its items.
        values: for each metric a value per item (N,).
        cut: items of which a context was too long for the model, and read from its middle on.
        seconds: of scoring.
        overlaps: per item whether its text shares 13 words in a row with the training text; None: not looked for.
        short: per item whether it is too short to say.
    """

    asked: Asked
    values: dict[str, npt.NDArray[np.float64]] = field(repr=False)
    cut: int = 0
    seconds: float = 0.0
    overlaps: npt.NDArray[np.bool_] | None = None
    short: npt.NDArray[np.bool_] | None = None

    @property
    def metric(self) -> str:
        return self.asked.metric

    def score(self, metric: str = "", rows: npt.NDArray[Any] | None = None) -> Interval:
        """A metric over all items, or over some of them; by default the headline."""
        metric = metric or self.metric
        values = self.values[metric] if rows is None else self.values[metric][rows]
        if METRICS[metric].shares:
            return wilson(float(values.sum()), len(values))
        return bootstrap(values, METRICS[metric].of)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the values per item are not in it."""
        suite = self.asked.suite
        record: dict[str, Any] = {
            "suite": suite.name,
            "metric": self.metric,
            **plain(self.score()),
            "chance": self.asked.chance if METRICS[self.metric].shares else None,
            "items": len(self.asked.items),
            "seconds": round(self.seconds, 3),
            "cut": self.cut,
            "metrics": {name: plain(self.score(name)) for name in self.values},
        }
        if self.asked.subsets:
            record["subsets"] = {
                name: {**plain(self.score(rows=rows)), "items": len(rows)} for name, rows in self.asked.subsets.items()
            }
        if self.overlaps is not None and self.short is not None:
            rest = np.flatnonzero(~self.overlaps)
            record["contamination"] = {
                "overlapping": int(self.overlaps.sum()),
                "too_short": int(self.short.sum()),
                "without": {**plain(self.score(rows=rest)), "items": len(rest)} if len(rest) else None,
            }
        if suite.reference:
            record["references"] = [
                {"model": one.model, "metric": one.metric or self.metric, "score": one.score, "source": one.source}
                | ({"note": one.note} if one.note else {})
                for one in suite.reference
            ]
        return record


def plain(interval: Interval) -> dict[str, float]:
    return {"score": interval.value, "low": interval.low, "high": interval.high}


def ask(name: str, place: Path | None = None, limit: int = 0) -> Asked:
    """A suite by name or path, with its items.

    Args:
        place: the folder or archive that holds them; limit: only so many of each subset.

    Raises:
        UserError: if the suite or one of its items is malformed, or the items are not there.
    """
    suite = find_suite(name)
    method = method_of(suite)
    return Asked(suite, tuple(read_items(suite, method.make, place, limit)))


def score(
    model: GPT,
    tokenizer: Tokenizer,
    asked: Asked,
    runtime: Runtime,
    group: Group = ALONE,
    progress: Progress | None = None,
) -> Scores:
    """Score a model on a suite.

    Raises:
        UserError: if the model's likelihoods are not finite.
    """
    started = time.perf_counter()

    def likelihood(requests: Sequence[Request]) -> list[Likelihood]:
        results = likelihoods(model, tokenizer, requests, runtime, group, progress)
        if not all(np.isfinite(one.nats) for one in results):
            raise UserError(f"suite {asked.suite.name}: the model gives no finite likelihood; are its weights damaged?")
        return results

    judged: Judged = asked.method.judge(asked.suite, asked.items, likelihood, writer(model, tokenizer))
    values = {name: judged.values[name] for name in metrics_of(asked.suite)}
    return Scores(asked, values, judged.cut, time.perf_counter() - started)


def writer(model: GPT, tokenizer: Tokenizer) -> Write:
    """Greedy answers, generated as one batch, and how many prompts are longer than the model's context."""

    def write(prompts: Sequence[str], tokens: int, stops: Sequence[str]) -> tuple[list[str], int]:
        cut = sum(len(ids) >= model.config.context for ids in tokenizer.encode_batch(prompts))
        return generate_all(model, tokenizer, prompts, tokens, temperature=0.0, stops=stops), cut

    return write
