"""FlexAttention for windows and soft caps equals plain attention, in value and gradient, alone and in a compiled block.
Here its graph runs without the compiler of GPU kernels."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from isoflop.model.blocks import attend
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.gpt import GPT

T = 24


@pytest.fixture
def flexible(monkeypatch):
    """As on a GPU: FlexAttention is at hand where there is a gradient; torch's own refusal to do one on a CPU is put
    aside."""
    fast = torch.compile(attend.flex.flex_attention, dynamic=False, backend="eager")
    monkeypatch.setattr(attend, "compiled_flex", lambda: fast)
    monkeypatch.setattr(attend, "flexible", lambda q_BHTK: torch.is_grad_enabled())
    monkeypatch.setattr(attend.flex, "_validate_device", lambda *tensors: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def used(flexible, monkeypatch):
    """How often it was."""
    times = []
    real = attend.attend_flexibly
    monkeypatch.setattr(attend, "attend_flexibly", lambda *a, **how: times.append(how) or real(*a, **how))
    return times


@pytest.mark.parametrize(("window", "soft_cap"), [(5, 0.0), (5, 3.0), (0, 3.0)])
def test_equals_plain_attention(used, monkeypatch, window, soft_cap):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, T, 16, requires_grad=True) for heads in (4, 2, 2))
    found = []
    for at_hand in (True, False):
        if not at_hand:
            monkeypatch.setattr(attend, "flexible", lambda q_BHTK: False)
        y = attend.attend(q, k, v, None, window=window, soft_cap=soft_cap)
        found.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    assert len(used) == 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_its_blocks_are_those_of_the_band():
    """Which blocks are worked out is right for a sequence of several blocks, the last one not full."""
    mask = attend.band_in_blocks(300, 70, torch.device("cpu"))
    seen = mask.to_dense()[0, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :300].bool()
    visible = attend.band(300, 300, 70, torch.device("cpu"))
    assert not (visible & ~seen).any()
    assert not seen[-1, :128].any()  # a block that nobody sees is left out
    positions = torch.arange(300)
    assert torch.equal(mask.mask_mod(None, None, positions[:, None], positions), visible)


def test_is_a_part_of_a_compiled_block(flexible):
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "context": T, "layers": 2, "d_model": 32, "heads": 2}
    model = GPT(ModelConfig(**shape, attention=Spec("banded", window=5, soft_cap=3.0)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    tokens = torch.randint(32, (2, T))
    with torch.no_grad():
        expected = model.hidden(tokens)
    counter = CompileCounter()
    for unit in model.units():
        unit.wrap(partial(torch.compile, dynamic=False, backend=counter, fullgraph=True))
    torch.testing.assert_close(model.hidden(tokens), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_a_bias_dropout_or_a_cache_uses_plain_attention(used):
    q, k, v = (torch.randn(1, 2, T, 16, requires_grad=True) for _ in range(3))
    attend.attend(q, k, v, torch.zeros(T, T), window=5)
    attend.attend(q, k, v, None, window=5, dropout=0.1)
    attend.attend(q[:, :, -3:], k, v, None, window=5)
    attend.attend(q, k, v, None, window=T)
    assert used == []
