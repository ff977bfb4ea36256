"""The interface of a task: the one place where kinds of run differ. The rest of the trainer, the planner and the jobs
use tasks only through it; nothing else compares a task's name.

causal_lm    text -> windows of tokens      GPT               each token given those before it (causal_lm.py)
seq2seq      pairs -> padded batches        EncoderDecoder    each token of an output given its input (seq2seq.py)

A task is one class with the methods of `Task`, a line in TASKS and, for the model that it trains, a line in MODELS
(model/build.py).
"""

from collections.abc import Callable, Iterator, Sequence
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
    """A kind of run. Its methods receive the data that it prepared and the model that model/build.py has for its name.

    Attributes:
        static_shapes: whether all passes of a run have the same shape, `model.context` tokens per sequence: then the
            compiler may rely on it, and `config.tokens` is the number of tokens that the steps read.
    """

    static_shapes: bool

    # training

    @property
    def loss(self) -> Callable[..., torch.Tensor]:
        """(model, *batch) -> the training loss, mean over the tokens, in nats: a scalar with gradient."""

    def prepare(self, model: Any) -> None:
        """Add to the model what only training needs. Called once, before its optimisers are built."""

    def compile(self) -> None:
        """Compile the loss where that is useful."""

    def batches(self, config: RunConfig, data: Any, skipped: tuple[tuple[int, int], ...] = ()) -> Batches:
        """The batches of a run, without these ranges of sequences (data/gaps.py)."""

    def flops_per_token(self, config: RunConfig, data: Any) -> float:
        """6 N: training FLOPs per token, as `batches` counts tokens."""

    def palm_flops_per_token(self, config: RunConfig) -> float | None:
        """FLOPs per token as PaLM's model FLOPs utilisation counts them (model/count.py); None if that convention does
        not apply."""

    # data

    def workload(self, config: RunConfig, progress: Progress | None = None) -> Workload:
        """What a planner needs to know about the task on the data that `config.data` names.

        Raises:
            UserError: if there is nothing to train on.
        """

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> Data:
        """Prepare the data, or find it prepared."""

    def open_data(self, folder: Path, verify_checksums: bool = True) -> Data:
        """Open prepared data."""

    # evaluation and generation

    def measure(
        self,
        model: Any,
        data: Any,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
    ) -> HeldOut:
        """Held-out loss, computed by the processes of `group` together.

        Args:
            max_tokens: of the held-out text; 0: all.
            pieces: also return the loss of each sequence.
        """

    def judge(self, model: Any, data: Any, beam: int = 1) -> dict[str, Any]:
        """Metrics of the model other than its held-out loss, by name.

        Args:
            beam: beam width, if outputs are found by beam search; 1 is greedy.
        """

    def measure_sources(
        self, model: Any, tokenizer: Tokenizer, config: DataConfig, runtime: Runtime, beam: int = 1
    ) -> HeldOut:
        """`measure` and `judge` on everything in `config.sources`, which need not be prepared.

        Raises:
            UserError: if they are empty, or hold nothing that fits the model.
        """

    def samples(
        self, model: Any, data: Any, config: RunConfig, until: Callable[[], bool] | None = None
    ) -> Iterator[SampleLine]:
        """Text that the model generates now: lines with `prompt` and `text`.

        Args:
            until: returns whether the current text has to end early, because of the run's time limit.
        """

    def write(self, model: Any, tokenizer: Tokenizer, prompts: Sequence[str], request: Request) -> list[str]:
        """The model's output for each prompt, all generated together. With `request.on_text` there is one prompt.

        Raises:
            UserError: for an option that does not apply to the model.
        """


TASKS: dict[str, Callable[[CrossEntropy], Task]] = {"causal_lm": CausalLM, "seq2seq": Seq2Seq}


def make_task(config: RunConfig) -> Task:
    """The task that a configuration names, with the loss that it names.

    Raises:
        UserError: if the two are incompatible.
    """
    task: Task = entry(TASKS, config.task, "task")(make_loss(config.loss, config.model))
    if isinstance(task, CausalLM):
        task.windows, task.document_mask = config.batch.windows, config.batch.document_mask
    return task


def task_named(name: str) -> Task:
    """A task by name, for work that does not need the configuration's loss: measuring and generating.

    Raises:
        UserError: if there is none of that name.
    """
    return entry(TASKS, name, "task")(CrossEntropy())
