"""A model whose blocks are recomputed gives the same bits with less memory."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from isoflop.errors import UserError
from isoflop.model.config import ModelConfig
from isoflop.model.cross_entropy import cross_entropy
from isoflop.model.gpt import GPT
from isoflop.parallel.wrap import compile_units, recompute

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
        {"smear": True, "backout": True},
    ],
    ids=["modern", "dropout", "moe", "alternating", "options", "stream"],
)
def test_recomputation_keeps_less_and_gives_the_same_bits(fields):
    loss, gradients, held = train(False, **fields)
    loss_again, gradients_again, held_again = train(True, **fields)
    assert loss.equal(loss_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(gradients[name].equal(gradients_again[name]) for name in gradients)
    assert held_again < held / 2


def test_recomputing_running_statistics_is_refused():
    model = GPT(ModelConfig(**SHAPE, norm="batch"))
    with pytest.raises(UserError, match=r"runtime\.recompute"):
        recompute(model, model.units())


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_compiled_blocks_equal_eager_ones_and_one_compilation_serves_all_layers(monkeypatch, again):
    """Without the compiler behind it: what is traced is what runs, and a forward without gradients is left alone."""
    torch._dynamo.reset()
    counter, compiler = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: compiler(f, dynamic=dynamic, backend=counter))
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**SHAPE, "layers": 12}))  # more than torch would compile anew
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(64, (4, 17))

    def gradients():
        model.zero_grad()
        loss = cross_entropy(model.hidden(tokens[:, :-1]), model.head_weight, tokens[:, 1:])
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters())]

    plain = gradients()
    if again:
        recompute(model, model.units())
    compile_units(model.units())
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        model.hidden(tokens[:2, :5])
    assert counter.frame_count == 1
    torch._dynamo.reset()
