"""A small part of the kill campaign: a run killed at random moments loses no checkpoint and no bit."""

import subprocess
import sys
from pathlib import Path

from small import TINY

KILL = Path(__file__).parent / "campaigns" / "kill.py"


def test_a_run_killed_many_times_equals_the_uninterrupted_one(corpus):
    command = [sys.executable, str(KILL), str(corpus), "--kills", "3", "--budget", "40steps", "--seed", "1"]
    done = subprocess.run([*command, "--set", *TINY], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "0 checkpoints lost, 0 of 40 losses differ, 0 of" in last, done.stdout
    assert "steps (" in done.stdout and "kill 1: SIGKILL" in done.stdout
