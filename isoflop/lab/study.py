"""A claim's arms, its jobs, and which of them are on record."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from isoflop.config import to_dict
from isoflop.files import to_json
from isoflop.lab import arms as making
from isoflop.lab.arms import ReadyArm
from isoflop.lab.claim import COSTS_TO, MOST_RATES, Claim, Comparison
from isoflop.lab.procedures.job import Job
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.lab.stats import time_to
from isoflop.lab.store import Row, Store
from isoflop.lab.verdict import Values
from isoflop.plan.settings import scaled

# Seeds of the runs that are not compared, so that the pairs that decide are independent of them.
TUNING, AGAIN, ANOTHER = 700_000, 800_000, 900_000
TUNED_BY = "bits_per_byte"
NOISE_PAIRS = 3  # A/A pairs
KINDS = {"tokens_to": "tokens", "flops_to": "flops", "seconds_to": "seconds"}


@dataclass
class Study:
    """A claim with its arms made ready.

    Attributes:
        arms: in the claim's order.
        factors: the rates' factor that was chosen for each arm that is trained.
        known: fingerprints of the arms' data, if they are on record; nothing is prepared then.
    """

    claim: Claim
    store: Store
    arms: list[ReadyArm] = field(default_factory=list)
    factors: dict[str, float] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, claim: Claim, store: Store, known: Mapping[str, str] | None = None) -> "Study":
        """Raises:
        UserError: if the arms cannot be built.
        """
        speeds: dict[str, float] = {}
        if claim.setup.length == "seconds" and making.trained(claim):
            timed = store.speeds(claim.hash)
            speeds = timed or making.speeds_of(claim)
            if timed is None:
                store.add_speeds(claim.hash, speeds)
        return cls(claim, store, making.ready(claim, speeds), known=known or {})

    @cached_property
    def trained(self) -> list[str]:
        return making.trained(self.claim)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the data that each arm reads, which is prepared here, once; empty for an arm that reads none."""
        if self.known.keys() >= {arm.name for arm in self.arms}:
            return dict(self.known)

        found: dict[str, str] = {}
        prepared: dict[str, str] = {}
        for arm in self.arms:
            entry = PROCEDURES[self.claim.procedure(arm.name)]
            if not entry.reads:
                found[arm.name] = ""
                continue
            key = f"{to_json(to_dict(arm.config.data))} {arm.config.task} {entry.pairs}"
            if key not in prepared:
                making.write_text_of(self.claim, arm.name)
                prepared[key] = entry.task(arm.config).prepare_data(arm.config.data).fingerprint
            found[arm.name] = prepared[key]
        return found

    def arm(self, name: str) -> ReadyArm:
        return next(arm for arm in self.arms if arm.name == name)

    # what is run

    def job(
        self, name: str, order: int, seed: int | None = None, factor: float | None = None, role: str = "pair"
    ) -> Job:
        """One run of an arm: the data in the order of `order`, first weights from `seed` (the same number if it is not
        given), the learning rates times a factor (the one that was chosen)."""
        entry = PROCEDURES[self.claim.procedure(name)]
        used = self.factors.get(name, 1.0) if factor is None else factor
        config = self.arm(name).config
        if entry.trains:
            config = scaled(config, used)
        own = order + (ANOTHER if self.claim.arms[name].again else 0)
        order, seed = (order, own if seed is None else seed) if entry.seeded else (0, 0)
        return Job(
            procedure=self.claim.procedure(name),
            config=replace(config, seed=seed),
            order=order,
            options=self.claim.options(name),
            data=self.fingerprints[name],
            role=role,
            arm=name,
            factor=used if entry.trains else 1.0,
        )

    def pair(self, number: int) -> list[Job]:
        """The runs of all arms with one seed."""
        return [self.job(arm.name, number) for arm in self.arms]

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that are not on record, each once."""
        return list({job.key: job for job in jobs if self.store.find(job) is None}.values())

    def complete(self, most: int) -> int:
        """How many of the first pairs all arms have, without a gap."""
        return next((number for number in range(most) if self.missing(self.pair(number))), most)

    def unlike(self, name: str) -> str:
        """In which conditions a trained arm differs from the reference that nothing holds equal, in words; empty for
        none. The loader numbers windows of the text by data, context and seed, whatever the batch is."""
        if name not in self.trained or name == self.reference:
            return ""
        mine, theirs = self.arm(name).config, self.arm(self.reference).config
        found = []
        if mine.data.vocab_size != theirs.data.vocab_size:
            found.append(
                f"a vocabulary of {mine.data.vocab_size:,} ids, not {theirs.data.vocab_size:,}, so that as many tokens "
                "are another amount of text"
            )
        if mine.tokens_per_step != theirs.tokens_per_step:
            found.append(f"{mine.tokens_per_step:,} tokens per step, not {theirs.tokens_per_step:,}")
        same_text = self.fingerprints[name] == self.fingerprints[self.reference]
        if not same_text or mine.model.context != theirs.model.context:
            found.append("another order of the data, so that its pairs share less and scatter more")
        return "; ".join(found)

    # learning rates

    def tuning_jobs(self) -> Iterator[Job]:
        """The next runs that the choice of rates needs; none when every arm's best rate lies between two others, or the
        most values that may be tried were tried."""
        for name in self.trained:
            for factor in self.next_factors(name):
                yield self.job(name, TUNING, factor=factor, role="rate")

    def tried(self, name: str) -> dict[float, float]:
        """The loss at each factor of an arm's rates that is on record and belongs to its search, in rising order."""
        rates = self.claim.setup.rates
        found: dict[float, float] = {}
        if len(rates) < 3:
            return found
        step = rates[1] / rates[0]
        wanted = list(rates)
        while wanted:
            factor = wanted.pop()
            row = self.store.find(self.job(name, TUNING, factor=factor, role="rate"))
            if row is None:
                continue
            found[factor] = row.measures.get(TUNED_BY, math.inf)
            if len(found) >= len(rates) and not wanted and len(found) < MOST_RATES:
                wanted += [f for f in beyond(found, step) if f not in found]
        return dict(sorted(found.items()))

    def next_factors(self, name: str) -> list[float]:
        rates, found = self.claim.setup.rates, self.tried(name)
        if len(rates) < 3:
            return []
        missing = [rate for rate in rates if rate not in found]
        if missing or len(found) >= MOST_RATES:
            return missing
        return beyond(found, rates[1] / rates[0])

    def bracketed(self, name: str) -> bool:
        """Whether an arm's best rate lies between two others that were tried."""
        found = self.tried(name)
        return len(found) >= 3 and not beyond(found, 2.0)

    def choose(self) -> None:
        """Take the best of the rates that were tried, arm by arm."""
        rates = self.claim.setup.rates
        for name in self.trained:
            found = self.tried(name)
            self.factors[name] = best(found) if found else rates[len(rates) // 2] if rates else 1.0

    # noise

    @property
    def reference(self) -> str:
        """The trained arm that the noise is measured on: what the first comparison compares with, or the first."""
        for comparison in self.claim.comparisons:
            if comparison.against in self.trained:
                return comparison.against
        return self.trained[0]

    def noise_jobs(self) -> list[Job]:
        """A/A: pairs of runs that share the order of their data and differ in their first weights. The first of each is
        the reference's run with that seed, which is needed anyway."""
        name = self.reference
        again = [self.job(name, n, seed=AGAIN + n, role="noise") for n in range(NOISE_PAIRS)]
        return [*(self.job(name, n) for n in range(NOISE_PAIRS)), *again]

    def noise_of(self, comparison: Comparison) -> list[float]:
        """The A/A differences of a comparison's measure, of the pairs of which both runs are on record."""
        jobs = self.noise_jobs()
        rows = [self.store.find(job) for job in jobs]
        found = []
        for one, other in zip(rows[:NOISE_PAIRS], rows[NOISE_PAIRS:], strict=True):
            if one and other:
                a, b = (with_costs(row, [comparison])[comparison.measure] for row in (one, other))
                if math.isfinite(a) and math.isfinite(b):
                    found.append(a - b)
        return found

    # what is known

    def measured(self, pairs: int) -> dict[str, Values]:
        """By arm and pair number, what is on record of the first so many pairs."""
        found: dict[str, dict[int, dict[str, float]]] = {arm.name: {} for arm in self.arms}
        for number in range(pairs):
            for job in self.pair(number):
                if row := self.store.find(job):
                    found[job.arm][number] = with_costs(row, self.claim.comparisons)
        return {**found}

    def rows(self, name: str, pairs: int) -> list[Row]:
        """An arm's runs on record among the first so many pairs."""
        rows = [self.store.find(self.job(name, number)) for number in range(pairs)]
        return list({row.key: row for row in rows if row is not None}.values())

    def behind(self, pairs: int) -> dict[str, dict[str, Row]]:
        """The runs on record that so many pairs rest on, by purpose and key."""
        jobs = {
            "pairs": [job for number in range(pairs) for job in self.pair(number)],
            "rates": [
                self.job(name, TUNING, factor=factor, role="rate")
                for name in self.trained
                for factor in self.tried(name)
            ],
            "noise": self.noise_jobs()[NOISE_PAIRS:] if self.trained else [],
        }
        return {role: {job.key: row for job in some if (row := self.store.find(job))} for role, some in jobs.items()}

    def cost(self, pairs: int) -> dict[str, Any]:
        """Runs on record for this claim and their seconds, by purpose."""
        return {
            role: {"runs": len(rows), "seconds": round(sum(row.seconds for row in rows.values()), 1)}
            for role, rows in self.behind(pairs).items()
        }

    def versions(self, pairs: int) -> list[dict[str, Any]]:
        """What the runs on record for this claim were made with, in the order of time, and how many with each."""
        rows = {key: row for some in self.behind(pairs).values() for key, row in some.items()}
        counts: dict[tuple[str, ...], int] = {}
        for row in sorted(rows.values(), key=lambda row: row.time):
            made_by = tuple(row.made_by.values())
            counts[made_by] = counts.get(made_by, 0) + 1
        return [
            {"isoflop": isoflop, "source": source, "torch": torch, "runs": runs}
            for (isoflop, source, torch), runs in counts.items()
        ]


def beyond(found: dict[float, float], step: float) -> list[float]:
    """The factor next to the best one, where that is the first or the last of those tried; none where it is inside."""
    chosen = best(found)
    if chosen == min(found):
        return [chosen / step]
    return [chosen * step] if chosen == max(found) else []


def best(found: dict[float, float]) -> float:
    """The factor with the least loss; of equal ones, and where all runs diverged, the smallest."""
    return min(sorted(found), key=lambda factor: found[factor])


def with_costs(row: Row, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """What a run measured, and log2 of its cost to reach the targets of the comparisons; infinite for never."""
    found = dict(row.measures)
    for comparison in comparisons:
        if comparison.measure in COSTS_TO:
            cost = time_to(
                comparison.target, row.lists.get(KINDS[comparison.measure], []), row.lists.get("heldout", [])
            )
            found[comparison.measure] = math.log2(cost) if math.isfinite(cost) and cost > 0 else math.inf
    return found
