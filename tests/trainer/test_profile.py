"""--profile shows where the time goes and changes no bit."""

import gzip
import json
import warnings

import pytest
from safetensors.torch import load_file

from isoflop import cli
from isoflop.config import override, to_dict
from isoflop.files import write_json
from isoflop.records import read_run
from isoflop.report.page import write_report
from isoflop.trainer import RunConfig, train
from isoflop.trainer.profile import Profile, summarize_trace
from isoflop.trainer.step import STEP_SPAN
from small import TINY


def what_was_learned(folder):
    """Every tensor of every checkpoint, and the lines of metrics without what the clock says."""
    kept = {}
    for path in folder.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            kept[f"{path.relative_to(folder)}:{name}"] = tensor.numpy().tobytes()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept["metrics"] = [(line["step"], line["loss"], line["grad_norm"]) for line in lines]
    return kept


def test_a_profiled_run_has_the_same_bits(tmp_path, corpus):
    config = override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', "steps=8"])
    train(config, tmp_path / "plain")
    train(config, tmp_path / "watched", hooks=[Profile()])
    assert what_was_learned(tmp_path / "plain") == what_was_learned(tmp_path / "watched")
    seen = read_run(tmp_path / "watched").profile
    assert (seen.first_step, seen.steps) == (4, 3)
    names = {row.name for row in seen.operations}
    assert "aten::mm" in names and any(name.startswith("isoflop/trainer/step.py") for name in names)
    own = sum(row.microseconds for row in seen.operations)
    assert abs(own - seen.microseconds) < 1e-3 * seen.microseconds  # each moment is somebody's, and once
    with gzip.open(tmp_path / "watched" / "profile" / "trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    page = write_report([tmp_path / "watched"]).read_text(encoding="utf-8")
    assert "Where the time goes" in page and 'href="profile/trace.json.gz"' in page and "trainer/step.py" in page
    assert "Where the time goes" not in write_report([tmp_path / "plain"]).read_text(encoding="utf-8")


def test_the_flag_profiles(tmp_path, corpus):
    config = override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', "steps=5"])
    write_json(tmp_path / "config.json", to_dict(config))
    words = ["train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run"), "--profile"]
    assert cli.run(words) == 0
    assert (tmp_path / "run" / "profile" / "profile.json").is_file()
    assert "Where the time goes" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_short_run_is_profiled_to_its_end(tmp_path, corpus):
    config = override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', "steps=2"])
    train(config, tmp_path / "run", hooks=[Profile()])
    assert read_run(tmp_path / "run").profile.steps == 2


def test_time_between_steps_is_left_out():
    def call(name, start, took, cat="python_function"):
        return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": took, "pid": 1, "tid": 1}

    found = summarize_trace(
        [
            call("/home/me/isoflop/trainer/loop.py(7): train", 0, 100),
            call("/home/me/isoflop/trainer/loop.py(9): run_steps", 5, 90),
            call(STEP_SPAN, 5, 25, "user_annotation"),
            call("/home/me/isoflop/trainer/step.py(3): take_step", 10, 20),
            call("/home/me/isoflop/trainer/hooks.py(3): stepped", 30, 50),
            call("/home/me/torch/nn/modules/module.py(1): _call_impl", 11, 3),
            call(STEP_SPAN, 80, 15, "user_annotation"),
        ]
    )
    assert found["microseconds"] == 40
    (step,) = found["tree"]
    assert [node["name"] for node in step["inside"]] == ["isoflop/trainer/step.py take_step"]


def test_the_loop_marks_its_steps_by_the_name_that_is_read(tmp_path, corpus, monkeypatch):
    config = override(RunConfig(), [*TINY, f'data.sources=["{corpus}"]', "steps=3"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(config, tmp_path / "run", hooks=[Profile()])
    (step,) = read_run(tmp_path / "run").profile.tree
    assert step.name == STEP_SPAN

    monkeypatch.setattr("isoflop.trainer.step.STEP_SPAN", "another name")
    with pytest.warns(UserWarning, match=STEP_SPAN):
        train(config, tmp_path / "renamed", hooks=[Profile()])


@pytest.mark.filterwarnings("ignore:the profile has no span")  # operations alone
def test_time_in_a_call_is_not_counted_again_in_its_caller():
    def span(name, start, took, **more):
        return {"ph": "X", "cat": "cpu_op", "name": name, "ts": start, "dur": took, "pid": 1, "tid": 1, **more}

    found = summarize_trace([span("b", 1, 4), span("a", 0, 10), span("b", 6, 2), span("c", 2, 1), span("a", 10, 5)])
    assert found["microseconds"] == 15
    assert {row["name"]: (row["calls"], row["microseconds"]) for row in found["operations"]} == {
        "a": (2, 9),
        "b": (2, 5),
        "c": (1, 1),
    }
    (a,) = found["tree"]
    (b,) = a["inside"]
    assert (a["microseconds"], b["microseconds"], b["inside"][0]["name"]) == (15, 6, "c")
