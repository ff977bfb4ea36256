"""What TensorBoard, W&B and MLflow receive, with a fake service."""

import functools
import json
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import isoflop
from isoflop.errors import UserError
from isoflop.job import Listener
from isoflop.records import RunFolder, read_run
from isoflop.trainer import trackers
from isoflop.trainer.hooks import Hook
from small import TINY


@pytest.fixture
def service(monkeypatch):
    """A service under a tracker's name; returns what it was sent and lets a test make it fail."""
    calls = {"values": [], "closed": 0, "fails_at": None}

    def write(values, step):
        if calls["fails_at"] is not None and step >= calls["fails_at"]:
            raise ConnectionError("the service is gone")
        calls["values"].append((step, values))

    def close():
        calls["closed"] += 1

    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("json", lambda state: (write, close)))
    return calls


def test_every_line_of_a_run_is_forwarded_including_the_last(service, corpus, tmp_path):
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, 'trackers=["wandb"]'])
    run = read_run(tmp_path / "run")
    losses = [(step, values["train/loss"]) for step, values in service["values"] if "train/loss" in values]
    assert losses == [(line.step, line.loss) for line in run.training] and len(losses) == 20
    heldout = [(step, v["heldout/heldout_loss"]) for step, v in service["values"] if "heldout/heldout_loss" in v]
    assert heldout == [(line.step, line.heldout_loss) for line in run.heldout] and heldout
    assert service["closed"] == 1


def test_a_failing_service_does_not_stop_the_run(service, corpus, tmp_path):
    service["fails_at"] = 7
    with pytest.warns(UserWarning, match="wandb failed"):
        isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, 'trackers=["wandb"]'])
    run = read_run(tmp_path / "run")
    assert run.status == "finished" and len(run.training) == 20
    failed = [event for event in run.events if event.event == "tracker failed"]
    assert len(failed) == 1 and failed[0].tracker == "wandb" and "gone" in failed[0].reason


class Service:
    """Weights & Biases and MLflow, as far as they are called: runs by id, each with the points that it was sent."""

    def __init__(self):
        self.runs, self.names, self.current = {}, {}, ""

    def open(self, identity, name):
        self.current = identity
        self.runs.setdefault(identity, [])
        self.names[identity] = name

    def log(self, values, step):
        self.runs[self.current].extend((name, step) for name in values)

    def points(self, name):
        return [[step for curve, step in points if curve == name] for points in self.runs.values()]


def log_rising(service, last, values, step):
    """As wandb's: what comes with a step of its own that is not above the last one is dropped."""
    if step > last[0]:
        last[0] = step
        service.log({k: v for k, v in values.items() if k != "step"}, values["step"])


def fake_wandb(service):
    def init(*, project, name, dir, config, id, resume):
        assert resume == "allow" and config["seed"] >= 0
        service.open(id, name)
        return SimpleNamespace(
            define_metric=lambda *_, **__: None,
            log=functools.partial(log_rising, service, [-1]),
            finish=lambda: None,
        )

    return SimpleNamespace(init=init)


def fake_mlflow(service):
    def start_run(run_id=None, run_name=None):
        assert run_id is None or run_id in service.runs
        service.open(run_id or f"run{len(service.runs)}", run_name or service.names.get(run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=service.current))

    return SimpleNamespace(
        set_experiment=lambda name: None,
        start_run=start_run,
        log_dict=lambda value, name: None,
        log_metrics=lambda values, step: service.log(values, step),
        end_run=lambda: None,
    )


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow}


class Killed(BaseException):
    """Like a power cut: nothing is saved or reported."""


class KillAt(Hook):
    def __init__(self, step):
        self.step = step

    def stepped(self, state):
        if state.step == self.step:
            raise Killed


def killed(call, step):
    with pytest.raises(Killed):
        call(listener=Listener(hooks=[KillAt(step)]))


@pytest.mark.parametrize("name", FAKES)
def test_one_run_and_one_curve_however_often_it_is_killed(name, monkeypatch, corpus, tmp_path):
    service, run = Service(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, name, FAKES[name](service))
    assignments = [*TINY, f'trackers=["{name}"]', "every.checkpoint=5"]
    killed(functools.partial(isoflop.pretrain, [str(corpus)], "24steps", run, assignments=assignments), 9)
    killed(functools.partial(isoflop.resume, run), 7)  # before the step that the first attempt reached
    killed(functools.partial(isoflop.resume, run), 17)
    isoflop.resume(run, quiet=True)
    assert service.points("train/loss") == [list(range(1, 25))]
    assert service.points("heldout/heldout_loss") == [[line.step for line in read_run(run).heldout]]
    assert list(service.names.values()) == ["run"]


