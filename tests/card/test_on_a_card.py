"""A training step on a GPU equals the CPU's: loss, gradients, updated weights, attention kernels, optimisers.

These tests need a CUDA card and are skipped without one. ISOFLOP_CARD=cpu runs them on a CPU against itself, which
tests nothing but the tests. On a card: `python -m pytest tests/card -m gpu`.
"""

import os

import pytest
import torch

from isoflop.config import override
from isoflop.model.blocks import attend
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.optim.muon import Muon
from isoflop.optim.orthogonal import orthogonalize
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer.begin import wrap
from isoflop.trainer.config import RunConfig
from isoflop.trainer.step import take_step
from isoflop.trainer.task import make_task

DEVICE = os.environ.get("ISOFLOP_CARD", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA card"),
]

SHAPE = ["model.vocab_size=512", "model.context=160", "model.layers=2", "model.d_model=128", "model.heads=4"]
CASES = {
    "default": [],
    "gpt2, AdamW": ["model=gpt2", *SHAPE, "optim.name=adamw"],
    "window and soft cap": [
        *("model.attention=banded", "model.attention.window=70", "model.attention.soft_cap=5", "model.norm=layer"),
    ],
    "grouped queries": ["model.attention.kv_heads=2", "model.feed_forward=swiglu"],
    "latent attention": ["model.attention=latent", "loss=z_loss"],
    "mixture of experts": ["model.feed_forward=moe"],
    "bias of positions": ["model.position=alibi", "loss=multi_token"],
    "tied, wide vocabulary": ["model.tied_head=true", "model.vocab_size=50304", "model.logit_cap=15"],
}
STEPS = 2


def train_steps(fields, device, dtype, compiled=False, steps=STEPS):
    """Losses and gradient norms of some steps, and the weights after them, from one seed, on the CPU's own weights."""
    config = override(RunConfig(), [*SHAPE, *fields, f"runtime.compile={str(compiled).lower()}"])
    seed_everything(0)
    runtime = make_runtime(device, dtype)
    model, task = build_model(config.task, config.model), make_task(config)
    task.prepare(model)
    for parameter in model.parameters():  # branches that start at zero would hide what is in them
        torch.nn.init.normal_(parameter, std=0.05)
    model.to(runtime.device)
    wrap(config, model, task)
    optimizers = build(model, config.optim, runtime.dtype)
    generator = torch.Generator().manual_seed(1)
    losses, norms = [], []
    for _ in range(steps):
        tokens = torch.randint(512, (4, config.model.context + 1), generator=generator).to(runtime.device)
        batch = (tokens[:, :-1], tokens[:, 1:])
        loss, norm = take_step(model, optimizers, task, batch, micro=2, runtime=runtime, clip=1.0, scale=0.1)
        losses.append(float(loss))
        norms.append(float(norm))
    return losses, norms, {name: p.detach().cpu().double() for name, p in model.named_parameters()}


def apart(a, b):
    """The distance of two sets of weights, relative to their length."""
    square = sum(float((a[name] - b[name]).square().sum()) for name in a)
    return (square / sum(float(b[name].square().sum()) for name in b)) ** 0.5


@pytest.fixture(scope="module")
def expected():
    """What the CPU computes in float32, once per case."""
    found = {}
    return lambda case: found.setdefault(case, train_steps(CASES[case], "cpu", "float32"))


@pytest.mark.parametrize("case", CASES)
def test_steps_in_float32_are_those_of_the_cpu(case, expected):
    losses, norms, weights = train_steps(CASES[case], DEVICE, "float32")
    wanted_losses, wanted_norms, wanted = expected(case)
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert norms == pytest.approx(wanted_norms, rel=1e-3)
    assert apart(weights, wanted) < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_steps_in_bfloat16_are_those_of_float32_but_for_rounding(case, expected):
    losses, norms, weights = train_steps(CASES[case], DEVICE, "bfloat16")
    wanted_losses, wanted_norms, wanted = expected(case)
    assert losses == pytest.approx(wanted_losses, rel=1e-2)
    assert norms == pytest.approx(wanted_norms, rel=0.1)
    assert apart(weights, wanted) < 0.02


