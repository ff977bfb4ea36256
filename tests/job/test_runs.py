"""Loading, sampling, evaluating and listing existing runs."""

import shutil
from pathlib import Path

import pytest
import torch

from isoflop.config import from_dict
from isoflop.errors import UserError
from isoflop.generate.request import Request
from isoflop.job.reopen import open_run_data, run_folder_of
from isoflop.job.runs import evaluate, list_runs, load, sample
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.gpt import GPT
from isoflop.records import read_run
from isoflop.trainer import RunConfig

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def golden(tmp_path, monkeypatch) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    return tmp_path / "golden"


def test_a_model_is_loaded_ready_to_use_with_its_tokenizer(golden):
    model, tokenizer = load("words")
    assert isinstance(model, GPT) and not model.training
    assert tokenizer.decode(tokenizer.encode("the same")) == "the same"
    last = max((golden / "words" / "checkpoints").iterdir())
    of_checkpoint, _ = load(last)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), of_checkpoint.parameters(), strict=True))
    assert isinstance(load("pairs")[0], EncoderDecoder)


def test_sample_works_for_each_task(golden):
    pieces: list[str] = []
    text = sample("words", "ab", Request(tokens=8, temperature=0.0, with_prompt=True, on_text=pieces.append))
    assert text.startswith("ab") and "".join(pieces) == text
    assert sample("words", "ab", Request(tokens=8, temperature=0.0)) == text.removeprefix("ab")
    assert sample("pairs", "abc", Request(beam=2)) == sample("pairs", "abc", Request(beam=2))

    several = ["ab", "", "the same thing"]
    together = sample("words", several, Request(tokens=8, seed=3))
    assert together == [sample("words", one, Request(tokens=8, seed=3 + i)) for i, one in enumerate(several)]
    begun = sample("words", tuple(several), Request(tokens=8, seed=3, with_prompt=True))
    assert begun == [prompt + text for prompt, text in zip(several, together, strict=True)]
    assert sample("pairs", ["abc", "b"]) == [sample("pairs", "abc"), sample("pairs", "b")]
    assert sample("words", []) == []
    with pytest.raises(UserError, match="the prompt b'x' is not a string"):
        sample("words", ["x", b"x"])
    with pytest.raises(UserError, match="on_text shows one text"):
        sample("words", several, Request(on_text=pieces.append))

    for refused in ({"beam": 2}, {"dtype": "float16"}):
        with pytest.raises(UserError, match=f"--{next(iter(refused))}"):
            sample("words", "ab", Request(**refused))
    for refused in ({"temperature": 1.0}, {"dtype": "bfloat16"}):
        with pytest.raises(UserError, match=f"--{next(iter(refused))}"):
            sample("pairs", "abc", Request(**refused))


def test_evaluating_on_its_own_text_and_on_another(golden):
    own = evaluate("words")
    assert own.bits_per_byte == pytest.approx(read_run("words").result.heldout.bits_per_byte, rel=1e-3)
    assert evaluate("words", ["texts"]).tokens > own.tokens and own.task_metrics == {}
    judged = evaluate("pairs", ["pairs.tsv"])
    assert judged.task_metrics["inputs"] > evaluate("pairs").task_metrics["inputs"]
    (golden / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"empty\.txt"):
        evaluate("words", ["empty.txt"])


def test_the_data_of_a_run_are_found_or_prepared_again(golden):
    run = read_run("words")
    config = from_dict(RunConfig, run.config)
    assert open_run_data(run, config).fingerprint == run.data.fingerprint
    shutil.rmtree(golden / "prepared")
    assert open_run_data(run, config).fingerprint == run.data.fingerprint


def test_runs_are_listed_with_their_results(golden):
    rows = {row["run"]: row for row in list_runs(".")}
    assert set(rows) == {"words", "extended", "pairs"}
    words = rows["words"]
    assert words["status"] == "finished" and words["steps"] == 24 and words["expected"]
    assert rows["pairs"]["expected"] is None


def test_the_run_of_a_checkpoint():
    assert run_folder_of(Path("runs/a/checkpoints/step-1")) == Path("runs/a") == run_folder_of(Path("runs/a"))
