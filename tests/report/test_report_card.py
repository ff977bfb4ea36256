"""The model card: the records and the person's notes, nothing else."""

import json
from pathlib import Path

import pytest

from isoflop.cli.app import run as command
from isoflop.errors import UserError
from isoflop.evaluate.methods import METRICS
from isoflop.records import RunFolder, read_run
from isoflop.report.card import HUB_METRICS, write_card
from isoflop.report.facts import read_facts
from isoflop.report.page import write_report

HOSTILE = "x](http://evil.example)\n---\n# | <script>alert(1)</script>"


def front(text: str) -> dict:
    """The YAML in front, whose values are JSON."""
    _, yaml, _ = text.split("---\n", 2)
    return {key: json.loads(value) for key, _, value in (one.partition(": ") for one in yaml.splitlines())}


def test_a_card_states_the_records(make_run, blimp):
    run = make_run()
    folder = RunFolder(run)
    folder.suites.mkdir()
    without = {"score": 0.7, "low": 0.69, "high": 0.71, "items": 66990}
    contamination = {"overlapping": 10, "too_short": 60000, "without": without}
    record = {**blimp, "contamination": contamination, "licence": "CC-BY-4.0"}
    (folder.suites / "blimp.json").write_text(json.dumps(record))
    text = write_card(run).read_text(encoding="utf-8")
    for heading in (
        "Training data",
        "What was left out",
        "Compute",
        "Forecast and outcome",
        "Evaluation",
        "Intended use",
    ):
        assert f"# {heading}" in text
    for phrase in (
        "not stated",
        "bits per byte",
        "Forecast before training",
        "71.0 % (70.0 % to 72.0 %)",
        "10 items",
        "CC-BY-4.0",
    ):
        assert phrase in text
    assert front(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.71 and "license" not in front(text)
    assert write_card(run).read_text(encoding="utf-8") == text  # the same each time


def test_metrics_have_the_names_that_hubs_know():
    known = {name: metric.lm_eval for name, metric in METRICS.items() if metric.lm_eval and metric.lm_eval != name}
    assert known == HUB_METRICS


def test_a_score_of_an_earlier_checkpoint_says_so(make_run, blimp):
    """As of a run that was extended after it was scored."""
    run = make_run()
    folder, steps = RunFolder(run), read_facts(read_run(run)).reached.steps
    folder.suites.mkdir()
    for step, said in ((steps, "| blimp |"), (steps - 7, f"| blimp (at step {steps - 7:,} of {steps:,}) |")):
        (folder.suites / "blimp.json").write_text(json.dumps({**blimp, "step": step}))
        assert said in write_card(run).read_text(encoding="utf-8")
    assert f"blimp (at step {steps - 7:,} of {steps:,})" in write_report([run]).read_text(encoding="utf-8")


def test_a_persons_notes_are_kept(make_run, capsys):
    run = make_run()
    source = next(iter(json.loads((run / "data.json").read_text())["sources"]))
    assert command(["report", "--card", str(run), "--licence", f"{source}=CC0-1.0", "--licence", "Apache-2.0"]) == 0
    assert Path(capsys.readouterr().out.strip()) == run / "README.md"
    text = write_card(run, run.parent / "card.md").read_text(encoding="utf-8")
    assert "CC0-1.0" in text and front(text)["license"] == "apache-2.0"
    with pytest.raises(UserError, match=f"no source 'nothing'; it has {source}"):
        write_card(run, licences=["nothing=MIT"])


def test_a_card_of_a_run_of_any_state(make_run, tmp_path):
    assert "not finished" in write_card(make_run("live", steps=300, finished=False)).read_text()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    assert "No suite was scored" in write_card(bare).read_text()
    with pytest.raises(UserError, match="holds no run"):
        write_card(tmp_path / "absent")


def test_text_of_others_is_escaped(make_run):
    run = make_run(data={"sources": {HOSTILE: {"pattern": HOSTILE, "documents": 1}}, "fingerprint": HOSTILE})
    text = write_card(run).read_text(encoding="utf-8")
    assert "<script>" not in text.replace("\\<", "") and text.count("\n---\n") == 1
    rows = [one for one in text.splitlines() if one.startswith("| x")]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 9


@pytest.mark.parametrize(
    ("words", "message"), [(["--licence", "MIT"], "goes with --card"), (["absent", "--card"], "2 are named")]
)
def test_incompatible_arguments_are_refused(make_run, capsys, words, message):
    run = str(make_run())
    assert command(["report", run, *words]) == 2
    assert message in capsys.readouterr().err
