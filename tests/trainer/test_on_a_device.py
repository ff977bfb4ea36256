"""Properties of a step that a GPU needs, checked on a CPU: the host never waits for the device, all steps are the same
operations of the same shapes, and the device itself discards a non-finite step."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.config import override
from isoflop.model.build import build_model
from isoflop.optim.build import build, clip_gradients, needs_no_clipping
from isoflop.runtime import Runtime
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.step import find_inf, forward_backward, support_found_inf, update
from isoflop.trainer.task import CausalLM, make_task

SMALL = ["model.vocab_size=64", "model.context=16", "model.layers=2", "model.d_model=32", "model.heads=2"]
ASKING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique", "item")  # these wait for the device


class Recorder(TorchDispatchMode):
    """Records every operation with the shapes and dtypes of its inputs; raises if the host reads a number."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(ASKING), f"{name} waits for the device"
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seen.append((name, *((tuple(t.shape), t.dtype) for t in tensors)))
        return func(*args, **(kwargs or {}))


def stepper(fields, dtype=torch.float32, micro=2):
    config = override(RunConfig(), [*SMALL, *fields])
    torch.manual_seed(0)
    model, task = build_model(config.task, config.model), make_task(config)
    task.prepare(model)
    for parameter in model.parameters():  # branches start at zero
        torch.nn.init.normal_(parameter, std=0.1)
    optimizers = build(model, config.optim, dtype)
    runtime = Runtime(torch.device("cpu"), dtype)

    def step(poison=1.0):
        tokens = torch.randint(64, (4, 17))
        task_ = task if poison == 1.0 else Poisoned(poison)
        loss = forward_backward(model, task_, (tokens[:, :-1], tokens[:, 1:]), micro=micro, runtime=runtime)
        update(optimizers, 0.5, find_inf((loss, clip_gradients(model, 1.0))))

    return model, optimizers, step


class Poisoned(CausalLM):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def loss(self, model, *batch):
        return super().loss(model, *batch) * self.factor


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["model=gpt2", *SMALL, "optim.name=adamw"],
        ["model.attention=banded", "model.attention.window=5", "model.attention.soft_cap=3", "model.norm=layer"],
        ["model.attention=latent", "loss=z_loss", "model.feed_forward=swiglu"],
        ["loss=multi_token", "model.position=alibi"],
    ],
    ids=["default", "gpt2", "banded", "latent", "multi_token"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_step_waits_for_the_device_and_all_steps_are_the_same_operations(fields, dtype, monkeypatch):
    assert not needs_no_clipping(torch.zeros((), device="meta"), 1.0), "only a CPU is asked"
    monkeypatch.setattr("isoflop.optim.build.needs_no_clipping", lambda *_: False)
    _, optimizers, step = stepper(fields, dtype)
    assert support_found_inf(optimizers)
    step()  # state is made in the first one
    traces = []
    for _ in range(2):
        with Recorder() as recorder:
            step()
        traces.append(recorder.seen)
    assert traces[0] == traces[1]
    # none is left in float32 (bmm apart: with a bias or another width of values a CPU's attention computes in float32)
    assert {seen[1][1] for seen in traces[0] if seen[0] in ("mm", "addmm", "addmm_", "baddbmm")} == {dtype}


def state_of(model, optimizers):
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in enumerate(optimizer.state.values()):
            kept |= {f"{number}.{index}.{key}": value.clone() for key, value in state.items()}
    return kept


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_device_skips_a_step_that_is_not_finite_bit_for_bit(name):
    model, optimizers, step = stepper([f"optim.name={name}"])
    step()
    step()
    before = state_of(model, optimizers)
    for factor in (torch.nan, torch.inf):
        step(poison=factor)
        after = state_of(model, optimizers)
        assert [key for key in before if not torch.equal(before[key], after[key])] == []
    step()
    after = state_of(model, optimizers)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert [key for key in before if torch.equal(before[key], after[key])] == []


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_good_step_has_the_same_bits_as_without_the_flag(name):
    ends = []
    for found_inf in (None, torch.tensor(0.0)):
        model, optimizers, _ = stepper([f"optim.name={name}"])
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            update(optimizers, 0.7, found_inf)
        ends.append(state_of(model, optimizers))
    assert [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])] == []


def test_a_gpu_takes_the_most_sequences_per_pass_that_fit(monkeypatch):
    tried = []
    monkeypatch.setattr(throughput, "fits_on_device", lambda config, n: tried.append(n) or n <= 5)
    config = override(RunConfig(), ["batch.sequences=24"])
    on_a_card = replace(config, runtime=replace(config.runtime, device="cuda"))
    assert throughput.fit_micro_batches(on_a_card).batch.micro_sequences == 4
    assert tried == [24, 12, 8, 6, 4]
    assert (
        throughput.fit_micro_batches(on_a_card, processes=8).batch.micro_sequences == 0
    )  # 3 sequences of each are all held
    asked = override(on_a_card, ["batch.micro_sequences=12"])
    assert throughput.fit_micro_batches(asked) == asked and throughput.fit_micro_batches(config) == config
