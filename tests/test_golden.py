"""Run folders of earlier versions open in every later one: see tests/golden/README.md.

Numbers are compared within a tolerance, since bits depend on the processor.
"""

import json
import shutil
from pathlib import Path

import pytest

from isoflop.cli import run as cli
from isoflop.config import from_dict
from isoflop.model.config import ModelConfig
from isoflop.records import read_run

GOLDEN = Path(__file__).parent / "golden"
RUNS = ("words", "extended", "pairs")
CLOSE = 1e-3  # relative, of losses after some steps on another processor


@pytest.fixture
def golden(tmp_path, monkeypatch) -> Path:
    """A copy of the golden folder, as the working directory: the runs name their data by relative paths."""
    shutil.copytree(GOLDEN, tmp_path / "golden")
    monkeypatch.chdir(tmp_path / "golden")
    return tmp_path / "golden"


def losses(folder: Path | str) -> list[float]:
    return [line.loss for line in read_run(Path(folder)).training]


def printed(capsys, *arguments: str) -> str:
    capsys.readouterr()
    code = cli(arguments)
    out, errors = capsys.readouterr()
    assert code == 0, out + errors
    return out


def kill_after(folder: Path, step: int) -> list[float]:
    """Make the folder that of a run whose process was killed after a checkpoint. Returns the losses it had reached."""
    reached = losses(folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    for name in ("result.json", "report.html"):
        (folder / name).unlink(missing_ok=True)
    events = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in events if json.loads(line)["event"] not in ("trained", "finished")]
    (folder / "events.jsonl").write_text("".join(kept), encoding="utf-8")
    return reached


