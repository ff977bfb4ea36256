"""Disks that fill up, become read-only or vanish under a run: small file systems in memory that are mounted here.

They need the right to mount (root); elsewhere they are skipped, saying so.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoflop import checkpoint
from isoflop.cli import run as cli
from isoflop.config import override
from isoflop.errors import UserError
from isoflop.records import RunFolder, read_run
from isoflop.trainer import RunConfig, train
from isoflop.trainer.hooks import Hook
from small import TINY, tree_of


def system(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB; gone again after the test."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        system("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not allowed here: {error}")
    yield place
    while subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False).returncode == 0:
        pass


class At(Hook):
    """Does something to the run's disk after a step."""

    def __init__(self, step, *command: str) -> None:
        self.step, self.command = step, command

    def stepped(self, state):
        if state.step == self.step:
            system(*self.command)


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    return override(start, [*TINY, "model.vocab_size=320", "steps=16", "every.checkpoint=4", "every.keep=9"])


def assert_same_as_unbroken(config, run: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "whole")
    one, other = (checkpoint.read(folder).weights for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[line.loss for line in read_run(folder).training] for folder in (run, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_disk_that_fills_up(corpus, disk, tmp_path, capsys):
    """The run ends with one line and exit code 2, all earlier checkpoints are whole, and with more room it resumes to
    the same result."""
    settings = [word for text in [*TINY, "every.checkpoint=2", "every.keep=99"] for word in ("--set", text)]
    begun = ["train", str(corpus), "--budget", "20steps"]
    out = disk / "run"
    assert cli([*begun, "--out", str(out), *settings]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "No space left on device" in lines[0] and f"--resume {out}" in lines[0], lines
    there = checkpoint.steps(out / "checkpoints")
    assert there and there[-1] < 20
    for step in there:
        checkpoint.verify(checkpoint.at_step(out / "checkpoints", step))
    system("mount", "-o", "remount,size=30m", str(disk))
    assert cli(["train", "--resume", str(out)]) == 0
    assert cli([*begun, "--out", str(tmp_path / "whole"), *settings]) == 0
    one, other = (read_run(folder) for folder in (out, tmp_path / "whole"))
    assert [line.loss for line in one.training] == [line.loss for line in other.training]
    a, b = (checkpoint.read(folder).weights for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_disk_that_becomes_read_only(config, disk, tmp_path):
    """The checkpoints' part of it: the system refuses that for a disk on which a file is open for writing."""
    out = disk / "run"
    folder = str(out / "checkpoints")

    class ReadOnly(Hook):
        def stepped(self, state):
            if state.step == 6:
                system("mount", "--bind", folder, folder)
                system("mount", "-o", "remount,bind,ro", folder)

    system("mount", "-o", "remount,size=30m", str(disk))
    with pytest.raises(UserError, match=r"Read-only file system.*--resume"):
        train(config, out, hooks=[ReadOnly()])
    before = tree_of(out / "checkpoints")
    assert checkpoint.steps(out / "checkpoints") == [4] and before
    system("umount", folder)
    train(config, out, resume=True)
    assert all(before[name] == bytes_ for name, bytes_ in tree_of(out / "checkpoints").items() if name in before)
    assert_same_as_unbroken(config, out, tmp_path)


def test_a_mount_that_vanishes(config, disk, tmp_path):
    """Unmounted behind the run's back, it writes nothing where the mount was, and says what to do."""
    out = disk / "run"
    kept = tmp_path / "kept"
    kept.mkdir()
    system("mount", "-o", "remount,size=30m", str(disk))
    system("mount", "--bind", str(disk), str(kept))  # so that the disk outlives its place
    with pytest.raises(UserError, match=r"disappeared during the run.*--resume"):
        train(config, out, hooks=[At(6, "umount", "-l", str(disk))])
    assert list(disk.iterdir()) == []
    assert checkpoint.steps(kept / "run" / "checkpoints") == [4]
    system("mount", "--move", str(kept), str(disk))
    train(config, out, resume=True)
    assert_same_as_unbroken(config, out, tmp_path)


def test_a_folder_replaced_by_another_is_noticed(config, tmp_path):
    out = tmp_path / "run"

    class Replace(Hook):
        def stepped(self, state):
            if state.step == 6:
                out.rename(tmp_path / "moved")
                out.mkdir()
                (out / ".lock").write_text("")

    with pytest.raises(UserError, match="disappeared during the run"):
        train(config, out, hooks=[Replace()])
    assert checkpoint.steps(RunFolder(out).checkpoints) == []
