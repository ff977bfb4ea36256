import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import divided
from isoflop.errors import UserError
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.parallel import state


class Model(nn.Module):
    def __init__(self, width=8, tied=True):
        super().__init__()
        self.embed = nn.Embedding(13, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(2))
        self.head = nn.Linear(width, 13, bias=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        if tied:
            self.head.weight = self.embed.weight

    def units(self):
        return list(self.blocks)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def make(seed, name="muon", **kwargs):
    torch.manual_seed(seed)
    model = Model(**kwargs)
    return model, build(model, OptimConfig(name=name))


def train(model, optimizers, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(13, (4, 5), generator=generator)
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), (tokens + 1).flatten() % 13).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def everything(model, optimizers):
    tensors = {**state.model_tensors(model), **state.optimizer_tensors(model, optimizers)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def save(folder, model, optimizers):
    folder.mkdir(exist_ok=True)
    state.save_tensors(folder, everything(model, optimizers))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TENSORS = {
    "matrix": torch.randn(4, 5),
    "zero_dim": torch.tensor(3.0),
    "integer": torch.tensor(7),
    "bytes": torch.arange(9, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "bfloat16": torch.randn(3).bfloat16(),
    "float16": torch.randn(2).half(),
    "float64": torch.randn(2, dtype=torch.float64),
    "transposed": torch.randn(4, 6).t(),
    "cut_out": torch.randn(9, 9)[2:4, 3:5],
    "empty": torch.empty(0, 3),
}


def test_every_kind_of_tensor_comes_back(tmp_path):
    state.save_tensors(tmp_path, TENSORS)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]  # no .metadata, nothing but tensors
    back = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    state.load_tensors(tmp_path, back)
    assert_same(back, TENSORS)


def test_a_tensor_is_filled_in_place_whatever_its_layout(tmp_path):
    state.save_tensors(tmp_path, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)})
    whole = torch.zeros(3, 2)
    state.load_tensors(tmp_path, {"a": whole.t()})
    assert torch.equal(whole, torch.arange(6.0).view(2, 3).t())


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("stepped", [False, True])
def test_resuming_is_bit_for_bit(tmp_path, name, stepped):
    model, optimizers = make(0, name)
    train(model, optimizers, 3)
    folder = save(tmp_path / "t", model, optimizers)
    train(model, optimizers, 3, first=3)
    again, its = make(1, name)
    if stepped:
        train(again, its, 1, first=99)
    state.restore(folder, again, its)
    train(again, its, 3, first=3)
    assert_same(everything(again, its), everything(model, optimizers))


@pytest.mark.parametrize("stepped", [False, True])
def test_a_checkpoint_before_the_first_step_is_complete(tmp_path, stepped):
    model, optimizers = make(0)
    folder = save(tmp_path / "t", model, optimizers)
    again, its = make(1)
    if stepped:
        train(again, its, 1)
    state.restore(folder, again, its)
    assert not state.optimizer_tensors(again, its)
    train(model, optimizers, 2)
    train(again, its, 2)
    assert_same(everything(again, its), everything(model, optimizers))


def test_creating_state_changes_no_weight_and_leaves_rates_and_gradients():
    model, optimizers = make(0)
    before = {k: v.detach().clone() for k, v in state.model_tensors(model).items()}
    model.embed.weight.grad = torch.ones_like(model.embed.weight)
    rates = [g["lr"] for o in optimizers for g in o.param_groups]
    created = state.create_state(optimizers)
    assert len(created) == len(list(model.parameters()))
    assert_same(state.model_tensors(model), before)
    assert rates == [g["lr"] for o in optimizers for g in o.param_groups]
    assert torch.equal(model.embed.weight.grad, torch.ones_like(model.embed.weight)) and model.seen == 0
    assert model.blocks[0][1].weight.grad is None


def test_names_are_the_models_and_a_tied_weight_is_stored_once():
    model, optimizers = make(0)
    train(model, optimizers, 1)
    names = set(everything(model, optimizers))
    assert {"model.embed.weight", "model.blocks.1.1.weight", "model.seen"} <= names
    assert {"optim.blocks.0.1.weight.momentum_buffer", "optim.embed.weight.exp_avg", "optim.embed.weight.step"} <= names
    assert not any("head" in name for name in names)
    assert "model.head.weight" in state.model_tensors(Model(tied=False))


def test_wrappers_do_not_appear_in_tensor_names():
    model, _ = make(0)
    model.blocks[0] = torch.compile(model.blocks[0])
    assert set(state.model_tensors(model)) == set(state.model_tensors(Model()))


