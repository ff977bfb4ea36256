"""Device, dtype, threads and compilation, from fake timings."""

import contextlib

import pytest
import torch

from isoflop.budget import parse_budget
from isoflop.config import override
from isoflop.plan import machine
from isoflop.plan.asked import NOTHING, Asked
from isoflop.plan.trials import Trial
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.throughput import Throughput
from isoflop.trainer.workload import Notes, Text, Workload

TEXT = TextWorkload(Text(5e6, b""))
ALIKE = {"float32": 1e11, "bfloat16": 1e11}
BUDGET = parse_budget("3m")


@pytest.fixture
def trials(monkeypatch):
    """The dtypes that were timed; bfloat16 takes a step in 2 / 3 of float32's time."""
    timed = []

    def time_in_turns(configs, seconds, **_):
        timed.append([config.runtime.dtype for config in configs])
        return [Throughput(1.0, {"float32": 100.0, "bfloat16": 150.0}[c.runtime.dtype], 5) for c in configs]

    monkeypatch.setattr("isoflop.trainer.throughput.time_in_turns", time_in_turns)
    monkeypatch.setattr("isoflop.processors.thread_counts", lambda most: [most])  # threads: test_calibration.py
    return timed


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


def test_the_faster_dtype_is_chosen_and_cached(trials):
    config, calibration = machine.choose_runtime(RunConfig(), BUDGET, ALIKE, TEXT, NOTHING, Trial(RunConfig()))
    assert config.runtime.dtype == "bfloat16" == calibration.dtype and config.runtime.device == "cpu"
    assert calibration.reason == "a step in bfloat16 ran at 1.50 times float32's speed"
    assert config.runtime.threads == calibration.threads >= 1 and not config.runtime.compile
    again, _ = machine.choose_runtime(RunConfig(), BUDGET, ALIKE, TEXT, NOTHING, Trial(RunConfig()))
    assert again == config and trials == [["float32", "bfloat16"]]


def test_nothing_is_timed_if_the_answer_is_known(trials):
    slow = {"float32": 1e11, "bfloat16": 1e10}
    config, calibration = machine.choose_runtime(RunConfig(), BUDGET, slow, TEXT, NOTHING)
    assert config.runtime.dtype == "float32" and "0.1 times" in calibration.reason
    asked = Asked(("runtime.dtype=bfloat16", "runtime.threads=3"))
    config, calibration = machine.choose_runtime(asked.apply(RunConfig()), BUDGET, slow, TEXT, asked)
    assert (config.runtime.dtype, config.runtime.threads) == ("bfloat16", 3) and calibration.reason == "set by you"
    assert trials == []


def test_a_gpu_uses_bfloat16_units_and_compiles_long_runs(trials, on_a_gpu):
    def chosen(budget: str, *assignments: str):
        asked = Asked(assignments)
        return machine.choose_runtime(asked.apply(RunConfig()), parse_budget(budget), ALIKE, TEXT, asked)

    config, calibration = chosen("1h")
    assert (config.runtime.device, config.runtime.dtype, config.runtime.compile) == ("cuda", "bfloat16", True)
    assert calibration.reason == "what its units are for" and trials == []
    assert not chosen("3m")[0].runtime.compile and chosen("1e15")[0].runtime.compile
    assert not chosen("1h", "runtime.compile=false")[0].runtime.compile
    assert chosen("3m", "runtime.compile=true")[0].runtime.compile


def test_prepared_data_are_not_timed_on_random_tokens(trials):
    class Prepared(Workload):
        data = object()
        notes = Notes(dtype="lengths differ")

    config, calibration = machine.choose_runtime(RunConfig(), BUDGET, ALIKE, Prepared(), NOTHING)
    assert config.runtime.dtype == "float32" and calibration.to_dict() == {"reason": "lengths differ"}
    assert override(config, ["runtime.compile=true"]) != config and trials == []
