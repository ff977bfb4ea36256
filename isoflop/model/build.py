"""Which model a task trains: the one table, and how a configuration becomes a model."""

from isoflop.model.blocks.part import entry
from isoflop.model.config import ModelConfig
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.gpt import GPT

Model = GPT | EncoderDecoder

MODELS: dict[str, type[GPT] | type[EncoderDecoder]] = {"causal_lm": GPT, "seq2seq": EncoderDecoder}


def build_model(task: str, config: ModelConfig) -> Model:
    """The model of a task, on torch's default device and from its global seed.

    Raises:
        UserError: for an unknown task, or a configuration that cannot be built.
    """
    return entry(MODELS, task, "task")(config)
