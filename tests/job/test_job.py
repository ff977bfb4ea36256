"""The Job: its peak, and what it sends to the other processes."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from isoflop.config import from_dict
from isoflop.job import job as module
from isoflop.job.command import Command, run_command
from isoflop.job.job import Job
from isoflop.job.listener import Listener
from isoflop.job.reopen import open_run_data
from isoflop.parallel.mesh import ALONE
from isoflop.records import Plan, RunFolder, read_run
from isoflop.trainer import RunConfig, RunResult
from small import TINY

GPU = {"float32": 1e12, "bfloat16": 7e12}
DATA = SimpleNamespace(account=lambda: SimpleNamespace(folder="prepared"))


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU as torch would tell of it. Returns the devices whose peak was measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    measured = []
    monkeypatch.setattr(module, "machine_peak", lambda device: measured.append(device) or GPU)
    monkeypatch.setattr(module, "train_steps", lambda config, out, **_: RunResult(out, 1, 1.0, None, 1.0, 0.0, 1, 1.0))
    return measured


def ceiling(tmp_path, config: RunConfig, **named) -> float:
    """What a job says that a run is compared with."""
    peaks: list[float] = []
    Job(ALONE, RunFolder(tmp_path), config, DATA, listener=Listener(peak=peaks.append), **named).train()
    [peak] = peaks
    return peak


def test_a_recipe_without_a_budget_on_a_gpu_is_compared_with_the_gpus_peak(gpu, tmp_path):
    """`auto` of its runtime is what the trainer makes of it: the GPU, in bfloat16."""
    assert ceiling(tmp_path, RunConfig()) == GPU["bfloat16"]
    assert gpu == ["cuda"]


def test_a_recorded_or_planned_peak_is_not_measured_again(gpu, tmp_path):
    assert ceiling(tmp_path, RunConfig(), known_peak={"bfloat16": 3e12}, resumed=True) == 3e12
    assert ceiling(tmp_path, RunConfig(), plan=Plan(peak={"bfloat16": 4e12})) == 4e12
    assert ceiling(tmp_path, RunConfig(), known_peak={"bfloat16": -1.0}, plan=Plan(peak={"bfloat16": 4e12})) == 4e12
    assert gpu == []


def test_other_processes_build_the_same_job(corpus, tmp_path):
    wanted = Command([str(corpus)], "4steps", tmp_path / "run", assignments=TINY)
    done = run_command(wanted)
    run = read_run(done.folder)
    config = from_dict(RunConfig, run.config)
    first = Job(ALONE, RunFolder(done.folder), config, open_run_data(run, config), resumed=True)
    other = Job.from_order(ALONE, first.order())
    assert other.config == first.config and other.resumed and other.data.fingerprint == first.data.fingerprint
    assert not other.folder.is_writer and other.folder.path == first.folder.path.resolve()


def test_one_call_for_the_three_ways_to_start(corpus, tmp_path):
    planned = run_command(Command([str(corpus)], "4steps", assignments=TINY, dry_run=True))
    assert planned.config.steps == 4 and planned.config.model.layers == 2
    base = planned.config
    decided = run_command(Command(base=base, assignments=["seed=7", "steps=3"], dry_run=True))
    assert isinstance(decided, RunConfig) and (decided.seed, decided.steps) == (7, 3)
    trained = run_command(Command(base=base, out=tmp_path / "run", assignments=["seed=7"]))
    assert trained.step == 4 and read_run(trained.folder).plan.kind == "given"
    assert run_command(Command(budget="+2steps", resume=trained.folder)).step == 6
    within = run_command(Command(base=base, budget="5steps", out=tmp_path / "other"))
    assert within.step == 5 and read_run(within.folder).plan.kind == "prior"
