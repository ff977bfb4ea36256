"""seq2seq end to end in seconds: words and their reversed letters, steps, a kill, a resume bit for bit, an evaluation,
an output."""

import json
import random
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

TINY = [
    "model.layers=1",
    "model.d_model=48",
    "model.heads=2",
    "batch.sequences=64",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "every.checkpoint=10",
    "every.evaluate=20",
    "every.sample=20",
]
STEPS = 120


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Short words and their letters backwards, with blanks between them: what attention to another sequence is for."""
    rng = random.Random(0)
    words = {"".join(rng.choices("abcdefgh", k=rng.randint(2, 5))) for _ in range(2500)}
    path = tmp_path / "backwards.tsv"
    path.write_text("".join(f"{word}\t{' '.join(word[::-1].upper())}\n" for word in sorted(words)), encoding="utf-8")
    return path


def command(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "isoflop", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def losses(folder: Path) -> list[float]:
    return [line.loss for line in read_run(folder).training]


def test_pairs_to_model_with_a_kill_in_between(pairs, tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = isoflop.pretrain([str(pairs)], f"{STEPS}steps", whole, task="seq2seq", assignments=TINY)

    process = command(
        "train", "--task", "seq2seq", str(pairs), "--budget", f"{STEPS}steps", "--out", str(broken), "--set", *TINY
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = broken / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b'"grad_norm"') >= 33:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 30 < len(losses(broken)) < STEPS  # it really was stopped in the middle
    isoflop.resume(broken)
    assert losses(broken) == losses(whole)
    assert [line.tokens for line in read_run(broken).training] == [line.tokens for line in read_run(whole).training]
    one, other = (checkpoint.read(folder).weights for folder in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)

    run = read_run(whole)
    assert losses(whole)[-1] < 0.5 * losses(whole)[0]
    assert run.status == "finished" and run.plan.expected is None
    assert run.plan.tokens == run.result.tokens == result.tokens == run.result.data.tokens
    assert run.result.flops == pytest.approx(run.plan.flops)
    sample = run.samples[-1]
    assert sample.reference == " ".join(sample.prompt[::-1].upper())
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and sample.reference in page and "Unit error rate" in page

    capsys.readouterr()
    assert cli(["eval", str(whole), "--json"]) == 0
    keys = json.loads(capsys.readouterr().out)
    assert {"nats_per_token", "bits_per_byte", "unit_error_rate", "exact_match", "inputs"} <= set(keys)
    assert keys["unit_error_rate"] == run.result.heldout.unit_error_rate < 0.6
    held = tmp_path / "own.tsv"
    held.write_text("abc\tC B A\nabc\tX X X\n")
    assert cli(["eval", str(whole), str(held), "--json", "--beam", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == 1
    held.write_text(f"abc\tC B A\n{'abc' * 20}\tX\n")
    assert cli(["eval", str(whole), str(held)]) == 2
    assert "takes 61 positions" in capsys.readouterr().err

    assert cli(["sample", str(whole), "--prompt", "abc"]) == 0
    assert set(capsys.readouterr().out.split()) <= set("ABCDEFGH")  # the output alone, not the prompt before it
    assert cli(["sample", str(whole), "--prompt", "abc", "--temperature", "1"]) == 2
    assert "--temperature" in capsys.readouterr().err
    assert cli(["sample", str(whole), "--prompt", "abc", "--dtype", "bfloat16"]) == 2
    assert "--dtype" in capsys.readouterr().err
    assert cli(["sample", str(whole)]) == 2
    assert "--prompt" in capsys.readouterr().err

    assert cli(["export", str(whole), "--to", "hf", "--out", str(tmp_path / "hf")]) == 2
    assert "encoder-decoder" in capsys.readouterr().err and not (tmp_path / "hf").exists()

    more = isoflop.resume(whole, "+5000tok")
    assert more.step > STEPS and losses(whole)[: STEPS // 2] == losses(broken)[: STEPS // 2]


def test_a_configuration_runs_again_and_micro_batches_change_nothing(pairs, tmp_path):
    first = isoflop.pretrain([str(pairs)], "20steps", tmp_path / "first", task="seq2seq", assignments=TINY)
    replay = tmp_path / "replay"
    assert cli(["train", "--config", str(first.folder / "config.json"), "--out", str(replay)]) == 0
    assert losses(replay) == losses(first.folder)
    small = isoflop.pretrain(
        [str(pairs)],
        "20steps",
        tmp_path / "small",
        task="seq2seq",
        assignments=[*TINY, "batch.micro_sequences=16"],
    )
    assert losses(small.folder) == pytest.approx(losses(first.folder), rel=2e-3)


def test_other_losses_and_blocks_train_too(pairs, tmp_path):
    more = ["loss=label_smoothing", "model.feed_forward=moe", "model.attention=banded", "model.dropout=0.1"]
    result = isoflop.pretrain([str(pairs)], "30steps", tmp_path / "run", task="seq2seq", assignments=[*TINY, *more])
    assert losses(result.folder)[-1] < 0.9 * losses(result.folder)[0]


@pytest.mark.parametrize("budget", ["9s", "2e10", "60000tok"])
def test_budgets_of_every_kind_are_planned(pairs, tmp_path, budget):
    out = tmp_path / "run"
    small = ["runtime.threads=1", "runtime.dtype=float32", "batch.sequences=16"]
    advice = isoflop.pretrain([str(pairs)], budget, out, task="seq2seq", assignments=small, dry_run=True)
    assert not out.exists() and advice.expected is None
    assert {choice.name for choice in advice.choices} >= {"shape", "tokens D", "parameters N", "batch", "tokenizer"}
    if budget == "2e10":
        assert 0.7 * 2e10 < advice.flops < 1.1 * 2e10
    if budget == "60000tok":
        assert 0.8 * 60000 < advice.tokens < 1.1 * 60000


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert cli(list(arguments)) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_files_without_pairs_are_refused(tmp_path, capsys):
    for name, content, word in (
        ("empty.tsv", b"", "holds no pairs"),
        ("words.txt", b"alone\n" * 50, "tab or a space"),
        ("few.tsv", b"a\tb\nc\td\n", "only 2"),
        ("picture.tsv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, "picture.tsv"),
    ):
        (tmp_path / name).write_bytes(content)
        out = tmp_path / "out"
        message = refused(
            capsys, "train", "--task", "seq2seq", str(tmp_path / name), "--budget", "20steps", "--out", str(out)
        )
        assert word in message and not out.exists(), message


def test_incompatible_arguments(pairs, tmp_path, capsys):
    base = ["train", "--task", "seq2seq", "--budget", "20steps", "--out", str(tmp_path / "out")]
    assert "weight" in refused(capsys, *base, f"a={pairs}:0.5")
    assert "multi_token" in refused(capsys, *base, str(pairs), "--set", *TINY, "loss=multi_token")
    ramp = ["batch.ramp_from=16", "batch.ramp_sequences=640"]
    assert "batch.ramp_from" in refused(capsys, *base, str(pairs), "--set", *TINY, *ramp)
    assert "alibi" in refused(capsys, *base, str(pairs), "--set", *TINY, "model.position=alibi")
    assert "context" in refused(capsys, *base, str(pairs), "--set", *TINY, "model.context=3")
    prompt = f'sample.prompts=["{"a" * 600}"]'
    assert "sample.prompts" in refused(capsys, *base, str(pairs), "--set", *TINY, prompt)
    assert "2e3" in refused(capsys, *base[:3], "--budget", "2e3", str(pairs)).replace("2000flop", "2e3")
    assert not (tmp_path / "out").exists()
