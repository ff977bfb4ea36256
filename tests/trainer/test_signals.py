"""Signals: evaluation and samples are cut short and repeated on resume, everything is saved, a second one exits."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from isoflop.config import override
from isoflop.records import read_run
from isoflop.trainer import RunConfig, train
from isoflop.trainer.hooks import HeldOut, Hook, Samples
from isoflop.trainer.signals import CutShort, Interrupted, Signals
from isoflop.trainer.task import CausalLM
from small import TINY


@pytest.fixture
def config(corpus):
    start = RunConfig()
    start = replace(start, data=replace(start.data, sources=(str(corpus),)))
    return override(start, [*TINY, "model.vocab_size=320", "steps=12", "every.evaluate=4", "every.sample=4"])


class Slow(CausalLM):
    """Its second measurement takes a minute, in which a signal comes."""

    def __init__(self, signum):
        super().__init__()
        self.signum, self.measured = signum, 0

    def measure(self, *arguments, **more):
        self.measured += 1
        if self.measured == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), self.signum)).start()
            time.sleep(60)
        return super().measure(*arguments, **more)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_evaluation_is_cut_short_and_repeated_on_resume(config, tmp_path, signum):
    hooks = [HeldOut(), Samples()]
    train(config, tmp_path / "whole", hooks=hooks)
    began = time.monotonic()
    with pytest.raises(Interrupted) as raised:
        train(config, tmp_path / "cut", task=Slow(signum), hooks=hooks)
    assert time.monotonic() - began < 30
    assert (raised.value.signum, raised.value.step) == (signum, 8)
    stopped = read_run(tmp_path / "cut")
    assert [line.step for line in stopped.heldout] == [4] == sorted({line.step for line in stopped.samples})
    train(config, tmp_path / "cut", hooks=hooks, resume=True)
    whole, cut = (read_run(tmp_path / name) for name in ("whole", "cut"))
    assert [(line.step, line.loss) for line in whole.training] == [(x.step, x.loss) for x in cut.training]
    measured = [[(line.step, line.heldout_loss) for line in run.heldout] for run in (whole, cut)]
    assert measured[0] == measured[1] and len(measured[0]) == 3
    assert [line.text for line in whole.samples] == [line.text for line in cut.samples]


def test_a_signal_in_the_last_step_is_handled_too(config, tmp_path):
    """What comes then, the last measurement and the report, is the same work after --resume."""

    class Last(Hook):
        def stepped(self, state):
            if state.done:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as raised:
        train(config, tmp_path / "run", hooks=[Last()])
    assert raised.value.step == 12 and read_run(tmp_path / "run").events[-1].event == "stopped"
    assert train(config, tmp_path / "run", resume=True).step == 12
    assert [line.step for line in read_run(tmp_path / "run").training] == list(range(1, 13))


def test_work_that_may_be_cut_short_does_not_start_after_a_signal():
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(CutShort), signals.cut_short():
            pytest.fail("it had come before")


def test_a_second_signal_exits_at_once():
    code = (
        "import time; from isoflop.trainer.signals import Signals\n"
        "with Signals():\n    print('ready', flush=True)\n    end = time.monotonic() + 60\n"
        "    while time.monotonic() < end: time.sleep(0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    process.stdout.close()
