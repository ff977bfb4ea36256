"""What a task is made of: the one place where a kind of run differs from another. The rest of the trainer, and the jobs
above it, know tasks only by this.

causal_lm    text -> windows of tokens      GPT               each token given those before it
seq2seq      pairs -> padded batches        EncoderDecoder    each token of an output given its input (seq2seq.py)
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from isoflop.data.config import DataConfig
from isoflop.data.loader import Batches, Loader
from isoflop.data.prepare import Prepared, Progress, open_prepared, prepare
from isoflop.data.prepared import Data
from isoflop.generate.engine import generate
from isoflop.measure import HeldOut, measure
from isoflop.model.gpt import GPT
from isoflop.model.loss import CrossEntropy, make_loss
from isoflop.parallel.mesh import ALONE, Group
from isoflop.runtime import Runtime
from isoflop.trainer.config import RunConfig
from isoflop.trainer.seq2seq import Seq2Seq


class Task(Protocol):
    """A kind of run. Each gets back the data that it prepared and the model that model/build.py has for its name."""

    @property
    def loss(self) -> Callable[..., torch.Tensor]:
        """(model, *batch) -> what is trained on, mean over the tokens, in nats: a scalar with gradient."""

    def prepare(self, model: Any) -> None:
        """Add to the model what only training needs. Once, before its optimisers are made."""

    def compile(self) -> None:
        """Let the loss be compiled, where that is of use."""

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> Data:
        """Make the data ready, or find that it was done before."""

    def open_data(self, folder: Path, verify_checksums: bool = True) -> Data:
        """Open data that was prepared."""

    def batches(self, config: RunConfig, data: Any, skipped: tuple[tuple[int, int], ...] = ()) -> Batches:
        """What the steps of a run see, with these ranges of sequences passed over (data/gaps.py)."""

    def flops_per_token(self, config: RunConfig, data: Any) -> float:
        """6 N: training FLOPs for each of the tokens that `batches` counts."""

    def measure(self, model: Any, data: Any, runtime: Runtime, max_tokens: int = 0, group: Group = ALONE) -> HeldOut:
        """Held-out loss, shared out among the processes of `group`; `max_tokens` 0: on everything held out."""

    def samples(self, model: Any, data: Any, config: RunConfig) -> Iterator[dict[str, str]]:
        """What the model says now: lines with `prompt` and `text`."""


class CausalLM:
    """Next-token prediction (GPT-1, section 3.1): a loss of model/loss.py, by default cross-entropy, and the auxiliary
    losses of the model's parts."""

    def __init__(self, criterion: CrossEntropy | None = None) -> None:
        self.criterion = criterion or CrossEntropy()

    def prepare(self, model: GPT) -> None:
        self.criterion.prepare(model)

    def compile(self) -> None:
        self.criterion.compile()

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return self.criterion(model, inputs_BT, targets_BT) + model.auxiliary_loss()

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> Prepared:
        return prepare(config, progress=progress)

    def open_data(self, folder: Path, verify_checksums: bool = True) -> Prepared:
        return open_prepared(folder, verify_checksums)

    def batches(self, config: RunConfig, data: Prepared, skipped: tuple[tuple[int, int], ...] = ()) -> Loader:
        return Loader(data, config.model.context, config.batch.before, config.seed, skipped)

    def flops_per_token(self, config: RunConfig, data: Prepared) -> float:
        return config.flops_per_token

    def measure(
        self, model: GPT, data: Prepared, runtime: Runtime, max_tokens: int = 0, group: Group = ALONE
    ) -> HeldOut:
        tokenizer = data.tokenizer
        return measure(model, data.heldout(), tokenizer.token_bytes(), tokenizer.eot, runtime, max_tokens, group)

    def samples(self, model: GPT, data: Prepared, config: RunConfig) -> Iterator[dict[str, str]]:
        """Continuations of the same prompts, drawn from a generator of their own."""
        how = config.sample
        for prompt in how.prompts:
            text = generate(
                model,
                data.tokenizer,
                prompt,
                how.tokens,
                temperature=how.temperature,
                top_k=how.top_k,
                top_p=how.top_p,
                seed=config.seed,
                stop_at_eot=False,
            )
            yield {"prompt": prompt, "text": text}


TASKS: dict[str, Callable[[CrossEntropy], Task]] = {"causal_lm": CausalLM, "seq2seq": Seq2Seq}


def make_task(config: RunConfig) -> Task:
    """The task that a configuration names, with the loss that it names.

    Raises:
        UserError: if the two do not go together.
    """
    return TASKS[config.task](make_loss(config.loss, config.model))
