"""MODELS: the table of the model of each task; builds a model from a configuration."""

from collections.abc import Callable
from dataclasses import dataclass

from isoflop.model.blocks.part import entry
from isoflop.model.config import ModelConfig
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.gpt import GPT

Model = GPT | EncoderDecoder


@dataclass(frozen=True)
class Trained:
    """The model of a task; everything else of a task is in trainer/task.py.

    Attributes:
        build: builds the model of a configuration.
        kind: the name of such a model, for messages.
        words: what it learns, for help texts.
    """

    build: Callable[[ModelConfig], Model]
    kind: str
    words: str


MODELS: dict[str, Trained] = {
    "causal_lm": Trained(GPT, "GPT", "each token from those before it"),
    "seq2seq": Trained(EncoderDecoder, "encoder-decoder", "an output from its input"),
}


def build_model(task: str, config: ModelConfig) -> Model:
    """The model of a task, on torch's default device and from its global seed.

    Raises:
        UserError: for an unknown task, or a configuration that cannot be built.
    """
    return entry(MODELS, task, "task").build(config)
