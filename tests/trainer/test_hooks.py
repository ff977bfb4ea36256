"""Hooks: the moments within a step, gradients and updates; the run has the same bits with a hook."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import override
from isoflop.records import read_run
from isoflop.trainer import RunConfig, train
from isoflop.trainer.hooks import Hook, Samples, SampleTimeLimit, overriding
from isoflop.trainer.task import CausalLM
from small import TINY, GradientNorms

STEPS = 6


class Poisoned(CausalLM):
    """Its loss is NaN in one forward pass of the run."""

    def __init__(self, at):
        super().__init__()
        self.at, self.passes = at, 0

    def loss(self, model, *batch):
        self.passes += 1
        return super().loss(model, *batch) * (math.nan if self.passes == self.at else 1.0)


class Updates(Hook):
    """How far the weights moved in each update."""

    def __init__(self):
        self.steps, self.moved = [], []

    def gradients_ready(self, state):
        self.before = [parameter.detach().clone() for parameter in state.model.parameters()]

    def updated(self, state):
        assert all(parameter.grad is None for parameter in state.model.parameters())
        self.steps.append(state.step)
        now = state.model.parameters()
        self.moved.append(sum(float((p.detach() - b).norm()) for p, b in zip(now, self.before, strict=True)))


@pytest.fixture
def config(corpus):
    more = [f"steps={STEPS}", "model.dropout=0.1", "batch.micro_sequences=4", "guard.preflight=false"]
    return override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', *more])


def learned(folder):
    """Weights, optimiser state and generators of all checkpoints, losses and norms: everything but the clock."""
    tensors = {}
    for path in folder.rglob("*.safetensors"):
        loaded = load_file(path).items()
        tensors |= {f"{path.relative_to(folder)}:{name}": tensor.numpy().tobytes() for name, tensor in loaded}
    return tensors, [(line.step, line.loss, line.grad_norm) for line in read_run(folder).training]


@pytest.mark.parametrize("ahead", [False, True], ids=["", "update launched ahead"])
def test_the_gradient_norm_per_layer_is_a_hook_and_changes_no_bit(config, tmp_path, monkeypatch, ahead):
    monkeypatch.setattr("isoflop.trainer.loop.updates_ahead", lambda *_: ahead)
    train(config, tmp_path / "plain")
    norms = GradientNorms()
    train(config, tmp_path / "observed", hooks=[norms, Updates()])
    assert learned(tmp_path / "plain") == learned(tmp_path / "observed")
    assert [step for step, _ in norms.lines] == list(range(1, STEPS + 1))
    assert {len(line) for _, line in norms.lines} == {config.model.layers + 1}
    for (_, by_layer), line in zip(norms.lines, read_run(tmp_path / "observed").training, strict=True):
        assert math.hypot(*by_layer) == pytest.approx(line.grad_norm, rel=1e-5)  # before clipping, all passes


@pytest.mark.parametrize("ahead", [False, True], ids=["", "update launched ahead"])
def test_a_discarded_step_has_gradients_and_no_update(config, tmp_path, monkeypatch, ahead):
    monkeypatch.setattr("isoflop.trainer.loop.updates_ahead", lambda *_: ahead)
    norms, updates = GradientNorms(), Updates()
    train(config, tmp_path / "run", hooks=[norms, updates], task=Poisoned(at=2 * 3))  # two passes per step
    assert [step for step, _ in norms.lines] == [1, 2, 3, 4, 5, 6]
    assert [all(map(math.isfinite, line)) for _, line in norms.lines] == [True, True, False, True, True, True]
    assert updates.steps == [1, 2, 4, 5, 6] and all(moved > 0 for moved in updates.moved)


def test_only_hooks_that_ask_for_a_moment_are_called():
    class Child(GradientNorms):
        pass

    norms, updates, child = GradientNorms(), Updates(), Child()
    hooks = [Hook(), Samples(), norms, updates, child]
    assert overriding(hooks, "gradients_ready") == [norms, updates, child]
    assert overriding(hooks, "updated") == [updates]
    one = Hook()
    one.updated = lambda state: None  # on the object alone
    assert overriding([Hook(), one], "updated") == [one]


def test_gradients_are_ready_before_they_are_clipped(config, tmp_path):
    tight = override(config, ["optim.clip=0.001", "steps=1"])
    norms = GradientNorms()
    train(tight, tmp_path / "run", hooks=[norms])
    assert math.hypot(*norms.lines[0][1]) > 0.01
    assert torch.is_grad_enabled()


class Recorder(Hook):
    def __init__(self):
        self.lines = []

    def noticed(self, state, text):
        self.lines.append(text)


def test_samples_of_a_run_in_seconds_are_cut_short(config, tmp_path):
    """Of a million tokens, as many as fit in a share of the seconds; a line says that they were cut short."""
    recorder, prompts = Recorder(), ["", "the", "a"]
    long = override(config, ["sample.tokens=1000000", "every.sample=3", f"sample.prompts={json.dumps(prompts)}"])
    train(override(long, ["seconds=3"]), tmp_path / "run", hooks=[Samples((recorder,))])
    lines = read_run(tmp_path / "run").samples
    assert [line.prompt for line in lines[:3]] == prompts and len(lines) % 3 == 0
    assert all(line.cut and line.text for line in lines)
    [message] = recorder.lines
    assert "--set sample.tokens=" in message
    short = override(config, ["sample.tokens=5"])
    train(short, tmp_path / "short", hooks=[Samples((recorder,))])
    assert all(line.cut is None for line in read_run(tmp_path / "short").samples) and len(recorder.lines) == 1


def test_each_prompt_has_its_part_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("isoflop.trainer.hooks.time.monotonic", lambda: now[0])
    enough = SampleTimeLimit(6.0, 3, bool)
    seen = []
    for at in (1.0, 2.5):  # the first prompt may write up to 2 s
        now[0] = at
        seen.append(enough())
    assert seen == [False, True] and enough.next()
    now[0] = 3.9
    assert not enough() and not enough.next()  # it ended by itself
    now[0] = 5.9
    assert not enough()
    now[0] = 6.1
    assert enough() and enough.next()
    assert not SampleTimeLimit(0.0, 3, bool)()
