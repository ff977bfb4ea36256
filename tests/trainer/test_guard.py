"""Non-finite losses and loss spikes: the state after a bad step, the run's reaction, also across kills."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from isoflop import checkpoint
from isoflop.config import override
from isoflop.data.gaps import Gaps
from isoflop.errors import UserError
from isoflop.job.job import Job
from isoflop.measure import HeldOut
from isoflop.model.build import build_model
from isoflop.optim.build import build
from isoflop.optim.timetable import Timetable
from isoflop.parallel import state
from isoflop.parallel.mesh import ALONE
from isoflop.records import Plan, RunFolder, SkipLine, read_lines, read_run
from isoflop.report.page import write_report
from isoflop.runtime import seed_everything
from isoflop.trainer import RunConfig, train
from isoflop.trainer.config import GuardConfig
from isoflop.trainer.guard import Watch, find_trouble, in_a_row
from isoflop.trainer.hooks import Hook
from isoflop.trainer.recovery import Diverged
from isoflop.trainer.task import CausalLM
from small import TINY, CutAt, PowerCut

STEPS = 12


class Poisoned(CausalLM):
    """Text in which the batches of some steps (as numbered in an uninterrupted run) multiply the loss by `factor`,
    whenever they are read; `skipped` are ranges that are never read."""

    def __init__(self, config, prepared, steps=(), factor=math.nan, skipped=()):
        super().__init__()
        batches = super().batches(config, prepared)
        self.poison = [batches.batch(step)[0][0] for step in steps]
        self.factor, self.skipped, self.met = factor, tuple(skipped), 0

    def loss(self, model, inputs_BT, targets_BT):
        loss = super().loss(model, inputs_BT, targets_BT)
        if any((inputs_BT == row).all(1).any() for row in self.poison):
            self.met += 1
            return loss * self.factor
        return loss

    def batches(self, config, data, skipped=()):
        return super().batches(config, data, (*self.skipped, *skipped))


class Cut(Hook):
    """Simulates a kill right after a bad step is recorded."""

    def troubled(self, state, line):
        raise PowerCut


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    more = ["model.vocab_size=320", f"steps={STEPS}", "model.dropout=0.1", "model.norm=batch", "every.checkpoint=4"]
    return override(start, [*TINY, *more])


@pytest.fixture
def prepared(config):
    return CausalLM().prepare_data(config.data)


def end_of(folder):
    """Losses by step, and every tensor of the last checkpoint: weights, moments, counts, generators."""
    last = checkpoint.latest(RunFolder(folder).checkpoints)
    tensors = state.stored_tensors(last / "tensors")
    loaded = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in tensors.items()}
    state.load_tensors(last / "tensors", loaded)
    return {line.step: line.loss for line in read_run(folder).training}, loaded


def assert_same_end(one, other):
    (losses, tensors), (its, others) = end_of(one), end_of(other)
    assert losses == its
    assert sorted(tensors) == sorted(others)
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def test_a_discarded_step_leaves_all_state_unchanged(config, prepared, tmp_path):
    """Compared with a simple loop that makes no update at that step: weights, both optimisers' moments and step counts,
    the running statistics of batch norm, and torch's generator, of which dropout drew in that step too."""
    bad = 5
    task = Poisoned(config, prepared, [bad])
    train(config, tmp_path / "run", task=task, prepared=prepared)
    assert task.met == 1
    seed_everything(config.seed)
    model = build_model(config.task, config.model)
    optimizers = build(model, config.optim, torch.float32)
    batches = CausalLM().batches(config, prepared)
    timetable = Timetable(config.schedule, config.steps, read=config.sizes.before)
    model.train()
    losses = {}
    for step in range(STEPS):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        loss = CausalLM().loss(model, *batches.batch(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        if step == bad:
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])
        else:
            losses[step + 1] = loss.item()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * timetable.scale(step)
            if step != bad:
                optimizer.step()
            optimizer.zero_grad()
    reached, tensors = end_of(tmp_path / "run")
    assert reached == losses
    own = {**state.model_tensors(model), **state.optimizer_tensors(model, optimizers)}
    assert [name for name, tensor in own.items() if not torch.equal(tensors[name], tensor)] == []
    counts = {name: tensor.item() for name, tensor in tensors.items() if name.endswith(".step")}
    assert counts and set(counts.values()) == {STEPS - 1.0}
    assert torch.equal(tensors["rng.cpu"], torch.get_rng_state())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_rollback_equals_the_run_that_never_drew_that_batch(config, prepared, tmp_path, optimizer):
    config = override(config, [f"optim.name={optimizer}", "guard.non_finite=rollback"])
    rows = config.batch.sequences
    train(config, tmp_path / "run", task=Poisoned(config, prepared, [6, 9]), prepared=prepared)
    never = Poisoned(config, prepared, skipped=((6 * rows, rows), (9 * rows, rows)))
    train(config, tmp_path / "never", task=never, prepared=prepared)
    assert_same_end(tmp_path / "run", tmp_path / "never")
    run = read_run(tmp_path / "run")
    assert [(line.step, line.first, line.sequences) for line in run.skips] == [(7, 48, 8), (9, 72, 8)]
    assert [line.step for line in run.training] == list(range(1, STEPS + 1))
    assert [event.from_step for event in run.events if event.event == "rolled back"] == [6, 8]


