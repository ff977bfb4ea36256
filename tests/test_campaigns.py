"""The campaigns' own controls: what they look for, planted, is found."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parent / "campaigns"
ROOT = CAMPAIGNS.parents[1]


def same_bits(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CAMPAIGNS / "same_bits.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.fixture(scope="module", autouse=True)
def repository():
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("two versions are compared out of a git repository, and there is none here")


@pytest.mark.slow
def test_a_commit_trains_the_same_bits_as_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # others may compare commits of this repository at the same time
    done = same_bits("HEAD", "HEAD", "--cases", "adamw", "plan-pairs-seconds")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line.split()[:2] for line in done.stdout.splitlines()]
    assert names[:2] == [["adamw", "same"], ["plan-pairs-seconds", "same"]] and "all the same" in done.stdout
    trees = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert str(tmp_path) not in trees and not list(tmp_path.glob("same-bits-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "case", "found"),
    [
        ("loss", "adamw", "adamw/metrics.jsonl: line"),
        ("weights", "adamw", "adamw: 1 of"),
        ("plan", "plan-pairs-seconds", "plan-pairs-seconds/plan.json: tokens"),
    ],
)
def test_the_last_bit_of_one_number_is_found(planted, case, found):
    done = same_bits("HEAD", "HEAD", "--cases", case, "--poison", planted)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"DIFFERS: {found}" in done.stdout and "NOT THE SAME" in done.stdout
    assert len([line for line in done.stdout.splitlines() if "DIFFERS" in line]) == 1


def test_an_unknown_commit_is_reported():
    done = same_bits("no-such-commit", "--cases", "adamw")
    assert done.returncode and "no-such-commit" in done.stderr and "Traceback" not in done.stderr
