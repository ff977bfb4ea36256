"""A model whose blocks are worked out again gives the same bits, and holds less on the way."""

import pytest
import torch

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from isoflop.model.loss import cross_entropy
from isoflop.parallel.wrap import recompute

SHAPE = {"vocab_size": 64, "context": 16, "layers": 3, "d_model": 32, "heads": 2}


def train(again: bool, **fields) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients and the bytes that autograd kept between the passes."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SHAPE, **fields))
    for parameter in model.parameters():  # branches start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    if again:
        recompute(model, model.units())
    tokens = torch.randint(64, (4, 17))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(tokens[:, :-1])
        held = sum(kept.values())
        loss = cross_entropy(hidden, model.head_weight, tokens[:, 1:]) + model.auxiliary_loss()
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dropout": 0.2},
        {"feed_forward": "moe"},
        {"attention": "alternating"},
        {"value_embedding": 1, "embedding_shortcut": True},
    ],
    ids=["modern", "dropout", "moe", "alternating", "options"],
)
def test_the_same_bits_with_less_kept(fields):
    loss, gradients, held = train(False, **fields)
    loss_again, gradients_again, held_again = train(True, **fields)
    assert loss.equal(loss_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(gradients[name].equal(gradients_again[name]) for name in gradients)
    assert held_again < held / 2


def test_statistics_that_would_move_twice_are_refused():
    model = GPT(ModelConfig(**SHAPE, norm="batch"))
    with pytest.raises(UserError, match=r"runtime\.recompute"):
        recompute(model, model.units())