@pytest.mark.parametrize("name", FAKES)
def test_an_extended_run_is_a_new_one_with_the_whole_curve(name, monkeypatch, corpus, tmp_path):
    service, run = Service(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, name, FAKES[name](service))
    assignments = [*TINY, f'trackers=["{name}"]']
    isoflop.pretrain([str(corpus)], "20steps", run, assignments=assignments, quiet=True)
    killed(functools.partial(isoflop.resume, run, "+20steps"), 31)
    isoflop.resume(run, quiet=True)
    assert service.points("train/loss") == [list(range(1, 21)), list(range(1, 41))]
    assert list(service.names.values()) == ["run", "run-extended-1"]


def test_the_record_of_services_may_be_damaged(monkeypatch, corpus, tmp_path):
    service, run = Service(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(service))
    assignments = [*TINY, 'trackers=["mlflow"]']
    killed(functools.partial(isoflop.pretrain, [str(corpus)], "12steps", run, assignments=assignments), 8)
    for content in ("", "[1]", '{"mlflow": 3}', '{"mlflow": {"id": 7, "extensions": 0}}'):
        (run / "trackers.json").write_text(content)
        assert trackers.stored_id(RunFolder(run), "mlflow") is None
    isoflop.resume(run, quiet=True)
    assert service.points("train/loss")[1] == list(range(1, 13))  # a new run, with the whole curve


def scalars(folder, tag):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_tensorboard_has_one_curve_after_kills_and_an_extension(corpus, tmp_path):
    pytest.importorskip("tensorboard")
    run, assignments = tmp_path / "run", [*TINY, 'trackers=["tensorboard"]', "every.checkpoint=5"]
    killed(functools.partial(isoflop.pretrain, [str(corpus)], "24steps", run, assignments=assignments), 9)
    killed(functools.partial(isoflop.resume, run), 17)
    isoflop.resume(run, quiet=True)
    assert scalars(run, "train/loss") == list(range(1, 25))
    isoflop.resume(run, "+10steps", quiet=True)
    assert scalars(run, "train/loss") == list(range(1, 35))
    assert scalars(run, "heldout/heldout_loss") == [line.step for line in read_run(run).heldout]


def test_tensorboard_drops_steps_that_are_repeated(monkeypatch, corpus, tmp_path):
    made = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            Path(folder).mkdir(exist_ok=True)
            made.append((purge_step, []))

        def add_scalar(self, name, value, step):
            if name == "train/loss":
                made[-1][1].append(step)

        def flush(self): ...

        def close(self): ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    run, assignments = tmp_path / "run", [*TINY, 'trackers=["tensorboard"]', "every.checkpoint=5"]
    killed(functools.partial(isoflop.pretrain, [str(corpus)], "12steps", run, assignments=assignments), 9)
    isoflop.resume(run, quiet=True)
    assert [purge for purge, _ in made] == [None, 6] and made[1][1] == list(range(6, 13))


@pytest.mark.parametrize(("name", "says"), [("wandbb", "did you mean wandb"), ("mlflow", "pip install")])
def test_an_unusable_tracker_is_refused_before_the_run(monkeypatch, corpus, tmp_path, name, says):
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("no_such_module_at_all", trackers.open_mlflow))
    with pytest.raises(UserError, match=says):
        isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, f'trackers=["{name}"]'])
    assert not (tmp_path / "run").exists()


def offline_points(folder):
    """(wandb's own step, our step, names) of every point in the logs of offline runs, by run: LevelDB's log format, a
    record of wandb_internal.proto in each."""
    protobuf = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="needs wandb: pip install wandb")
    found = {}
    for path in sorted(folder.rglob("*.wandb")):
        data, at, part, run = path.read_bytes(), 7, b"", None
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # no room for a header
                at += 32768 - at % 32768
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind not in (1, 4):  # whole, or the last part
                continue
            record, part = protobuf.Record.FromString(part), b""
            run = record.run.run_id or run
            if record.HasField("history"):
                items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                names = {name for name in items if "/" in name}
                found.setdefault(run, []).append((record.history.step.num, items["step"], names))
    return found


def test_wandb_offline_has_one_run_and_each_point_once(corpus, tmp_path, monkeypatch):
    """The real library, as it is without a network: `wandb sync` sends these logs later."""
    pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path)), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    run, assignments = tmp_path / "run", [*TINY, 'trackers=["wandb"]', "every.checkpoint=5"]
    killed(functools.partial(isoflop.pretrain, [str(corpus)], "24steps", run, assignments=assignments), 9)
    killed(functools.partial(isoflop.resume, run), 17)
    isoflop.resume(run, quiet=True)

    [points] = offline_points(run).values()
    assert [step for _, step, names in points if "train/loss" in names] == list(range(1, 25))
    heldout = [step for _, step, names in points if "heldout/heldout_loss" in names]
    assert heldout == [line.step for line in read_run(run).heldout]
    own = [own for own, _, _ in points]
    assert own == sorted(set(own))  # else the parts of the run would overwrite one another
