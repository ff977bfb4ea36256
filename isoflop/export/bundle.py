"""A model as it is imported and exported: configuration, weights and tokenizer, independent of the format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isoflop.checkpoint import check_buffers, load_weights
from isoflop.data.tokenizer import PROBE, Tokenizer
from isoflop.errors import UserError
from isoflop.export.anatomy import Anatomy
from isoflop.export.names import Names, check_shapes, in_halves, keys, to_ours, to_theirs
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
        made_of: what it was read from, in a few words: "gguf llama".
    """

    config: ModelConfig
    weights: dict[str, Tensor] = field(repr=False)
    tokenizer: str = field(repr=False)
    made_of: str = ""

    def model(self) -> GPT:
        """The GPT with these weights, in evaluation mode."""
        with torch.device("meta"):
            check_buffers(GPT(self.config), self.made_of)
        model = GPT(self.config)
        load_weights(model, self.weights)
        return model.eval()


def gather(
    anatomy: Anatomy,
    names: Names,
    found: Mapping[str, tuple[int, ...]],
    load: Callable[[str], Tensor],
    origin: str,
    context: int = 0,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights from tensors with a format's names.

    Args:
        found: name -> shape of every tensor in the file.
        load: reads one; called only after all shapes were checked against the configuration.
        origin: the file, for messages.
        context: positions to keep; 0: all, but at most LONGEST_CONTEXT with rotary positions.

    Raises:
        UserError: for inconsistent sizes, and tensors that are missing or unexpected.
    """
    if anatomy.layers > len(found):
        raise UserError(f"{origin} says {anatomy.layers} layers and has {len(found)} tensors: it is damaged")
    config = anatomy.to_config(origin)
    with torch.device("meta"):
        shapes = {name: tensor.detach() for name, tensor in weights_of(GPT(config)).items()}
    wanted = keys(names, anatomy.layers, shapes)
    check_shapes(to_theirs(wanted, shapes, anatomy.head_dim), found, origin)
    sizes = {name: tensor.shape for name, tensor in shapes.items()}
    weights = to_ours(wanted, load, sizes, anatomy.head_dim)
    return shorten(config, weights, context)


def shorten(config: ModelConfig, weights: dict[str, Tensor], context: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The same model with fewer positions. A learned table loses the remaining rows.

    Raises:
        UserError: for more positions than the model has.
    """
    if context < 0 or context > config.context:
        raise UserError(f"--context {context} is not in 1 to {config.context}, the positions that this model knows")
    if not context:
        context = min(config.context, LONGEST_CONTEXT) if config.position.name == "rotary" else config.context
    table = "position.table.weight"
    if table in weights and context < config.context:
        weights = {**weights, table: weights[table][:context].clone()}
    return replace(config, context=context), weights


def spread(bundle: Bundle, anatomy: Anatomy, names: Names) -> dict[str, Tensor]:
    """The tensors of a bundle with the names and the layout of a format. Gains and biases that the family has and the
    model lacks become ones and zeros."""
    weights = in_halves_of(bundle)
    with torch.device("meta"):
        wanted = weights_of(GPT(anatomy.to_config("this model")))
    full = {
        name: weights[name] if name in weights else torch.full(like.shape, float(name.endswith(".weight")))
        for name, like in wanted.items()
    }
    return to_theirs(keys(names, anatomy.layers, full), full, anatomy.head_dim)


def in_halves_of(bundle: Bundle) -> dict[str, Tensor]:
    """The weights in the layout of a model with half-split rotary pairs."""
    if not dict(bundle.config.position.options).get("interleaved"):
        return bundle.weights
    return {name: halved(name, tensor, bundle.config.head_width) for name, tensor in bundle.weights.items()}


def halved(name: str, tensor: Tensor, head_dim: int) -> Tensor:
    """A tensor of a model with interleaved rotary pairs in the layout of a half-split one: only queries, keys and their
    norms' gains change."""
    part = name.rpartition(".")[0].rpartition("attention.")[2]
    return in_halves(tensor, head_dim) if part in ("q", "k", "q_norm", "k_norm") else tensor


def weights_of(model: GPT) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in model_tensors(model).items()}


def compare(one: Bundle, other: Bundle, context: int = 64, ends: bool = True) -> float:
    """The largest difference between two models' logits on the same random tokens, in units of the largest logit.

    Args:
        one: the model that was written; its tensors must be read back unchanged. Logits alone do not show all of them:
            a head that is still zero hides the rest, as do rows of tokens and positions that are not used.
        ends: compare the ids that begin and end a document too.

    Raises:
        UserError: if a tensor differs, the logits differ by more than SAME, or the tokenizers encode a probe text
            differently.
    """
    for name, tensor in in_halves_of(one).items():
        if name not in other.weights or not torch.equal(tensor.float(), other.weights[name].float()):
            raise UserError(
                f"what was written does not read back as the same model: {name} is another tensor; nothing was kept"
            )
    rows = min(one.config.vocab_size, other.config.vocab_size)
    tokens_BT = torch.randint(rows, (2, min(context, one.config.context)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, logits_again = (b.model()(tokens_BT) for b in (one, other))
    difference = float((logits - logits_again).abs().max() / logits.abs().max().clamp(min=1.0))
    if not difference <= SAME:
        raise UserError(
            f"what was written does not read back as the same model: logits differ by {difference:.2g} of the largest; "
            "nothing was kept"
        )
    first, again = (Tokenizer.from_json(b.tokenizer) for b in (one, other))
    if first.encode(PROBE) != again.encode(PROBE) or (ends and (first.start, first.eot) != (again.start, again.eot)):
        raise UserError("what was written does not read back with the same tokenizer; nothing was kept")
    return difference
