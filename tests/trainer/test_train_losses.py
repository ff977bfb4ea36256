"""Losses and modules that only training uses, in whole runs: stopped, resumed, loaded, used as --init."""

from dataclasses import replace

import pytest
import torch

from isoflop import checkpoint
from isoflop.config import from_dict, override, to_dict
from isoflop.errors import UserError
from isoflop.measure import measure
from isoflop.model.config import Spec
from isoflop.model.count import flops_per_token, parameters
from isoflop.model.loss import LOSSES, CrossEntropy
from isoflop.records import read_run
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, train
from isoflop.trainer.hooks import HeldOut, Hook
from small import TINY, CutAt, PowerCut


def config_for(corpus, *more):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    return override(start, [*TINY, "model.vocab_size=320", "steps=8", *more])


@pytest.mark.parametrize(
    "more",
    [
        ["loss=multi_token", "loss.tokens=3", "model.norm=batch"],
        ["loss=z_loss", "loss.coefficient=1e-3", "model.feed_forward=moe", "batch.micro_sequences=4"],
        ["loss=multi_token", "model.value_embedding=1", "model.embedding_shortcut=true", "model.logit_cap=15"],
    ],
)
def test_an_interrupted_run_resumes_with_the_same_bits(corpus, tmp_path, more):
    config = config_for(corpus, *more)
    train(config, tmp_path / "whole", hooks=[HeldOut()])
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", hooks=[CutAt(7)])
    train(config, tmp_path / "cut", hooks=[HeldOut()], resume=True)
    whole, cut = (read_run(tmp_path / name) for name in ("whole", "cut"))
    assert [line.loss for line in whole.training] == [line.loss for line in cut.training]
    assert [line.heldout_loss for line in whole.heldout] == [line.heldout_loss for line in cut.heldout]
    assert all(("load_entropy" in line.others) == ("model.feed_forward=moe" in more) for line in whole.heldout)
    one, other = (checkpoint.read(tmp_path / name).weights for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_held_out_loss_is_plain_and_loading_drops_extra_heads(corpus, tmp_path):
    config = config_for(corpus, "loss=multi_token")

    class Keep(Hook):
        def started(self, state):
            self.state = state

    keep = Keep()
    train(config, tmp_path / "run", hooks=[HeldOut(), keep])
    run = read_run(tmp_path / "run")
    model, _, snapshot = checkpoint.load_model(tmp_path / "run")
    assert len(model.ahead) == 0 and not any("ahead" in name for name in snapshot.weights)
    assert len(keep.state.model.ahead) == 3
    prepared = keep.state.prepared
    found = measure(
        model,
        prepared.heldout(),
        prepared.tokenizer.token_bytes(),
        prepared.tokenizer.eot,
        make_runtime("cpu", "float32", 1),
        config.evaluate_tokens,
    )
    assert found.nats_per_token == pytest.approx(run.heldout[-1].heldout_loss, rel=1e-5)
    assert run.training[0].loss == pytest.approx(4 * 5.77, rel=0.05)  # four heads, each at ln 320

    onward = config_for(corpus, "steps=2", f"init={tmp_path / 'run'}")
    train(onward, tmp_path / "onward")
    assert read_run(tmp_path / "onward").training[0].loss < 5.7


def test_flops_count_what_the_loss_adds():
    plain = RunConfig()
    ahead = override(plain, ["loss=multi_token", "loss.tokens=2"])
    n = parameters(plain.model)
    assert plain.flops_per_token == flops_per_token(plain.model)
    block = (n.matmul - n.head) // plain.model.layers
    assert ahead.flops_per_token == 6 * (n.matmul + block + n.head)


class Tempered(CrossEntropy):
    """A loss of a test's own: cross-entropy of logits that are divided by a temperature."""

    def __init__(self, *, temperature: float = 2.0) -> None:
        self.temperature = temperature

    def __call__(self, model, inputs_BT, targets_BT):
        return self.of(model, model.hidden(inputs_BT) / self.temperature, targets_BT)


def test_a_loss_is_one_class_and_one_line(corpus, tmp_path, monkeypatch):
    """Trained, stopped, resumed, described and refused by nothing but its line in the table."""
    monkeypatch.setitem(LOSSES, "tempered", Tempered)
    config = config_for(corpus, "loss=tempered", "loss.temperature=4", "steps=6")
    assert from_dict(RunConfig, to_dict(config)) == config
    train(config, tmp_path / "whole", hooks=[HeldOut()])
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", hooks=[CutAt(5)])
    train(config, tmp_path / "cut", hooks=[HeldOut()], resume=True)
    whole, cut = (read_run(tmp_path / name) for name in ("whole", "cut"))
    losses = [line.loss for line in whole.training]
    assert losses == [line.loss for line in cut.training] and losses[-1] < losses[0]
    plain = config_for(corpus, "steps=6")
    train(plain, tmp_path / "plain")
    assert losses[1:] != [line.loss for line in read_run(tmp_path / "plain").training][1:]  # it did matter
    with pytest.raises(UserError, match=r"loss\.temprature is not an option of tempered: did you mean temperature"):
        override(config, ["loss.temprature=3"])
    with pytest.raises(UserError, match=r"loss = 'temperd' is not one of .*, tempered; did you mean tempered"):
        override(config, ["loss=temperd"])


def test_the_loss_is_named_in_the_configuration():
    config = override(RunConfig(), ["loss=label_smoothing", "loss.eps=0.05"])
    assert config.loss == Spec("label_smoothing", eps=0.05)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert RunConfig(loss="z_loss").loss == Spec("z_loss")
    with pytest.raises(UserError, match="loss = 'crossentropy' is not one of"):
        override(RunConfig(), ["loss=crossentropy"])
    with pytest.raises(UserError, match="loss = multi_token: tokens = 999 is not between"):
        override(RunConfig(), ["loss=multi_token", "loss.tokens=999"])
