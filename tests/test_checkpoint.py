import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import isoflop
from isoflop import checkpoint
from isoflop.checkpoint import STEP_FOLDER
from isoflop.config import to_dict
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import sha256
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from isoflop.parallel import state
from isoflop.untrusted import LARGEST_TEXT


class Model(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(13, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Dropout(0.5)) for _ in range(2))
        self.head = nn.Linear(width, 13, bias=False)
        self.head.weight = self.embed.weight

    def units(self):
        return list(self.blocks)

    def forward(self, tokens):
        h = self.embed(tokens)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


def make(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Model(**kwargs)
    return model, build(model, OptimConfig())


def train(model, optimizers, steps, first=0):
    for step in range(first, first + steps):
        tokens = (torch.arange(10) * 3 + step) % 13
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 13).backward()  # dropout draws from torch's generator
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def everything(model, optimizers):
    tensors = {**state.model_tensors(model), **state.optimizer_tensors(model, optimizers), **state.generator_tensors()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same(a, b):
    assert list(a) == list(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def save(folder, model, optimizers, step=3, **changes):
    given = {"config": {"model": {"d": 8}}, "tokenizer": '{"a": "\r\n é"}', "fingerprint": "f" * 64}
    given |= {"progress": {"seconds": 1.25, "tokens": 30}}
    return checkpoint.write(checkpoint.take(folder, step=step, model=model, optimizers=optimizers, **given | changes))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "checkpoints"
    model, optimizers = make()
    train(model, optimizers, 3)
    save(folder, model, optimizers, step=3)
    train(model, optimizers, 2, first=3)
    save(folder, model, optimizers, step=5)
    return folder


@pytest.fixture
def saved(tmp_path, template):
    """run/checkpoints with steps 3 and 5; the path of step 5."""
    shutil.copytree(template, tmp_path / "run" / "checkpoints")
    return tmp_path / "run" / "checkpoints" / "step-00000005"


def rewrite_manifest(path):
    """Make a tampered checkpoint's manifest true again, as somebody hostile would."""
    files = {
        name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in checkpoint.listing(path).items()
    }
    files.pop("manifest.json")
    (path / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT, "files": files}))


# ---- what a user relies on


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    model, optimizers = make()
    train(model, optimizers, 3)
    path = save(tmp_path, model, optimizers)
    train(model, optimizers, 3, first=3)
    unbroken = everything(model, optimizers)
    again, its = make(seed=1)
    progress = checkpoint.load(path, again, its)
    assert progress == {"seconds": 1.25, "tokens": 30, "step": 3, "fingerprint": "f" * 64}
    train(again, its, 3, first=3)
    assert_same(everything(again, its), unbroken)


def test_a_folder_is_self_contained_and_holds_nothing_but_tensors_and_json(saved):
    names = set(checkpoint.listing(saved))
    assert {"manifest.json", "config.json", "tokenizer.json", "state.json"} <= names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    moved = saved.parents[2] / "elsewhere"
    shutil.copytree(saved, moved)
    checkpoint.load(moved, *make())


def test_reading_needs_a_run_a_checkpoint_or_a_step(saved):
    run = saved.parents[1]
    last = checkpoint.read(run)
    assert (last.step, last.path) == (5, saved)
    assert checkpoint.read(saved).step == 5
    assert checkpoint.read(str(run), step=3).step == 3
    assert last.tokenizer == '{"a": "\r\n é"}' and last.config == {"model": {"d": 8}}
    assert last.progress["tokens"] == 30 and last.fingerprint == "f" * 64
    assert set(last.weights) == {"embed.weight", *(f"blocks.{i}.0.{n}" for i in (0, 1) for n in ("weight", "bias"))}
    model, _ = make(seed=9)
    checkpoint.load_weights(model, last.weights)
    assert torch.equal(model.head.weight, last.weights["embed.weight"])


def test_a_run_without_checkpoint_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no checkpoint yet"):
        checkpoint.read(tmp_path)
    with pytest.raises(UserError, match="neither a run nor a checkpoint"):
        checkpoint.read(tmp_path / "nothing")


def test_checkpoints_are_found_and_other_files_ignored(saved):
    folder = saved.parent
    for stranger in ("step-x", "step-00000009", ".step-00000009.ab12.tmp", "step-7", "notes"):
        (folder / stranger).mkdir()
    (folder / "step-00000011").write_text("a file")
    (folder / "step-000000005").mkdir()
    (folder / "step-000000005" / "manifest.json").write_text("{}")
    assert checkpoint.steps(folder) == [3, 5]
    assert checkpoint.latest(folder) == saved
    assert checkpoint.at_step(folder, 3) == folder / "step-00000003"
    with pytest.raises(UserError, match="no checkpoint of step 4; the steps that have one: 3, 5"):
        checkpoint.at_step(folder, 4)
    assert checkpoint.steps(folder / "absent") == [] and checkpoint.latest(folder / "absent") is None


