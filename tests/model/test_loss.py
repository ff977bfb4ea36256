"""Chunked cross-entropy equals the plain one, in value and in gradient."""

import pytest
import torch
from torch.nn import functional as F

from isoflop.model.loss import cross_entropy


def problem(dtype=torch.float32, V=37, D=8, shape=(3, 11), ignore=True):
    torch.manual_seed(0)
    h = torch.randn(*shape, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, shape)
    if ignore:
        targets[0, :4] = -100
    return h, weight, targets


def plain(h, weight, targets, reduction="mean"):
    return F.cross_entropy(F.linear(h, weight).flatten(0, 1), targets.flatten(), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [1, 7, 33, 100, 0])
def test_equals_cross_entropy_on_full_logits(chunk, reduction):
    h, weight, targets = problem()
    expected = plain(h, weight, targets, reduction)
    loss = cross_entropy(h, weight, targets, reduction=reduction, chunk=chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(3 * loss, (h, weight))
    for a, b in zip(ours, torch.autograd.grad(3 * expected, (h, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_is_exact_in_float64():
    h, weight, targets = problem(torch.float64)
    loss, expected = cross_entropy(h, weight, targets, chunk=7), plain(h, weight, targets)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    expected_grads = torch.autograd.grad(expected, (h, weight))
    for a, b in zip(torch.autograd.grad(loss, (h, weight)), expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_a_second_backward_is_refused_and_not_wrong():
    h, weight, targets = problem()
    loss = cross_entropy(h, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["h", "weight"])
def test_frozen_inputs_get_no_gradient(frozen):
    h, weight, targets = problem()
    (h if frozen == "h" else weight).requires_grad_(False)
    free = weight if frozen == "h" else h
    (expected,) = torch.autograd.grad(plain(h, weight, targets), free)
    cross_entropy(h, weight, targets, chunk=5).backward()
    torch.testing.assert_close(free.grad, expected, rtol=1e-5, atol=1e-5)
    assert (h if frozen == "h" else weight).grad is None


def test_no_grad_gives_the_same_value_and_no_graph():
    h, weight, targets = problem()
    with torch.no_grad():
        quiet = cross_entropy(h, weight, targets, chunk=5)
    assert not quiet.requires_grad
    assert quiet == cross_entropy(h, weight, targets, chunk=5)


def test_accumulates_over_several_backwards():
    h, weight, targets = problem()
    for _ in range(3):
        (cross_entropy(h, weight, targets, chunk=5) / 3).backward()
    expected = torch.autograd.grad(plain(h, weight, targets), (h, weight))
    for a, b in zip((h.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_tied_weight_gets_both_gradients():
    _, weight, targets = problem(V=37, D=8)
    tokens = torch.randint(37, (3, 11))

    def gradient(loss):
        return torch.autograd.grad(loss(F.embedding(tokens, weight).tanh(), weight, targets), weight)[0]

    torch.testing.assert_close(gradient(cross_entropy), gradient(plain), rtol=1e-5, atol=1e-5)


def test_nothing_to_count_is_zero_and_not_nan():
    h, weight, targets = problem()
    loss = cross_entropy(h, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0 and h.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


def test_bfloat16_autocast_stays_close_and_in_float32():
    h, weight, targets = problem(V=501, D=64, shape=(4, 50))
    expected = plain(h, weight, targets)
    grads = torch.autograd.grad(expected, (h, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(h, weight, targets, chunk=64)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for ours, theirs in zip(torch.autograd.grad(loss, (h, weight)), grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_a_bfloat16_sum_over_many_chunks_loses_nothing():
    """The head's gradient is added up in float32: with bfloat16 sums, 512 chunks would lose most of their digits."""
    h, weight, targets = problem(V=11, D=16, shape=(1, 4096), ignore=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        many, once = (torch.autograd.grad(cross_entropy(h, weight, targets, chunk=c), weight)[0] for c in (8, 4096))
    assert (many - once).norm() < 0.003 * once.norm()


def test_large_logits_do_not_overflow():
    h, weight, targets = problem()
    loss = cross_entropy(h * 1e4, weight, targets)
    torch.testing.assert_close(loss, plain(h * 1e4, weight, targets))


def test_never_holds_more_than_a_chunk_of_logits():
    h, weight, targets = problem(V=64, D=8, shape=(1, 512))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        cross_entropy(h, weight, targets, chunk=128).backward()
    assert largest == 128 * 64
