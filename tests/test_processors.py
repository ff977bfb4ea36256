"""The number of processors and the load, from fake system files."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop import processors
from isoflop.processors import Load, Reading


def system(tmp_path, group="0::/", **files):
    """A /proc and a /sys/fs/cgroup with these files, "/" in their names written as "__"."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(group + "\n")
    groups.mkdir()
    for name, text in files.items():
        path = groups / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return {"groups": groups, "proc": proc}


QUOTAS = [
    ("0::/", {"cpuDOTmax": "150000 100000\n"}, 1.5),
    ("0::/", {"cpuDOTmax": "max 100000\n"}, None),
    ("0::/job", {"job__cpuDOTmax": "max 100000\n", "cpuDOTmax": "400000 100000\n"}, 4.0),
    ("0::/a/b", {"a__b__cpuDOTmax": "300000 100000\n", "a__cpuDOTmax": "200000 100000\n"}, 2.0),
    ("1:cpu:/", {"cpu__cpuDOTcfs_quota_us": "250000\n", "cpu__cpuDOTcfs_period_us": "100000\n"}, 2.5),
    ("1:cpu:/", {"cpu__cpuDOTcfs_quota_us": "-1\n", "cpu__cpuDOTcfs_period_us": "100000\n"}, None),
    (
        "4:cpu,cpuacct:/x",
        {"cpu,cpuacct__cpuDOTcfs_quota_us": "50000", "cpu,cpuacct__cpuDOTcfs_period_us": "100000"},
        0.5,
    ),
    ("4:cpuacct,cpu:/x", {"cpu__x__cpuDOTcfs_quota_us": "50000", "cpu__x__cpuDOTcfs_period_us": "100000"}, 0.5),
    ("2:memory:/x", {"memory__cpuDOTmax": "100000 100000"}, None),
    ("0::/", {"cpuDOTmax": "nothing that it could be"}, None),
    ("0::/", {"cpuDOTmax": "100000 0"}, None),
    ("nonsense", {}, None),
    ("0::/../../else", {}, None),
]


@pytest.mark.parametrize(("group", "files", "expected"), QUOTAS)
def test_a_control_group_limits_the_processors(tmp_path, monkeypatch, group, files, expected):
    where = system(tmp_path, group, **files)
    assert processors.quota(**where) == expected
    monkeypatch.setattr(processors, "processors", lambda: range(8))
    assert processors.cores(**where) == (8 if expected is None else max(1, int(expected)))


def test_without_control_groups_all_processors_count(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "processors", lambda: range(3))
    assert processors.cores(tmp_path / "no", tmp_path / "no") == 3
    reading = processors.read(tmp_path / "no")
    assert (reading.worked, reading.idle, reading.stolen, reading.waited) == (None, None, None, None)


def test_only_the_processors_of_this_process_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(processors, "processors", lambda: {1})
    tick = os.sysconf("SC_CLK_TCK")
    lines = [
        "cpu  9 9 9 9 9 9 9 9 0 0",
        "cpu0 9 9 9 9 9 9 9 9 0 0",
        f"cpu1 {tick} 0 0 {2 * tick} 0 0 0 {3 * tick} 0 0",
        "x",
    ]
    (tmp_path / "stat").write_text("\n".join(lines))
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text("some avg10=1.00 avg60=1.00 avg300=1.00 total=2500000\nfull total=1\n")
    reading = processors.read(tmp_path)
    assert (reading.worked, reading.idle, reading.stolen, reading.waited) == (1.0, 2.0, 3.0, 2.5)


def load(own, others=None, idle=None, stolen=0.0, waited=None, seconds=2.0):
    worked = None if others is None else (own + others) * seconds
    before = Reading(
        5.0, 1.0, *([None] * 3 if worked is None else [0.0, 0.0, 0.0]), 0.0 if waited is not None else None
    )
    after = Reading(
        5.0 + seconds,
        1.0 + own * seconds,
        worked,
        None if worked is None else idle * seconds,
        None if worked is None else stolen * seconds,
        None if waited is None else waited * seconds,
    )
    return Load.between(before, after)


LOADS = [
    (load(1.9, 0.05, 0.05), ""),
    (load(1.0, 0.05, 0.95), ""),
    (load(1.0, 1.0, 0.0), "other programs used 1.0 processors"),
    (load(1.0, 1.0, 2.0), ""),  # there are processors left for everybody
    (load(1.5, 0.5, 0.0), "other programs used 0.5 processors"),
    (load(1.4, 0.0, 0.0, stolen=0.6), "the host took 0.6 processors away"),
    (load(0.4, 0.05, 1.5), "it got 0.4 processor seconds per second"),
    (load(0.5), "it got 0.5 processor seconds per second"),
    (load(1.0, waited=0.6), "programs waited for a processor 60% of the time"),
    (load(1.0, waited=0.02), ""),
    (load(1.0), ""),
    (load(0.0, 0.0, 0.0, seconds=0.01), ""),  # too short for the counters
    (load(1.0, 0.0, 0.0), ""),  # a system whose /proc/stat is all zeros
]


@pytest.mark.parametrize(("seen", "trouble"), LOADS)
def test_a_busy_machine_is_distinguished_from_a_slow_one(seen, trouble):
    assert seen.trouble() == trouble


def test_waiting_for_a_gpu_is_not_reported():
    assert load(0.3, 0.0, 1.7).trouble(computing=False) == ""


def test_while_asleep_all_work_is_that_of_other_programs():
    assert processors.busy_now(load(0.0, 0.05, 1.95)) == ""
    assert "other programs" in processors.busy_now(load(0.0, 1.0, 1.0))
    assert "host" in processors.busy_now(load(0.0, 0.0, 1.5, stolen=0.5))
    assert "waited" in processors.busy_now(load(0.0, waited=0.5))
    assert processors.busy_now(load(0.0)) == ""


@given(st.integers(1, 300))
def test_one_half_and_all_threads_are_tried(most):
    counts = list(processors.thread_counts(most))
    assert counts[0] == 1 and counts[-1] == most and counts == sorted(set(counts)) and len(counts) <= 3


def test_this_machine_can_be_read():
    assert processors.cores() >= 1
    assert processors.load_now(0.01).seconds > 0
