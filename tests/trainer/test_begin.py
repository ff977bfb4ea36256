"""Resuming a run: changes are reported, and logs may be untrusted."""

import json
import shutil
from dataclasses import replace

import pytest

from isoflop.config import override
from isoflop.errors import UserError
from isoflop.files import write_json
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunConfig, train
from isoflop.trainer.begin import check_logs, differing
from isoflop.trainer.hooks import Hook
from small import TINY, CutAt, PowerCut


class Heard(Hook):
    def __init__(self):
        self.messages = []

    def noticed(self, state, text):
        self.messages.append(text)


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    return override(start, [*TINY, "model.vocab_size=320", "steps=8", "every.checkpoint=3"])


def cut(config, folder, step):
    with pytest.raises(PowerCut):
        train(config, folder, hooks=[CutAt(step)])


def test_repeated_steps_and_changed_settings_are_in_the_history(config, tmp_path):
    folder, heard = RunFolder(tmp_path / "run"), Heard()
    cut(config, folder.path, 5)
    about = json.loads(folder.environment.read_text())
    write_json(folder.environment, {**about, "torch": "1.0"})
    train(
        override(config, ["optim.lr=0.5", "every.log=2", "runtime.recompute=true"]),
        folder.path,
        hooks=[heard],
        resume=True,
    )
    event = read_run(folder.path).events[1]
    assert (event.event, event.step, event.taken_again) == ("resumed", 3, 2)
    assert list(event.changed) == heard.messages and len(heard.messages) == 2
    assert heard.messages[0].endswith(f"optim.lr = 0.5 (was {config.optim.lr})")
    assert "torch" in heard.messages[1] and "(was 1.0)" in heard.messages[1]


def test_an_unchanged_resume_reports_nothing(config, tmp_path):
    heard = Heard()
    cut(config, tmp_path / "run", 5)
    train(override(config, ["every.log=2", "runtime.recompute=true"]), tmp_path / "run", hooks=[heard], resume=True)
    assert heard.messages == [] and read_run(tmp_path / "run").events[1].changed is None


def test_changed_text_is_refused_before_the_first_checkpoint_too(config, corpus, tmp_path):
    cut(config, tmp_path / "run", 2)
    (corpus / "0.txt").write_text("other words. " * 500)
    before = read_run(tmp_path / "run").training
    with pytest.raises(UserError, match=r"the data of this run changed.*--out NEW"):
        train(config, tmp_path / "run", resume=True)
    assert read_run(tmp_path / "run").training == before and len(before) == 2


def test_a_run_whose_checkpoints_are_gone_does_not_silently_start_again(config, tmp_path):
    """The folder of checkpoints is on a disk that is not mounted: the records stay, and the error says so."""
    cut(config, tmp_path / "run", 7)
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.rename(tmp_path / "disk")
    folder.checkpoints.symlink_to(tmp_path / "not mounted")
    with pytest.raises(UserError, match=r"holds no checkpoint, but the run was saved up to step 3: restore it"):
        train(config, folder.path, resume=True)
    assert len(read_run(folder.path).training) == 7
    folder.checkpoints.unlink()
    folder.checkpoints.symlink_to(tmp_path / "disk")
    train(config, folder.path, resume=True)
    assert read_run(folder.path).events[1].step == 6
    shutil.rmtree(tmp_path / "disk")
    with pytest.raises(UserError, match=r"was saved up to step 8"):
        train(config, folder.path, resume=True)


@pytest.mark.parametrize(
    ("log", "line", "field"),
    [
        ("metrics", {"loss": 1.0}, "step"),
        ("metrics", {"step": "5", "loss": 1.0}, "step"),
        ("metrics", {"step": 5, "heldout_loss": "low"}, "heldout_loss"),
        ("skips", {"step": 3, "tokens": 9}, "action"),
        ("skips", {"step": 3, "tokens": 9, "action": "jump"}, "action"),
        ("skips", {"step": 3, "tokens": True, "action": "skip"}, "tokens"),
        ("skips", {"step": 3, "tokens": 9, "action": "rollback", "first": 0}, "sequences"),
        ("skips", {"step": 3, "tokens": 9, "action": "rollback", "first": 10**30, "sequences": 1}, "first"),
    ],
)
def test_an_unusable_record_is_named(tmp_path, log, line, field):
    folder = RunFolder(tmp_path)
    folder.append(log, {"step": 2, "tokens": 1, "action": "skip"})
    assert check_logs(folder) == 2
    folder.append(log, line)
    with pytest.raises(UserError, match=rf"{log}\.jsonl record 2: {field} is missing"):
        check_logs(folder)


def test_a_difference_is_named_by_its_field():
    one = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "e": {"f": 1}}
    other = {"a": 1.0, "b": {"c": [1, 3], "d": "x"}, "e": 2, "g": None}
    assert differing(one, other) == [("b.c", [1, 2], [1, 3]), ("e", {"f": 1}, 2)]
