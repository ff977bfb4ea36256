import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from small import write_texts

# A machine that others use as well is slow now and then, which says nothing of the example.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

# Lines are as long as they are, whatever terminal pytest has: pytest-xdist gives its workers one of 80 columns.
os.environ.pop("COLUMNS", None)

# A shell has its background jobs ignore SIGINT, and processes hand that on to those they start: tests that send it
# would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_signals():
    """What a command that is called here does with signals, as it ends, is over with the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """Prepared data and ledger of each test in a folder of its own, and one thread: tests share the machine."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path_factory.mktemp("home")))
    torch.set_num_threads(1)


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of small made-up texts: 300 kB from a few hundred words, so that a little training shows."""
    return write_texts(tmp_path / "texts")


@pytest.fixture
def scaling_data() -> Path:
    """The optional tables of published studies; tests that need them are skipped where they are absent."""
    folder = Path(os.environ.get("ISOFLOP_TEST_DATA", "")) / "scaling"
    if not os.environ.get("ISOFLOP_TEST_DATA") or not folder.is_dir():
        pytest.skip("ISOFLOP_TEST_DATA names no folder with published measurements")
    return folder


@pytest.fixture
def test_data() -> Path:
    """The optional real text; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("ISOFLOP_TEST_DATA", "")) / "data"
    if not os.environ.get("ISOFLOP_TEST_DATA") or not folder.is_dir():
        pytest.skip("ISOFLOP_TEST_DATA names no folder with real text")
    return folder
