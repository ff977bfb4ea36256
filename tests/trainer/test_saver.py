"""Checkpoints written in the background: the same bytes, one at a time, errors are raised; which are kept; damaged
ones."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from isoflop import checkpoint
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.parallel import state
from isoflop.records import RunFolder, read_run
from isoflop.screen import Screen
from isoflop.trainer import RunConfig, train
from isoflop.trainer.config import EveryConfig
from isoflop.trainer.saver import Saver, checkpoints_to_keep
from small import TINY, tree_of


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    return override(start, [*TINY, "model.vocab_size=320", "steps=12", "every.checkpoint=3", "every.keep=9"])


def flip(path):
    tensors = next(path.rglob("*.safetensors"))
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])


def tensors_of(path):
    """Everything in a checkpoint: weights, moments, step counts, generators."""
    stored = state.stored_tensors(path / "tensors")
    tensors = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in stored.items()}
    state.load_tensors(path / "tensors", tensors)
    return tensors


def weights(folder, step=None):
    return checkpoint.read(folder, step).weights


def test_background_checkpoints_equal_immediate_ones(config, tmp_path, monkeypatch):
    """Also slowly, so that steps really continue meanwhile; and never two at a time."""
    at_once = override(config, ["every.background=false"])
    train(at_once, tmp_path / "once")
    writing, seen, write = threading.Lock(), [], checkpoint.write

    def slowly(pending, then):
        assert writing.acquire(blocking=False), "two checkpoints are being written"
        seen.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.2)
        path = write(pending, then)
        writing.release()
        return path

    monkeypatch.setattr(checkpoint, "write", slowly)
    train(config, tmp_path / "beside")
    assert len(seen) == 4 and not any(seen)
    for step in checkpoint.steps(tmp_path / "once" / "checkpoints"):
        one, other = (
            tensors_of(checkpoint.at_step(tmp_path / name / "checkpoints", step)) for name in ("once", "beside")
        )
        assert sorted(one) == sorted(other) and "rng.cpu" in one
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_failure_in_the_background_stops_the_run(config, tmp_path, monkeypatch):
    write = checkpoint.write

    def full(pending, then):
        if checkpoint.step_of(pending.final) == 6:
            raise UserError("checkpoint 6 could not be written: No space left on device")
        return write(pending, then)

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(UserError, match="No space left"):
        train(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [3]
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True)
    train(config, tmp_path / "whole")
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_failure_of_the_last_checkpoint_is_reported_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", lambda *_, **__: (_ for _ in ()).throw(UserError("the disk is full")))
    saver = Saver(EveryConfig())
    saver.write(checkpoint.Pending(tmp_path / "step-00000001", {}, {}), [], [])
    with pytest.raises(UserError, match="the disk is full"):
        saver.wait()
    saver.wait()  # it is raised once


def test_the_last_the_best_and_every_nth_checkpoint_are_kept(config, tmp_path):
    held = [(2, 3.0), (4, 1.5), (6, 1.0), (8, 1.2), (10, float("nan"))]
    steps = [3, 6, 7, 9, 12]
    assert checkpoints_to_keep(steps, EveryConfig(), held) == {6}
    assert checkpoints_to_keep(steps, EveryConfig(keep_every=6), held) == {6, 12}
    assert checkpoints_to_keep(steps, EveryConfig(keep_best=False), held) == set()
    assert checkpoints_to_keep(steps, EveryConfig(), []) == set()
    assert checkpoints_to_keep(steps, EveryConfig(), held[:2]) == {6}  # equal losses: the first
    few = override(config, ["every.checkpoint=1", "every.keep=1", "every.keep_every=5", "every.keep_best=false"])
    train(few, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [5, 9, 10, 12]  # 9: before the decay


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_previous_one_used(config, tmp_path, capsys):
    for name in ("whole", "hurt"):
        train(config, tmp_path / name)
    hurt = RunFolder(tmp_path / "hurt")
    flip(checkpoint.at_step(hurt.checkpoints, 12))
    (checkpoint.at_step(hurt.checkpoints, 9) / "manifest.json").write_text("{")
    train(config, hurt.path, hooks=[Screen()], resume=True)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert all(words in warnings[0] for words in ("step-00000012", "does not have the content", "set aside"))
    assert len([p for p in hurt.checkpoints.iterdir() if p.name.startswith("damaged-step-")]) == 2
    run = read_run(hurt.path)
    assert [event.step for event in run.events if event.event == "checkpoint set aside"] == [12, 9]
    assert [line.loss for line in run.training] == [line.loss for line in read_run(tmp_path / "whole").training]
    one, other = weights(hurt.path), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_if_every_checkpoint_is_damaged_nothing_is_changed(config, tmp_path):
    train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for step in checkpoint.steps(folder.checkpoints):
        flip(checkpoint.at_step(folder.checkpoints, step))
    before = tree_of(folder.checkpoints)
    with pytest.raises(UserError, match=r"none of the 4 checkpoints of .* is complete"):
        train(config, folder.path, resume=True)
    assert tree_of(folder.checkpoints) == before


def test_an_unknown_file_is_not_damage(config, tmp_path):
    train(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    (checkpoint.latest(folder.checkpoints) / "planted").write_text("")
    with pytest.raises(UserError, match=r"planted.*remove it"):
        train(config, folder.path, resume=True)
    assert len(checkpoint.steps(folder.checkpoints)) == 4
