"""RunConfig: everything that decides a run. Frozen; derived values are properties (law 5)."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.optim.config import OptimConfig, ScheduleConfig


@dataclass(frozen=True)
class BatchConfig:
    """How many sequences make one optimiser step, and how many go through the model at once."""

    sequences: Annotated[int, "sequences of model.context tokens, or pairs, in one optimiser step"] = 32
    micro_sequences: Annotated[int, "sequences in one forward and backward pass; gradients accumulate; 0: all"] = 0

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise UserError(f"batch.sequences = {self.sequences} is not a positive number")
        if self.micro_sequences < 0 or (self.micro_sequences and self.sequences % self.micro_sequences):
            raise UserError(
                f"batch.micro_sequences = {self.micro_sequences} does not divide batch.sequences = {self.sequences}"
            )

    @property
    def micro(self) -> int:
        """Sequences in one pass, with 0 resolved."""
        return self.micro_sequences or self.sequences


@dataclass(frozen=True)
class RuntimeConfig:
    """Where the run computes. A planned run has measured these; "auto" and 0 are resolved before the first step."""

    device: Annotated[str, "auto, cpu, cuda, cuda:N or mps"] = "auto"
    dtype: Annotated[str, "what matrix products are computed in: auto, float32 or bfloat16; weights stay float32"] = (
        "auto"
    )
    threads: Annotated[int, "CPU threads; 0: one a core"] = 0
    compile: Annotated[bool, "torch.compile each block; needs a C++ compiler or a GPU"] = False


@dataclass(frozen=True)
class EveryConfig:
    """What happens every so many steps; 0 turns it off."""

    log: Annotated[int, "steps between training lines in metrics.jsonl"] = 1
    evaluate: Annotated[int, "steps between held-out measurements"] = 100
    sample: Annotated[int, "steps between samples"] = 250
    checkpoint: Annotated[int, "steps between checkpoints"] = 250
    keep: Annotated[int, "how many of the last checkpoints stay; the one before the decay stays too"] = 2

    def __post_init__(self) -> None:
        for name in ("log", "evaluate", "sample", "checkpoint", "keep"):
            if getattr(self, name) < (1 if name in ("log", "keep") else 0):
                raise UserError(f"every.{name} = {getattr(self, name)} is too small")


@dataclass(frozen=True)
class SampleConfig:
    """The samples written along the way."""

    prompts: Annotated[tuple[str, ...], "texts to continue; an empty one starts a new document"] = ("",)
    tokens: Annotated[int, "tokens a sample"] = 160
    temperature: Annotated[float, "0: the most likely token always"] = 0.8
    top_k: Annotated[int, "only the k most likely tokens; 0: all"] = 0
    top_p: Annotated[float, "only the most likely tokens that make up this share of probability"] = 0.95


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `steps` optimiser steps of `batch.sequences` sequences of `model.context` tokens, or as many pairs.

    What a task is made of (data, model, loss, measurement, samples) is said in trainer/task.py."""

    task: Annotated[
        Literal["causal_lm", "seq2seq"],
        "what is learned: causal_lm, each token from those before it; seq2seq, an output from its input",
    ] = "causal_lm"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    steps: Annotated[int, "optimiser steps"] = 1000
    seconds: Annotated[
        float, "training seconds that the run is held to by moving its decay; 0: the clock decides nothing"
    ] = 0.0
    seed: Annotated[int, "of the weights, the data order and dropout"] = 0
    evaluate_tokens: Annotated[int, "held-out tokens measured along the way; 0: all of them"] = 65536
    init: Annotated[str, "a run or checkpoint whose weights this one starts from; empty: fresh weights"] = ""
    trackers: Annotated[tuple[str, ...], "also log to any of tensorboard, wandb, mlflow"] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} is not a positive number")
        if self.seconds < 0:
            raise UserError(f"seconds = {self.seconds} is negative; 0 lets the steps alone decide")
        if self.model.vocab_size < 2:
            raise UserError(f"model.vocab_size = {self.model.vocab_size} is too small")

    @property
    def tokens_per_step(self) -> int:
        """Of text; steps of pairs differ (PairLoader.tokens counts them)."""
        return self.batch.sequences * self.model.context

    @property
    def tokens(self) -> int:
        """Tokens that the planned steps read."""
        return self.steps * self.tokens_per_step
