"""The forecast study, bench/forecast.py: which lines count, and their scores."""

import json
import math
import random

import pytest

import forecast
import forecast_corpora
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect, expectation, table
from isoflop.records import Expectation

STUDY = json.loads(forecast.STUDY.read_text(encoding="utf-8"))


def lines(count: int = 60, deviation: float = 0.05) -> list[dict]:
    generator, made = random.Random(0), []
    for number in range(count):
        expected = expectation(math.log(1.8), deviation, (0.674, 1.282, 1.645), "made up")
        made.append(
            {
                "study": forecast.identity(),
                "corpus": STUDY["corpora"][number % 20]["name"],
                "budget": "30s",
                "seconds": 30.0,
                "fingerprint": "f",
                "parameters": 2e5,
                "tokens": 3e6,
                "unique_tokens": 4e6,
                "flops": 3.6e12,
                "ngram": 2.3,
                "lzma": 2.2,
                "expected": expected.to_dict(),
                "reached": 1.8 * math.exp(generator.gauss(0, 0.05)),
                "on_record": 1.0,
                "first_step": 2.0,
            }
        )
    return made


def test_the_constants_are_those_of_the_study():
    names = [corpus["name"] for corpus in STUDY["corpora"]]
    assert len(names) == len(set(names)) == 20
    assert {run["corpus"] for run in table()["runs"]}.isdisjoint(names)
    runs = forecast.todo(STUDY)
    assert len(runs) == 60 and runs[0][0] == "30s" and runs[-1][0] == "20m"
    assert all(corpus["from"] in forecast_corpora.SOURCES for corpus in STUDY["corpora"])


def test_every_method_forecasts_every_line_and_the_score_is_printed(capsys):
    made = lines()
    for way in forecast.ways().values():
        found = way(made[0])
        assert 0.5 < found.bits_per_byte < 4 and found.between(0.8).low < found.bits_per_byte < found.between(0.8).high
    forecast.show(STUDY, made[:50])
    shown = capsys.readouterr().out
    assert "not complete" in shown and "the nearest run" in shown and "below 3 m" in shown


def test_the_bootstrap_interval_contains_the_true_coverage():
    judged = forecast.scored(lines(400), lambda line: Expectation.read(line["expected"]))
    low, high = forecast.over_corpora(judged, 0.8, 500, 0)
    assert low < 0.8 < high and high - low < 0.2


def test_lines_of_another_study_do_not_count(tmp_path, monkeypatch):
    path = tmp_path / "forecast.jsonl"
    made = lines(2)
    path.write_text("".join(json.dumps(line) + "\n" for line in [made[0], {**made[1], "study": "another"}]))
    monkeypatch.setattr(forecast, "RESULTS", path)
    assert forecast.read_lines() == [made[0]]


def test_the_other_methods_do_not_use_a_left_out_corpus():
    runs = table()["runs"]
    target = next(run for run in runs if run["corpus"] == "gov")
    others = [run for run in runs if run["corpus"] != "gov"]
    assert forecast.nearest(others, target) != math.log(target["bits_per_byte"])
    assert forecast.left_out(forecast.surface)[0] == pytest.approx(0.1, abs=0.08)
    assert expect(2e5, 3e6, 4e6, Predictability(2.3, 2.2)).bits_per_byte > 0


def test_files_are_matched_below_each_package(tmp_path):
    for name in ("three/package/src/a.js", "three/package/src/deep/b.js", "three/package/c.md", "usr/x.gz"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = forecast_corpora.matching(tmp_path, ["package/src/**/*.js", "usr/*.gz"])
    assert [path.name for path in found] == ["a.js", "b.js", "x.gz"]
