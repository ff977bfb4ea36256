"""What TensorBoard, W&B and MLflow are told, with a service of our own in their place."""

import pytest

import isoflop
from isoflop.errors import UserError
from isoflop.records import read_run
from isoflop.trainer import trackers
from small import TINY


@pytest.fixture
def service(monkeypatch):
    """A service under a tracker's name; returns what it was told and lets a test make it fail."""
    told = {"values": [], "closed": 0, "fails_at": None}

    def write(values, step):
        if told["fails_at"] is not None and step >= told["fails_at"]:
            raise ConnectionError("the service is gone")
        told["values"].append((step, values))

    def close():
        told["closed"] += 1

    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("json", lambda state: (write, close)))
    return told


def test_every_line_of_a_run_is_passed_on_and_the_last_one_too(service, corpus, tmp_path):
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, 'trackers=["wandb"]'])
    run = read_run(tmp_path / "run")
    losses = [(step, values["train/loss"]) for step, values in service["values"] if "train/loss" in values]
    assert losses == [(line.step, line.loss) for line in run.training] and len(losses) == 20
    heldout = [(step, v["heldout/heldout_loss"]) for step, v in service["values"] if "heldout/heldout_loss" in v]
    assert heldout == [(line.step, line.heldout_loss) for line in run.heldout] and heldout
    assert service["closed"] == 1


def test_a_service_that_fails_does_not_cost_the_run(service, corpus, tmp_path):
    service["fails_at"] = 7
    with pytest.warns(UserWarning, match="wandb failed"):
        isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, 'trackers=["wandb"]'])
    run = read_run(tmp_path / "run")
    assert run.status == "finished" and len(run.training) == 20
    failed = [event for event in run.events if event.event == "tracker failed"]
    assert len(failed) == 1 and failed[0].tracker == "wandb" and "gone" in failed[0].reason


@pytest.mark.parametrize(("name", "says"), [("wandbb", "did you mean wandb"), ("mlflow", "pip install")])
def test_what_cannot_be_told_is_refused_before_anything_is_done(monkeypatch, corpus, tmp_path, name, says):
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", ("no_such_module_at_all", trackers.open_mlflow))
    with pytest.raises(UserError, match=says):
        isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=[*TINY, f'trackers=["{name}"]'])
    assert not (tmp_path / "run").exists()