def test_the_records_are_read_in_full(golden):
    statuses = {name: read_run(golden / name).status for name in RUNS}
    assert statuses == dict.fromkeys(RUNS, "finished")
    words, extended, pairs = (read_run(golden / name) for name in RUNS)
    assert len(words.training) == 24 and len(words.heldout) == 3 and len(words.samples) == 2
    assert words.plan.tokens == 6144 and words.result.verdict == "inside"
    assert [event.event for event in extended.events] == [
        *("started", "trained", "finished"),
        *("extended", "resumed", "trained", "finished"),
    ]
    assert [decision.at_step for decision in extended.decisions] == [12]
    assert [skip.step for skip in extended.skips] == [12, 13, 14, 15, 18, 19, 20, 21]
    assert pairs.result.heldout.unit_error_rate == pytest.approx(0.867, abs=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_eval_measures_what_the_run_measured(golden, capsys, name):
    then = json.loads((golden / name / "result.json").read_text())["heldout"]
    now = json.loads(printed(capsys, "eval", name, "--json"))
    assert now.keys() >= then.keys()
    assert now["tokens"] == then["tokens"] and now["bytes"] == then["bytes"]
    assert now["nats_per_token"] == pytest.approx(then["nats_per_token"], rel=1e-4)


def test_eval_measures_other_text(golden, capsys):
    now = json.loads(printed(capsys, "eval", "words", "texts/03.txt", "--json"))
    assert now["tokens"] == 1386 and now["bits_per_byte"] == pytest.approx(3.91117, rel=1e-4)
    now = json.loads(printed(capsys, "eval", "pairs", "pairs.tsv", "--json"))
    assert now["inputs"] > 400 and now["nats_per_token"] < 4


def test_sample_gives_the_same_text(golden, capsys):
    greedy = ("--temperature", "0", "--tokens", "24")
    assert printed(capsys, "sample", "words", "--prompt", "an", *greedy) == "anolmsubolmsubolmsubolmsub\n"
    assert printed(capsys, "sample", "extended", "--prompt", "an", *greedy) == f"an{24 * 'r'}\n"
    assert printed(capsys, "sample", "words", "--prompt", "an", "--seed", "3").startswith("an")
    for beam in ("1", "3"):
        assert printed(capsys, "sample", "pairs", "--prompt", "gaff", "--beam", beam) == "A\n"


def test_reports_are_written_and_runs_listed(golden, capsys):
    for name in RUNS:
        printed(capsys, "report", name)
        page = (golden / name / "report.html").read_text(encoding="utf-8")
        reached = json.loads((golden / name / "result.json").read_text())["heldout"]["bits_per_byte"]
        assert "<svg" in page and f"{reached:.2f}" in page
    assert "decision" in (golden / "extended" / "report.html").read_text(encoding="utf-8")
    printed(capsys, "report", *RUNS, "--out", "all.html")
    page = (golden / "all.html").read_text(encoding="utf-8")
    assert all(name in page for name in RUNS)
    listed = printed(capsys, "runs", ".")
    assert all(name in listed for name in RUNS) and listed.count("finished") == 3


@pytest.mark.parametrize("name", ["words", "pairs"])
def test_a_killed_run_is_resumed_with_the_same_bits(golden, capsys, name):
    before = kill_after(golden / name, 17)
    printed(capsys, "train", "--resume", name)
    after = read_run(golden / name)
    assert after.status == "finished" and after.events[-3].event == "resumed"
    assert losses(name)[:17] == before[:17] and losses(name) == pytest.approx(before, rel=CLOSE)


def test_an_extended_run_with_skipped_steps_is_resumed(golden, capsys):
    before = kill_after(golden / "extended", 17)
    skips = [skip.step for skip in read_run(golden / "extended").skips]
    printed(capsys, "train", "--resume", "extended")
    after = read_run(golden / "extended")
    assert after.status == "finished" and after.result.step == 22
    assert losses("extended") == pytest.approx(before, rel=CLOSE)  # of the steps that were not skipped
    assert [skip.step for skip in after.skips] == skips


@pytest.mark.parametrize(("name", "steps"), [("words", 24), ("pairs", 24), ("extended", 22)])
def test_a_finished_run_is_extended(golden, capsys, name, steps):
    before = [line.loss for line in read_run(golden / name).training if line.step <= 17]
    printed(capsys, "train", "--resume", name, "--budget", "+6steps")
    run = read_run(golden / name)
    assert run.status == "finished" and run.decisions[-1].steps == steps + 6
    assert run.result.step == steps + 6 and losses(name)[: len(before)] == before
    assert (golden / name / "ended" / f"step-{steps:08d}" / "plan.json").is_file()
    assert run.plan.steps == steps + 6


def test_new_runs_start_from_the_weights(golden, capsys):
    quick = ("--budget", "3steps", "--set", "runtime.threads=1", "data.workers=1", "batch.sequences=8")
    printed(capsys, "train", "texts", "--init", "words", "--out", "next", *quick)
    assert losses("next")[0] < losses("words")[4]  # not where fresh weights begin
    models = [from_dict(ModelConfig, read_run(Path(run)).config["model"]) for run in ("next", "words")]
    assert models[0] == models[1]
    printed(capsys, "train", "pairs.tsv", "--task", "seq2seq", "--init", "pairs", "--out", "more", *quick)
    assert losses("more")[0] < losses("pairs")[4]


@pytest.mark.parametrize("name", ["words", "pairs"])
def test_a_configuration_is_run_again(golden, capsys, name):
    """From the source text, which is prepared anew: the same tokens."""
    printed(capsys, "train", "--config", f"{name}/config.json", "--out", "again")
    one, other = (json.loads(Path(folder, "data.json").read_text())["fingerprint"] for folder in (name, "again"))
    assert one == other
    assert losses("again") == pytest.approx(losses(name), rel=CLOSE)


def test_prepared_data_is_used_by_its_path(golden, capsys):
    config = json.loads((golden / "words" / "config.json").read_text())
    config["data"] |= {"sources": [], "path": "prepared/texts"}
    (golden / "given.json").write_text(json.dumps(config))
    printed(capsys, "train", "--config", "given.json", "--out", "again", "--set", "steps=6")
    assert losses("again")[:4] == pytest.approx(losses("words")[:4], rel=CLOSE)


def test_weights_are_exported_and_imported(golden, capsys):
    assert "hf apertus, 5,888 parameters" in printed(capsys, "export", "words", "--to", "hf", "--out", "hf")
    printed(capsys, "import", "hf", "--out", "imported")
    greedy = ("--prompt", "an", "--temperature", "0", "--tokens", "24")
    assert printed(capsys, "sample", "imported", *greedy) == printed(capsys, "sample", "words", *greedy)
    assert "gguf apertus, 5,888 parameters" in printed(capsys, "export", "words", "--to", "gguf", "--out", "gguf")
    printed(capsys, "import", "gguf", "--out", "again")
    assert printed(capsys, "sample", "again", *greedy) == printed(capsys, "sample", "words", *greedy)
