"""Freed memory stays in the process, unless the user configured glibc otherwise."""

import ctypes
import itertools
import os
import resource
import statistics
import subprocess
import sys

import pytest

import forks
from isoflop import __main__, allocator, cli
from isoflop.config import override
from isoflop.trainer import RunConfig
from isoflop.trainer.throughput import make_step

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="not glibc")

# 8 MB of logits' gradients and more: blocks that glibc hands back to the kernel
SHAPE = ["model.layers=1", "model.d_model=64", "model.vocab_size=32768", "batch.sequences=2", "runtime.threads=1"]


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def steps(how: str, *arguments: str) -> None:
    """The command, but that it prints the page faults of a training step: the median of some, after a few that warm
    up. (The heap may still grow once more among these: that is one step with many.)"""

    def run(_):
        step = make_step(override(RunConfig(), arguments))
        for _ in range(4):
            step()
        counts = [faults()]
        for _ in range(5):
            step()
            counts.append(faults())
        print(int(statistics.median(after - before for before, after in itertools.pairwise(counts))))
        return 0

    cli.run = run
    if how == "plain":
        allocator.keep_freed_memory = lambda: False
    __main__.main()


def run(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@glibc
def test_steps_of_the_command_have_no_page_faults(tmp_path):
    found = []
    for how in ("plain", "kept"):
        process = forks.start("test_allocator.steps", how, *SHAPE, "runtime.dtype=float32", out=tmp_path / how)
        process.join(120)
        assert process.exitcode == 0, (tmp_path / how).read_text()
        found.append(int((tmp_path / how).read_text()))
    plain, kept = found
    assert plain > 1000  # else there is nothing to gain, and this test says nothing
    assert kept < plain / 8  # a twentieth and less, mostly


@glibc
def test_the_users_glibc_settings_are_kept():
    ask = "from isoflop.allocator import keep_freed_memory; print(keep_freed_memory())"
    assert run(ask) == "True"
    assert run(ask, MALLOC_TRIM_THRESHOLD_="100000") == "False"
    assert run(ask, GLIBC_TUNABLES="glibc.malloc.hugetlb=1") == "False"
