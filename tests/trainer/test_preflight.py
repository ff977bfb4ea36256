"""Before the first step: a run that does not fit is refused with a setting that fits; a trial changes nothing."""

from dataclasses import replace

import pytest
import torch

from isoflop import checkpoint
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.model.build import build_model
from isoflop.records import read_run
from isoflop.runtime import available, free_memory, make_runtime, remaining
from isoflop.trainer import RunConfig, train
from isoflop.trainer.memory.estimate import RunMemory, estimate, plainly_fits, saved_bytes
from isoflop.trainer.memory.preflight import check_memory
from isoflop.trainer.task import CausalLM
from small import TINY

GB = 10**9


def set_free_memory(monkeypatch, free_memory):
    for name in ("estimate", "portion", "preflight"):
        monkeypatch.setattr(f"isoflop.trainer.memory.{name}.free_memory", free_memory)


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    more = ["model.vocab_size=320", "steps=4", "model.dropout=0.1", "model.norm=batch", "every.checkpoint=0"]
    return override(start, [*TINY, *more])


def test_the_trial_batch_changes_nothing(config, tmp_path):
    """Dropout draws and batch norm counts in the trial batch as well; both are restored afterwards."""
    train(config, tmp_path / "tried")
    train(override(config, ["guard.preflight=false"]), tmp_path / "untried")
    one, other = (read_run(tmp_path / name).training for name in ("tried", "untried"))
    assert [line.loss for line in one] == [line.loss for line in other]
    a, b = (checkpoint.read(tmp_path / name).weights for name in ("tried", "untried"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_does_not_fit_is_refused_before_allocating(config, tmp_path, monkeypatch):
    task = CausalLM()
    data = task.prepare_data(config.data)
    need = estimate(config, task, task.batches(config, data), make_runtime("cpu", "float32", 1))
    free = need.total(3)  # of 8 sequences in a pass
    set_free_memory(monkeypatch, lambda device: free)
    with pytest.raises(UserError, match=r"8 sequences.*use --set batch\.micro_sequences=2$"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(override(config, ["batch.micro_sequences=2"]), tmp_path / "run")  # and that does


@pytest.mark.parametrize("name", ["modern", "gpt2", "llama-7b"])
def test_plainly_fits_agrees_with_the_estimate(config, monkeypatch, name):
    """If no trial is made, a trial would not have refused the run."""
    small = [f"model={name}", "model.layers=4", "model.d_model=64", "model.heads=4", "model.context=64"]
    config = override(config, [*small, "model.vocab_size=320"])
    if name == "llama-7b":
        config = override(config, ["model.feed_forward.d_ff=172"])
    task = CausalLM()
    need = estimate(
        config, task, task.batches(config, task.prepare_data(config.data)), make_runtime("cpu", "float32", 1)
    )
    for free in (need.total(config.batch.micro), 64 * need.total(config.batch.micro)):
        set_free_memory(monkeypatch, lambda device, free=free: free)
        assert plainly_fits(config) == (free > need.total(config.batch.micro))


def test_the_estimate_grows_like_the_activations_kept_for_backward(config):
    """From models of two and four layers and a few sequences to one of six with eight."""
    config = override(config, ["model.layers=6", "model.norm=rms"])
    task = CausalLM()
    runtime = make_runtime("cpu", "float32", 1)
    batches = task.batches(config, task.prepare_data(config.data))
    need = estimate(config, task, batches, runtime)
    model = build_model(config.task, config.model)
    really = saved_bytes(model, task, batches.largest(8), runtime)
    assert really <= 8 * need.sequence <= 1.3 * really
    parameters = sum(tensor.numel() for tensor in model.parameters())
    assert 12 * parameters <= need.fixed <= 24 * parameters and 8 * parameters <= need.copy <= 12 * parameters


def test_with_recomputation_one_block_is_kept_and_the_inputs_of_all(config):
    task, runtime = CausalLM(), make_runtime("cpu", "float32", 1)

    def kept(layers, recompute):
        fields = [f"model.layers={layers}", "model.norm=rms", f"runtime.recompute={recompute}"]
        asked = override(config, fields)
        return estimate(asked, task, task.batches(asked, task.prepare_data(asked.data)), runtime).sequence

    inputs = 1.1 * 4 * config.model.context * config.model.d_model
    assert kept(12, "true") - kept(6, "true") == pytest.approx(6 * inputs, abs=2)
    assert kept(12, "true") < kept(12, "false") / 3


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (RunMemory(2 * GB, GB // 2, GB), "micro_sequences=4"),
        (RunMemory(4 * GB, GB, 2 * GB), "micro_sequences=1 every.background=false"),
        (RunMemory(6 * GB, GB, 0), "no size of a pass fits"),
    ],
)
def test_the_advice_is_the_largest_batch_that_fits(monkeypatch, need, message):
    set_free_memory(monkeypatch, lambda device: 5 * GB)
    config = override(RunConfig(), ["batch.sequences=12"])
    with pytest.raises(UserError, match=message) as raised:
        check_memory(config, need, "cpu")
    assert "\n" not in str(raised.value) and "5.0 GB is free" in str(raised.value)
    set_free_memory(monkeypatch, lambda device: None)
    check_memory(config, need, "cpu")  # where the system does not say, nothing is refused


def test_free_memory_respects_the_control_group(tmp_path):
    assert 2**20 < free_memory("cpu") < 2**50
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert available(tmp_path / "meminfo") == 2**21
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert remaining(tmp_path) == 350_000
    (tmp_path / "memory.max").write_text("max\n")
    assert remaining(tmp_path) is None


def test_a_tokenizer_other_than_the_checkpoints_is_refused(config, tmp_path, monkeypatch):
    train(config, tmp_path / "run")
    monkeypatch.setattr("isoflop.data.tokenizer.Tokenizer.to_json", lambda self: '{"another": 1}')
    with pytest.raises(UserError, match="tokenizer"):
        train(override(config, ["steps=6"]), tmp_path / "run", resume=True)
