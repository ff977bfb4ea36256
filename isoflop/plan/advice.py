"""What a planner is told, what it proposes before a text is prepared, and what it advises in the end."""

from dataclasses import dataclass, field, replace

from isoflop.budget import Budget
from isoflop.data.config import DataConfig
from isoflop.data.manifest import Data
from isoflop.model.count import parameters
from isoflop.plan.asked import Asked
from isoflop.plan.candidates import Candidate
from isoflop.plan.predictability import Predictability
from isoflop.records import Calibration, CandidateShape, Choice, Expectation, PilotRun, Plan, TextPredictability
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload


@dataclass(frozen=True)
class Keep:
    """What of the configuration that a plan begins with stays as it is.

    Attributes:
        model: its model (--init, a recipe); no loss is expected beforehand then.
        rates: its batch, learning rates and vocabulary too (a recipe).
    """

    model: bool = False
    rates: bool = False


CHOOSE = Keep()  # nothing stays: all is chosen


@dataclass(frozen=True)
class Facts:
    """What is known of the data once they are prepared.

    Attributes:
        unique_tokens: to train on.
        vocab_size: ids of the tokenizer.
        bytes_per_token: of the prepared text.
        tokenizer: what it is, in words; tokenizer_json: its text.
        sample: of the text, for a compressor; empty: the one that was taken before it was prepared.
        measured: on the prepared data; else estimated, for a dry run.
    """

    unique_tokens: int
    vocab_size: int
    bytes_per_token: float
    tokenizer: str = ""
    tokenizer_json: str = ""
    measured: bool = True
    sample: bytes = b""

    @classmethod
    def of(cls, data: Data, sample: bytes = b"") -> "Facts":
        account = data.account()
        unique = sum(data.train_tokens(name) for name in data.sources)
        words, text = account.tokenizer or "", data.tokenizer.to_json()
        return cls(unique, data.vocab_size, account.bytes_per_token or 0.0, words, text, sample=sample)


@dataclass(frozen=True)
class Proposal:
    """What is known before a text is prepared.

    Attributes:
        config: what the plan begins with, with what the user has set, and the runtime chosen.
        flops: about as much compute as the budget is; exactly only where it is in FLOPs.
        vocabulary: ids; train_bytes: of text that the budget can make use of.
        calibration, peak: what timing the machine found; see plan/machine.py and runtime.measure_peak.
        machines: like this one that train together.
        whole: the budget that `budget` is what pilots leave of; None: it is the whole one.
    """

    budget: Budget
    config: RunConfig
    asked: Asked
    keep: Keep
    workload: Workload
    candidates: tuple[Candidate, ...]
    flops: float
    vocabulary: int
    train_bytes: float
    calibration: Calibration
    peak: dict[str, float]
    machines: int = 1
    whole: Budget | None = None

    @property
    def data(self) -> DataConfig:
        """What the data are to be prepared with: as configured, but for the vocabulary and the share of a text."""
        data, text = self.config.data, self.workload.text
        if text is None:
            return data
        share = 0 if data.max_train_bytes or text.size <= self.train_bytes else int(self.train_bytes)
        return replace(data, vocab_size=self.vocabulary, max_train_bytes=share or data.max_train_bytes)


@dataclass(frozen=True)
class Advice:
    """The plan: a configuration that is ready to train, what it should cost and reach, and why it is as it is.

    Attributes:
        budget: the whole one; seconds: of it, those that the run itself has.
        text, unique_tokens, pilots: what `expected` was made from; None where data are no text.
        differences: what the recipe does otherwise than that of the prior's runs; without pilots nothing is expected.
        workload: the task on its data, as it was planned for.
        proposal: what it was made of.
    """

    config: RunConfig
    budget: Budget
    parameters: int
    tokens: int
    flops: float
    seconds: float | None
    expected: Expectation | None
    choices: tuple[Choice, ...]
    candidates: tuple[CandidateShape, ...]
    calibration: Calibration = field(default_factory=Calibration)
    peak: dict[str, float] = field(default_factory=dict)
    text: Predictability | None = None
    unique_tokens: int | None = None
    workload: Workload | None = None
    pilots: tuple[PilotRun, ...] = ()
    differences: tuple[str, ...] = ()
    proposal: Proposal | None = None

    def plan(self) -> Plan:
        """plan.json."""
        plan = Plan(
            budget=str(self.budget),
            kind="prior",
            choices=self.choices,
            parameters=self.parameters,
            total_parameters=parameters(self.config.model, self.config.task).total,
            tokens=self.tokens,
            flops=self.flops,
            steps=self.config.steps,
            seconds=self.seconds,
            expected=self.expected,
            candidates=self.candidates,
            calibration=self.calibration,
            peak=self.peak,
        )
        if self.text is None:
            return plan
        seen = TextPredictability(ngram=self.text.ngram, lzma=self.text.lzma, doubt=self.text.doubt or None)
        plan = plan.updated(predictability=seen, unique_tokens=self.unique_tokens)
        if self.differences:
            plan = plan.updated(recipe=self.differences)
        return plan.updated(pilots=self.pilots) if self.pilots else plan
