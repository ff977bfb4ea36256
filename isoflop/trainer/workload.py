"""The planner's view of a task on its data. A task makes it (Task.workload) for plan/planner.py, which does not depend
on any particular task.

The data of a task are either text, whose preparation the plan decides (vocabulary, share of the text), or prepared
before the plan, so that lengths are known and candidates are timed on their own first batches.
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
    """Text that is not prepared yet: its approximate size in bytes of UTF-8, and a sample for a compressor."""

    size: float
    sample: bytes


@dataclass(frozen=True)
class Notes:
    """The plan's reasons for values that follow from the data rather than the budget."""

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
        considered: number of rungs that are considered, those nearest to the budget's size; 0: all.
        timed: number of different shapes that are timed, the nearest of those considered.
        text: the text, if the plan comes before its preparation.
        data: the prepared data, if they come before the plan. Exactly one of the two is set.
        vocab_size: ids of an existing tokenizer; 0: one is trained, with the plan's number of ids.
        context: positions that the data need; 0: the plan chooses.
        min_sequences: the smallest number of sequences in a batch; sequences_multiple: it is a multiple of this.
        static_shapes: whether all batches have the same shape, so that compiling pays and nothing is padded.
        rates_by_width: whether to set the learning rates of plan/settings.py, which were measured on GPTs.
        sequences: the name of a batch's elements.
        notes: the plan's reasons.
    """

    ladder: Sequence[Rung]
    considered: int = 0
    timed: int = 3
    text: Text | None = None
    data: Data | None = None
    vocab_size: int = 0
    context: int = 0
    min_sequences: int = 8
    sequences_multiple: int = 8
    static_shapes: bool = False
    rates_by_width: bool = False
    sequences: str = "sequences"
    notes: Notes = Notes()

    def heads(self, d_model: int) -> int:
        """The number of attention heads for a width."""
        raise NotImplementedError

    def tokens_per_sequence(self, config: RunConfig) -> float:
        """Tokens in one sequence of a batch, on average; padding is not counted."""
        raise NotImplementedError

    def flops_per_token(self, config: RunConfig) -> float:
        """6 N: training FLOPs per token, with the modules that the loss adds to the model."""
        raise NotImplementedError

    def palm_flops_per_token(self, config: RunConfig) -> float | None:
        """FLOPs per token as PaLM's model FLOPs utilisation counts them (model/count.py); None where that convention
        does not apply."""
        return None

    def weights(self, config: RunConfig) -> float:
        """N without what the loss adds: the weights that multiply a token, on average."""
        return self.flops_per_token(config) / 6

    def head_weights(self, config: RunConfig) -> float:
        """Those of `weights` that are the head's; 0 where they are not told apart."""
        return 0.0

    def size(self, rung: Rung, config: RunConfig) -> float:
        """The approximate number of weights of a rung, to find those nearest to a budget. `config` is the rung's, with
        the user's settings."""
        return self.weights(config)

    def batches(self, config: RunConfig) -> Batches | None:
        """The batches to time a candidate on; None: random tokens."""
        return None

    def tokens(self, config: RunConfig) -> int:
        """Tokens that the planned steps of `config` read."""
        return round(config.steps * config.batch.sequences * self.tokens_per_sequence(config))

    def depth(self, model: ModelConfig) -> str:
        """A description of the model's layers."""
        return f"{model.layers} layers"

    def shape(self, rung: Rung, vocab_size: int, context: int) -> dict[str, Any]:
        """The fields of ModelConfig for a rung."""
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
    """The weights of blocks and head, each counted once whatever share of the tokens it multiplies."""
    return parameters(config.model, config.task).matmul
