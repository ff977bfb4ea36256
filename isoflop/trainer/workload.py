"""What a planner has to know of a task on its data. A task makes one (Task.workload) and hands it to plan/planner.py,
which knows no task by name.

A task's data are either text, which the plan itself decides how to prepare (vocabulary, share of the text), or prepared
before the plan, so that their lengths are known and candidates are timed on their own first batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.data.loader import Batches
from isoflop.data.manifest import Data
from isoflop.model.config import ModelConfig
from isoflop.model.count import parameters
from isoflop.trainer.config import RunConfig

Rung = tuple[int, int]  # (layers, d_model)


@dataclass(frozen=True)
class Text:
    """Text that is not prepared yet: its size, about, in bytes of UTF-8, and a sample for a compressor."""

    size: float
    sample: bytes


@dataclass(frozen=True)
class Notes:
    """The reasons that a plan gives for what follows from the data and not from the budget."""

    dtype: str = "not timed: what this device usually has"
    device: str = "not timed: what this device usually has"
    tokenizer: str = "as the data were prepared"
    shape: str = ""
    tokens: str = "of the prepared data"
    context: str = "what the data need"


class Workload:
    """A task on its data, as the planner sees it. The defaults are those of data that are prepared before the plan.

    Attributes:
        ladder: (layers, d_model) of the shapes to choose from, in ascending order of size.
        near: how many rungs, those nearest to what the budget feeds, are considered; 0: all.
        timed: how many different shapes are timed, the nearest of those considered.
        text: the text, where the plan comes before its preparation.
        data: the prepared data, where they come before the plan. One of the two is there.
        vocab_size: ids of the tokenizer that is there; 0: one is trained, with as many as the plan says.
        context: positions that the data need; 0: the plan chooses.
        fewest, multiple: sequences in a batch at least, and what their number is a multiple of.
        static_shapes: whether all batches have the same shape, so that compiling pays and nothing is padded.
        rates_by_width: whether the learning rates of plan/settings.py, which were measured on GPTs, are to be set.
        sequences: what a batch is made of, in words.
        notes: reasons that the plan gives.
    """

    ladder: Sequence[Rung]
    near: int = 0
    timed: int = 3
    text: Text | None = None
    data: Data | None = None
    vocab_size: int = 0
    context: int = 0
    fewest: int = 8
    multiple: int = 8
    static_shapes: bool = False
    rates_by_width: bool = False
    sequences: str = "sequences"
    notes: Notes = Notes()

    def heads(self, d_model: int) -> int:
        """Attention heads that go with a width."""
        raise NotImplementedError

    def tokens_per_sequence(self, config: RunConfig) -> float:
        """Tokens in one sequence of a batch, on average; padding is not counted."""
        raise NotImplementedError

    def flops_per_token(self, config: RunConfig) -> float:
        """6 N: training FLOPs per token, with what the loss adds to the model."""
        raise NotImplementedError

    def palm_flops_per_token(self, config: RunConfig) -> float | None:
        """FLOPs per token as PaLM's model FLOPs utilisation counts them (model/count.py); None where that convention
        does not apply."""
        return None

    def weights(self, config: RunConfig) -> float:
        """N without what the loss adds: the weights that a token is multiplied by, on average."""
        return self.flops_per_token(config) / 6

    def size(self, rung: Rung, config: RunConfig) -> float:
        """About how many weights a rung has, to find those nearest to a budget. `config` is the rung's, with what the
        user has set."""
        return self.weights(config)

    def batches(self, config: RunConfig) -> Batches | None:
        """What a candidate is timed on; None: windows of random tokens."""
        return None

    def tokens(self, config: RunConfig) -> int:
        """Tokens that the planned steps of `config` read."""
        return round(config.steps * config.batch.sequences * self.tokens_per_sequence(config))

    def depth(self, model: ModelConfig) -> str:
        """The model's layers, in words."""
        return f"{model.layers} layers"

    def shape(self, rung: Rung, vocab_size: int, context: int) -> dict[str, Any]:
        """The fields of ModelConfig that go with a rung."""
        layers, d_model = rung
        return {
            "vocab_size": vocab_size,
            "layers": layers,
            "d_model": d_model,
            "heads": self.heads(d_model),
            "head_dim": 0,
            "context": context,
        }


def matmul_weights(config: RunConfig) -> int:
    """The weights of blocks and head, whatever share of the tokens each multiplies."""
    return parameters(config.model, config.task).matmul