@pytest.mark.skipif(DEVICE == "cpu", reason="compiling for a CPU takes minutes")
@pytest.mark.parametrize("case", ["default", "window and soft cap"])
def test_compiled_blocks_equal_eager_ones(case, expected):
    losses, norms, weights = train_steps(CASES[case], DEVICE, "bfloat16", compiled=True)
    wanted_losses, wanted_norms, wanted = expected(case)
    assert losses == pytest.approx(wanted_losses, rel=1e-2)
    assert norms == pytest.approx(wanted_norms, rel=0.1)
    assert apart(weights, wanted) < 0.02


ATTENTION = {  # B, H, G, T, S, K, window, soft cap
    "causal": (2, 4, 4, 256, 256, 64, 0, 0.0),
    "shared keys": (2, 8, 2, 200, 200, 64, 0, 0.0),
    "window": (2, 4, 2, 300, 300, 64, 70, 0.0),
    "soft cap": (2, 4, 4, 256, 256, 64, 0, 5.0),
    "window and soft cap": (1, 4, 2, 384, 384, 32, 100, 3.0),
    "last queries of a cache": (2, 4, 2, 5, 300, 64, 0, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_and_its_gradients_are_those_in_float64_on_the_cpu(case, dtype):
    B, H, G, T, S, K, window, cap = ATTENTION[case]
    torch.manual_seed(0)
    given = [torch.randn(B, H, T, K), torch.randn(B, G, S, K), torch.randn(B, G, S, K)]
    rounded = [x.to(dtype) for x in given]
    results = []
    for device, kind in ((DEVICE, dtype), ("cpu", torch.float64)):
        q, k, v = (x.to(device, kind).requires_grad_() for x in rounded)
        y = attend.attend(q, k, v, None, window=window, soft_cap=cap)
        gradients = torch.autograd.grad(y.float().sin().sum(), (q, k, v))
        results.append([x.detach().cpu().double() for x in (y, *gradients)])
    most = 2e-2 if dtype == torch.bfloat16 else 2e-3  # FlexAttention multiplies float32 as TF32
    for mine, exact in zip(*results, strict=True):
        assert float((mine - exact).norm() / exact.norm()) < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_muon_orthogonalises_on_the_card_as_on_the_cpu(dtype):
    torch.manual_seed(0)
    for shape in ((3, 128, 128), (2, 384, 128), (128, 512)):
        x = torch.randn(*shape)
        mine, exact = orthogonalize(x.to(DEVICE), dtype).cpu().double(), orthogonalize(x.double(), torch.float64)
        assert float((mine - exact).norm() / exact.norm()) < (0.05 if dtype == torch.bfloat16 else 1e-3)


def test_the_gpu_discards_a_non_finite_step():
    """As the run does it: the optimisers learn it from a number on the device, which the host has not read."""
    torch.manual_seed(0)
    matrix, vector = (torch.nn.Parameter(torch.randn(shape, device=DEVICE)) for shape in ((64, 32), (64,)))
    optimizers = [Muon([matrix], dtype=torch.float32), torch.optim.AdamW([vector], fused=True)]

    def step(found_inf):
        for parameter in (matrix, vector):
            parameter.grad = torch.randn_like(parameter) * (float("nan") if found_inf else 1.0)
        for optimizer in optimizers:
            optimizer.found_inf = torch.tensor(found_inf, device=DEVICE)
            optimizer.step()

    step(0.0)
    before = [matrix.detach().clone(), vector.detach().clone()]
    step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (matrix, vector), strict=True))
    step(0.0)
    assert all(p.isfinite().all() for p in (matrix, vector))
    assert not any(torch.equal(a, b) for a, b in zip(before, (matrix, vector), strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="a CPU is never waited for")
@pytest.mark.parametrize("case", ["default", "gpt2, AdamW", "window and soft cap", "latent attention"])
def test_no_operation_of_a_step_synchronises(case):
    """torch raises at each operation that synchronises. (A mixture of experts does: it asks for its loads.)"""
    config = override(RunConfig(), [*SHAPE, *CASES[case]])
    runtime = make_runtime(DEVICE, "bfloat16")
    with runtime.device:
        model = build_model(config.task, config.model)
    task = make_task(config)
    task.prepare(model)
    optimizers = build(model, config.optim, runtime.dtype)
    tokens = torch.randint(512, (4, config.model.context + 1), device=DEVICE)

    def step():
        batch = (tokens[:, :-1], tokens[:, 1:])
        take_step(model, optimizers, task, batch, micro=2, runtime=runtime, clip=1.0, scale=0.1)

    step()
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
