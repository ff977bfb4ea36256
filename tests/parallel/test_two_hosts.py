"""Two hosts on one machine: the cable is cut, the silent host is named, and the run resumes when it is repaired."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import two_hosts


@pytest.mark.slow
def test_a_cut_cable_is_reported_and_the_run_resumes():
    if reason := two_hosts.why_not():
        pytest.skip(reason)
    script = Path(two_hosts.__file__)
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    command = [sys.executable, str(script), "--steps", "20", "--cut-at", "8", "--silence", "8", "--impatient"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 on host right is silent" in done.stdout
    assert "20 of 20 losses are the unbroken run's, bit for bit" in done.stdout


def test_without_namespaces_the_reason_is_printed(monkeypatch):
    monkeypatch.setattr(two_hosts, "TOOLS", ("no-such-tool",))
    monkeypatch.setattr(sys, "platform", "linux")
    assert two_hosts.why_not() == "no-such-tool not found: install util-linux and iproute2"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert two_hosts.why_not() == "namespaces are Linux's"