def test_before_the_first_checkpoint_a_rollback_returns_to_the_start(config, prepared, tmp_path):
    config = override(config, ["guard.non_finite=rollback", "guard.pass_over=2"])
    train(config, tmp_path / "run", task=Poisoned(config, prepared, [2]), prepared=prepared)
    never = Poisoned(config, prepared, skipped=((16, 16),))
    train(config, tmp_path / "never", task=never, prepared=prepared)
    assert_same_end(tmp_path / "run", tmp_path / "never")


@pytest.mark.parametrize("action", ["skip", "rollback"])
@pytest.mark.parametrize("hook", [Cut(), CutAt(8)])
def test_a_kill_during_recovery_changes_nothing(config, prepared, tmp_path, action, hook):
    """Once right after the record and before any action, once some steps later."""
    config = override(config, [f"guard.non_finite={action}"])
    train(config, tmp_path / "whole", task=Poisoned(config, prepared, [6, 10]), prepared=prepared)
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", task=Poisoned(config, prepared, [6, 10]), prepared=prepared, hooks=[hook])
    train(config, tmp_path / "cut", task=Poisoned(config, prepared, [6, 10]), prepared=prepared, resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    skips = [[replace(line, time=0) for line in read_run(tmp_path / name).skips] for name in ("whole", "cut")]
    assert skips[0] == skips[1] and len(skips[0]) == 2


def test_a_spike_is_judged_by_the_steps_before_it_and_nothing_else(config, prepared, tmp_path):
    """Discarding a loss ten thousand times too large gives the same run as discarding a NaN. The statistics survive a
    kill."""
    common = ["guard.window=4", "guard.sigmas=50", "guard.spike=skip"]
    config = override(config, common)
    train(config, tmp_path / "spike", task=Poisoned(config, prepared, [9], factor=1e4), prepared=prepared)
    train(config, tmp_path / "nan", task=Poisoned(config, prepared, [9]), prepared=prepared)
    assert_same_end(tmp_path / "spike", tmp_path / "nan")
    [line] = read_run(tmp_path / "spike").skips
    assert (line.step, line.kind, line.action) == (10, "spike", "skip") and line.loss > 1e4
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", task=Poisoned(config, prepared), prepared=prepared, hooks=[CutAt(9)])
    train(config, tmp_path / "cut", task=Poisoned(config, prepared, [9], 1e4), prepared=prepared, resume=True)
    assert_same_end(tmp_path / "spike", tmp_path / "cut")


def test_a_spike_is_by_default_counted_and_kept(config, prepared, tmp_path):
    wide, narrow = (override(config, [f"guard.window={window}", "guard.sigmas=1"]) for window in (128, 4))
    train(wide, tmp_path / "wide", prepared=prepared)
    train(narrow, tmp_path / "narrow", task=Poisoned(narrow, prepared), prepared=prepared)
    assert {line.action for line in read_run(tmp_path / "narrow").skips} == {"keep"}
    assert read_run(tmp_path / "wide").skips == []
    assert end_of(tmp_path / "wide")[0] == end_of(tmp_path / "narrow")[0]


@pytest.mark.parametrize(
    ("more", "steps", "after", "message"),
    [
        (["guard.in_a_row=3"], range(6, STEPS), 8, "3 bad steps in a row"),
        (["guard.in_all=2"], [6, 9], 9, "2 bad steps in all"),
        (["guard.non_finite=stop"], [6], 6, "guard.non_finite is stop"),
        (["guard.non_finite=rollback", "guard.in_a_row=3"], range(6, 12), 6, "3 bad steps in a row"),
    ],
)
def test_a_run_stops_after_the_stated_number_of_bad_steps_with_the_last_good_checkpoint(
    config, prepared, tmp_path, more, steps, after, message
):
    config = override(config, more)
    with pytest.raises(Diverged, match=f"step {after + 1}: loss nan.*{message}") as raised:
        train(config, tmp_path / "run", task=Poisoned(config, prepared, steps), prepared=prepared)
    folder = RunFolder(tmp_path / "run")
    last = checkpoint.latest(folder.checkpoints)
    assert str(last) in str(raised.value) and "\n" not in str(raised.value)
    event = read_run(tmp_path / "run").events[-1]
    assert (event.event, event.reason) == ("diverged", str(raised.value))
    checkpoint.verify(last)
    assert checkpoint.step_of(last) == (9 if after > 8 else 4)  # 9: before the decay
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.read(last).weights.values())
    train(
        config, tmp_path / "run", task=Poisoned(config, prepared), prepared=prepared, resume=True
    )  # the text is mended


