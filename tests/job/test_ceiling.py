"""The machine's peak is timed once, and again when it may have changed."""

import json

import pytest

from isoflop import files
from isoflop.plan import ceiling


@pytest.fixture
def timed(monkeypatch):
    """The devices that were timed, each time with another result."""
    devices = []

    def measure(device):
        devices.append(device)
        return {"float32": 1e9 * len(devices)}

    monkeypatch.setattr(ceiling, "measure_peak", measure)
    return devices


def test_a_second_start_remembers(timed):
    assert ceiling.machine_peak("cpu") == ceiling.machine_peak("cpu") == {"float32": 1e9}
    assert timed == ["cpu"]


def test_another_version_or_a_week_later_it_is_timed_anew(timed, monkeypatch):
    first = ceiling.machine_peak("cpu")
    monkeypatch.setattr(ceiling, "describe_machine", lambda device: {"torch": "another"})
    assert ceiling.machine_peak("cpu") != first


def test_it_does_not_last(timed, monkeypatch):
    first, now = ceiling.machine_peak("cpu"), ceiling.time.time()
    monkeypatch.setattr(ceiling.time, "time", lambda: now + 8 * 86_400)
    assert ceiling.machine_peak("cpu") != first
    assert len(json.loads((files.home() / ceiling.FILE).read_text())) == 1


@pytest.mark.parametrize("content", ["", "{}", "[3]", '[{"machine": {}, "time": 1, "peak": {"float32": -1}}]', "[" * 9])
def test_a_damaged_memory_is_no_memory(timed, content):
    files.home().mkdir(parents=True, exist_ok=True)
    (files.home() / ceiling.FILE).write_text(content)
    assert ceiling.machine_peak("cpu") == {"float32": 1e9}
    assert ceiling.machine_peak("cpu") == {"float32": 1e9}
