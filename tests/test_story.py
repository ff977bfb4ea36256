"""End to end in seconds: text, tokenizer, shards, steps, a kill, a resume bit for bit, an evaluation, a sample."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import isoflop
from isoflop import checkpoint
from isoflop.cli import run as cli
from isoflop.records import read_run
from small import TINY


def start(corpus: Path, out: Path, steps: int = 20, more: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, "-m", "isoflop", "train", str(corpus), "--budget", f"{steps}steps", "--out", str(out)]
    return subprocess.Popen(
        [*command, "--set", *TINY, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def run(capsys):
    """Run a command in this process; returns its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def losses(run_folder: Path) -> list[float]:
    return [line.loss for line in read_run(run_folder).training]


def wait_for_step(run_folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    metrics = run_folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b'"grad_norm"') >= step:
            return
        time.sleep(0.005)


def test_text_to_model_with_kills_in_between(corpus, tmp_path, run):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finished = start(corpus, whole, 60)
    assert finished.wait(300) == 0, finished.stdout.read()

    process = start(corpus, broken, 60)
    wait_for_step(broken, 13, process)
    process.kill()
    process.wait()
    assert len(losses(broken)) < 60  # it really was stopped in the middle
    process = subprocess.Popen(
        [sys.executable, "-m", "isoflop", "train", "--resume", str(broken)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_step(broken, 31, process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGINT, output
    assert "--resume" in output
    assert run("train", "--resume", str(broken))[0] == 0

    assert losses(broken) == losses(whole)
    assert [line.step for line in read_run(broken).training] == list(range(1, 61))
    one, other = (checkpoint.read(folder).weights for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [e.event for e in read_run(broken).events].count("resumed") == 2

    result = read_run(whole)
    assert losses(whole)[-1] < 0.8 * losses(whole)[0]
    assert result.status == "finished"
    assert result.plan.expected.low < result.plan.expected.high
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and f"{result.result.heldout.bits_per_byte:.2f}" in page

    keys = json.loads(run("eval", str(whole), "--json")[1])
    assert list(keys) == ["nats_per_token", "perplexity", "bits_per_byte", "tokens", "bytes"]
    assert keys["bits_per_byte"] == pytest.approx(result.result.heldout.bits_per_byte, rel=1e-5)

    prompt = ("sample", str(whole), "--prompt", "the ")
    assert run(*prompt, "--tokens", "5", "--dtype", "bfloat16")[1].startswith("the ")
    again = [run(*prompt, "--tokens", "20", "--seed", "4")[1] for _ in range(2)]
    assert again[0] == again[1] and again[0].startswith("the ") and len(again[0]) > 10
    assert str(whole.name) in run("runs", str(tmp_path))[1]

    code, _, error = run("train", "--config", str(whole / "config.json"), "--out", str(tmp_path / "replay"))
    assert code == 0, error
    assert losses(tmp_path / "replay") == losses(whole)


def test_a_finished_run_is_extended_from_before_its_decay(corpus, tmp_path, run):
    out = tmp_path / "run"
    isoflop.pretrain([str(corpus)], "30steps", out, assignments=TINY)
    first = losses(out)
    assert run("train", "--resume", str(out))[0] == 2  # it is finished
    left = out / "ended" / "step-00000030" / "step-00000030"  # by an extension that was killed
    left.mkdir(parents=True)
    (left / "half").write_text("")
    code, _, error = run("train", "--resume", str(out), "--budget", "+20steps")
    assert code == 0, error
    after = losses(out)
    decision = read_run(out).decisions[-1]
    plan, before = read_run(out).plan, json.loads((out / "ended" / "step-00000030" / "plan.json").read_text())
    assert (plan.budget, plan.steps, before["budget"], before["steps"]) == ("50steps", 50, "30steps", 30)
    assert plan.tokens == before["tokens"] * 50 / 30 == read_run(out).result.tokens
    assert plan.expected.bits_per_byte < before["expected"]["bits_per_byte"]
    assert len(after) == 50 == decision.steps
    assert after[: decision.at_step] == first[: decision.at_step]
    assert read_run(out).training[decision.at_step].lr == read_run(out).training[decision.at_step - 1].lr
    assert (out / "ended" / "step-00000030" / "step-00000030").is_dir()  # the decayed end is kept


def test_a_time_budget_is_kept_and_its_decisions_are_recorded(corpus, tmp_path):
    out = tmp_path / "run"
    result = isoflop.pretrain([str(corpus)], "6s", out, assignments=[*TINY, "every.checkpoint=0"])
    assert abs(result.seconds - 6) < 0.6  # 10 %: six seconds on a busy test machine; the bench takes minutes
    run = read_run(out)
    assert run.config["seconds"] == 6
    assert all(run.events[0].time <= decision.time <= run.events[-1].time for decision in run.decisions)


def test_starting_from_another_runs_weights(corpus, tmp_path):
    first = isoflop.pretrain([str(corpus)], "40steps", tmp_path / "first", assignments=TINY)
    second = isoflop.pretrain(
        [str(corpus)],
        "25steps",
        tmp_path / "second",
        init=first.folder,
        assignments=[text for text in TINY if not text.startswith(("model.", "data."))],
    )
    assert losses(second.folder)[0] < 0.9 * losses(first.folder)[0]
    assert read_run(second.folder).config["model"] == read_run(first.folder).config["model"]
    assert (second.folder / "tokenizer.json").read_text() == (first.folder / "tokenizer.json").read_text()


def test_a_run_needs_the_weights_of_init_only_at_its_start(corpus, tmp_path):
    """A stopped run resumes although its initial weights and prepared text are gone; --config takes --init too."""
    first = isoflop.pretrain([str(corpus)], "20steps", tmp_path / "first", assignments=TINY)
    batch = [text for text in TINY if not text.startswith(("model.", "data."))]
    second = isoflop.pretrain([str(corpus)], "20steps", tmp_path / "second", init=first.folder, assignments=batch)
    config = second.folder / "config.json"
    again = ["--config", str(config), "--init", str(first.folder), "--out", str(tmp_path / "again")]
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", "train", *again], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "again") == losses(second.folder)
    shutil.rmtree(first.folder)
    shutil.rmtree(Path(os.environ["ISOFLOP_HOME"]) / "data")
    isoflop.resume(second.folder, "+10steps")
    assert len(losses(second.folder)) == 30


def test_a_closed_pipe_does_not_stop_a_run(corpus, tmp_path):
    process = start(corpus, tmp_path / "run", 20)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert read_run(tmp_path / "run").status == "finished"


def test_a_dry_run_plans_and_writes_nothing(corpus, tmp_path):
    out = tmp_path / "run"
    advice = isoflop.pretrain([str(corpus)], "1e6tok", out, dry_run=True)
    assert not out.exists()
    assert 0.5 * 1e6 < advice.tokens <= 1e6
    assert advice.expected.low < advice.expected.bits_per_byte < advice.expected.high
    assert {choice.name for choice in advice.choices} >= {"shape", "tokens D", "parameters N", "batch", "vocabulary"}


def test_a_recipe_is_a_function_that_returns_a_config(corpus, tmp_path, run):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from isoflop.trainer.config import RunConfig\n"
        "from isoflop.config import override\n\n\n"
        f"def tiny():\n    return override(RunConfig(steps=5), {TINY!r} + ['model.vocab_size=320'])\n"
    )
    code, _, error = run("train", str(corpus), "--recipe", f"{recipe}:tiny", "--out", str(tmp_path / "run"))
    assert code == 0, error
    assert len(losses(tmp_path / "run")) == 5
    code, _, error = run("train", str(corpus), "--recipe", f"{recipe}:tinny", "--out", str(tmp_path / "other"))
    assert code == 2 and "tiny" in error


def test_the_environment_does_not_decide_the_bits(corpus, tmp_path, monkeypatch):
    """Hooks see a run and leave no trace in it."""
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "with", assignments=TINY)
    isoflop.pretrain(
        [str(corpus)],
        "20steps",
        tmp_path / "without",
        assignments=[*TINY, "every.evaluate=0", "every.sample=0", "every.checkpoint=0"],
    )
    assert losses(tmp_path / "with") == losses(tmp_path / "without")


def test_a_start_does_not_import_what_is_needed_later():
    later = "{'matplotlib', 'torch.distributed.checkpoint', 'torch.distributed.fsdp'}"
    code = f"import sys, isoflop, isoflop.job; sys.exit(' '.join({later} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0
    code = "import sys, isoflop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, isoflop.cli as c\ntry: c.run(['-h'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ).returncode == 0
