"""The command under torchrun: resized, stopped, killed, hung. Starting processes takes seconds, so that few tests check
much each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import isoflop
from isoflop.records import read_run
from small import TINY

pytestmark = pytest.mark.slow
# long enough that a signal comes before the end, also on a fast machine
STEPS = ["steps=240", "every.checkpoint=40", "every.evaluate=80", "every.sample=120", "optim.lr=0.003"]
RAMP = ["batch.ramp_from=4", "batch.ramp_sequences=400"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(isoflop.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def start(processes: int, arguments: list[str], launcher: tuple[str, ...] = (), **more) -> subprocess.Popen:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *launcher]
    command = [sys.executable, *(many if processes > 1 else []), "-m", "isoflop", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment() | more, **pipes)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == code, text[-4000:]
    return text


def spoken(text: str) -> list[str]:
    return [line for line in text.splitlines() if "isoflop: " in line]  # torchrun's own may begin the line


def until_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    log = folder / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0][-4000:])


def workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children]


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
    return [line["loss"] for line in read_run(folder).training]


def test_a_run_is_resized_on_its_way_and_stays_one_run(tmp_path, recipe):
    """1 -> 2 (fsdp) -> 4 (hsdp) -> 1 processes against one process all along, with a batch that grows."""
    whole, resized = tmp_path / "whole", tmp_path / "resized"
    finish(start(1, train(recipe, whole, *RAMP)))
    refused = finish(start(2, train(recipe, tmp_path / "no", "batch.sequences=9", "parallel.mode=fsdp")), 1)
    assert len(spoken(refused)) == 1 and "batch.sequences = 9" in refused and not (tmp_path / "no").exists()

    process = start(1, train(recipe, resized, *RAMP))
    until_step(resized, 20, process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    for processes, mode, steps in ((2, ["fsdp"], 60), (4, ["hsdp", "parallel.replicas=2"], 110)):
        process = start(processes, ["train", "--resume", resized, "--set", f"parallel.mode={mode[0]}", *mode[1:]])
        until_step(resized, steps, process)
        process.send_signal(signal.SIGTERM)
        assert len(spoken(finish(process, 1))) == 1
    finish(start(1, ["train", "--resume", resized]))

    one, many = read_run(whole), read_run(resized)
    assert losses(resized) == pytest.approx(
        losses(whole), rel=1e-4
    )  # differences in the last bits, grown for 240 steps
    assert [line["tokens"] for line in many.training] == [line["tokens"] for line in one.training]
    assert many.result["heldout"]["nats_per_token"] == pytest.approx(one.result["heldout"]["nats_per_token"], rel=1e-4)
    assert [(e["processes"], e["mode"]) for e in many.events if e["event"] in ("started", "resumed")] == [
        (1, "none"),
        (2, "fsdp"),
        (4, "hsdp"),
        (1, "none"),
    ]
    assert [e["event"] for e in many.events].count("stopped") == 3
    assert many.samples and [s["step"] for s in many.samples] == [s["step"] for s in one.samples]
    assert many.config["parallel"]["mode"] == "auto"
    page = (resized / "report.html").read_text()
    assert "4 processes" in page and "hsdp" in page


def test_a_killed_worker_brings_the_group_back(tmp_path, recipe):
    """torchrun starts all again, and the same command goes on from the last checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(2, train(recipe, whole)))
    process = start(2, train(recipe, killed), launcher=("--max-restarts", "1"))
    until_step(killed, 70, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    text = finish(process)
    assert losses(killed) == losses(whole)
    events = [e["event"] for e in read_run(killed).events]
    assert [e for e in events if e != "lost"] == ["started", "resumed", "trained", "finished"]
    assert any("rank 1" in line for line in spoken(text))


def test_signals_reach_all_and_a_hung_process_is_named(tmp_path, recipe):
    run = tmp_path / "run"
    process = start(2, train(recipe, run, "steps=5000", "parallel.timeout=3"))
    until_step(run, 10, process)
    began = time.monotonic()
    both = workers(process)
    os.kill(both[1], signal.SIGINT)  # one process of the two is told
    text = finish(process, 1)
    assert time.monotonic() - began < 30
    stopped = [e for e in read_run(run).events if e["event"] == "stopped"]
    assert len(stopped) == 1 and stopped[0]["signal"] == signal.SIGINT
    assert [p.name for p in (run / "checkpoints").iterdir()][-1:] and len(spoken(text)) == 1
    assert "exitcode: 130" in text.replace("exitcode  : ", "exitcode: ")

    process = start(2, ["train", "--resume", run])
    until_step(run, stopped[0]["step"] + 4, process)
    os.kill(workers(process)[1], signal.SIGSTOP)
    text = finish(process, 1)
    [line] = spoken(text)
    assert "rank 1 on host" in line and "silent" in line and "--resume" in line
    assert "most recent call first" in (run / "stacks" / "rank-0.txt").read_text()
    assert [e["event"] for e in read_run(run).events][-1] == "hung"
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["reason"]