def test_pruning_keeps_the_last_and_those_named(tmp_path):
    model, optimizers = make()
    for step in range(1, 7):
        save(tmp_path, model, optimizers, step=step)
    (tmp_path / ".step-00000009.ab12cd34.tmp").mkdir()
    checkpoint.prune(tmp_path, keep_last=2, keep={1, 3, 99})
    assert checkpoint.steps(tmp_path) == [1, 3, 5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (1, 3, 5, 6)]
    for step in (1, 3, 5, 6):
        checkpoint.verify(checkpoint.at_step(tmp_path, step))


def test_saving_a_step_again_replaces_it(tmp_path):
    model, optimizers = make()
    save(tmp_path, model, optimizers)
    path = save(tmp_path, model, optimizers, progress={"seconds": 9})
    assert checkpoint.load(path, model, optimizers)["seconds"] == 9
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_model_of_a_run_comes_back_with_its_tokenizer(tmp_path):
    tokenizer = Tokenizer.train(["a rose is a rose is a rose " * 20], 260)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, context=16, layers=1, d_model=16, heads=2)
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (tmp_path / "config.json").write_text("{}")
    plain = {"model": to_dict(config)}
    where = {"config": plain, "tokenizer": tokenizer.to_json()}
    save(tmp_path / "checkpoints", model, build(model, OptimConfig()), **where)
    again, its_tokenizer, snapshot = checkpoint.load_model(tmp_path)
    tokens = torch.tensor([its_tokenizer.encode("a rose is")])
    assert torch.equal(again(tokens), model(tokens)) and not again.training and snapshot.step == 3
    assert its_tokenizer.decode(its_tokenizer.encode("a rosé")) == "a rosé"
    for wrong in ({"layers": 10**9}, {"d_model": 2**20, "heads": 2}, {"vocab_size": 10**13}):
        lying = {"model": {**plain["model"], **wrong}}
        save(tmp_path / "checkpoints", model, [], **where | {"config": lying})
        with pytest.raises(UserError):
            checkpoint.load_model(tmp_path)


def test_a_mismatch_is_named_and_changes_nothing(saved):
    model, optimizers = make(seed=1, width=16)
    before = everything(model, optimizers)
    with pytest.raises(UserError, match=r"model\.embed\.weight' is \(13, 8\) in the checkpoint and \(13, 16\)"):
        checkpoint.load(saved, model, optimizers)
    assert_same(everything(model, optimizers), before)
    with pytest.raises(UserError, match=r"weight 'blocks.* in the checkpoint and .* in the model"):
        checkpoint.load_weights(model, checkpoint.read(saved).weights)
    assert_same(everything(model, optimizers), before)


# ---- damage and malice


def test_any_flipped_bit_is_found_and_the_file_named(saved):
    for name, file in checkpoint.listing(saved).items():
        whole = file.read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 2}:
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
            with pytest.raises(UserError) as raised:
                checkpoint.verify(saved)
            assert Path(name).name in str(raised.value) or name == "manifest.json"
            assert "\n" not in str(raised.value)
        file.write_bytes(whole)
    checkpoint.verify(saved)


@pytest.mark.parametrize("name", ["config.json", "state.json", "tokenizer.json", "tensors"])
def test_a_missing_file_is_named(saved, name):
    for file in [saved / name] if (saved / name).is_file() else list((saved / name).iterdir()):
        file.unlink()
    with pytest.raises(UserError, match=f"{name}.* is missing; delete that folder"):
        checkpoint.read(saved)
    rewrite_manifest(saved)
    with pytest.raises(UserError):
        checkpoint.load(saved, *make())


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


