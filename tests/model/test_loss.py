"""Chunked cross-entropy equals the plain one, in value and in gradient."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from isoflop.errors import UserError
from isoflop.model import cross_entropy as kernel
from isoflop.model.blocks.norm import BatchNorm
from isoflop.model.config import ModelConfig, Spec
from isoflop.model.count import build_on_meta, count, parameters
from isoflop.model.cross_entropy import LossOptions, chunk_for, cross_entropy, log_softmax_over, traceable_kernel
from isoflop.model.gpt import GPT
from isoflop.model.loss import LOSSES, later, make_loss
from isoflop.optim.groups import split

TINY = {"vocab_size": 23, "context": 8, "layers": 2, "d_model": 16, "heads": 2, "init": "gpt2"}


def problem(dtype=torch.float32, V=37, D=8, shape=(3, 11), ignore=True):
    torch.manual_seed(0)
    h = torch.randn(*shape, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, shape)
    if ignore:
        targets[0, :4] = -100
    return h, weight, targets


def plain(h, weight, targets, reduction="mean", cap=0.0):
    logits = F.linear(h, weight).flatten(0, 1)
    return F.cross_entropy(cap * (logits / cap).tanh() if cap else logits, targets.flatten(), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("chunk", [1, 7, 33, 100, 0])
def test_equals_cross_entropy_on_full_logits(chunk, reduction):
    h, weight, targets = problem()
    expected = plain(h, weight, targets, reduction)
    loss = cross_entropy(h, weight, targets, LossOptions(chunk=chunk), reduction=reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(3 * loss, (h, weight))
    for a, b in zip(ours, torch.autograd.grad(3 * expected, (h, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_is_exact_in_float64():
    h, weight, targets = problem(torch.float64)
    loss, expected = cross_entropy(h, weight, targets, LossOptions(chunk=7)), plain(h, weight, targets)
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
    cross_entropy(h, weight, targets, LossOptions(chunk=5)).backward()
    torch.testing.assert_close(free.grad, expected, rtol=1e-5, atol=1e-5)
    assert (h if frozen == "h" else weight).grad is None


def test_no_grad_gives_the_same_value_and_no_graph():
    h, weight, targets = problem()
    with torch.no_grad():
        quiet = cross_entropy(h, weight, targets, LossOptions(chunk=5))
    assert not quiet.requires_grad
    assert quiet == cross_entropy(h, weight, targets, LossOptions(chunk=5))


def test_accumulates_over_several_backwards():
    h, weight, targets = problem()
    for _ in range(3):
        (cross_entropy(h, weight, targets, LossOptions(chunk=5)) / 3).backward()
    expected = torch.autograd.grad(plain(h, weight, targets), (h, weight))
    for a, b in zip((h.grad, weight.grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_tied_weight_gets_both_gradients():
    _, weight, targets = problem(V=37, D=8)
    tokens = torch.randint(37, (3, 11))

    def gradient(loss):
        return torch.autograd.grad(loss(F.embedding(tokens, weight).tanh(), weight, targets), weight)[0]

    torch.testing.assert_close(gradient(cross_entropy), gradient(plain), rtol=1e-5, atol=1e-5)


def test_no_targets_give_zero_and_not_nan():
    h, weight, targets = problem()
    loss = cross_entropy(h, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0 and h.grad.abs().sum() == 0 and weight.grad.abs().sum() == 0


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_bfloat16_autocast_stays_close_and_in_float32(cap):
    h, weight, targets = problem(V=501, D=64, shape=(4, 50))
    expected = plain(h, weight, targets, cap=cap)
    grads = torch.autograd.grad(expected, (h, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(h, weight, targets, LossOptions(cap=cap, chunk=64))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for ours, theirs in zip(torch.autograd.grad(loss, (h, weight)), grads, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_a_bfloat16_sum_over_many_chunks_keeps_its_precision():
    """The head's gradient is added up in float32: with bfloat16 sums, 512 chunks would lose most of their digits."""
    h, weight, targets = problem(V=11, D=16, shape=(1, 4096), ignore=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [cross_entropy(h, weight, targets, LossOptions(chunk=c)) for c in (8, 4096)]
        many, once = (torch.autograd.grad(loss, weight)[0] for loss in losses)
    assert (many - once).norm() < 0.003 * once.norm()


@pytest.mark.parametrize("how", [{}, {"smoothing": 0.1, "z": 1e-3}, {"cap": 15.0}], ids=str)
def test_converting_rows_in_parts_changes_no_bit(how, monkeypatch):
    h, weight, targets = problem(V=37, D=8, shape=(4, 50))
    found = []
    for logits in (2**21, 3 * 37):
        monkeypatch.setattr(kernel, "WIDE_LOGITS", logits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(h, weight, targets, LossOptions(chunk=64, **how), reduction="sum")
        found.append([loss.detach(), *torch.autograd.grad(loss, (h, weight))])
    torch.testing.assert_close(found[1][0], found[0][0])  # a sum in another order
    assert all(few.equal(all_at_once) for few, all_at_once in zip(found[1][1:], found[0][1:], strict=True))


def test_large_logits_do_not_overflow():
    h, weight, targets = problem()
    loss = cross_entropy(h * 1e4, weight, targets)
    torch.testing.assert_close(loss, plain(h * 1e4, weight, targets))


@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_never_holds_more_than_a_chunk_of_logits(cap):
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
        cross_entropy(h, weight, targets, LossOptions(cap=cap, chunk=128)).backward()
    assert largest == 128 * 64


@pytest.mark.parametrize("chunk", [7, 0])
@pytest.mark.parametrize(
    ("smoothing", "z", "cap"),
    [(0.1, 0.0, 0.0), (0.0, 0.3, 0.0), (0.25, 0.01, 0.0), (0.0, 0.0, 2.0), (0.0, 0.3, 5.0), (0.25, 0.01, 30.0)],
)
def test_smoothing_z_and_cap_equal_the_formula_in_float64(smoothing, z, cap, chunk):
    h, weight, targets = problem(torch.float64)
    logits, flat = F.linear(h, weight).flatten(0, 1), targets.flatten()
    if cap:
        logits = cap * torch.tanh(logits / cap)
    log_z = logits.logsumexp(-1)[flat != -100]
    expected = F.cross_entropy(logits, flat, label_smoothing=smoothing) + z * log_z.square().mean()
    loss = cross_entropy(h, weight, targets, LossOptions(smoothing=smoothing, z=z, cap=cap, chunk=chunk))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    with torch.no_grad():
        assert cross_entropy(h, weight, targets, LossOptions(smoothing=smoothing, z=z, cap=cap, chunk=chunk)) == loss
    expected_grads = torch.autograd.grad(expected, (h, weight))
    for a, b in zip(torch.autograd.grad(loss, (h, weight)), expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def batch():
    tokens = torch.randint(23, (3, 9), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def model_for(spec, **fields):
    torch.manual_seed(0)
    config = ModelConfig(**{**TINY, **fields})
    model, loss = GPT(config).double(), make_loss(spec, config)
    loss.prepare(model)
    return model.double(), loss


@pytest.mark.parametrize(
    ("spec", "formula"),
    [
        (Spec("cross_entropy"), lambda logits, y: F.cross_entropy(logits, y)),
        (Spec("label_smoothing"), lambda logits, y: F.cross_entropy(logits, y, label_smoothing=0.1)),
        (
            Spec("z_loss", coefficient=0.5),
            lambda logits, y: F.cross_entropy(logits, y) + 0.5 * logits.logsumexp(-1).square().mean(),
        ),
    ],
)
@pytest.mark.parametrize("cap", [0.0, 0.3])
def test_losses_by_name_are_their_formulas(spec, formula, cap):
    model, loss = model_for(spec, logit_cap=cap)
    inputs, targets = batch()
    torch.testing.assert_close(loss(model, inputs, targets), formula(model(inputs).flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize(
    "fields",
    [{}, {"tied_head": True}, {"logit_cap": 0.3, "value_embedding": 1, "embedding_shortcut": True}],
    ids=["untied", "tied", "options"],
)
def test_multi_token_is_the_sum_over_heads_on_one_trunk(fields):
    """Against full logits, head by head, position by position."""
    model, loss = model_for(Spec("multi_token", tokens=3), norm="layer", **fields)
    inputs, targets = batch()
    x0 = model.embed(inputs, 0)
    extra = model.extra_inputs(inputs, x0)
    trunk = model.blocks[0](x0, **extra)
    last = [(model.blocks[1], model.norm), *((head.block, head.norm) for head in model.ahead)]
    expected = 0.0
    for distance, (block, norm) in enumerate(last):
        log_p = model.logits(norm(block(trunk, **extra))).log_softmax(-1)
        each = [-log_p[b, t, targets[b, t + distance]] for b in range(3) for t in range(8 - distance)]
        expected = expected + torch.stack(each).mean()
    torch.testing.assert_close(loss(model, inputs, targets), expected)


def test_multi_token_does_not_change_the_model():
    """In training mode with statistics too: the further heads touch nothing that the model reads."""
    (with_heads, loss), (plain, cross) = (
        model_for(Spec("multi_token"), norm="batch"),
        model_for(Spec("cross_entropy"), norm="batch"),
    )
    inputs, targets = batch()
    loss(with_heads, inputs, targets)
    cross(plain, inputs, targets)
    assert torch.equal(with_heads.eval()(inputs), plain.eval()(inputs))
    assert isinstance(plain.norm, BatchNorm)
    names = set(plain.state_dict())
    assert {name for name in with_heads.state_dict() if not name.startswith("ahead.")} == names
    torch.testing.assert_close(with_heads.hidden_mtp(inputs)[0], plain.hidden(inputs))


def test_every_head_for_later_tokens_learns_and_is_counted():
    model, loss = model_for(Spec("multi_token", tokens=3))
    inputs, targets = batch()
    loss(model, inputs, targets).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.ahead.parameters())
    matrices = next(group for group in split(model) if group.name == "matrices").parameters
    assert "ahead.1.block.attention.q.weight" in matrices
    n = parameters(model.config)
    block = (n.matmul - n.head) // 2
    assert count(model).matmul == n.matmul + 2 * (block + n.head)


def test_later_targets_end_with_the_sequence():
    assert later(torch.tensor([[1, 2, 3, 4]]), 2).tolist() == [[3, 4, -100, -100]]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_with_finite_gradients_and_never_holds_all_logits(name):
    model, loss = model_for(Spec(name))
    value = loss(model, *batch())
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    meta = build_on_meta(model.config)
    loss.prepare(meta)
    assert all(p.is_meta for p in meta.parameters())


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        (Spec("z_los"), {}, "loss = 'z_los' is not one of cross_entropy, .*did you mean z_loss"),
        (Spec("label_smoothing", eps=1.0), {}, r"loss = label_smoothing: eps = 1 is not in \[0, 1\)"),
        (Spec("z_loss", coefficient=-1), {}, "coefficient = -1 is negative"),
        (Spec("z_loss", eps=1), {}, "loss.eps is not an option of z_loss: it has coefficient"),
        (Spec("multi_token", tokens=1), {}, "tokens = 1 is not between 2 and model.context = 8"),
        (Spec("multi_token", tokens=9), {}, "tokens = 9 is not between"),
        (Spec("multi_token"), {"layers": 0}, "model.layers = 0 has none"),
    ],
)
def test_invalid_losses_are_refused(spec, fields, message):
    with pytest.raises(UserError, match=message):
        make_loss(spec, ModelConfig(**{**TINY, **fields}))


@pytest.mark.parametrize("shape", [(1, 1), (3, 65), (7, 1000), (5, 4096), (2, 50_304)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_log_softmax_over_its_own_input_is_log_softmax(shape, dtype):
    logits = (20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = torch.promote_types(dtype, torch.float32)
    assert log_softmax_over(logits.clone(), exact).equal(logits.log_softmax(-1, dtype=exact))


@pytest.mark.parametrize(("smoothing", "z", "cap"), [(0.0, 0.0, 0.0), (0.2, 0.0, 0.0), (0.1, 0.3, 3.0)])
def test_the_compiled_kernel_equals_the_separate_operations(monkeypatch, smoothing, z, cap):
    """As torch traces it, in one graph."""
    torch._dynamo.reset()
    traced = torch.compile(traceable_kernel, dynamic=False, fullgraph=True, backend="aot_eager")
    monkeypatch.setattr("isoflop.model.cross_entropy.compiled_kernel", lambda: traced)
    found = []
    for compiled in (False, True):
        h, weight, targets = problem(torch.float64)
        loss = cross_entropy(h, weight, targets, LossOptions(smoothing, z, cap, chunk=11, compiled=compiled))
        found.append((loss, *torch.autograd.grad(2 * loss, (h, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_equal_options_share_one_compiled_kernel(monkeypatch):
    """Each step makes its LossOptions anew: what is compiled goes by their values and not by which object it is."""
    torch._dynamo.reset()
    counter = CompileCounter()
    traced = torch.compile(traceable_kernel, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr("isoflop.model.cross_entropy.compiled_kernel", lambda: traced)
    h, weight, targets = problem()
    for cap in (0.0, 0.0, 3.0, 3.0, 0.0):
        cross_entropy(h, weight, targets, LossOptions(cap=cap, chunk=11, compiled=True))
    assert counter.frame_count == 2
    torch._dynamo.reset()


def test_chunks_on_a_gpu_are_large_and_of_one_shape():
    assert chunk_for(65_536, 50_304, "cuda") == 4096  # 13 would do; 16 are all alike
    assert chunk_for(12 * 1024, 50_304, "cuda") == 4096
    assert chunk_for(1024, 50_304, "cuda") == 1024
    assert chunk_for(5407, 50_304, "cuda") == 2704  # no few alike ones: the last is shorter
    assert chunk_for(10**6, 65, "cuda") == 10**6
    assert chunk_for(0, 65, "cuda") > 0
    assert chunk_for(65_536, 50_304, "cpu") == 512
