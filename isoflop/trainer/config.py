"""RunConfig: all settings of a run. Frozen; derived values are properties."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from isoflop.config import Added, Derived, Named, OneOf
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.model.build import MODELS
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import CONVENTIONS, build_on_meta
from isoflop.model.loss import LOSSES, make_loss
from isoflop.model.presets import PRESETS, UNSIZED
from isoflop.optim.config import AverageConfig, OptimConfig, ScheduleConfig, bytes_of_copy
from isoflop.optim.timetable import MOST_STEPS, Decision, Timetable
from isoflop.parallel.config import ParallelConfig
from isoflop.processors import cores
from isoflop.runtime import choose_device, default_dtype
from isoflop.trainer.batch import BatchConfig, Sizes


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how the run computes. A planned run has measured these; "auto" and 0 are resolved before step 1."""

    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps"] = "auto"
    dtype: Annotated[str, "dtype of matrix products: auto, float32 or bfloat16; weights stay float32"] = "auto"
    threads: Annotated[int, "CPU threads of a host, shared among its processes; 0: one per core"] = 0
    compile: Annotated[bool, "torch.compile each block; needs a C++ compiler or a GPU"] = False
    kernels: Annotated[
        Literal["torch", "compiled"],
        "between matrix products on a CPU: torch's operations, or one compiled kernel for many, which differs in the "
        "last bits and needs a C compiler",
        Added(),
    ] = "torch"
    recompute: Annotated[
        bool, "recompute each block's activations in the backward pass: less memory, a third more time, the same bits"
    ] = False


@dataclass(frozen=True)
class EveryConfig:
    """Intervals in steps; 0 turns an action off."""

    log: Annotated[int, "steps between training lines in metrics.jsonl"] = 1
    evaluate: Annotated[int, "steps between held-out measurements"] = 100
    sample: Annotated[int, "steps between samples"] = 250
    suite: Annotated[int, "steps between scores on the suites of suite.names, if suite.share allows"] = 0
    checkpoint: Annotated[int, "steps between checkpoints"] = 250
    diagnose: Annotated[int, "steps between diagnostics: gradients, activations and other measures by layer"] = 0
    keep: Annotated[int, "number of last checkpoints that are kept; the one before the decay is kept too"] = 2
    keep_best: Annotated[bool, "also keep the checkpoint with the lowest held-out loss"] = True
    keep_every: Annotated[int, "also keep the checkpoints of all multiples of this number of steps"] = 0
    background: Annotated[
        bool,
        Derived(lambda: f"checkpoints are written while training continues, from a copy in memory: {bytes_of_copy()}"),
    ] = True

    def __post_init__(self) -> None:
        for name in ("log", "evaluate", "sample", "suite", "checkpoint", "diagnose", "keep", "keep_every"):
            if getattr(self, name) < (1 if name in ("log", "keep") else 0):
                raise UserError(f"every.{name} = {getattr(self, name)} is too small")


@dataclass(frozen=True)
class GuardConfig:
    """The rules for non-finite losses and loss spikes (trainer/guard.py).

    By default a step with a non-finite loss or gradient is discarded, since nothing can be learned from it, and five in
    a row stop the run: then the weights are at fault, not the data. A spike is only counted and reported: the gradient
    is clipped anyway, and a healthy run has spikes, which no rule should remove.
    """

    non_finite: Annotated[
        Literal["skip", "rollback", "stop"],
        "at a non-finite loss or gradient: skip, discard the update; rollback, return to the last checkpoint and skip "
        "the data; stop",
    ] = "skip"
    spike: Annotated[
        Literal["keep", "skip", "rollback", "stop"], "at a spike: keep the step and count it, or one of these"
    ] = "keep"
    sigmas: Annotated[
        float, "a spike: a loss or gradient norm this many standard deviations above the mean of the last good steps"
    ] = 6.0
    window: Annotated[int, "good steps over which the mean is taken; until there are as many, nothing is a spike"] = 128
    pass_over: Annotated[int, "steps whose data a rollback skips, from the bad one on"] = 1
    in_a_row: Annotated[int, "bad steps in a row that stop the run"] = 5
    in_all: Annotated[int, "bad steps in all that stop the run"] = 100
    preflight: Annotated[
        bool,
        "before the first step: estimate the memory, refuse what does not fit, try a batch of the largest shape",
    ] = True

    def __post_init__(self) -> None:
        if not self.sigmas > 0:
            raise UserError(f"guard.sigmas = {self.sigmas:g} is not above 0; 6 is usual")
        for name, least in {"window": 2, "pass_over": 1, "in_a_row": 1, "in_all": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"guard.{name} = {getattr(self, name)} is too small; it must be at least {least}")

    @property
    def may_roll_back(self) -> bool:
        return "rollback" in (self.non_finite, self.spike)