def test_a_checkpoint_without_a_good_step_after_it_is_not_called_good(config, prepared, tmp_path):
    """Its weights may be at fault, and then the one before it is needed."""
    config = override(config, ["every.checkpoint=2", "every.keep=3"])
    with pytest.raises(Diverged, match=r"-00000009, .*may be at fault; the one of step 4 was followed by a good step"):
        train(config, tmp_path / "run", task=Poisoned(config, prepared, range(6, STEPS)), prepared=prepared)
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "diverged" in page and f"{5 * config.tokens_per_step:,}" in page and "5 times" in page


def test_bad_steps_are_counted_and_shown(config, prepared, tmp_path):
    config = override(config, ["guard.spike=rollback", "guard.window=4", "guard.sigmas=50"])

    class Both(Poisoned):
        def loss(self, model, inputs_BT, targets_BT):
            self.factor = math.nan if (inputs_BT == self.poison[0]).all(1).any() else 1e4
            return super().loss(model, inputs_BT, targets_BT)

    result = train(config, tmp_path / "run", task=Both(config, prepared, [3, 9]), prepared=prepared)
    folder = RunFolder(tmp_path / "run")
    Job(ALONE, folder, config, prepared, Plan(peak={"float32": 1e10})).write_result(result, HeldOut(1.0, 1, 1))
    tokens = config.tokens_per_step
    found = read_run(tmp_path / "run").result
    assert found.guard.to_dict() == {
        "spikes_kept": 0,
        "steps_left_out": 1,
        "left_out_tokens": tokens,
        "rollbacks": 1,
        "passed_over_tokens": tokens,
    }
    assert found.data.passed_over == tokens
    assert sum(source.passed_over for source in found.data.sources.values()) == tokens
    assert found.tokens == found.data.tokens == STEPS * tokens
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "discarded" in page and "skipped after a rollback" in page and "loss nan" in page


