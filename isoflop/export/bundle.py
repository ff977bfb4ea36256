"""Bundle: an imported or exported model (configuration, weights and tokenizer), independent of the format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from isoflop.checkpoint import check_buffers, load_weights
from isoflop.data.tokenizer import PROBE, Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import Anatomy
from isoflop.export.fit import resolved_parts
from isoflop.export.names import Key, Names, check_shapes, in_halves, keys, to_ours, to_theirs
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from isoflop.parallel.state import model_tensors

LONGEST_CONTEXT = 8192  # default limit of positions for an import: rotary tables cost memory in every layer
SAME = 1e-4  # the largest difference of logits, in units of the largest logit, allowed for a written model


@dataclass(frozen=True)
class Bundle:
    """A model without a run.

    Attributes:
        weights: by our names, in float32, a tied head only once.
        tokenizer: the text of a tokenizer.json; "" if there is none.
        source: the format and architecture that it was read from: "gguf llama".
        as_named: the format has our names and our layout of every tensor.
    """

    config: ModelConfig
    weights: dict[str, Tensor] = field(repr=False)
    tokenizer: str = field(repr=False)
    source: str = ""
    as_named: ClassVar[bool] = False

    def model(self) -> GPT:
        """The GPT with these weights, in evaluation mode."""
        with torch.device("meta"):
            check_buffers(GPT(self.config), self.source)
        model = GPT(self.config)
        load_weights(model, self.weights)
        return model.eval()

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """logits_BTV, computed by `model`."""
        logits_BTV: Tensor = self.model()(tokens_BT)
        return logits_BTV


def gather(
    anatomy: Anatomy,
    names: Names,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    origin: str,
    context: int = 0,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights from tensors with a format's names.

    Args:
        shapes: name -> shape of every tensor in the file.
        load: reads one; called only after all shapes were checked against the configuration.
        origin: the file, for messages.
        context: positions to keep; 0: all, but at most LONGEST_CONTEXT with rotary positions.

    Raises:
        UserError: for inconsistent sizes, and tensors that are missing or unexpected.
    """
    refuse_few(shapes, anatomy.layers, origin)
    config = anatomy.to_config(origin)
    with torch.device("meta"):
        expected = {name: tensor.detach() for name, tensor in weights_of(GPT(config)).items()}
    mapping = keys(names, anatomy.layers, expected)
    check_shapes(to_theirs(mapping, expected, anatomy.head_dim), shapes, origin)

    our_shapes = {name: tensor.shape for name, tensor in expected.items()}
    weights = to_ours(mapping, load, our_shapes, anatomy.head_dim)
    return shorten(config, weights, context)


