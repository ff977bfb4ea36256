"""The command in several processes: resized, stopped, killed, hung. Under torchrun where it matters that it is; else
forked (forks.py), since starting processes takes seconds, and few tests check much each."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import forks
import isoflop
from isoflop.records import read_run
from small import TINY

# long enough that a signal comes before the end, also on a fast machine
STEPS = ["steps=160", "every.checkpoint=20", "every.evaluate=40", "every.sample=80", "optim.lr=0.003"]
RAMP = ["batch.ramp_from=4", "batch.ramp_sequences=300"]


class Forked:
    """The command in several processes, or one, without torchrun."""

    def __init__(self, processes: int, arguments: list[str], folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="output-", dir=folder))
        command = map(str, arguments)
        self.all = forks.start_group("forks.command", *command, size=processes, folder=self.folder)

    @property
    def output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("rank-*")))

    def poll(self) -> int | None:
        return self.all[0].exitcode

    def finish(self, code: int = 0) -> str:
        for process in self.all:
            process.join(240)
        assert [process.exitcode for process in self.all] == [code] * len(self.all), self.output[-4000:]
        return self.output


class Torchrun:
    """The command under torchrun."""

    def __init__(self, processes: int, arguments: list[str], *launcher: str) -> None:
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *launcher]
        command = [sys.executable, *many, "-m", "isoflop", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(Path(isoflop.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    @property
    def output(self) -> str:
        return self.process.communicate()[0]

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def poll(self) -> int | None:
        return self.process.poll()

    def finish(self, code: int = 0) -> str:
        text, _ = self.process.communicate(timeout=240)
        assert self.process.returncode == code, text[-4000:]
        return text


def spoken(text: str) -> list[str]:
    return [line for line in text.splitlines() if "isoflop: " in line]  # torchrun's own may begin the line


def until_step(folder: Path, step: int, launched: Forked | Torchrun) -> None:
    log = folder / "metrics.jsonl"
    while launched.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(launched.output[-4000:])


@pytest.fixture
def recipe(tmp_path, corpus) -> Path:
    """A configuration to be trained, on text that is prepared already."""
    file = tmp_path / "recipe.py"
    file.write_text(
        "from isoflop.config import override\n"
        "from isoflop.data.config import DataConfig\n"
        "from isoflop.trainer.config import RunConfig\n"
        f"def run():\n    data = DataConfig(sources=({str(corpus)!r},))\n"
        f"    return override(RunConfig(data=data), {[*TINY, *STEPS]!r})\n"
    )
    return file


def train(recipe: Path, out: Path, *set_: str) -> list[str]:
    return ["train", "--recipe", f"{recipe}:run", "--out", str(out), "--set", "model.vocab_size=320", *set_]


def losses(folder: Path) -> list[float]:
    return [line.loss for line in read_run(folder).training]


def test_a_run_changes_its_number_of_processes_and_stays_one_run(tmp_path, recipe):
    """1 -> 2 (fsdp) -> 4 (hsdp) -> 1 processes against one process all along, with a batch that grows."""
    whole, resized = tmp_path / "whole", tmp_path / "resized"
    Forked(1, train(recipe, whole, *RAMP), tmp_path).finish()
    wrong = train(recipe, tmp_path / "no", "batch.sequences=9", "parallel.mode=fsdp")
    refused = Forked(2, wrong, tmp_path).finish(2)
    assert len(spoken(refused)) == 1 and "batch.sequences = 9" in refused and not (tmp_path / "no").exists()

    again = ["train", "--resume", resized]
    for processes, mode, steps, arguments in (
        (1, [], 15, train(recipe, resized, *RAMP)),
        (2, ["parallel.mode=fsdp"], 40, again),
        (4, ["parallel.mode=hsdp", "parallel.replicas=2"], 70, again),
    ):
        launched = Forked(processes, [*arguments, *(word for setting in mode for word in ("--set", setting))], tmp_path)
        until_step(resized, steps, launched)
        os.kill(launched.all[-1].pid, signal.SIGTERM)
        assert len(spoken(launched.finish(143))) == 1
    Forked(1, again, tmp_path).finish()

    one, many = read_run(whole), read_run(resized)
    assert losses(resized) == pytest.approx(losses(whole), rel=1e-4)  # differences in the last bits that grew
    assert [line.tokens for line in many.training] == [line.tokens for line in one.training]
    assert many.result.heldout.nats_per_token == pytest.approx(one.result.heldout.nats_per_token, rel=1e-4)
    assert [(e.processes, e.mode) for e in many.events if e.event in ("started", "resumed")] == [
        (1, "none"),
        (2, "fsdp"),
        (4, "hsdp"),
        (1, "none"),
    ]
    assert [e.event for e in many.events].count("stopped") == 3
    assert many.samples and [s.step for s in many.samples] == [s.step for s in one.samples]
    assert many.config["parallel"]["mode"] == "auto"
    page = (resized / "report.html").read_text()
    assert "4 processes" in page and "hsdp" in page


def test_torchrun_restarts_the_group_after_a_killed_worker(tmp_path, recipe):
    """torchrun starts all again, and the same command continues from the last checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Forked(2, train(recipe, whole), tmp_path).finish()
    launched = Torchrun(2, train(recipe, killed), "--max-restarts", "1")
    until_step(killed, 50, launched)
    os.kill(launched.workers[1], signal.SIGKILL)
    text = launched.finish()
    assert losses(killed) == losses(whole)
    events = [e.event for e in read_run(killed).events]
    assert [e for e in events if e != "lost"] == ["started", "resumed", "trained", "finished"]
    assert any("rank 1" in line for line in spoken(text))


def test_signals_reach_all_and_a_hung_process_is_named(tmp_path, recipe):
    run = tmp_path / "run"
    launched = Torchrun(2, train(recipe, run, "steps=5000", "parallel.timeout=3"))
    until_step(run, 10, launched)
    began = time.monotonic()
    os.kill(launched.workers[1], signal.SIGINT)  # one process of the two
    text = launched.finish(1)
    assert time.monotonic() - began < 30
    stopped = [e for e in read_run(run).events if e.event == "stopped"]
    assert len(stopped) == 1 and stopped[0].signal == signal.SIGINT
    assert [p.name for p in (run / "checkpoints").iterdir()][-1:] and len(spoken(text)) == 1
    assert "exitcode: 130" in text.replace("exitcode  : ", "exitcode: ")

    launched = Forked(2, ["train", "--resume", run], tmp_path)
    until_step(run, stopped[0].step + 4, launched)
    os.kill(launched.all[1].pid, signal.SIGSTOP)
    launched.all[0].join(60)
    launched.all[1].kill()
    launched.all[1].join()
    assert launched.poll() == 1
    [line] = spoken(launched.output)
    assert "rank 1 on host" in line and "silent" in line and "--resume" in line
    assert "most recent call first" in (run / "stacks" / "rank-0.txt").read_text()
    assert [e.event for e in read_run(run).events][-1] == "hung"
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["reason"]