def test_the_rule_for_a_spike():
    config = GuardConfig(window=4, sigmas=3)
    recent = [(1.0, 2.0), (1.2, 2.2), (0.8, 1.8), (1.0, 2.0)]
    limit = 1.0 + 3 * math.sqrt(0.02)
    assert find_trouble(limit - 1e-9, 2.0, recent, config) is None
    assert find_trouble(limit + 1e-9, 2.0, recent, config).kind == "spike"
    assert "gradient norm" in find_trouble(1.0, 9.0, recent, config).reason
    assert find_trouble(0.0, 0.0, recent, config) is None  # far below is no trouble
    assert find_trouble(99.0, 99.0, recent[:3], config) is None  # too few to compare with
    for numbers in ((math.nan, 1.0), (1.0, math.inf), (-math.inf, 1.0)):
        assert find_trouble(*numbers, recent[:1], config).kind == "non-finite"


def test_bad_steps_are_not_in_the_statistics():
    watch = Watch(GuardConfig(spike="skip", window=3, sigmas=2))
    for loss in (1.0, 1.1, 0.9):
        assert watch.judge(loss, 1.0) is None
    for _ in range(5):
        assert watch.judge(50.0, 1.0).kind == "spike"
        assert watch.judge(math.nan, 1.0).kind == "non-finite"
    assert Watch(watch.config, watch.state()).judge(1.05, 1.0) is None
    assert watch.state() == [[1.0, 1.0], [1.1, 1.0], [0.9, 1.0]]


def test_bad_steps_in_a_row_are_those_without_progress_between():
    def skips(*steps):
        return [SkipLine(step=step, action="skip") for step in steps]

    def backs(*steps):
        return [SkipLine(step=step, action="rollback") for step in steps]

    assert [in_a_row(skips(*s)) for s in ([], [3], [3, 4], [3, 5], [3, 5, 6, 7])] == [0, 1, 2, 1, 3]
    assert [in_a_row(backs(*s)) for s in ([7, 7, 7], [7, 8], [7, 7, 8, 8])] == [3, 1, 2]
    assert in_a_row(backs(7) + skips(3) + backs(7)) == 2  # step 3 was left out anew on the way back to 7
    assert in_a_row(backs(7) + skips(3)) == 1


@pytest.mark.parametrize("setting", ["sigmas=0", "window=1", "pass_over=0", "in_a_row=0", "in_all=0", "spike=ignore"])
def test_an_invalid_setting_is_named(setting):
    with pytest.raises(UserError, match=rf"guard\.{setting.partition('=')[0]}"):
        override(RunConfig(), [f"guard.{setting}"])


def test_overlapping_gaps_are_merged():
    gaps = Gaps.of([(10, 5), (2, 2), (14, 3), (4, 1)])
    assert gaps.ranges == ((2, 3), (10, 7))
    there = [i for i in range(40) if not (2 <= i < 5 or 10 <= i < 17)]
    assert [gaps.unbroken(i) for i in range(len(there))] == there
    assert gaps.span(1, 3) == (1, 5)  # sequences 1 and 2 are numbers 1 and 5
    assert gaps.before(0) == [] and gaps.before(2) == [] and gaps.before(3) == [(2, 3)]


def test_a_torn_line_is_removed_and_a_full_disk_leaves_no_half_line(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("skips", {"step": 1})
    with folder.log("skips").open("a") as file:
        file.write('{"st')
    folder.repair()
    folder.append("skips", {"step": 2})
    assert read_lines(folder.log("skips")) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("rule", ["skip", "rollback"])
def test_launching_updates_ahead_changes_no_bit(config, prepared, tmp_path, monkeypatch, rule):
    """As on a GPU, where the device discards a non-finite step and the host sees it afterwards."""
    config = override(config, [f"guard.non_finite={rule}"])
    train(config, tmp_path / "run", task=Poisoned(config, prepared, [3, 6]), prepared=prepared)
    monkeypatch.setattr("isoflop.trainer.loop.updates_ahead", lambda *_: True)
    train(config, tmp_path / "ahead", task=Poisoned(config, prepared, [3, 6]), prepared=prepared)
    assert_same_end(tmp_path / "run", tmp_path / "ahead")
