"""The average of the weights: what is in it, what uses it, and that it and the optimiser's switches resume exactly."""

import math
from dataclasses import replace

import pytest
import torch

from isoflop import checkpoint
from isoflop.config import override
from isoflop.data.config import DataConfig
from isoflop.data.prepare import prepare
from isoflop.errors import UserError
from isoflop.optim.average import AVERAGES
from isoflop.optim.config import AverageConfig
from isoflop.parallel.mesh import Group
from isoflop.parallel.state import load_tensors, stored_tensors
from isoflop.records import read_run
from isoflop.runtime import make_runtime
from isoflop.trainer import RunConfig, train
from isoflop.trainer.hooks import HeldOut, Hook, Samples
from isoflop.trainer.memory.estimate import average_bytes, upper_bound_bytes
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task
from small import CutAt, PowerCut, write_texts

STEPS = 12
SMALL = [
    "model.layers=2",
    "model.d_model=16",
    "model.heads=2",
    "model.context=32",
    "batch.sequences=4",
    "runtime.device=cpu",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "every.checkpoint=5",
    "every.keep=9",
    "every.evaluate=4",
    "every.sample=6",
    "sample.tokens=4",
    "evaluate_tokens=256",
    f"steps={STEPS}",
]
SWITCHES = {
    "rows": [
        *(
            "optim.neurons=rows",
            "optim.cautious_decay=true",
            "optim.momentum_steps=8",
            "optim.weight_decay_course=cosine",
        ),
        *("model.smear=true", "model.backout=true", "model.attention.qk_scale=1.2"),
    ],
    "columns": [
        *("optim.neurons=longer", "optim.iteration=polar_express", "optim.rounds=4", "optim.value_lr=0.004"),
        *("optim.embedding_betas=[0.8,0.99]", "optim.head_betas=[0.8,0.96]", "optim.weight_decay_course=with_lr"),
        *("model.value_embedding=1", "model.embedding_shortcut=true", "model.shortcut_residual=[1.15,1.05]"),
    ],
    "tail": ["average.name=tail", "average.share=0.7", "average.every=2"],
    "exponential": ["average.name=exponential", "average.beta=0.8", "average.every=3", "optim.name=adamw"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    texts = write_texts(tmp_path_factory.mktemp("averaged") / "texts", files=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_HOME", str(texts.parent / "home"))
        yield prepare(DataConfig(sources=(str(texts),), vocab_size=300, workers=1))


def configured(prepared, *settings):
    base = RunConfig(data=DataConfig(sources=("texts",)))
    return override(base, [*SMALL, f"model.vocab_size={prepared.vocab_size}", *settings])


class Weights(Hook):
    """Keeps the weights after every step, and checks that hooks see the model's own."""

    def __init__(self):
        self.after = []

    def updated(self, state):
        self.after.append({name: p.detach().clone() for name, p in state.model.named_parameters()})

    def stepped(self, state):
        assert all(torch.equal(p, self.after[-1][name]) for name, p in state.model.named_parameters())


def run(config, prepared, out, *hooks):
    return train(config, out, prepared=prepared, hooks=[HeldOut(), Samples(), *hooks])


def tensors_of(folder, step=STEPS):
    path = checkpoint.at_step(folder / "checkpoints", step) / "tensors"
    stored = stored_tensors(path)
    tensors = {name: torch.zeros(entry.shape, dtype=entry.dtype) for name, entry in stored.items()}
    load_tensors(path, tensors, stored)
    return tensors


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_run_trains_and_resumes_with_the_same_bits(switch, prepared, tmp_path):
    config = configured(prepared, *SWITCHES[switch])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(config, prepared, whole)
    with pytest.raises(PowerCut):
        run(config, prepared, broken, CutAt(8))
    train(config, broken, prepared=prepared, resume=True, hooks=[HeldOut(), Samples()])

    one, other = read_run(whole), read_run(broken)
    assert [line.loss for line in one.training] == [line.loss for line in other.training]
    assert one.training[-1].loss < one.training[0].loss
    assert [line.heldout_loss for line in one.heldout] == [line.heldout_loss for line in other.heldout]
    expected, found = tensors_of(whole), tensors_of(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected if not name.startswith("rng"))


@pytest.mark.parametrize("name", ["tail", "exponential"])
def test_the_average_is_evaluated_and_saved_and_training_does_not_see_it(name, prepared, tmp_path):
    config, weights = configured(prepared, *SWITCHES[name]), Weights()
    result = run(config, prepared, tmp_path / "averaged", weights)
    plain = run(replace(config, average=AverageConfig()), prepared, tmp_path / "plain")
    assert result.loss == plain.loss and result.heldout_loss != plain.heldout_loss

    # by hand: tail has the steps after 0.3 * 12 = 3.6 that are even; exponential every third one
    points = [weights.after[step - 1] for step in range(1, STEPS + 1)]
    expected = {}
    for key in points[0]:
        if name == "tail":
            expected[key] = torch.stack([points[step - 1][key] for step in (4, 6, 8, 10, 12)]).mean(0)
        else:
            mean = points[2][key]
            for n, step in enumerate((6, 9, 12), 1):
                mean = torch.lerp(mean, points[step - 1][key], max(1 - 0.8**3, 1 / (n + 1)))
            expected[key] = mean
    model, _, snapshot = checkpoint.load_model(tmp_path / "averaged")
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[key])
        assert torch.equal(snapshot.weights[key], parameter)

    # the last evaluation of the run was of the same weights, and the weights themselves are kept next to them
    found = make_task(config).measure(model, prepared, make_runtime("cpu", "float32", 1), 256)
    assert found.nats_per_token == pytest.approx(result.heldout_loss, rel=1e-6)
    kept = tensors_of(tmp_path / "averaged")
    assert all(torch.equal(kept[f"model.{key}"], points[-1][key]) for key in expected)
    assert {name.removeprefix("average.") for name in kept if name.startswith("average.")} == set(expected)


def test_before_the_tail_there_is_no_average(prepared, tmp_path):
    config = configured(prepared, "average.name=tail", "average.share=0.2", "average.every=100")
    weights = Weights()
    run(config, prepared, tmp_path / "run", weights)
    assert not any(name.startswith("average.") for name in tensors_of(tmp_path / "run", 5))
    snapshot = checkpoint.read(tmp_path / "run")  # the last step is always a point, here the only one
    assert snapshot.progress["averaged"] == 1
    assert all(torch.equal(snapshot.weights[name], tensor) for name, tensor in weights.after[-1].items())


def test_rules_of_the_average():
    tail = AverageConfig(name="tail", share=0.25).entry
    assert [tail.weight(n, u, 1) for n, u in ((0, 0.7), (3, 0.75), (0, 0.76), (1, 0.9), (2, 1.0))] == [
        None,
        None,
        1.0,
        0.5,
        1 / 3,
    ]
    exponential = AverageConfig(name="exponential", beta=0.9).entry
    assert [exponential.weight(n, 0.0, 2) for n in (0, 1, 99)] == [1.0, 0.5, pytest.approx(0.19)]
    assert AverageConfig().entry.weight(0, 1.0, 1) is None
    assert [name for name, cls in AVERAGES.items() if not cls.on] == ["none"]
    for field, value in (("share", 0.0), ("share", 1.1), ("beta", 1.0), ("beta", math.nan), ("every", 0)):
        with pytest.raises(UserError, match=rf"average\.{field} = "):
            AverageConfig(**{field: value})


def test_memory_is_counted_and_sharded_weights_are_refused(prepared):
    plain, averaged = configured(prepared), configured(prepared, "average.name=tail")
    assert (average_bytes(plain, 100), average_bytes(averaged, 100)) == (0, 100)
    assert upper_bound_bytes(averaged) > upper_bound_bytes(plain)
    check_world(override(averaged, ["parallel.mode=ddp"]), Group(0, 2))
    with pytest.raises(UserError, match=r"average\.name = tail .* parallel\.mode = fsdp .* --set parallel\.mode=ddp"):
        check_world(override(averaged, ["parallel.mode=fsdp"]), Group(0, 2))
