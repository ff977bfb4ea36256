"""A sharded model is initialised unit by unit, with the same weights as an unsharded one."""

import pytest
import torch

from isoflop.config import override
from isoflop.errors import UserError
from isoflop.model.build import build_model
from isoflop.parallel.mesh import Group
from isoflop.parallel.shard import fill
from isoflop.runtime import seed_everything
from isoflop.trainer.config import RunConfig
from isoflop.trainer.processes import check_world
from isoflop.trainer.task import make_task

SMALL = ["model.layers=2", "model.d_model=32", "model.heads=2", "model.context=16", "model.vocab_size=64"]
CASES = {
    "default": [],
    "gpt2": ["model=gpt2"],
    "heads for later tokens": ["model.init=gpt2", "loss=multi_token"],
    "experts": ["model.feed_forward=moe"],
    "value embeddings": ["model.value_embedding=1", "model.init=gpt2"],
    "pairs": ["task=seq2seq", "model.init=gpt2"],
}


def build(config, device):
    seed_everything(3)
    with torch.device(device):
        model = build_model(config.task, config.model)
    make_task(config).prepare(model)
    return model


@pytest.mark.parametrize("case", CASES)
def test_a_model_initialised_shard_by_shard_equals_the_whole_one(case):
    config = override(RunConfig(), [*CASES[case], *SMALL])
    whole, empty = build(config, "cpu"), build(config, "meta")
    order = []
    fill(empty, "cpu", {}, order.append)
    expected = whole.state_dict()
    assert empty.state_dict().keys() == expected.keys()
    for name, tensor in empty.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for name, buffer in empty.named_buffers():
        assert torch.equal(buffer, dict(whole.named_buffers())[name]), name
    units = [module for module in order if any(module is unit for unit in empty.units())]
    assert units == list(empty.units())  # each full before the next is begun
    assert order[-1] is empty


def test_given_weights_replace_the_initial_ones():
    config = override(RunConfig(), SMALL)
    other = build(override(config, ["model.init=gpt2"]), "cpu").state_dict()
    model = build(config, "meta")
    fill(model, "cpu", other, lambda module: None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("field", ["parallel.gather=bfloat16", "parallel.reduce=every"])
def test_options_of_sharded_models_are_refused_elsewhere(field):
    config = override(RunConfig(), [field, "runtime.dtype=bfloat16", "parallel.mode=ddp"])
    with pytest.raises(UserError, match=r"fsdp or hsdp; the mode is ddp"):
        check_world(config, Group(0, 2))


def test_weights_are_not_rounded_where_products_read_float32():
    config = override(RunConfig(), ["parallel.gather=bfloat16", "runtime.dtype=float32", "parallel.mode=fsdp"])
    with pytest.raises(UserError, match=r"runtime.dtype=bfloat16"):
        check_world(config, Group(0, 2))
