"""Measurements without training equal their definitions."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.lab import damage
from isoflop.lab.arms import BASE, with_steps
from isoflop.lab.procedures import across, diagnosed, exact, initial, ngram, published, train, worked
from isoflop.lab.procedures.job import Job, log10, slope
from isoflop.model.build import build_model
from isoflop.model.gpt import GPT
from isoflop.runtime import make_runtime, seed_everything
from isoflop.trainer import RunConfig
from isoflop.trainer.task import make_task
from small import write_texts

TINY = ("model.layers=2", "model.d_model=32", "model.heads=2", "model.context=32", "batch.sequences=8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("lab") / "texts", files=12)


def configured(texts, *given, steps=1):
    base = RunConfig(data=DataConfig(sources=(str(texts),)))
    few = ("data.vocab_size=300", "model.vocab_size=300")
    return with_steps(override(base, [*BASE, *TINY, *few, *given]), steps)


def test_a_bigram_model_gives_probabilities_that_add_up_to_one():
    tokens = np.random.default_rng(0).integers(0, 7, 400)
    tokens = np.where(tokens == 6, 5, tokens)  # 6 never comes up
    model = ngram.Bigram.of(tokens, 7)
    for before in range(7):
        p = model.probability(np.full(7, before), np.arange(7))
        assert p.sum() == pytest.approx(1.0) and (p > 0).all()


def test_a_bigram_model_learns_what_follows_what():
    tokens = np.tile([0, 1, 2], 200)
    model = ngram.Bigram.of(tokens, 3)
    assert model.probability(np.array([0, 1]), np.array([1, 0]))[0] > 0.98


def test_ngrams_and_models_are_measured_on_the_same_tokens(texts):
    config = configured(texts)
    prepared = make_task(config).prepare_data(config.data)
    model = build_model(config.task, config.model)
    for most in (0, 100):
        found = make_task(config).measure(model, prepared, make_runtime("cpu", "float32", 1), most)
        _, words, size = ngram.heldout(config, prepared, most)
        assert (found.tokens, found.bytes) == (len(words), size)


def test_a_longer_ngram_predicts_better(texts):
    found = [ngram.ngram(Job("ngram", configured(texts), options={"order": n})).measures for n in (1, 2)]
    one, two = (measures["bits_per_byte"] for measures in found)
    assert two < one < found[0]["uniform_bits_per_byte"]
    with pytest.raises(UserError, match="1 or 2"):
        ngram.ngram(Job("ngram", configured(texts), options={"order": 3}))


def test_gradients_by_layer_are_torch_s(texts):
    config = configured(texts, "model.init=xavier")
    job = Job("initial", config)
    found = initial.initial(job)
    inputs, targets = initial.batch(job)
    seed_everything(config.seed)
    model = GPT(config.model)
    torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    for layer, block in enumerate(model.blocks):
        norm = torch.nn.utils.get_total_norm([p.grad for p in block.parameters()])
        assert found.lists["log10_gradient"][layer] == pytest.approx(math.log10(float(norm)), abs=1e-4)


def test_depths_are_models_of_their_own(texts):
    config = configured(texts, "model.init=xavier", "model.norm=none", "model.final_norm=false", "model.wiring=none")
    found = initial.initial(Job("initial", config, options={"depths": [1, 2, 4]}))
    assert found.lists["depth"] == [1.0, 2.0, 4.0] and len(found.lists["layer"]) == 4
    assert found.measures["first_gradient_by_depth"] < 0  # nothing carries the gradient through
    with pytest.raises(UserError, match="rising"):
        initial.initial(Job("initial", config, options={"depths": [4, 2]}))


def test_slopes_and_logarithms_are_bounded():
    assert slope([1, 2, 3], [5, 7, 9]) == pytest.approx(2.0) and slope([1, 1], [0, 5]) == 0.0
    assert log10(0.0) == -38.0 and log10(math.inf) == log10(math.nan) == 38.0 and log10(100.0) == pytest.approx(2.0)


@pytest.mark.parametrize(("feed_forward", "linear"), [("none", True), ("linear", True), ("mlp", False)])
def test_with_fixed_attention_only_an_activation_is_not_linear(texts, feed_forward, linear):
    config = configured(texts, f"model.feed_forward={feed_forward}", "model.attention=full", "model.position=none")
    found = exact.linear(Job("linear", config)).measures
    assert (found["nonlinearity"] < -12) == linear
    assert found["nonlinearity_whole"] > -6


@pytest.mark.parametrize(
    ("norm", "leaks"),
    [("layer", False), ("rms", False), ("batch", False), ('{"name":"batch","over":"batch_time"}', True)],
)
def test_only_batch_norm_over_positions_sees_the_future(texts, norm, leaks):
    found = exact.future(Job("future", configured(texts, f"model.norm={norm}", "model.init=xavier"))).measures
    assert (found["leak_in_training"] > -9) == leaks
    assert found["leak_in_evaluation"] == -20.0


def test_the_worked_table_is_the_one_of_the_notes(texts):
    row = worked.worked(Job("worked", configured(texts), options={"by": "row"}))
    values = np.array([0.28, 0.38, 0.5, 0.4])
    assert row.lists["cat"] == pytest.approx(list((values - values.mean()) / values.std()))
    assert row.measures["dependence"] == 0.0 and row.measures["row_spread"] < 1e-12
    column = worked.worked(Job("worked", configured(texts), options={"by": "column"}))
    features = np.array([0.28, 0.32, 0.9])
    assert column.lists["cat"][0] == pytest.approx((0.28 - features.mean()) / features.std())
    assert column.measures["dependence"] > 0.1


def test_published_values_are_one_for_each_case(texts):
    job = Job("published", configured(texts), order=1, options={"values": [0.9, 0.8]})
    assert published.published(job).measures["value"] == 0.8
    with pytest.raises(UserError, match="2 cases"):
        published.published(Job("published", configured(texts), order=2, options={"values": [0.9, 0.8]}))


def test_compute_covers_the_range_of_unpublished_figures():
    options = {"parameters": 1e9, "tokens": [1e9, 1e11], "than_parameters": 1e8, "than_tokens": [1e8, 1e9]}
    found = [published.compute(Job("compute", None, n, options)).measures["log10_ratio"] for n in range(5)]
    assert found == pytest.approx([1.0, 1.75, 2.5, 3.25, 4.0])
    halved = published.compute(Job("compute", None, 4, {**options, "generations": 2}))
    assert halved.measures["log10_ratio"] == pytest.approx(2.0)
    for wrong, said in (
        ({"tokens": [2, 1]}, "neither a positive number nor a range"),
        ({"parameters": "1e9"}, "options.parameters"),
        ({"generations": 0}, "options.generations"),
    ):
        with pytest.raises(UserError, match=said):
            published.compute(Job("compute", None, 0, {**options, **wrong}))
    with pytest.raises(UserError, match="5 cases"):
        published.compute(Job("compute", None, 5, options))


def test_damaged_text_keeps_the_held_out_text_and_damages_the_stated_share(corpus):
    data = DataConfig(sources=(str(corpus),))
    found = {}
    for kind in ("none", *damage.KINDS):
        shares = {kind: 0.5} if kind != "none" else {"shuffled": 0.0}
        damage.write(data, shares)
        train, heldout = (path.read_text(encoding="utf-8").splitlines() for path in damage.paths_of(data, shares))
        found[kind] = train
        assert heldout == found.setdefault("heldout", heldout) and heldout
    for kind in damage.KINDS:
        changed = sum(a != b for a, b in zip(found["none"], found[kind], strict=True)) / len(found["none"])
        assert 0.25 < changed < 0.75, kind
    ordered = [sorted(json.loads(line)["text"].split("\n")) for line in found["none"]]
    assert ordered == [sorted(json.loads(line)["text"].split("\n")) for line in found["shuffled"]]
    assert len(set(found["duplicates"])) == len(found["duplicates"])  # none is an exact copy
    with pytest.raises(UserError, match="did you mean shuffled"):
        damage.check({"shufled": 0.5}, "b")


def test_each_source_has_its_own_held_out_text(texts, corpus):
    data = DataConfig(sources=(f"one={texts}", f"two={corpus}"))
    damage.write_apart(data, ("one", "two"))
    one, both = damage.apart(data, ("one",), ("one", "two")), damage.apart(data, ("one", "two"), ("one", "two"))
    assert one.heldout == both.heldout and one.sources == both.sources[:1]
    trained = {text.partition("=")[0]: Path(text.partition("=")[2]).read_text() for text in both.sources}
    held = {text.partition("=")[0]: Path(text.partition("=")[2]).read_text() for text in both.heldout}
    assert trained.keys() == held.keys() == {"one", "two"}
    for name in held:
        assert held[name] and not set(held[name].splitlines()) & set(trained[name].splitlines())


# training


def test_a_pair_shares_its_data_and_not_its_initial_weights(texts):
    config = configured(texts)
    task = make_task(config)
    prepared = task.prepare_data(config.data)
    shared = train.SharedOrder(task, 3)
    one, other = (shared.batches(override(config, [f"seed={seed}"]), prepared).batch(0)[0] for seed in (3, 8003))
    assert torch.equal(one, other)
    assert not torch.equal(one, train.SharedOrder(task, 4).batches(config, prepared).batch(0)[0])


def test_training_is_measured_and_a_diverged_run_is_infinitely_bad(texts):
    found = train.train(Job("train", configured(texts, steps=20)))
    assert 0 < found.measures["bits_per_byte"] < 9 and found.measures["tokens"] == 20 * 8 * 32
    assert found.lists["heldout"][-1] <= found.lists["heldout"][0] and not found.diverged
    assert set(found.measures) == set(train.MEASURES)

    wild = configured(texts, "optim.name=adamw", "optim.lr=1e30", "optim.clip=0", steps=20)
    lost = train.train(Job("train", wild))
    assert lost.diverged and math.isinf(lost.measures["bits_per_byte"]) and lost.measures["failed"] == 1.0


def test_diagnostics_are_measures_and_do_not_change_the_run(texts):
    config = configured(texts, "model.init=xavier", steps=12)
    plain = train.train(Job("train", config)).measures
    found = diagnosed.diagnosed(Job("diagnosed", config, options={"times": 3}))
    assert all(found.measures[name] == plain[name] for name in plain if name != "seconds")
    assert found.lists["step"] == [4.0, 8.0]
    shift = found.lists["covariate_shift"]
    assert found.measures["covariate_shift"] == pytest.approx(sum(shift) / 2) and all(map(math.isfinite, shift))
    assert -1 <= found.measures["shift_cosine"] <= 1 and found.measures["leakage"] < -6
    assert "load_entropy" not in found.measures  # it has no experts
    with pytest.raises(UserError, match=r"options\.times"):
        diagnosed.diagnosed(Job("diagnosed", config, options={"times": 0}))


def test_a_model_is_measured_on_each_held_out_source(texts, corpus):
    config = configured(texts, steps=20)
    for path in corpus.glob("*.txt"):
        path.write_text(path.read_text().upper())
    data = DataConfig(sources=(f"one={texts}", f"two={corpus}"), vocab_size=300)
    damage.write_apart(data, ("one", "two"))
    apart = damage.apart(data, ("one",), ("one", "two"))
    found = across.across(Job("across", replace(config, data=apart))).measures
    assert set(found) == {*train.MEASURES, "on_one", "on_two"}
    assert found["on_one"] < found["bits_per_byte"] < found["on_two"]  # it was trained on the first
    with pytest.raises(UserError, match="--ray"):
        across.across(Job("across", config))
