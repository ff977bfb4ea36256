import socket
import time

import pytest

from isoflop.parallel.mesh import Group
from isoflop.parallel.watch import Watchdog

BEAT = {"pulse": 1, "host": "a", "node": 0, "step": 7, "doing": "in the step", "marks": 20, "waits": True}


@pytest.fixture
def watchdog(tmp_path) -> Watchdog:
    return Watchdog(Group(0, 3), 60.0, tmp_path, 0)


def hear(watchdog: Watchdog, *beats: dict, ago: float = 0.0) -> None:
    watchdog.heard = {rank: (BEAT | beat, time.monotonic() - ago) for rank, beat in enumerate(beats)}


def test_a_process_without_heartbeats_is_silent(watchdog):
    hear(watchdog, {}, {"waits": False}, {"marks": 3, "host": "b"})
    beat, at = watchdog.heard[2]
    watchdog.heard[2] = (beat, at - 100)
    now = time.monotonic()
    assert watchdog.at_fault(now) == [2]
    assert watchdog.words([2], now) == (
        "no progress for 60 s: rank 2 on host b is silent, its last heartbeat was at step 7, in the step"
    )


def test_of_the_live_processes_the_one_that_does_not_wait_hangs(watchdog):
    hear(watchdog, {}, {"waits": False, "step": 6}, {"marks": 3})
    now = time.monotonic()
    assert watchdog.at_fault(now) == [1]
    assert "rank 1 on host a hangs at step 6" in watchdog.words([1], now)


def test_if_all_wait_the_one_furthest_behind_is_named(watchdog):
    hear(watchdog, {}, {}, {"marks": 3})
    assert watchdog.at_fault(time.monotonic()) == [2]


def test_a_process_that_never_started_is_named(watchdog):
    hear(watchdog, {}, {})
    now = time.monotonic()
    assert watchdog.at_fault(now) == [2]
    assert "rank 2 never sent a heartbeat" in watchdog.words([2], now)


def test_one_process_is_not_watched(tmp_path):
    with Watchdog(Group(), 0.01, tmp_path, 0) as watchdog:
        watchdog.at(1, "in the step")
        time.sleep(0.1)
    assert not list(tmp_path.iterdir())


def test_a_process_that_hangs_is_named_with_its_stack(two, groups):
    run, errors = groups / "hang", [(groups / "two" / f"rank-{rank}.err").read_text() for rank in range(2)]
    messages = [line for text in errors for line in text.splitlines() if line.startswith("isoflop: ")]
    assert len(messages) == 1
    assert f"rank 1 on host {socket.gethostname()} hangs at step 5, in the step" in messages[0]
    assert f"--resume {run}" in messages[0]
    assert "sleeps_for_ever" in (run / "stacks" / "rank-1.txt").read_text()
    assert '"hung"' in (run / "events.jsonl").read_text()
