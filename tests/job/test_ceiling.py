"""The machine's peak is timed once, and again when it may have changed."""

import json

import pytest

import isoflop
from isoflop import files
from isoflop.plan import ceiling
from isoflop.records import read_run
from small import TINY


@pytest.fixture
def timed(monkeypatch):
    """The devices that were timed, each time with another result."""
    devices = []

    def measure(device):
        devices.append(device)
        return {"float32": 1e9 * len(devices)}

    monkeypatch.setattr(ceiling, "measure_peak", measure)
    return devices


def test_a_second_start_uses_the_cached_peak(timed):
    assert ceiling.machine_peak("cpu") == ceiling.machine_peak("cpu") == {"float32": 1e9}
    assert timed == ["cpu"]


def test_the_peak_is_timed_again_for_another_version_or_after_a_week(timed, monkeypatch):
    first = ceiling.machine_peak("cpu")
    monkeypatch.setattr(ceiling, "describe_machine", lambda device: {"torch": "another"})
    assert ceiling.machine_peak("cpu") != first


def test_the_cached_peak_expires(timed, monkeypatch):
    first, now = ceiling.machine_peak("cpu"), ceiling.time.time()
    monkeypatch.setattr(ceiling.time, "time", lambda: now + 8 * 86_400)
    assert ceiling.machine_peak("cpu") != first
    assert len(json.loads((files.home() / ceiling.FILE).read_text())) == 1


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"machine": {}, "time": 1, "peak": {"float32": -1}}]', "[" * 9])
def test_a_damaged_cache_is_ignored(timed, content):
    files.home().mkdir(parents=True, exist_ok=True)
    (files.home() / ceiling.FILE).write_text(content)
    assert ceiling.machine_peak("cpu") == {"float32": 1e9}
    assert ceiling.machine_peak("cpu") == {"float32": 1e9}


def test_a_run_that_is_faster_than_the_peak_corrects_it(timed, corpus, tmp_path):
    """As after a bad moment: no share is above one, and what was taken for the peak is not kept."""
    ceiling.machine_peak("cpu")
    [entry] = json.loads((files.home() / ceiling.FILE).read_text())
    files.write_json(files.home() / ceiling.FILE, [{**entry, "peak": {"float32": 1000.0}}])
    isoflop.pretrain([str(corpus)], "20steps", tmp_path / "run", assignments=TINY, quiet=True)
    result = read_run(tmp_path / "run").result
    assert result.peak_share == 1.0 and result.peak_flops > 1000
    assert ceiling.machine_peak("cpu") == {"float32": result.peak_flops}