def gather_as_named(
    config: ModelConfig,
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    origin: str,
    context: int = 0,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """`gather` for a format whose tensors have our names after a prefix, and our layout."""
    refuse_few(shapes, config.layers, origin)
    with torch.device("meta"):
        expected = weights_of(GPT(config))
    check_shapes({prefix + name: tensor for name, tensor in expected.items()}, shapes, origin)

    same = [Key(prefix + name, (name,)) for name in expected]
    weights = to_ours(same, load, {name: tensor.shape for name, tensor in expected.items()}, config.head_width)
    return shorten(config, weights, context)


def refuse_few(shapes: Mapping[str, tuple[int, ...]], layers: int, origin: str) -> None:
    """Raises UserError for more layers than tensors, before a model of so many is built."""
    if layers > len(shapes):
        raise UserError(f"{origin} states {layers} layers and has {len(shapes)} tensors: it is damaged")


def shorten(config: ModelConfig, weights: dict[str, Tensor], context: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with fewer positions. Tensors with a row per position lose the remaining rows: a learned table,
    and the statistics of a batch norm per position.

    Raises:
        UserError: for more positions than the model has.
    """
    if context < 0 or context > config.context:
        raise UserError(f"--context {context} is not in 1 to {config.context}, the context of this model")
    if not context:
        context = min(config.context, LONGEST_CONTEXT) if config.position.name == "rotary" else config.context
    shorter = replace(config, context=context)
    with torch.device("meta"):
        rows = {name: len(tensor) for name, tensor in weights_of(GPT(shorter)).items()}
    cut = {name: weights[name][:count].clone() for name, count in rows.items() if count < len(weights[name])}
    return shorter, {**weights, **cut}


def spread(bundle: Bundle, anatomy: Anatomy, names: Names) -> dict[str, Tensor]:
    """The tensors of a bundle with the names and the layout of a format. Gains and biases that the family has and the
    model lacks become ones and zeros."""
    weights = as_written(bundle)
    with torch.device("meta"):
        expected = weights_of(GPT(anatomy.to_config("this model")))
    complete = {
        name: weights[name] if name in weights else torch.full(like.shape, float(name.endswith(".weight")))
        for name, like in expected.items()
    }
    return to_theirs(keys(names, anatomy.layers, complete), complete, anatomy.head_dim)


def as_written(bundle: Bundle) -> dict[str, Tensor]:
    """The weights in the layout of a model with half-split rotary pairs, with the constant scale of queries and keys as
    gains."""
    weights, config = bundle.weights, bundle.config
    if dict(config.position.options).get("interleaved"):
        weights = {name: halved(name, tensor, config.head_width) for name, tensor in weights.items()}

    scale = resolved_parts(config)["attention"][0].get("qk_scale", 1.0)
    if scale == 1.0:
        return weights
    gains = {}
    for layer in range(config.layers):
        for norm in ("q_norm", "k_norm"):
            name = f"blocks.{layer}.attention.{norm}.weight"
            gains[name] = scale * weights.get(name, torch.ones(config.head_width))
    return {**weights, **gains}


def halved(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """A tensor of a model with interleaved rotary pairs in the layout of a half-split one: only queries, keys and their
    norms' gains change."""
    part = name.rpartition(".")[0].rpartition("attention.")[2]
    return in_halves(tensor, head_dim) if part in ("q", "k", "q_norm", "k_norm") else tensor


def weights_of(model: GPT) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in model_tensors(model).items()}


def compare(written: Bundle, read_back: Bundle, context: int = 64, ends: bool = True) -> float:
    """The largest difference between two models' logits on the same random tokens, in units of the largest logit.

    Args:
        written: the model that was written; its tensors must be read back unchanged. Logits alone do not show all of
            them: a head of zeros hides all others, and some rows of tokens and positions are not used.
        context: tokens per sequence, at most.
        ends: also compare the ids that begin and end a document.

    Raises:
        UserError: if a tensor differs, the logits differ by more than SAME, or the tokenizers encode a probe text
            differently.
    """
    problem = "the export does not read back as the same model"
    expected = written.weights if read_back.as_named else as_written(written)
    for name, tensor in expected.items():
        if name not in read_back.weights or not torch.equal(tensor.float(), read_back.weights[name].float()):
            raise UserError(f"{problem}: {name} is another tensor; nothing was kept")

    rows, length = min(written.config.vocab_size, read_back.config.vocab_size), min(context, written.config.context)
    tokens_BT = torch.randint(rows, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, logits_again = (one.logits(tokens_BT) for one in (written, read_back))
    difference = float((logits - logits_again).abs().max() / logits.abs().max().clamp(min=1.0))
    if not difference <= SAME:
        raise UserError(f"{problem}: logits differ by {difference:.2g} of the largest; nothing was kept")

    first, again = (Tokenizer.from_json(bundle.tokenizer) for bundle in (written, read_back))
    if first.encode(PROBE) != again.encode(PROBE) or (ends and (first.start, first.eot) != (again.start, again.eot)):
        raise UserError("the export does not read back with the same tokenizer; nothing was kept")
    return difference
