import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch

from isoflop.kernels import compiled
from small import write_texts

# no deadline: on a shared machine an example may be slow for a moment
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

# the same width of lines in any terminal: pytest-xdist gives its workers 80 columns
os.environ.pop("COLUMNS", None)

# no kernels are compiled, also not in fixtures of a module: two runs of a test would differ in their last bits
os.environ["ISOFLOP_KERNELS"] = "0"

# A shell makes its background jobs ignore SIGINT, and child processes inherit that: tests that send it
# would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_signals():
    """Restore the signal handlers after each test: commands change them when they end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """A separate ISOFLOP_HOME per test, and one thread, since tests share the machine."""
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path_factory.mktemp("home")))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The compiled kernels, compiled once; skipped on a machine without a compiler for them."""
    before = {name: os.environ.get(name) for name in ("ISOFLOP_HOME", "ISOFLOP_KERNELS")}
    os.environ["ISOFLOP_HOME"] = str(tmp_path_factory.mktemp("kernels"))
    os.environ.pop("ISOFLOP_KERNELS", None)
    try:
        why = compiled.why_not()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    if why:
        pytest.skip(f"no kernels: {why}")


@pytest.fixture
def used(kernels, monkeypatch):
    """The kernels, switched on."""
    monkeypatch.delenv("ISOFLOP_KERNELS")


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder of small generated texts: 300 kB from a few hundred words, so that a little training has an effect."""
    return write_texts(tmp_path / "texts")


@pytest.fixture
def scaling_data() -> Path:
    """The optional tables of published studies; tests that need them are skipped without them."""
    folder = Path(os.environ.get("ISOFLOP_TEST_DATA", "")) / "scaling"
    if not os.environ.get("ISOFLOP_TEST_DATA") or not folder.is_dir():
        pytest.skip("ISOFLOP_TEST_DATA names no folder with published measurements")
    return folder


@pytest.fixture
def test_data() -> Path:
    """The optional real text; tests that need it are skipped without it."""
    folder = Path(os.environ.get("ISOFLOP_TEST_DATA", "")) / "data"
    if not os.environ.get("ISOFLOP_TEST_DATA") or not folder.is_dir():
        pytest.skip("ISOFLOP_TEST_DATA names no folder with real text")
    return folder
