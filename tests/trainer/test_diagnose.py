"""Measures of a model on a probe batch, and the hook that takes them without changing the run's bits."""

import math

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import override
from isoflop.model.build import build_model
from isoflop.model.config import ModelConfig, Spec
from isoflop.records import read_run
from isoflop.report.page import write_report
from isoflop.trainer import RunConfig, train
from isoflop.trainer.diagnose import Diagnose, measures
from isoflop.trainer.task import make_task
from small import TINY

VOCABULARY, CONTEXT = 64, 24


def made(task="causal_lm", **fields):
    """A small model whose branches do not start at zero, its loss and a batch."""
    base = {"layers": 2, "d_model": 16, "heads": 2, "context": CONTEXT, "vocab_size": VOCABULARY}
    config = RunConfig(task=task, model=ModelConfig(**{**base, **fields}))
    torch.manual_seed(0)
    model = build_model(task, config.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens_BT = torch.randint(VOCABULARY, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(1))
    batch = (tokens_BT[:, :-1], tokens_BT[:, 1:])
    if task == "seq2seq":
        source_BS = tokens_BT[:, :10]
        batch = (source_BS, torch.ones_like(source_BS, dtype=torch.bool), *batch)
    of_model = make_task(config)
    return model, lambda model, *parts: of_model.loss(model, *parts), batch


def test_every_parameter_is_in_one_layer():
    for fields in ({}, {"tied_head": True, "position": Spec("learned")}):
        model, _, _ = made(**fields)
        groups = measures.layers(model)
        assert list(groups)[:3] == ["input", "1", "2"]
        everything = [id(parameter) for group in groups.values() for parameter in group]
        assert sorted(everything) == sorted({id(parameter) for parameter in model.parameters()})


def test_gradient_norms_are_those_of_a_backward_pass():
    model, loss, batch = made()
    found = measures.gradient_norms(model, loss, batch)
    loss(model, *batch).backward()
    for name, group in measures.layers(model).items():
        norm = torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
        assert found[name] == pytest.approx(float(norm), rel=1e-5)


@pytest.mark.parametrize("attention", ["full", "banded", "latent", "alternating"])
@pytest.mark.parametrize("position", ["rotary", "alibi"])
def test_attention_entropy_is_measured_in_every_kernel(attention, position):
    if attention == "latent" and position == "alibi":
        pytest.skip("latent attention has positions of its own")
    model, _, batch = made(attention=Spec(attention), position=Spec(position))
    found = measures.activations(model, batch)
    assert set(found["attention_entropy"]) == set(found["activation_norm"]) == set(found["rank_residual"]) == {"1", "2"}
    assert all(0 < value <= 1 + 1e-5 for value in found["attention_entropy"].values())


def test_equal_attention_has_an_entropy_of_one_and_alike_positions_no_rank():
    model, _, batch = made(position=Spec("none"))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q.weight.zero_()
    assert measures.activations(model, batch)["attention_entropy"]["1"] == pytest.approx(1.0, abs=1e-5)
    same = (torch.full_like(batch[0], 7), batch[1])
    assert measures.activations(model, same)["rank_residual"]["2"] == pytest.approx(0.0, abs=1e-4)


def test_experts_report_their_load():
    model, _, batch = made(feed_forward=Spec("moe", experts=4, top_k=2))
    found = measures.activations(model, batch)
    assert set(found["load_entropy"]) == {"1", "2"} and all(0 < v <= 1 for v in found["load_entropy"].values())
    assert set(found["attention_entropy"]) == {"1", "2"}  # the router's softmax is not taken for attention
    assert all(0 < value <= 1 + 1e-5 for value in found["attention_entropy"].values())


def test_only_a_norm_over_time_leaks_the_future():
    assert measures.leakage(*made()[::2]) == 0.0
    assert measures.leakage(*made(norm=Spec("batch"))[::2]) == 0.0
    assert measures.leakage(*made(norm=Spec("batch", over="batch_time"))[::2]) > 1e-4


def test_sharpness_is_the_second_derivative_along_the_gradient():
    model, loss, batch = made(feed_forward=Spec("mlp", activation="gelu"))
    model = model.double()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss(model, *batch), parameters)
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))

    def along(far):
        with measures.shifted(parameters, gradients, far / length), torch.no_grad():
            return float(loss(model, *batch))

    step = 1e-3
    exact = (along(step) - 2 * along(0.0) + along(-step)) / step**2
    assert measures.sharpness(model, loss, batch) == pytest.approx(exact, rel=0.1)


def test_an_update_of_the_top_layer_shifts_nothing_below():
    model, loss, batch = made()
    before = {name: [p.detach().clone() for p in group] for name, group in measures.layers(model).items()}
    shift, cosine = measures.covariate_shift(model, loss, batch, before)
    assert all(value == pytest.approx(0, abs=1e-5) for value in shift.values())
    assert all(value == pytest.approx(1, abs=1e-5) for value in cosine.values())
    assert set(measures.update_ratios(before, before).values()) == {0.0}

    after = {name: [t + 0.05 if name == "1" else t for t in group] for name, group in before.items()}
    shift, cosine = measures.covariate_shift(model, loss, batch, after)
    assert shift["1"] == pytest.approx(0, abs=1e-5) and shift["2"] > 0.01 and cosine["2"] < 1
    ratios = measures.update_ratios(before, after)
    assert ratios["1"] > 0 and ratios["2"] == 0
    for name, group in measures.layers(model).items():
        assert all(torch.equal(p, kept) for p, kept in zip(group, before[name], strict=True))  # as it was


def test_an_encoder_decoder_has_the_same_measures():
    model, loss, batch = made(task="seq2seq", encoder_layers=1)
    assert set(measures.gradient_norms(model, loss, batch)) == {"input", "1", "2", "3", "output"}
    assert set(measures.activations(model, batch)["attention_entropy"]) == {"1", "2", "3"}
    assert measures.leakage(model, batch) == 0.0


def learned(folder):
    tensors = {}
    for path in folder.rglob("*.safetensors"):
        loaded = load_file(path).items()
        tensors |= {f"{path.relative_to(folder)}:{name}": tensor.numpy().tobytes() for name, tensor in loaded}
    return tensors, [(line.step, line.loss, line.grad_norm) for line in read_run(folder).training]


def test_a_run_that_is_diagnosed_has_the_same_bits_and_shows_it(corpus, tmp_path):
    more = ["steps=7", "model.dropout=0.1", "guard.preflight=false", "every.diagnose=3", "model.norm=batch"]
    config = override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', *more])
    train(config, tmp_path / "plain")
    train(config, tmp_path / "seen", hooks=[Diagnose()])
    assert learned(tmp_path / "plain") == learned(tmp_path / "seen")

    lines = read_run(tmp_path / "seen").diagnostics
    assert [line.step for line in lines] == [1, 3, 6, 7]
    assert set(lines[0].by_layer) >= {"gradient_norm", "rank_residual", "attention_entropy", "covariate_shift"}
    assert "update_ratio" not in lines[-1].by_layer and set(lines[-1].whole) == {"sharpness", "leakage"}
    assert not read_run(tmp_path / "plain").diagnostics
    page = write_report([tmp_path / "seen"]).read_text()
    assert "Inside the model" in page and "Rank residual by layer and step" in page
