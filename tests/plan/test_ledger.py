"""The ledger, and the scores of its forecasts."""

import json
import math
import multiprocessing
import random
import subprocess
import sys

import pytest

from isoflop.plan.ledger import clopper_pearson, score, to_lines
from isoflop.plan.prior import expectation
from isoflop.records.ledger import DIVERGED, FINISHED, OUTCOME, LedgerForecast, LedgerLine, append, read_ledger

NORMAL = (0.674, 1.282, 1.645)  # half of 50, 80 and 90 % of a normal distribution, in standard deviations


def forecast(name: str, value: float = 2.0, deviation: float = 0.1, **more) -> LedgerForecast:
    expected = expectation(math.log(value), deviation, NORMAL, "made up")
    return LedgerForecast(id=name, corpus="books", fingerprint="f", flops=2e12, expected=expected, **more)


def outcome(name: str, reached: float | None, status: str = FINISHED) -> LedgerLine:
    return LedgerLine(kind=OUTCOME, forecast=name, reached_bits_per_byte=reached, status=status)


def ledger_of(path, *lines):
    for line in lines:
        append(path, line)
    return read_ledger(path)


def test_correct_intervals_have_their_nominal_coverage(tmp_path):
    generator, lines = random.Random(1), []
    for number in range(300):
        name = f"r{number}"
        lines += [forecast(name), outcome(name, 2.0 * math.exp(generator.gauss(0.0, 0.1)))]
    path = tmp_path / "ledger.jsonl"
    path.write_text("".join(json.dumps(line.to_dict()) + "\n" for line in lines))
    found = score(read_ledger(path))
    assert found.whole.forecasts == 300 and found.whole.enough and found.whole.diverged == 0
    for one in found.whole.coverage:
        assert one.low <= one.level <= one.high
    assert abs(found.whole.bias) < 0.02 and found.whole.error == pytest.approx(0.08, rel=0.1)
    assert [one.name for one in found.by_size] == ["1e12 to 1e13 FLOPs"]


def test_the_score_prefers_the_true_width(tmp_path):
    generator = random.Random(2)
    offs = [generator.gauss(0.0, 0.1) for _ in range(200)]

    def mean_score(deviation: float) -> float:
        path = tmp_path / f"{deviation}.jsonl"
        lines = []
        for number, off in enumerate(offs):
            lines += [forecast(f"{number}", deviation=deviation), outcome(f"{number}", 2.0 * math.exp(off))]
        path.write_text("".join(json.dumps(line.to_dict()) + "\n" for line in lines))
        return next(one.score for one in score(read_ledger(path)).whole.coverage if one.level == 0.8)

    assert mean_score(0.1) < min(mean_score(0.03), mean_score(0.3))


def test_diverged_unfinished_and_replaced_forecasts_count_as_such(tmp_path):
    found = score(
        ledger_of(
            tmp_path / "home" / "ledger.jsonl",
            forecast("first"),
            forecast("second", replaces="first"),
            outcome("second", 2.0),
            forecast("wild"),
            outcome("wild", None, DIVERGED),
            forecast("open"),
            LedgerLine(run="older", expected=forecast("x").expected, reached_bits_per_byte=2.0, verdict="inside"),
        )
    )
    assert (found.whole.forecasts, found.whole.diverged) == (2, 1)
    assert (found.unfinished, found.replaced, found.unrecorded) == (1, 1, 1)
    assert [(one.inside, one.of) for one in found.whole.coverage] == [(1, 2)] * 3
    text = "\n".join(to_lines(found))
    assert "too few" in text and "1 unfinished" in text and "diverged" in text
    assert max(map(len, text.splitlines())) <= 80 or "goes with" in text


def test_an_extended_run_keeps_the_score_of_what_it_reached_before(tmp_path):
    lines = (forecast("a"), outcome("a", 2.0), forecast("b", replaces="a"), outcome("b", 1.9))
    assert score(ledger_of(tmp_path / "l", *lines)).whole.forecasts == 2


def test_a_diverged_run_that_was_resumed_counts_with_its_end(tmp_path):
    found = score(ledger_of(tmp_path / "l", forecast("a"), outcome("a", None, DIVERGED), outcome("a", 2.0)))
    assert (found.whole.forecasts, found.whole.diverged, found.unrecorded) == (1, 0, 0)


def test_a_torn_line_affects_no_other_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, forecast("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])  # a power cut
    append(path, outcome("a", 2.0))
    found = read_ledger(path)
    assert (list(found.forecasts), len(found.outcomes), found.broken) == (["a"], 1, 1)
    assert score(found).whole.forecasts == 1


def add_many(path: str, who: int) -> None:
    for number in range(25):
        append(__import__("pathlib").Path(path), forecast(f"{who}-{number}"))


def test_several_processes_may_write_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(str(path), who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = read_ledger(path)
    assert len(found.forecasts) == 100 and found.broken == 0


def test_the_interval_of_a_share():
    low, high = clopper_pearson(8, 10)
    assert (low, high) == (pytest.approx(0.493, abs=0.001), pytest.approx(0.963, abs=0.001))  # published tables
    assert clopper_pearson(0, 5)[0] == 0.0 and clopper_pearson(5, 5)[1] == 1.0


def test_an_empty_ledger_is_reported_by_the_command(tmp_path):
    words = [sys.executable, "-m", "isoflop", "plan", "score"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "nothing to judge" in done.stdout
    found = json.loads(subprocess.run([*words, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["whole"]["forecasts"] == 0 and found["enough"] is False
