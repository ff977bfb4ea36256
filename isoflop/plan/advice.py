"""The planner's inputs (Keep, Facts), its proposal before the text is prepared (Proposal) and its result (Advice)."""

from dataclasses import dataclass, field, replace

from isoflop.budget import Budget
from isoflop.data.config import DataConfig
from isoflop.data.manifest import Data
from isoflop.model.count import parameters
from isoflop.plan.asked import Asked
from isoflop.plan.candidates import Candidate
from isoflop.plan.fitted import Fitted
from isoflop.plan.predictability import Predictability
from isoflop.records import (
    Calibration,
    CandidateShape,
    Choice,
    Expectation,
    Exports,
    PilotRun,
    Plan,
    TextPredictability,
)
from isoflop.trainer import RunConfig
from isoflop.trainer.workload import Workload


@dataclass(frozen=True)
class Keep:
    """Parts of the initial configuration that the planner does not change.

    Attributes:
        model: the model (with --init, or a recipe); no loss is forecast then.
        rates: batch, learning rates and vocabulary as well (a recipe).
    """

    model: bool = False
    rates: bool = False


CHOOSE = Keep()  # the planner chooses everything


@dataclass(frozen=True)
class Facts:
    """The properties of the prepared data that a plan depends on.

    Attributes:
        unique_tokens: the number of training tokens.
        vocab_size: the number of the tokenizer's ids.
        bytes_per_token: of the prepared text.
        tokenizer: the kind of tokenizer, in words; tokenizer_json: the text of its tokenizer.json.
        sample: a sample of the prepared text; empty: use the one that was taken before preparing.
        measured: whether all this was measured on the prepared data; False: estimated, for a dry run.
        fingerprint: of the prepared data; empty if they are not prepared.
    """

    unique_tokens: int
    vocab_size: int
    bytes_per_token: float
    tokenizer: str = ""
    tokenizer_json: str = ""
    measured: bool = True
    sample: bytes = b""
    fingerprint: str = ""

    @classmethod
    def of(cls, data: Data, sample: bytes = b"") -> "Facts":
        account = data.account()
        return cls(
            unique_tokens=sum(data.train_tokens(name) for name in data.sources),
            vocab_size=data.vocab_size,
            bytes_per_token=account.bytes_per_token or 0.0,
            tokenizer=account.tokenizer or "",
            tokenizer_json=data.tokenizer.to_json(),
            sample=sample,
            fingerprint=data.fingerprint,
        )


@dataclass(frozen=True)
class Proposal:
    """The choices that are made before a text is prepared.

    Attributes:
        budget: of the run itself.
        config: the initial configuration with the user's settings and the chosen runtime.
        flops: the compute of the budget, an estimate unless the budget is in FLOPs.
        vocabulary: the number of ids to train a tokenizer with.
        train_bytes: the bytes of text that the budget can use.
        calibration, peak: timings of the machine, see plan/machine.py and runtime.measure_peak.
        machines: the number of machines like this one that train together.
        whole: the budget including pilots; None: there are no pilots, and `budget` is all of it.
        laws: those that ladders fitted to this text; law: the one whose tokenizer is used.
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
    laws: tuple[Fitted, ...] = ()
    law: Fitted | None = None

    @property
    def data(self) -> DataConfig:
        """The settings for preparing the data: as configured, with the chosen vocabulary and at most `train_bytes`."""
        data, text = self.config.data, self.workload.text
        if text is None:
            return data
        share = 0 if data.max_train_bytes or text.size <= self.train_bytes else int(self.train_bytes)
        if self.law is not None and not data.max_train_bytes:  # the text that the law holds for, where that is enough
            most = self.law.about.max_train_bytes or 0
            share = most if not most or 2 * most >= min(self.train_bytes, text.size) else share
        return replace(data, vocab_size=self.vocabulary, max_train_bytes=share or data.max_train_bytes)


@dataclass(frozen=True)
class Advice:
    """A plan: a configuration that is ready to train, its cost, the loss to expect, and the reasons for each choice.

    Attributes:
        parameters: N; tokens: D; flops: of training, by the workload's count.
        budget: the whole budget; seconds: of the run itself, without pilots; None if the budget is not in seconds.
        expected: the forecast; None if there is none.
        text, unique_tokens, pilots: the inputs of the forecast; `text` is None if the data are not text.
        differences: how the recipe differs from the prior's, in words; if it does, only pilots allow a forecast.
        workload: the task on its data.
        proposal: the proposal that the plan was made from.
        law: the law of a ladder that chose the shape and made the forecast; None: the prior.
        exports: the formats that the model can be exported to.
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
    law: Fitted | None = None
    exports: Exports | None = None

    def plan(self) -> Plan:
        """The record that is written as plan.json."""
        plan = Plan(
            budget=str(self.budget),
            kind="ladder" if self.law else "prior",
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
            exports=self.exports,
        )
        if self.text is None:
            return plan

        text = TextPredictability(ngram=self.text.ngram, lzma=self.text.lzma, doubt=self.text.doubt or None)
        plan = plan.updated(predictability=text, unique_tokens=self.unique_tokens)
        if self.differences:
            plan = plan.updated(recipe=self.differences)
        if self.law:
            plan = plan.updated(ladder=self.law.seen())
        return plan.updated(pilots=self.pilots) if self.pilots else plan