@pytest.mark.parametrize(
    "name", [".metadata", "tensors/.metadata", "model.pt", "tensors/evil.pkl", "tensors/a.safetensors"]
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_planted_pickle_executes_nothing(saved, tmp_path, name, listed):
    target = tmp_path / "executed"
    content = pickle.dumps(Evil(target))
    pickle.loads(content)
    assert target.exists()  # it would
    target.unlink()
    (saved / name).write_bytes(content)
    if listed:
        rewrite_manifest(saved)
    for attempt in (lambda: checkpoint.read(saved), lambda: checkpoint.load(saved, *make())):
        try:
            attempt()
            assert listed and not name.endswith(".safetensors")  # a listed stranger is hashed, and otherwise not read
        except UserError as error:
            assert "\n" not in str(error)
    assert not target.exists()


def test_an_unlisted_file_is_refused(saved):
    (saved / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt', which is not part of the checkpoint"):
        checkpoint.load(saved, *make())


def test_names_outside_the_folder_are_never_followed(saved, tmp_path):
    secret = tmp_path / "run" / "x"
    secret.write_text("secret")
    manifest = json.loads((saved / "manifest.json").read_text())
    for name in ("../../x", str(secret), "tensors/../../../x"):
        lying = {**manifest["files"], name: {"bytes": 6, "sha256": sha256(secret)}}
        (saved / "manifest.json").write_text(json.dumps({**manifest, "files": lying}))
        with pytest.raises(UserError, match="is missing"):
            checkpoint.load(saved, *make())


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_links_and_pipes_are_refused(saved, tmp_path, what):
    odd = saved / "config.json" if what != "folder" else saved / "more"
    (tmp_path / "real").mkdir()
    if what != "folder":
        odd.rename(tmp_path / "real" / "config.json")
    if what == "pipe":
        os.mkfifo(odd)  # opening it would wait for ever
    else:
        odd.symlink_to(tmp_path / "real" / ("config.json" if what == "link" else "."))
    with pytest.raises(UserError, match="neither a file nor a folder"):
        checkpoint.read(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"x"',
        "{",
        "[" * 200_000,
        '{"format": 1, "files": {}}',
        '{"files": []}',
        f'{{"format": "{checkpoint.FORMAT}", "files": {{"state.json": 3}}}}',
        f'{{"format": "{checkpoint.FORMAT}", "files": {{"a\\nb": {{}}}}}}',
        "\x00\xff",
    ],
)
def test_a_manifest_of_the_wrong_kind_is_one_line(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(UserError) as raised:
        checkpoint.read(saved)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "state.json", "tokenizer.json"])
def test_entries_of_the_wrong_kind_are_refused(saved, name):
    manifest = json.loads((saved / "manifest.json").read_text())
    for entry in (None, 3, [], {}, {"bytes": "9"}, {"bytes": manifest["files"][name]["bytes"], "sha256": None}):
        (saved / "manifest.json").write_text(json.dumps({**manifest, "files": {**manifest["files"], name: entry}}))
        with pytest.raises(UserError, match=name):
            checkpoint.verify(saved)


GOOD = {"format": checkpoint.FORMAT, "step": 5, "fingerprint": "f", "progress": {}}


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {**GOOD, "step": -1},
        {**GOOD, "step": "5"},
        {**GOOD, "step": True},
        {**GOOD, "step": 10**30},
        {**GOOD, "fingerprint": None},
        {**GOOD, "progress": [1]},
        {**GOOD, "progress": {"recent": "ab"}},
        {**GOOD, "progress": {"recent": [[1.0, 2.0], [1.0]]}},
        {**GOOD, "progress": {"recent": [[1.0, 10**400]]}},
        {**GOOD, "step": 4},  # in the folder of step 5
    ],
)
def test_every_field_of_the_state_is_checked(saved, state):
    (saved / "state.json").write_text(json.dumps(state))
    rewrite_manifest(saved)
    for attempt in (lambda: checkpoint.read(saved), lambda: checkpoint.load(saved, *make())):
        with pytest.raises(UserError, match=r"state\.json"):
            attempt()


def test_a_huge_text_is_not_read(saved):
    with (saved / "config.json").open("r+b") as file:
        file.truncate(LARGEST_TEXT + 1)  # sparse: takes no room
    rewrite_manifest(saved)
    with pytest.raises(UserError, match="the limit for such files is"):
        checkpoint.read(saved)


def test_an_invalid_random_state_is_refused(tmp_path, monkeypatch):
    model, optimizers = make()
    junk = {"rng.cpu": torch.full_like(torch.get_rng_state(), 255)}
    with monkeypatch.context() as patch:
        patch.setattr(state, "generator_tensors", lambda: junk)
        path = save(tmp_path, model, optimizers)
    with pytest.raises(UserError, match="random generator"):
        checkpoint.load(path, model, optimizers)


# ---- full disks and kills


