"""What a task is made of: the one place where a kind of run differs from another. The rest of the trainer, the planner
and the jobs above know tasks only by this; nothing else compares a task's name.

causal_lm    text -> windows of tokens      GPT               each token given those before it (causal_lm.py)
seq2seq      pairs -> padded batches        EncoderDecoder    each token of an output given its input (seq2seq.py)

A task is one class with the methods of `Task`, a line in TASKS and, for the model that it trains, a line in MODELS
(model/build.py).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from isoflop.data.config import DataConfig
from isoflop.data.loader import Batches
from isoflop.data.manifest import Data
from isoflop.data.prepare import Progress
from isoflop.data.tokenizer import Tokenizer
from isoflop.generate.request import Request
from isoflop.measure import HeldOut
from isoflop.model.blocks.part import entry
from isoflop.model.loss import CrossEntropy, make_loss
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import SampleLine
from isoflop.runtime import Runtime
from isoflop.trainer.causal_lm import CausalLM
from isoflop.trainer.config import RunConfig
from isoflop.trainer.seq2seq import Seq2Seq
from isoflop.trainer.workload import Workload


class Task(Protocol):
    """A kind of run. Each gets back the data that it prepared and the model that model/build.py has for its name.

    Attributes:
        static_shapes: whether the passes of a run all have one shape, `model.context` tokens in each sequence: then the
            compiler may count on it, and `config.tokens` is what the steps read.
    """

    static_shapes: bool

    # training

    @property
    def loss(self) -> Callable[..., torch.Tensor]:
        """(model, *batch) -> what is trained on, mean over the tokens, in nats: a scalar with gradient."""

    def prepare(self, model: Any) -> None:
        """Add to the model what only training needs. Once, before its optimisers are made."""

    def compile(self) -> None:
        """Let the loss be compiled, where that is of use."""

    def batches(self, config: RunConfig, data: Any, skipped: tuple[tuple[int, int], ...] = ()) -> Batches:
        """What the steps of a run see, with these ranges of sequences passed over (data/gaps.py)."""

    def flops_per_token(self, config: RunConfig, data: Any) -> float:
        """6 N: training FLOPs for each of the tokens that `batches` counts."""

    def palm_flops_per_token(self, config: RunConfig) -> float | None:
        """FLOPs per token as PaLM's model FLOPs utilisation counts them (model/count.py); None where that convention
        does not apply."""

    # data

    def workload(self, config: RunConfig, progress: Progress | None = None) -> Workload:
        """What a planner has to know of the task on the data that `config.data` names.

        Raises:
            UserError: if there is nothing to train on.
        """

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> Data:
        """Make the data ready, or find that it was done before."""

    def open_data(self, folder: Path, verify_checksums: bool = True) -> Data:
        """Open data that was prepared."""

    # what a model can do

    def measure(
        self,
        model: Any,
        data: Any,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
    ) -> HeldOut:
        """Held-out loss, shared out among the processes of `group`; `max_tokens` 0: on everything held out; `pieces`:
        of each sequence too."""

    def judge(self, model: Any, data: Any, beam: int = 1) -> dict[str, Any]:
        """What the model is judged by next to its held-out loss: names and numbers. `beam`: hypotheses kept where the
        model's outputs are searched for; 1 is greedy."""

    def measure_sources(
        self, model: Any, tokenizer: Tokenizer, config: DataConfig, runtime: Runtime, beam: int = 1
    ) -> HeldOut:
        """`measure` and `judge` on everything in `config.sources`, which need not be prepared.

        Raises:
            UserError: if there is nothing in them, or nothing that fits the model.
        """

    def samples(
        self, model: Any, data: Any, config: RunConfig, until: Callable[[], bool] | None = None
    ) -> Iterator[SampleLine]:
        """What the model says now: lines with `prompt` and `text`.

        Args:
            until: says when a text has to end where it is, since the run is held to its seconds.
        """

    def write(self, model: Any, tokenizer: Tokenizer, prompt: str, request: Request) -> str:
        """What the model answers to a prompt.

        Raises:
            UserError: for an option that the model has no use for.
        """


TASKS: dict[str, Callable[[CrossEntropy], Task]] = {"causal_lm": CausalLM, "seq2seq": Seq2Seq}


def make_task(config: RunConfig) -> Task:
    """The task that a configuration names, with the loss that it names.

    Raises:
        UserError: if the two do not go together.
    """
    return entry(TASKS, config.task, "task")(make_loss(config.loss, config.model))


def task_named(name: str) -> Task:
    """A task by name, for what needs no loss of a configuration's own: measuring and writing.

    Raises:
        UserError: if there is none of that name.
    """
    return entry(TASKS, name, "task")(CrossEntropy())