@dataclass(frozen=True)
class SampleConfig:
    """The samples generated during the run."""

    prompts: Annotated[tuple[str, ...], "texts to continue; an empty one starts a new document"] = ("",)
    tokens: Annotated[int, "tokens per sample"] = 160
    temperature: Annotated[float, "0: always the most likely token"] = 0.8
    top_k: Annotated[int, "only the k most likely tokens; 0: all"] = 0
    top_p: Annotated[float, "only the most likely tokens that make up this share of probability"] = 0.95


@dataclass(frozen=True)
class SuiteConfig:
    """The suites that are scored during training, if every.suite > 0 (trainer/suites.py)."""

    names: Annotated[tuple[str, ...], "suites by name, or paths of suite files (docs/evaluation.md)"] = ("blimp",)
    items: Annotated[str, "the folder or tar archive with their items; empty: next to your own suite file"] = ""
    share: Annotated[float, "share of the run's seconds that suites may take"] = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"suite.share = {self.share:g} is not between 0 and 1; every.suite = 0 turns suites off")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: `steps` optimiser steps of `batch.sequences` sequences of `model.context` tokens each, or of as many
    pairs; fewer during a ramp.

    trainer/task.py defines the parts of a task (data, model, loss, evaluation, samples)."""

    task: Annotated[str, "what is learned:", OneOf(MODELS)] = "causal_lm"
    model: Annotated[ModelConfig, Named(PRESETS, UNSIZED), "the whole model, by the name of a preset"] = field(
        default_factory=ModelConfig
    )
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: Annotated[AverageConfig, Added()] = field(default_factory=AverageConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    loss: Annotated[Spec, f"the training loss: {', '.join(LOSSES)}"] = field(
        default_factory=lambda: Spec("cross_entropy")
    )
    steps: Annotated[int, "optimiser steps"] = 1000
    seconds: Annotated[float, "budget of training seconds, kept by moving the decay; 0: none"] = 0.0
    seed: Annotated[int, "seed of the initial weights, the data order and dropout"] = 0
    evaluate_tokens: Annotated[int, "held-out tokens per evaluation during the run; 0: all of them"] = 65536
    init: Annotated[str, "a run or checkpoint whose weights the run starts from; empty: random weights"] = ""
    trackers: Annotated[tuple[str, ...], "also log to any of tensorboard, wandb, mlflow"] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(f"steps = {self.steps} is not between 1 and {MOST_STEPS:,}")
        if self.seconds < 0:
            raise UserError(f"seconds = {self.seconds} is negative; 0 sets no limit")
        if self.model.vocab_size < 2:
            raise UserError(f"model.vocab_size = {self.model.vocab_size} is too small")
        object.__setattr__(self, "loss", Spec.from_plain(self.loss, "loss"))  # a name alone is a Spec
        make_loss(self.loss, self.model)
        if self.batch.context_from:
            _ = self.sizes  # refuses a context that does not double up to the model's

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes of all steps."""
        return self.batch.sizes(self.model.context, self.steps)

    def timetable(self, decisions: Sequence[Decision] = ()) -> Timetable:
        """The learning rate's factor at every step, after these decisions."""
        return Timetable(self.schedule, self.steps, tuple(decisions), read=self.sizes.before, rates=self.sizes.rates)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a whole step of text, after any ramp. Steps of pairs differ (PairLoader.tokens counts them)."""
        return self.batch.sequences * self.model.context

    def tokens_before(self, step: int) -> int:
        """Tokens read before step `step` (from 0)."""
        return self.sizes.before(step) * self.model.context

    @property
    def tokens(self) -> int:
        """Tokens that the planned steps read."""
        return self.tokens_before(self.steps)

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token by the convention "6n" (model/count.py), with what the loss adds to the model."""
        model: Any = build_on_meta(self.model)
        make_loss(self.loss, self.model).prepare(model)
        return CONVENTIONS["6n"](model, self.model.context)


def resolve_runtime(config: RunConfig) -> RunConfig:
    """`config` with this machine's values in place of "auto" and of 0 threads, so that config.json records them. This
    is the only place where they are resolved, for the trainer, the planner and the jobs.

    Raises:
        UserError: for a missing device.
    """
    device = choose_device(config.runtime.device)
    dtype = config.runtime.dtype
    if dtype == "auto":
        dtype = default_dtype(device)
    threads = config.runtime.threads or cores()
    return replace(config, runtime=replace(config.runtime, device=device, dtype=dtype, threads=threads))