class Counting(torch.optim.SGD):
    """Keeps a plain number."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                self.state[p]["count"] = self.state[p].get("count", 0) + 1


def test_state_that_is_a_plain_number_stays_one(tmp_path):
    def counting(seed):
        torch.manual_seed(seed)
        model = Model()
        return model, [Counting(model.parameters(), lr=0.1, momentum=0.9)]

    model, optimizers = counting(0)
    train(model, optimizers, 3)
    folder = save(tmp_path / "t", model, optimizers)
    again, its = counting(1)
    state.restore(folder, again, its)
    assert its[0].state[again.embed.weight]["count"] == 3
    train(model, optimizers, 1, first=3)
    train(again, its, 1, first=3)
    assert_same(everything(again, its), everything(model, optimizers))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 16}, r"model\.embed\.weight' is \(13, 8\) in the checkpoint and \(13, 16\) in the run"),
        ({"tied": False}, r"no 'model\.head\.weight'"),
        ({"name": "adamw"}, r"optim\.blocks\.0\.1\.weight\.momentum_buffer'"),
    ],
)
def test_a_mismatch_is_named_and_changes_nothing(tmp_path, other, message):
    model, optimizers = make(0)
    train(model, optimizers, 1)
    folder = save(tmp_path / "t", model, optimizers)
    again, its = make(1, **other)
    before = everything(again, its)
    with pytest.raises(UserError, match=message):
        state.restore(folder, again, its)
    assert_same(everything(again, its), before)


def test_a_tensor_that_the_model_lacks_is_named(tmp_path):
    model, optimizers = make(0, tied=False)
    folder = save(tmp_path / "t", model, optimizers)
    with pytest.raises(UserError, match=r"model\.head\.weight' and the model does not"):
        state.restore(folder, *make(0))


def test_another_dtype_is_refused(tmp_path):
    state.save_tensors(tmp_path, {"a": torch.ones(2)})
    with pytest.raises(UserError, match=r"float32 in the checkpoint and torch\.bfloat16 in the run"):
        state.load_tensors(tmp_path, {"a": torch.ones(2, dtype=torch.bfloat16)})


def header(claimed, text=b""):
    return struct.pack("<Q", claimed) + text


HUGE = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        header(2**63),
        header(2**40, b"{}"),
        header(5, b"[" * 5),
        header(100_000, b"[" * 100_000),
        header(len(HUGE), HUGE + b"\0" * 16),
    ],
)
def test_a_broken_header_is_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as safetensors") as raised:
        state.stored_tensors(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "info",
    [
        "[]",
        "{",
        '{"a": 3}',
        '{"a": {"saved_offsets": "xy"}}',
        '{"a": {"saved_offsets": [-2, 0]}}',
        '{"a": {"saved_offsets": [9, 0]}}',
        '{"a": {"saved_offsets": [1e400, 0]}}',
        "[" * 100_000,
    ],
)
def test_wrong_offsets_are_one_line(tmp_path, info):
    save_file({"a": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"DCP_SHARDING_INFO": info})
    with pytest.raises(UserError):
        state.stored_tensors(tmp_path)


def test_a_disk_error_is_an_oserror(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError):
        state.save_tensors(tmp_path / "file" / "x", {"a": torch.ones(2)})


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    model, optimizers = make(0)
    train(model, optimizers, 1)
    folder = save(tmp_path / "t", model, optimizers)
    (folder / ".metadata").write_bytes(b"not for reading")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    state.restore(folder, *make(1))


def test_two_processes_save_and_one_loads(two, groups):
    folders = {name: groups / "state-fsdp-2" / name for name in ("tensors", "later", "resumed")}
    assert len(list(folders["tensors"].glob("*.safetensors"))) == 2
    loaded = {}
    for name, folder in folders.items():
        model, optimizer = divided.make()
        state.restore(folder, model, [optimizer])
        loaded[name] = everything(model, [optimizer])
        if name == "tensors":  # goes on alone as the two did together
            divided.train(model, optimizer, 2, 2)
            alone = everything(model, [optimizer])
    assert_same(loaded["resumed"], loaded["later"])
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, loaded["later"][name])
    next(iter(folders["tensors"].glob("shard-00002*"))).unlink()
    model, optimizer = divided.make()
    with pytest.raises(UserError):  # a shard is missing
        state.restore(folders["tensors"], model, [optimizer])
