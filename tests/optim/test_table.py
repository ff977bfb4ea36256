"""Every entry of OPTIMIZERS and SCHEDULES has the required properties, and a new one needs no other file."""

import itertools
import math
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import nn

import isoflop
from isoflop import checkpoint, job
from isoflop.cli import run as cli
from isoflop.config import describe, from_dict, override
from isoflop.errors import UserError
from isoflop.job.listener import Listener
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig, ScheduleConfig
from isoflop.optim.groups import split
from isoflop.optim.table import OPTIMIZERS, SCHEDULES, Optimizer, Schedule, rates
from isoflop.optim.timetable import Timetable
from isoflop.parallel.state import stored_tensors
from isoflop.records import read_run
from isoflop.trainer.config import RunConfig
from small import TINY, CutAt, PowerCut


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 13, bias=False)

    def units(self):
        return list(self.blocks)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


class SignMomentum(torch.optim.Optimizer):
    """The sign of a running mean of the gradients. It knows nothing of `found_inf`, and keeps a tensor and a number."""

    def __init__(self, groups, lr, beta):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.beta = beta

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state.update(mean=torch.zeros_like(p), steps=0)
                state["steps"] += 1
                state["mean"].lerp_(p.grad, 1 - self.beta)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(state["mean"].sign(), alpha=-group["lr"] / min(state["steps"], 4))


@dataclass(frozen=True, kw_only=True)
class Toy(Optimizer):
    words = "signs of the momentum"

    momentum: float

    def state_bytes(self, group):
        return 4

    def make(self, groups, dtype, matrices):
        return [SignMomentum(groups, self.lr, self.momentum)]


@dataclass(frozen=True, kw_only=True)
class Stairs(Schedule):
    words = "down in three stairs"
    stable = True

    floor: float

    def shape(self, u):
        return 1.0 if u < 0.5 else 0.5 + 0.5 * self.floor if u < 0.75 else self.floor

    def explained(self):
        return "three stairs"


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "toy", Toy)
    monkeypatch.setitem(SCHEDULES, "stairs", Stairs)


@pytest.mark.parametrize(
    ("table", "config"),
    [(OPTIMIZERS, OptimConfig), (SCHEDULES, ScheduleConfig)],
    ids=["optimizers", "schedules"],
)
def test_the_fields_of_an_entry_are_fields_of_the_configuration(table, config):
    for name, cls in table.items():
        assert {field.name for field in fields(cls)} < {field.name for field in fields(config)}
        entry = config(name=name).entry
        assert type(entry) is cls
        assert all(getattr(entry, field.name) == getattr(config(), field.name) for field in fields(cls))


def test_an_unknown_name_is_refused_with_the_nearest_right_one():
    for cls, wrong, right in ((OptimConfig, "adam", "adamw"), (ScheduleConfig, "cosin", "cosine")):
        message = rf"name = '{wrong}' is not one of .*did you mean {right}\?"
        with pytest.raises(UserError, match=message):
            cls(name=wrong)
        with pytest.raises(UserError, match=message):
            override(cls(), [f"name={wrong}"])
    for wrong in (None, 3, ["muon"], {"name": "muon"}):
        with pytest.raises(UserError, match=f"is not one of {', '.join(OPTIMIZERS)}"):
            from_dict(OptimConfig, {"name": wrong}, "optim")


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizer_declares_its_state(name):
    """Bytes of state per parameter are those that are there after a step; a number per tensor is not counted."""
    model = Model()
    entry = OptimConfig(name=name).entry
    optimizers = build(model, OptimConfig(name=name), torch.float32)
    model(torch.arange(13)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    kept = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    for group in split(model):
        for p in group.parameters.values():
            tensors = [t for t in kept[p].values() if isinstance(t, torch.Tensor) and t.numel() > 1]
            assert sum(t.numel() * t.element_size() for t in tensors) == entry.state_bytes(group.name) * p.numel()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("tied", [False, True])
def test_rates_change_with_width_and_are_the_defaults_at_128(name, tied):
    config = OptimConfig(name=name)
    there = config.entry.at_width(128, tied)
    assert set(there) <= set(rates(config.entry))
    assert all(there[field] == getattr(config, field) for field in there if field == "lr")
    assert replace(config, **config.entry.at_width(512, tied)).entry.rate("head") < config.entry.rate("head")


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_schedule_starts_at_the_full_rate_and_never_rises(name):
    config = ScheduleConfig(name=name, floor=0.1, decay=0.4, length=0.8)
    course = [config.entry.shape(u / 100) for u in range(101)]
    assert course[0] == 1.0
    assert all(0.1 - 1e-12 <= after <= before for before, after in itertools.pairwise(course))
    if config.entry.stable:
        decay = Timetable(config, 1000).decay_step
        assert decay is not None and Timetable(config, 1000).scale(decay - 1) == 1.0


def test_help_and_errors_name_every_entry(toys):
    lines = {line.name: line for line in describe(RunConfig)}
    assert lines["optim.name"].type == " | ".join(OPTIMIZERS)
    assert "adamw: AdamW for all; " in lines["optim.name"].meaning
    assert lines["optim.name"].meaning.endswith("; toy: signs of the momentum")
    assert "(unused with adamw" in lines["optim.matrix_lr"].meaning and "toy)" in lines["optim.matrix_lr"].meaning
    assert "8 bytes per parameter, with adamw 12" in lines["every.background"].meaning
    assert lines["schedule.name"].meaning.endswith("; stairs: down in three stairs")
    with pytest.raises(UserError, match="did you mean stairs"):
        override(RunConfig(), ["schedule.name=stair"])


def test_toys_plan_train_resume_and_extend(toys, corpus, tmp_path, capsys):
    """Registered here and nowhere else, they go through a whole run; a killed one ends with the same bits."""
    settings = [*TINY, "optim.name=toy", "optim.lr=0.002", "schedule.name=stairs"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    isoflop.pretrain([str(corpus)], budget="20steps", out=whole, assignments=settings)
    with pytest.raises(PowerCut):
        listener = Listener(hooks=(CutAt(13),))
        isoflop.pretrain([str(corpus)], budget="20steps", out=broken, assignments=settings, listener=listener)
    isoflop.resume(broken)

    one, other = read_run(whole), read_run(broken)
    assert [line.loss for line in one.training] == [line.loss for line in other.training]
    assert one.training[-1].loss < one.training[0].loss
    weights, again = (checkpoint.read(folder).weights for folder in (whole, broken))
    assert all(weights[name].equal(again[name]) for name in weights)
    kept = stored_tensors(checkpoint.latest(whole / "checkpoints") / "tensors")
    assert {name.rpartition(".")[2] for name in kept if name.startswith("optim.")} == {"mean", "steps"}
    values = {choice.name: choice.value for choice in one.plan.choices}
    assert values["optimiser"] == "toy, lr 0.002" and values["schedule"] == "stairs, warm-up 2%, three stairs"

    isoflop.resume(whole, "+8steps")
    assert [line.step for line in read_run(whole).training] == list(range(1, 29))
    assert math.isfinite(job.evaluate(whole).nats_per_token)
    assert cli(["sample", str(whole), "--tokens", "5"]) == 0
    assert "toy" in (whole / "report.html").read_text(encoding="utf-8")