def test_a_checkpoint_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """A power cut may lose what was not synced: files, the folders that hold their names, the log of the steps before.
    What is synced when, as the system is asked for it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 3}\n')
    done, named = [], {}
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        fsync(descriptor)
        done.append(os.fstat(descriptor).st_ino)

    def renamed(path, target):
        if STEP_FOLDER.fullmatch(Path(target).name):
            named.update({item: item.stat().st_ino for item in (path, *path.rglob("*"), run, run / "metrics.jsonl")})
            named["before"] = list(done)
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    model, optimizers = make()
    save(run / "checkpoints", model, optimizers)
    before = named.pop("before")
    assert len(named) > 7 and [str(item) for item, inode in named.items() if inode not in before] == []
    assert done[-1] == (run / "checkpoints").stat().st_ino  # and then its name


def test_a_linked_checkpoint_on_another_disk_is_used_and_dropped(saved, tmp_path):
    elsewhere = tmp_path / "other disk"
    saved.rename(elsewhere)
    saved.symlink_to(elsewhere)
    assert checkpoint.last_intact(saved.parent) == (saved, [])
    model, optimizers = make()
    save(saved.parent, model, optimizers, step=7)
    checkpoint.prune(saved.parent, keep_last=1)
    assert [p.name for p in saved.parent.iterdir()] == ["step-00000007"]
    checkpoint.verify(elsewhere)


def test_reading_survives_a_checkpoint_that_is_dropped_meanwhile(saved, monkeypatch):
    """By the run, which goes on: the newer one is read."""
    model, optimizers = make()
    newer = save(saved.parent, model, optimizers, step=7)
    newer.rename(saved.parents[1] / "kept")
    read_state = checkpoint.read_state

    def meanwhile(path):
        if path == saved:
            (saved.parents[1] / "kept").rename(newer)
            checkpoint.remove(saved)
        return read_state(path)

    monkeypatch.setattr("isoflop.checkpoint.reading.read_state", meanwhile)
    assert checkpoint.read(saved.parents[1]).step == 7


def test_a_file_that_cannot_be_read_is_damage(saved, monkeypatch):
    def unreadable(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("isoflop.checkpoint.folder.sha256", unreadable)
    with pytest.raises(checkpoint.Damaged, match="Input/output error"):
        checkpoint.read(saved)


def test_a_full_disk_is_one_line_and_leaves_the_older_checkpoints(saved):
    model, optimizers = make()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # the system then refuses to write on
    try:
        with pytest.raises(UserError, match="could not be written") as raised:
            save(saved.parent, model, optimizers, step=7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["step-00000003", "step-00000005"]
    checkpoint.verify(saved)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from isoflop import checkpoint
from isoflop.optim.build import build
from isoflop.optim.config import OptimConfig
from test_checkpoint import make, save

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
model, optimizers = make()
save(folder, model, optimizers, step=1)
CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")

def die_at(count):
    left = [count]
    def look(event, args):
        if event in CALLS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)

def killed(run):
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    return child

finished = False
count = 0
while not finished:  # die at the first call to the file system, at the second, ... until one save outlives them
    count += 1
    def run():
        die_at(count)
        save(folder, model, optimizers, step=2)
    _, status = os.waitpid(killed(run), 0)
    finished = status == 0
    assert checkpoint.steps(folder) in ([1], [1, 2]), checkpoint.steps(folder)
    for step in checkpoint.steps(folder):
        checkpoint.verify(checkpoint.at_step(folder, step))
    if 2 in checkpoint.steps(folder) and not finished:
        checkpoint.remove(checkpoint.at_step(folder, 2))
assert count > 10, count

def run():
    step = checkpoint.steps(folder)[-1]
    while True:
        step += 1
        save(folder, model, optimizers, step=step)
        checkpoint.prune(folder, keep_last=2, keep={1})

for _ in range(kills):  # and at any moment
    before = checkpoint.steps(folder)[-1]
    child = killed(run)
    time.sleep(random.uniform(0.01, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    after = checkpoint.steps(folder)
    assert after[-1] >= before and 1 in after and checkpoint.latest(folder).name == f"step-{after[-1]:08d}"
    for step in after:
        checkpoint.verify(checkpoint.at_step(folder, step))
save(folder, model, optimizers, step=10_000)
assert all(not p.name.endswith(".tmp") for p in folder.iterdir()), list(folder.iterdir())
print(count)
"""


def test_a_kill_at_any_moment_leaves_the_earlier_checkpoints(tmp_path):
    roots = [str(Path(isoflop.__file__).parents[1]), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "checkpoints"), "6"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    assert done.returncode == 0, done.stderr
